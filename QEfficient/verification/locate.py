"""Where two stages part: the first layer, and the module or the state in which it shows.

Hugging Face and the retained module hold the same modules, so their outputs are compared, module by module in the order
in which they finish. A program has no modules any more, but it has states: they are compared with those of the retained
module after every run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from QEfficient.devices import Batch, Row
from QEfficient.devices.slotted import SlottedSession
from QEfficient.program import GraphSpec
from QEfficient.verification.forced import rows_of
from QEfficient.verification.module_session import ModuleSession

TOLERANCE = 1e-4
"""Error of a hidden state, as a part of its largest value, that is more than rounding."""
Key = tuple[str, int, int]
"""Path of a module, which of its calls, which of its outputs."""


@dataclass(frozen=True)
class Place:
    """Where two stages part."""

    layer: int | None
    """None: before the first or after the last layer."""
    part: str
    """A module or a state."""
    error: float
    when: str

    def describe(self) -> str:
        layer = f"layer {self.layer} " if self.layer is not None else ""
        return f"{layer}({self.part}), {self.when}"


class Recorder:
    """The outputs of all modules of a model, joined along the tokens over several runs."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.outputs: dict[Key, list[torch.Tensor]] = {}
        self.runs = 0
        self._calls: dict[str, int] = {}
        self._shape: tuple[int, ...] = (0, 0)
        self._kept = 0

    @contextmanager
    def run(self, shape: tuple[int, ...], kept: int) -> Iterator[None]:
        """Record one run of `[rows, length]` tokens, of which the first `kept` of the first row count."""
        self._calls, self._shape, self._kept = {}, shape, kept
        handles = [m.register_forward_hook(self._hook(path)) for path, m in self.model.named_modules() if path]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self.runs += 1

    def _hook(self, path: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, result: Any) -> None:
            call = self._calls[path] = self._calls.get(path, -1) + 1
            for number, leaf in enumerate(pytree.tree_leaves(result)):
                if isinstance(leaf, torch.Tensor) and leaf.dim() >= 3 and tuple(leaf.shape[:2]) == self._shape:
                    kept = leaf[:1, : self._kept].detach().float().clone()
                    self.outputs.setdefault((path, call, number), []).append(kept)

        return hook

    def whole(self) -> dict[Key, torch.Tensor]:
        """What every run gave, in the order in which the modules finished."""
        return {key: torch.cat(pieces, 1) for key, pieces in self.outputs.items() if len(pieces) == self.runs}


def locate_in_module(model: Any, session: ModuleSession, tokens: Sequence[int], singly: int) -> Place | None:
    """The first module of the retained model whose output differs from that of Hugging Face's `model`."""
    assert session.module is not None
    wanted, found = Recorder(model), Recorder(session.module.model)
    with torch.no_grad(), wanted.run((1, len(tokens)), len(tokens)):
        model(input_ids=torch.tensor([list(tokens)]), use_cache=False)
    session.watch = lambda feeds: found.run(feeds["input_ids"].shape, int((feeds["position_ids"][0] >= 0).sum()))
    for row in rows_of(0, tokens, session.limits.chunk, singly):
        session.run(Batch((row,)))
    return _first_module(wanted.whole(), found.whole())


def _first_module(wanted: dict[Key, torch.Tensor], found: dict[Key, torch.Tensor]) -> Place | None:
    """The first that differs, with the number of the first layer that does."""
    first: Place | None = None
    for key, expected in wanted.items():
        given = found.get(key)
        if given is None or given.shape != expected.shape:
            continue
        errors = _relative(expected, given)
        if not bool((errors > TOLERANCE).any()):
            continue
        position = int((errors > TOLERANCE).flatten().int().argmax())
        layer = _layer(key[0])
        if first is None:
            first = Place(layer, key[0], float(errors.max()), f"from position {position} on")
        if layer is not None:
            return Place(layer, first.part, first.error, first.when)
    return first


def _relative(expected: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Largest error of each token, as a part of the largest value."""
    scale = expected.abs().max().clamp_min(1e-20)
    errors = ((expected - given).abs() / scale).nan_to_num(nan=torch.inf)
    return errors.flatten(2).amax(2)[0]


def _layer(path: str) -> int | None:
    number = re.search(r"\.(\d+)(\.|$)", path)
    return int(number[1]) if number else None


def locate_in_program(
    program: SlottedSession,
    module: Callable[[dict[str, np.ndarray]], ModuleSession],
    graph: GraphSpec,
    tokens: Sequence[int],
    singly: int,
    tolerance: float = TOLERANCE,
) -> Place | None:
    """The first state in which the program differs from the retained module, which `module` opens on given states."""
    before = program.states()
    if not before:
        return None
    twin = module(before)
    for row in rows_of(0, tokens, program.limits.chunk, singly):
        batch = Batch((row,))
        found, wanted = program.run(batch), twin.run(batch)
        for place in _state_errors(graph, before, twin.states(), program.states(), _when(row)):
            if place.error > tolerance:
                return place
        error = _error(np.zeros_like(wanted), wanted, found)
        if error > tolerance:
            return Place(None, "logits, after the last layer", error, _when(row))
        before = twin.states()
    return None


def _when(row: Row) -> str:
    return f"in the run of positions {row.start} to {row.start + len(row.tokens) - 1}"


def _state_errors(
    graph: GraphSpec,
    before: dict[str, np.ndarray],
    wanted: dict[str, np.ndarray],
    found: dict[str, np.ndarray],
    when: str,
) -> Iterator[Place]:
    """Every state in the order of the layers."""
    for state in sorted(graph.states, key=lambda s: s.layer):
        name = state.tensor.name
        yield Place(state.layer, name, _error(before[name], wanted[name], found[name]), when)


def _error(before: np.ndarray, wanted: np.ndarray, found: np.ndarray) -> float:
    """Largest error, as a part of the largest value that was written; NaN is equal to NaN."""
    changed = (wanted != before) & np.isfinite(wanted)
    scale = float(np.abs(wanted[changed]).max(initial=1e-20))
    same = (wanted == found) | (np.isnan(wanted) & np.isnan(found))
    with np.errstate(invalid="ignore"):
        errors = np.where(same, 0.0, np.abs(wanted.astype(np.float64) - found) / scale)
    return float(np.where(np.isnan(errors), np.inf, errors).max(initial=0.0))
