"""In which precision a compiled program keeps its state, where the bytes are none that numpy knows.

The description in the container does not tell: what it says of such a state is not published. What does is the file
that the compiler was told to read, and where that is gone, what the compilation was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from QEfficient.devices.cloud_ai_100 import custom_io
from QEfficient.devices.cloud_ai_100.command import CUSTOM_IO
from QEfficient.devices.cloud_ai_100.options import read_options
from QEfficient.program import CompiledProgram

ROLE = "lm"
NUMBERS = ("float", "float16", "bfloat16")
"""Precisions that a session converts by itself."""


def packed_states(compiled: CompiledProgram) -> dict[str, str]:
    """The states in another precision than those, and which that is, by input name."""
    graph = compiled.program.graphs[ROLE].spec
    said = _said(compiled)
    if said is None:
        return custom_io.block_floats(graph) if read_options(compiled.spec.device_options).mxint8_kv_cache else {}
    kept = {state.input.name: said.get(state.input.name, NUMBERS[0]) for state in graph.states}
    return {name: precision for name, precision in kept.items() if precision not in NUMBERS}


def _said(compiled: CompiledProgram) -> dict[str, str] | None:
    """What the file says; None where there is none: QNN's tools have another."""
    for path in _places(compiled):
        with suppress(OSError, UnicodeDecodeError):
            return custom_io.read_precisions(path.read_text(encoding="utf-8"))
    return None


def _places(compiled: CompiledProgram) -> Iterator[Path]:
    """Where it may lie: in the program's folder, or where the user had it. Of what is known by its container alone,
    beside that."""
    if not compiled.program.fingerprint:
        yield compiled.folder.parent / custom_io.FILE
        return
    told = [word for word in compiled.report.get("command", ()) if word.startswith(CUSTOM_IO)]
    if told:
        path = Path(told[0].removeprefix(CUSTOM_IO))
        yield compiled.folder / path.name  # which holds where the folder was moved too
        yield path
