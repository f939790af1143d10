"""What of a graph is compiled all the same, but seldom meant."""

from __future__ import annotations

from collections.abc import Iterator

from qaic_simulator.command_line.checking import Checked
from qaic_simulator.graph.binding import Program
from qaic_simulator.graph.interface import own_inputs
from qaic_simulator.rules import Warned, warned
from qaic_simulator.side_files.custom_io import input_of_state

STATE_PREFIX = "past_"
"""How the inputs of retained states are called by convention."""
HEADS, RANK = 1, 4
"""A cache is `[rows, heads, slots, numbers]`."""


def doubts(program: Program, checked: Checked) -> tuple[Warned, ...]:
    """Warnings about one specialization: they are the same for all."""
    return (*_float_io(checked), *_state_inputs(program, checked), *_uneven_heads(program, checked))


def _states(program: Program) -> set[str]:
    """Inputs that an output keeps."""
    return {input_of_state(value.name) for value in program.bound.model.graph.output} - {""}


def _float_io(checked: Checked) -> Iterator[Warned]:
    """Of those that a user lists; what nobody lists has the type of the graph, as it is meant to."""
    needed = ("convert-to-fp16", "custom-IO-list-file")
    if checked.arguments is None or not all(checked.arguments.has(name) for name in needed):
        return
    for name in (name for name, precision in checked.custom_io.items() if precision == "float"):
        yield warned(
            "warned.float-io", f"{name} is kept in float32, but all math is fp16: it is converted in each run."
        )


def _state_inputs(program: Program, checked: Checked) -> Iterator[Warned]:
    if checked.arguments is None or not checked.arguments.has("retained-state"):
        return
    kept = _states(program)
    for value in own_inputs(program.bound.model.graph):
        if value.name.startswith(STATE_PREFIX) and value.name not in kept:
            text = (
                f"{value.name} has no output {value.name}_RetainedState: it is an input like others, and not retained."
            )
            yield warned("warned.state-input", text)


def _uneven_heads(program: Program, checked: Checked) -> Iterator[Warned]:
    """One for all states with the same number of heads."""
    partitions = checked.partitions.partitions if checked.partitions else ()
    slices = max((len(partition.devices) for partition in partitions), default=1)
    told: set[int] = set()
    for name in sorted(_states(program)):
        shape = program.shape(name) if program.bound.is_static(name) else ()
        if len(shape) == RANK and shape[HEADS] % slices and shape[HEADS] not in told:
            told.add(shape[HEADS])
            heads = f"{shape[HEADS]} head{'s' if shape[HEADS] != 1 else ''}"
            text = f"{name} has {heads}, which {slices} devices cannot share evenly."
            yield warned("warned.uneven-heads", text)
