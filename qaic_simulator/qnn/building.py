"""From what QNN's tools are told to what the compiler's own checks and its writer of programs take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from qaic_simulator.command_line.arguments import Arguments
from qaic_simulator.command_line.checking import Checked
from qaic_simulator.compiler import write_binary
from qaic_simulator.graph.checks import check_graph
from qaic_simulator.graph.file import read_model
from qaic_simulator.graph.interface import own_inputs
from qaic_simulator.profiles import TOOLS, Profile
from qaic_simulator.qnn.converted import unpacked
from qaic_simulator.qnn.custom_io import Conversion, bound_symbols
from qaic_simulator.rules import Warned
from qaic_simulator.side_files.custom_io import input_of_state
from qaic_simulator.side_files.partitions import MOST_DEVICES, Device, Partition, PartitionConfig
from qaic_simulator.side_files.specializations import Specialization

HARDWARE = "ai100"
PRECISIONS: Mapping[str, str] = {"float32": "float", "float16": "float16", "uint8": "mxint8"}
"""Types of the converter that are floats in the network, and what the compiler calls them."""
SERIALIZED = b"qaic simulator: nothing reads this\n"


@dataclass(frozen=True)
class Target:
    """What a program is built for."""

    cores: int = 1
    devices: int = 1
    mxfp6: bool = False


ROOMIEST = Target(devices=MOST_DEVICES, mxfp6=True)
"""What the converter may count on, who is not told what the program is for."""


def check_network(conversion: Conversion, profile: Profile) -> None:
    """Refuse a network that the compiler of the device would not take. Raises `Refusal`."""
    model = read_model(conversion.network, profile)
    check_graph(model, conversion.network, _checked(conversion, conversion.network, ROOMIEST), profile)


def build(
    conversion: Conversion, target: Target, folder: Path, profile: Profile, fault: str = ""
) -> tuple[Warned, ...]:
    """Write the program into a folder, which is empty; returns what is to be told of the network."""
    with unpacked(conversion.output) as network:
        return write_binary(folder, _checked(conversion, network, target), profile, fault)


def write_serialized(folder: Path, name: str) -> None:
    """The file beside the program, which the real generator writes for runtimes of its own."""
    (folder / f"{name}.bin").write_bytes(SERIALIZED)


def _checked(conversion: Conversion, network: Path, target: Target) -> Checked:
    """The same in the words of the compiler."""
    given = {"m": str(network), "aic-hw-version": HARDWARE, "aic-num-cores": str(target.cores), "convert-to-fp16": "1"}
    keeps = any(input_of_state(tensor.name) for tensor in conversion.outputs)
    flags = {"mxfp6-matmul": target.mxfp6, "retained-state": keeps}
    values = {**given, **{name: "1" for name, is_set in flags.items() if is_set}}
    return Checked(
        Arguments(TOOLS[0], {name: (value,) for name, value in values.items()}),
        _partitions(target),
        _specializations(conversion, network),
        {t.name: PRECISIONS[t.dtype] for t in (*conversion.inputs, *conversion.outputs) if t.dtype in PRECISIONS},
    )


def _partitions(target: Target) -> PartitionConfig | None:
    """All devices work on everything."""
    if target.devices == 1:
        return None
    devices = tuple(Device(number, target.cores) for number in range(target.devices))
    return PartitionConfig((Partition("Partition0", devices, ()),), (tuple(range(target.devices)),))


def _specializations(conversion: Conversion, network: Path) -> tuple[Specialization, ...]:
    """The numbers behind the symbols of the network: the converter is told shapes only."""
    graph = onnx.load(network, load_external_data=False).graph
    entries = {value.name: value for value in own_inputs(graph)}
    names: Sequence[str] = conversion.graph_names
    return tuple(
        Specialization(name, bound_symbols(conversion.inputs, entries, index)) for index, name in enumerate(names)
    )
