"""Position tables: modules that look positions up, each with its own offset.

Models count positions in ways of their own (from the cache's length, from 2, past the padding id), for one sequence
at a time. Which lookups of one run are of positions, and with which offset, is observed; then ours are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Plain = Callable[[torch.Tensor], torch.Tensor]
Lookup = Callable[[torch.Tensor, Plain, int], torch.Tensor]
"""(indices, plain lookup, rows of the table) → the rows looked up."""


@contextmanager
def lookups(handle: Lookup) -> Iterator[None]:
    """Pass every table lookup of the model (`embedding`, `index_select` of rows) to `handle`."""
    embedding, index_select = torch.nn.functional.embedding, torch.Tensor.index_select
    inside = False  # tracing modes call the patched function again from within the original

    def handled(indices: torch.Tensor, plain: Plain, rows: int) -> torch.Tensor:
        nonlocal inside
        if inside:
            return plain(indices)
        inside = True
        try:
            return handle(indices, plain, rows)
        finally:
            inside = False

    def embed(input: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return handled(input, lambda index: embedding(index, weight, *args, **kwargs), weight.shape[0])

    def select(self: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
        if dim != 0 or self.dim() != 2:
            return index_select(self, dim, index)
        return handled(index, lambda rows: embedding(rows, self), self.shape[0])

    torch.nn.functional.embedding, torch.Tensor.index_select = embed, select  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.nn.functional.embedding = embedding
        torch.Tensor.index_select = index_select  # type: ignore[method-assign]


class WatchedLookups:
    """Notes the indices of every lookup, in order, for each call of the model."""

    def __init__(self) -> None:
        self.calls: list[list[torch.Tensor]] = []
        self.rows: list[int] = []
        """Of the tables, in the order of the last call's lookups."""

    def begin(self) -> None:
        """The model is called again."""
        self.calls.append([])
        self.rows = []

    def __call__(self, indices: torch.Tensor, plain: Plain, rows: int) -> torch.Tensor:
        self.calls[-1].append(indices)
        self.rows.append(rows)
        return plain(indices)

    def offsets(self, spans: tuple[tuple[int, int], ...]) -> dict[int, int]:
        """Lookup number → offset, of those that looked up positions. `spans`: (first position, tokens) of each call."""
        if len({len(call) for call in self.calls}) != 1:
            return {}
        found: dict[int, int] = {}
        for number, indices in enumerate(zip(*self.calls, strict=True)):
            offsets = [_offset(index, *span) for index, span in zip(indices, spans, strict=True)]
            if offsets[0] is not None and len(set(offsets)) == 1:
                found[number] = offsets[0]
        return found

    def longest(self, offsets: dict[int, int]) -> int | None:
        """How many positions the shortest of these tables has."""
        return min((self.rows[number] - offset for number, offset in offsets.items()), default=None)


def _offset(index: torch.Tensor, first: int, length: int) -> int | None:
    """What was added to the positions first…first+length-1, or None if these are no positions."""
    if type(index) is not torch.Tensor or not index.numel() or index.shape[-1] % length:
        return None
    rows = index.reshape(-1, length) - torch.arange(first, first + length)
    offset = int(rows[0, 0])
    return offset if bool((rows == offset).all()) else None


class RetainedLookups:
    """Looks the retained positions up in place of those that the model counted."""

    def __init__(self, offsets: dict[int, int], position_ids: torch.Tensor) -> None:
        self.offsets = offsets
        self.positions = position_ids.clamp(min=0)
        self.number = -1

    def __call__(self, indices: torch.Tensor, plain: Plain, rows: int) -> torch.Tensor:
        self.number += 1
        if self.number not in self.offsets:
            return plain(indices)
        positions = self.positions + self.offsets[self.number]
        if indices.dim() == 1 and _hint(indices.shape[0]) == _hint(self.positions.shape[0] * self.positions.shape[1]):
            return plain(positions.reshape(-1))  # flattened: the model folds it back
        return plain(positions)


def _hint(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)
