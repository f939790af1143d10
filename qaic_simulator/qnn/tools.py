"""Stand-ins for the two tools of QNN (QAIRT), as far as their arguments and files go.

They refuse more than the real tools do, and never less: what is let through here was seen in public, or is documented.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qaic_simulator.qnn.backend import check_formats, check_library, check_settings, read_config
from qaic_simulator.qnn.custom_io import Conversion, Tensor, check_against_network, read_io
from qaic_simulator.qnn.rules import refuse
from qaic_simulator.rules import Refusal

FLAG, MANY = 0, -1
"""Beside numbers: how many values an option takes."""
CONVERTER_OPTIONS: Mapping[str, int] = {
    "--preserve_io_datatype": MANY,
    "--op_package_config": MANY,
    **dict.fromkeys(
        ("--input_network", "--output_path", "--config", "--float_bias_bitwidth", "--float_bitwidth",
         "--target_backend", "--target_soc_model", "--copyright_file", "--set_model_version", "--export_format",
         "--quantization_overrides", "--converter_op_package_lib", "--package_name", "--lora_weight_list"), 1),
    **dict.fromkeys(
        ("--onnx_skip_simplification", "--onnx_defer_loading", "--onnx_validate_models", "--onnx_summary",
         "--enable_framework_trace"), FLAG),
}  # fmt: skip
CONTEXT_BINARY_OPTIONS: Mapping[str, int] = dict.fromkeys(
    ("--binary_file", "--backend_binary", "--output_dir", "--backend", "--dlc_path", "--config_file",
     "--data_format_config", "--log_level", "--profiling_level", "--op_packages"), 1)  # fmt: skip
CHOICES: Mapping[str, Sequence[str]] = {
    "--float_bitwidth": ("16", "32"),
    "--float_bias_bitwidth": ("16", "32"),
    "--export_format": ("DLC_DEFAULT", "DLC_STRIP_QUANT"),
    "--log_level": ("error", "warn", "info", "verbose", "debug"),
    "--profiling_level": ("basic", "detailed"),
}
CONVERTER_READS = ("--input_network", "--config", "--copyright_file", "--quantization_overrides", "--lora_weight_list")
CONTEXT_BINARY_READS = ("--backend", "--dlc_path", "--config_file", "--data_format_config")
CONVERTER_NEEDS = (
    "--input_network", "--output_path", "--config", "--float_bias_bitwidth", "--float_bitwidth",
    "--preserve_io_datatype", "--onnx_skip_simplification", "--target_backend",
)  # fmt: skip
CONTEXT_BINARY_NEEDS = (
    "--binary_file", "--backend_binary", "--output_dir", "--backend", "--dlc_path", "--config_file",
)  # fmt: skip
MARK = "qairt-converter, simulated"

Arguments = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class ContextBinary:
    """What the generator is asked for."""

    conversion: Conversion
    settings: Mapping[str, Any]
    binary: Path
    """The compiled program."""
    devices: int = 1


# Arguments


def _parse(argv: Sequence[str], options: Mapping[str, int]) -> dict[str, list[str]]:
    given: dict[str, list[str]] = {}
    rest = list(argv)
    while rest:
        name = rest.pop(0)
        _check_name(name, options, given)
        values: list[str] = []
        while rest and not rest[0].startswith("-") and len(values) != options[name]:
            values.append(rest.pop(0))
        if options[name] != MANY and len(values) < options[name] or not all(values):
            refuse("qnn.arguments.no-value", f"{name} needs a value that is not empty.")
        given[name] = values
    return given


def _check_name(name: str, options: Mapping[str, int], given: Arguments) -> None:
    if not name.startswith("-"):
        refuse("qnn.arguments.stray", f"'{name}' belongs to no option.")
    if "=" in name:
        refuse("qnn.arguments.joined", f"'{name}' has a value behind '=': put it into the next argument.")
    if name not in options:
        refuse("qnn.arguments.unknown", f"unrecognized arguments: {name}")
    if name in given:
        refuse("qnn.arguments.duplicate", f"{name} is given more than once.")


def _check_arguments(given: Arguments, needed: Sequence[str], read: Sequence[str]) -> None:
    for name in needed:
        if name not in given:
            refuse("qnn.required", f"{name} is missing.")
    for name, known in CHOICES.items():
        if name in given and given[name][0] not in known:
            refuse("qnn.values", f"{name} does not know '{given[name][0]}'; it knows {', '.join(known)}.")
    for name in read:
        if name in given and not Path(given[name][0]).is_file():
            refuse("qnn.files.absent", f"{name}: there is no file {given[name][0]}.")


# The converter


def check_converter(argv: Sequence[str]) -> Conversion:
    """Check a command of qairt-converter, without its own name, and its files. Raises `Refusal`."""
    given = _parse(argv, CONVERTER_OPTIONS)
    _check_arguments(given, CONVERTER_NEEDS, CONVERTER_READS)
    network, output = Path(given["--input_network"][0]), Path(given["--output_path"][0])
    if given["--target_backend"] != ["AIC"]:
        refuse("qnn.target", f"--target_backend is {given['--target_backend'][0]}; this device is AIC.")
    if given["--float_bitwidth"] != ["16"] or given["--float_bias_bitwidth"] != ["32"]:
        refuse("qnn.target", "This device takes --float_bitwidth 16 with --float_bias_bitwidth 32.")
    if given["--preserve_io_datatype"]:
        refuse("qnn.target", "--preserve_io_datatype is given without names: it holds for all of them.")
    if output.suffix != ".dlc" or network.suffix != ".onnx":
        refuse("qnn.names", f"{network.name} becomes {output.name}, but an .onnx becomes a .dlc.")
    if not output.parent.is_dir():
        refuse("qnn.files.absent", f"--output_path: there is no folder {output.parent}.")
    conversion = Conversion(network, output, *read_io(Path(given["--config"][0])))
    check_against_network(conversion)
    return conversion


def convert(conversion: Conversion) -> None:
    """Write the converted file: no graph, but a record of what it would hold, marked as such."""
    record = {
        "made_by": MARK,
        "network": str(conversion.network),
        "sha256": hashlib.sha256(conversion.network.read_bytes()).hexdigest(),
        "inputs": [asdict(tensor) for tensor in conversion.inputs],
        "outputs": [asdict(tensor) for tensor in conversion.outputs],
    }
    conversion.output.write_text(json.dumps(record, indent=1), encoding="utf-8")


def main_converter(argv: Sequence[str] | None = None) -> int:
    """The stand-in for qairt-converter; what it ends with."""
    try:
        convert(check_converter(sys.argv[1:] if argv is None else argv))
    except Refusal as refusal:
        sys.stderr.write(f"qairt-converter (simulated): ERROR: {refusal.message} [{refusal.rule.id}]\n")
        return refusal.exit_code
    return 0


# The generator of the program


def check_context_binary(argv: Sequence[str]) -> ContextBinary:
    """Check a command of qnn-context-binary-generator, without its own name, and its files. Raises `Refusal`."""
    given = _parse(argv, CONTEXT_BINARY_OPTIONS)
    _check_arguments(given, CONTEXT_BINARY_NEEDS, CONTEXT_BINARY_READS)
    check_library("--backend", Path(given["--backend"][0]), "libQnnAic.so")
    folder, binary = Path(given["--output_dir"][0]), given["--backend_binary"][0]
    if binary != "programqpc.bin" or given["--binary_file"][0] != Path(given["--binary_file"][0]).name:
        refuse("qnn.names", f"{binary} is not programqpc.bin, or {given['--binary_file'][0]} is not a plain name.")
    if not folder.is_dir():
        refuse("qnn.files.absent", f"--output_dir: there is no folder {folder}.")
    if any(folder.iterdir()):
        refuse("qnn.files.occupied", f"--output_dir: {folder} is not empty.")
    conversion = read_converted(Path(given["--dlc_path"][0]))
    settings = read_config(Path(given["--config_file"][0]))
    devices = check_settings(settings, conversion)
    formats = given.get("--data_format_config")
    check_formats(Path(formats[0]) if formats else None, conversion)
    return ContextBinary(conversion, settings, folder / binary, devices)


def read_converted(path: Path) -> Conversion:
    """What the stand-in for the converter wrote."""
    try:
        record = json.loads(path.read_bytes())
        if record["made_by"] != MARK:
            raise ValueError
        inputs, outputs = (tuple(_tensor_from(item) for item in record[key]) for key in ("inputs", "outputs"))
        if not inputs:
            raise ValueError
        return Conversion(Path(record["network"]), path, inputs, outputs)
    except (ValueError, KeyError, TypeError, RecursionError):
        refuse("qnn.dlc", f"{path.name} was not written by the stand-in for qairt-converter.")


def _tensor_from(record: Mapping[str, Any]) -> Tensor:
    return Tensor(record["name"], record["dtype"], tuple(tuple(shape) for shape in record["shapes"]))


CHECKS: Mapping[str, Callable[[Sequence[str]], object]] = {
    "qairt-converter": check_converter,
    "qnn-context-binary-generator": check_context_binary,
}
"""The check of each tool, by the tool's name."""
