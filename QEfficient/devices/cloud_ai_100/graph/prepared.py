"""`for_half`: the graph that the compiler reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from QEfficient.devices.cloud_ai_100.graph.half_range import within_half
from QEfficient.devices.cloud_ai_100.graph.key_biases import center_key_biases
from QEfficient.devices.cloud_ai_100.graph.position_tables import Places, tabulate
from QEfficient.devices.cloud_ai_100.graph.positional_part import Symbols
from QEfficient.devices.cloud_ai_100.graph.small_constants import raise_epsilons
from QEfficient.devices.cloud_ai_100.graph.steady_norms import steady_norms
from QEfficient.specs import Specialization

TRANSFORMS = tuple(
    change.__name__ for change in (raise_epsilons, steady_norms, tabulate, center_key_biases, within_half)
)
"""What `for_half` does, by name and in order: for the record of what a program was made from."""


def for_half(path: Path, scratch: Path, entries: Sequence[Specialization]) -> Path:
    """The graph in `path`, or a copy in `scratch` that float16 does less harm to, for these shapes."""
    places, symbols = Places(path.parent, scratch), _shared(entries)
    changes = (
        lambda model: raise_epsilons(model, path.parent),
        steady_norms,
        lambda model: tabulate(model, places, symbols),
        lambda model: center_key_biases(model, path.parent, symbols),
    )
    return within_half(path, scratch, *changes)


def _shared(entries: Sequence[Specialization]) -> Symbols:
    """The sizes that are the same in all specializations."""
    first, *others = (entry.symbols for entry in entries)
    return {name: size for name, size in first.items() if all(other.get(name) == size for other in others)}
