"""custom_io.yaml: the precision in which the device keeps each state, where it is not that of the graph."""

from __future__ import annotations

import re

from QEfficient.errors import OptionError
from QEfficient.program import GraphSpec, StateSpec

FILE = "custom_io.yaml"
BLOCK_FLOAT = "mxint8"
CACHE = ("key", "value")
"""Kinds of state that `mxint8_kv_cache` is about; other states are sums over time, where errors add up."""
BLOCK = 32
"""Numbers that share an exponent in such a state: its last dimension is a multiple."""
WHOLE_NUMBERS = ("int64", "int32", "bool")
ENTRY = re.compile(r"IOName:[ \t]*(\S+)\s+Precision:[ \t]*(\S+)")


def computed_in(dtype: str) -> str:
    """The precision that the device computes in, for a program exported in `dtype`."""
    return "bfloat16" if dtype == "bfloat16" else "float16"


def custom_io_text(graph: GraphSpec, dtype: str, mxint8: bool = False) -> str | None:
    """The text of the file; None where it would say nothing: no state, or everything in bfloat16 as it is."""
    plain = computed_in(dtype)
    precisions = [(state, _precision(state, plain, mxint8)) for state in graph.states if _is_float(state)]
    if all(precision == "bfloat16" for _, precision in precisions):
        return None
    return "".join(_entries(state, precision) for state, precision in precisions)


def block_floats(graph: GraphSpec) -> dict[str, str]:
    """The states of which `mxint8_kv_cache` decides the precision, which is named behind."""
    precisions = {state.input.name: _precision(state, "", mxint8=True) for state in graph.states if _is_float(state)}
    return {name: precision for name, precision in precisions.items() if precision == BLOCK_FLOAT}


def read_precisions(text: str) -> dict[str, str]:
    """What a file says of inputs and outputs, whoever wrote it."""
    return dict(ENTRY.findall(text))


def check_blocks(graph: GraphSpec) -> None:
    """Refuse keys and values that cannot be kept in blocks."""
    kept = block_floats(graph)
    for state in graph.states:
        width = state.tensor.shape[-1]
        if state.input.name in kept and isinstance(width, int) and width % BLOCK:
            raise OptionError(
                f"mxint8_kv_cache keeps numbers in blocks of {BLOCK}, but {state.input.name} of this model has {width}"
                " for each head and token, which are no whole blocks. Leave mxint8_kv_cache out."
            )


def _is_float(state: StateSpec) -> bool:
    return state.tensor.dtype not in WHOLE_NUMBERS


def _precision(state: StateSpec, plain: str, mxint8: bool) -> str:
    return BLOCK_FLOAT if mxint8 and state.kind in CACHE else plain


def _entries(state: StateSpec, precision: str) -> str:
    """Input and retained output have the same precision always: they are one buffer."""
    names = (state.input.name, state.output.name)
    return "".join(f" - IOName: {name}\n   Precision: {precision}\n\n" for name in names)
