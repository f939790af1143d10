"""The file that gives inputs and outputs a precision of their own: a YAML list of names and precisions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qaic_simulator.profiles import Hardware, Profile
from qaic_simulator.side_files.yaml_file import briefly, read_yaml

PRECISIONS = ("float", "float16", "bfloat16", "int8", "mxint8")
REQUIRED_KEYS = ("IOName", "Precision")
KEYS = (*REQUIRED_KEYS, "Layout", "Scale", "Offset")
STATE_SUFFIXES = ("_InternalRetainedState", "_RetainedState")
"""What the output of a retained state is called beyond its input; the first, within sub-functions."""


def read_custom_io(path: Path, hardware: Hardware, profile: Profile) -> dict[str, str]:
    """The precision of each input and output that the file lists."""
    content = read_yaml(path, profile)
    if not isinstance(content, list):
        profile.refuse("custom-io.list", f"{path.name} is not a list of inputs and outputs.")
    precisions: dict[str, str] = {}
    for item in content:
        name, precision = _read_item(item, profile)
        if name in precisions:
            profile.refuse("custom-io.twice", f"{name} is listed twice.")
        precisions[name] = precision
    _check_pairs(precisions, profile)
    _check_hardware(precisions, hardware, profile)
    return precisions


def _read_item(item: Any, profile: Profile) -> tuple[str, str]:
    if not isinstance(item, dict) or not all(isinstance(item.get(key), str) and item[key] for key in REQUIRED_KEYS):
        profile.refuse("custom-io.item", f"An item has no {' or no '.join(REQUIRED_KEYS)}: {briefly(item)}")
    for key in item:
        if key not in KEYS:
            profile.refuse("custom-io.key", f"Nobody reads the key '{key}'; known are {', '.join(KEYS)}.")
    name, precision = item["IOName"], item["Precision"]
    if precision not in PRECISIONS:
        profile.refuse("custom-io.precision", f"{name} has precision '{precision}', not {', '.join(PRECISIONS)}.")
    return name, precision


def input_of_state(name: str) -> str:
    """The input that a retained state's output belongs to; empty for other names."""
    return next((name.removesuffix(suffix) for suffix in STATE_SUFFIXES if name.endswith(suffix)), "")


def _check_pairs(precisions: Mapping[str, str], profile: Profile) -> None:
    states = {name: input_of_state(name) for name in precisions if input_of_state(name)}
    for output, entry in states.items():
        if precisions.get(entry) != precisions[output]:
            found = precisions.get(entry, "not listed")
            profile.refuse("custom-io.pair", f"{output} is {precisions[output]}, but {entry} is {found}.")
    paired = {*states, *states.values()}
    for name, precision in precisions.items():
        if precision == "mxint8" and name not in paired:
            profile.refuse("custom-io.mxint8", f"{name} is mxint8, but is no side of a listed retained state.")


def _check_hardware(precisions: Mapping[str, str], hardware: Hardware, profile: Profile) -> None:
    if "bfloat16" in precisions.values() and not hardware.has_bfloat16:
        profile.refuse("custom-io.bfloat16", f"bfloat16 has no kernels on {hardware.name}.")
