"""All that the stand-in compiler asks of a graph, once for each specialization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from qaic_simulator.command_line.arguments import Arguments
from qaic_simulator.command_line.checking import Checked
from qaic_simulator.graph import interface as interface
from qaic_simulator.graph.binding import Program, bind_program, check_fit
from qaic_simulator.graph.constants import check_constants, check_folded
from qaic_simulator.graph.declared import check_declared, check_results
from qaic_simulator.graph.denominators import check_denominators
from qaic_simulator.graph.doubts import doubts
from qaic_simulator.graph.file import check_file, with_small_data
from qaic_simulator.graph.functions import check_definitions, check_functions
from qaic_simulator.graph.kernels import check_kernels
from qaic_simulator.graph.memory import Share, check_inputs, check_memory, check_operators
from qaic_simulator.graph.nodes import check_nodes
from qaic_simulator.graph.schemas import check_schemas
from qaic_simulator.graph.values import check_values
from qaic_simulator.profiles import Profile
from qaic_simulator.rules import Warned
from qaic_simulator.side_files.partitions import DUMP_OPTION
from qaic_simulator.side_files.specializations import Specialization, check_against


@dataclass(frozen=True)
class StaticShapes:
    """The shapes of one specialization, in the order of the graph."""

    name: str
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Imported:
    """A graph that passed."""

    specializations: tuple[StaticShapes, ...]
    live_inputs: tuple[str, ...]
    """Inputs that an output depends on; the compiler tells specializations apart by these alone."""
    bytes_per_device: int
    """Of constants, states, inputs and outputs."""
    warnings: tuple[Warned, ...] = ()
    nodes: tuple[str, ...] = ()
    """Names of those that run on a device, where they are asked for."""


def check_graph(model: onnx.ModelProto, model_path: Path, checked: Checked, profile: Profile) -> Imported:
    """What is known of a graph that the compiler takes, or a refusal."""
    if checked.arguments is None:
        raise ValueError("A graph is checked for a command that was accepted.")
    check_file(model, model_path, profile)
    check_definitions(model, profile)
    check_declared(model.graph, profile)
    check_schemas(model, profile)
    entries = checked.specializations or (Specialization("", checked.arguments.symbols),)
    if checked.arguments.has("sub-functions"):
        check_functions(model, profile)
    interface.check_symbols(model.graph, entries, profile)
    for entry in entries:
        check_inputs(model.graph, entry.symbols, sum(_devices(checked)), profile)
    filled = with_small_data(model, model_path.parent)
    programs = [_check_program(filled, entry, profile) for entry in entries]
    check_kernels(programs[0], checked.arguments.hardware)
    if checked.arguments.has("retained-state"):
        interface.check_kept(programs)
    needed = _check_resources(programs, model, checked.arguments, checked)
    if checked.arguments.has("convert-to-fp16"):
        check_constants(programs[0], model_path.parent)
        for program in programs:
            check_folded(program)
        check_denominators(programs[0], checked.node_precision.fp32 if checked.node_precision else ())
    live = interface.live_inputs(programs[0])
    sizes = {value.name: interface.sizes_of(value) for value in model.graph.input if value.name in live}
    check_against(sizes, entries, profile)
    _check_side_files(programs[0], model, checked)
    nodes = interface.kept_nodes(programs, model) if checked.arguments.has(DUMP_OPTION) else ()
    return Imported(_shapes(programs, entries), live, needed, doubts(programs[0], checked), nodes)


def _check_resources(
    programs: Sequence[Program], model: onnx.ModelProto, arguments: Arguments, checked: Checked
) -> int:
    """Before the constants are looked at, which takes long where there are too many. Returns the bytes of a device."""
    counts = _devices(checked)
    needed = check_memory(programs, arguments, checked.custom_io, _shares(programs[0], model, checked))
    for program in programs:
        check_operators(program, arguments.has("mxfp6-matmul"), min(counts))
    return needed


def _shares(program: Program, model: onnx.ModelProto, checked: Checked) -> list[Share]:
    partitions = checked.partitions.partitions if checked.partitions else ()
    if len(partitions) < 2:
        return [Share("", sum(_devices(checked)))]
    values = interface.values_of_partitions(program, model, partitions)
    return [
        Share(partition.name, len(partition.devices), names)
        for partition, names in zip(partitions, values, strict=True)
    ]


def _devices(checked: Checked) -> list[int]:
    """How many there are in each partition."""
    partitions = checked.partitions.partitions if checked.partitions else ()
    return [len(partition.devices) for partition in partitions] or [1]


def _check_program(model: onnx.ModelProto, entry: Specialization, profile: Profile) -> Program:
    program = bind_program(model, entry.symbols, profile)
    check_nodes(program)
    check_fit(program)
    check_results(program, model.graph, entry.symbols)
    check_values(program)
    interface.check_states(program)
    return program


def _check_side_files(program: Program, model: onnx.ModelProto, checked: Checked) -> None:
    interface.check_custom_io(program, checked.custom_io)
    if checked.node_precision:
        interface.check_node_precision(program, model, checked.node_precision)
    if checked.partitions:
        interface.check_partitions(program, model, checked.partitions)


def _shapes(programs: Sequence[Program], entries: Sequence[Specialization]) -> tuple[StaticShapes, ...]:
    return tuple(
        StaticShapes(
            entry.name,
            {value.name: program.shape(value.name) for value in interface.own_inputs(program.bound.model.graph)},
            {value.name: program.shape(value.name) for value in program.bound.model.graph.output},
        )
        for program, entry in zip(programs, entries, strict=True)
    )
