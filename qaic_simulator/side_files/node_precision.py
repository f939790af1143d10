"""The file that keeps single nodes in fp16 or fp32, by the names of their first outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qaic_simulator.profiles import Profile
from qaic_simulator.side_files.yaml_file import read_yaml

FP16_KEY = "FP16NodeInstanceNames"
FP32_KEY = "FP32NodeInstanceNames"


@dataclass(frozen=True)
class NodePrecision:
    """First outputs of the nodes that keep a precision."""

    fp16: tuple[str, ...]
    fp32: tuple[str, ...]


def read_node_precision(path: Path, profile: Profile) -> NodePrecision:
    """The two lists of a node-precision file."""
    content = read_yaml(path, profile)
    if not isinstance(content, dict):
        profile.refuse("node-precision.mapping", f"{path.name} is not a mapping.")
    for key in content:
        if key not in (FP16_KEY, FP32_KEY):
            profile.refuse("node-precision.key", f"'{key}' is neither {FP16_KEY} nor {FP32_KEY}.")
    fp16, fp32 = (_read_names(content, key, profile) for key in (FP16_KEY, FP32_KEY))
    if not fp16 and not fp32:
        profile.refuse("node-precision.none", f"{path.name} names no node.")
    both = sorted(set(fp16) & set(fp32))
    if both:
        profile.refuse("node-precision.both", f"In both lists: {', '.join(both)}.")
    return NodePrecision(fp16, fp32)


def _read_names(content: dict[str, Any], key: str, profile: Profile) -> tuple[str, ...]:
    names = content.get(key) or []  # a key without a value is one without names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        profile.refuse("node-precision.names", f"{key} is not a list of names.")
    return tuple(names)
