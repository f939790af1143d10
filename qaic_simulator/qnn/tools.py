"""Stand-ins for the two tools of QNN (QAIRT): their arguments, their files, and what they write.

They refuse more than the real tools do, and never less: what is let through here was seen in public, or is documented.
Graphs are held to the rules of the stand-in compiler, and the program is written as that one writes it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qaic_simulator.compiler import (
    FAULTS,
    SIMULATOR_LINE,
    Breakdown,
    break_down,
    environment_fault,
    environment_profile,
    tell,
)
from qaic_simulator.profiles import Profile, profile_of
from qaic_simulator.qnn.backend import check_formats, check_library, check_settings, read_config
from qaic_simulator.qnn.building import Target, build, check_network, write_serialized
from qaic_simulator.qnn.converted import read_converted, write_converted
from qaic_simulator.qnn.custom_io import Conversion, check_against_network, read_io
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
CONVERTER, GENERATOR = "qairt-converter", "qnn-context-binary-generator"
FAULT_VARIABLES: Mapping[str, str] = {CONVERTER: "QAIC_SIM_CONVERTER_FAULT", GENERATOR: "QAIC_SIM_GENERATOR_FAULT"}
"""How the environment makes a tool fail: as the compiler does, or by writing nothing (`nothing`)."""
NOTHING = "nothing"
USUAL = profile_of("1.22")

Arguments = Mapping[str, Sequence[str]]
Checked = TypeVar("Checked")


@dataclass(frozen=True)
class ContextBinary:
    """What the generator is asked for."""

    conversion: Conversion
    settings: Mapping[str, Any]
    binary: Path
    """The compiled program."""
    serialized: str
    """What is written beside it, without its ending."""
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


def convert(conversion: Conversion, profile: Profile = USUAL) -> None:
    """Write the converted file, or refuse a network that the device's compiler would not take."""
    check_network(conversion, profile)
    write_converted(conversion)


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
    return ContextBinary(conversion, settings, folder / binary, given["--binary_file"][0], devices)


def generate(asked: ContextBinary, profile: Profile = USUAL, fault: str = "") -> None:
    """Write the compiled program, or refuse one that does not fit the device."""
    settings = asked.settings
    target = Target(
        settings["compiler_num_of_cores"], asked.devices, settings.get("compiler_mxfp6_matmul_weights", False)
    )
    tell(build(asked.conversion, target, asked.binary.parent, profile, fault), f"{GENERATOR} (simulated): ")
    write_serialized(asked.binary.parent, asked.serialized)


# Both


CHECKS: Mapping[str, Callable[[Sequence[str]], object]] = {
    CONVERTER: check_converter,
    GENERATOR: check_context_binary,
}
"""The check of each tool, by the tool's name."""


def main_converter(argv: Sequence[str] | None = None) -> int:
    """The stand-in for qairt-converter; what it ends with."""
    return _run(CONVERTER, argv, check_converter, lambda asked, profile, _: convert(asked, profile))


def main_generator(argv: Sequence[str] | None = None) -> int:
    """The stand-in for qnn-context-binary-generator; what it ends with."""
    return _run(GENERATOR, argv, check_context_binary, generate)


def _run(
    tool: str,
    argv: Sequence[str] | None,
    check: Callable[[Sequence[str]], Checked],
    work: Callable[[Checked, Profile, str], None],
) -> int:
    print(SIMULATOR_LINE, flush=True)
    try:
        profile, fault = environment_profile(), environment_fault(FAULT_VARIABLES[tool], (*FAULTS, NOTHING))
        asked = check(sys.argv[1:] if argv is None else argv)
        break_down(fault)
        if fault != NOTHING:
            work(asked, profile, fault)
    except Refusal as refusal:
        return _fail(tool, f"{refusal.message} [{refusal.rule.id}]", refusal.exit_code)
    except Breakdown as breakdown:
        return _fail(tool, str(breakdown), breakdown.exit_code)
    except (OSError, ValueError) as error:
        return _fail(tool, str(error), 1)
    return 0


def _fail(tool: str, message: str, exit_code: int) -> int:
    sys.stderr.write(f"{tool} (simulated): ERROR: {message}\n")
    return exit_code
