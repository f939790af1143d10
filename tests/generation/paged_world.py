"""Sessions with blocks, decodings that draft, and what must hold of the blocks after every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from QEfficient.devices import Batch, Limits, Paging
from QEfficient.devices.null import PagedNullSession, null_next_token
from QEfficient.errors import DeviceError
from QEfficient.generation.kv_blocks import first_key, next_key
from QEfficient.generation.places import SlotsAndBlocks
from QEfficient.generation.plan import Plan
from QEfficient.generation.request import Request
from QEfficient.generation.scheduler import Scheduler
from QEfficient.specs import SamplingParams

VOCAB = 1000


def paged_limits(size: int = 4, blocks: int = 16, shareable: bool = True, **changes: Any) -> Limits:
    limits = Limits(slots=6, chunk=8, ctx_len=32, decode_rows=6, prefill_rows=6, tokens=16, logits=4)
    return replace(limits, paging=Paging(size, blocks, shareable), **changes)


def request(length: int, first: int = 1, new: int = 4, **fields: Any) -> Request:
    return Request(tuple(range(first, first + length)), SamplingParams(max_new_tokens=new), **fields)


def alone(prompt: Sequence[int], count: int) -> list[int]:
    """The greedy continuation of a prompt."""
    history = list(prompt)
    for _ in range(count):
        history.append(null_next_token(history, VOCAB))
    return history[len(prompt) :]


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class PlannedError(DeviceError):
    """A failure that a test asked for."""


class CheckedSession(PagedNullSession):
    """Also refuses what a session that cannot share or go back could not do; fails on demand."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits, VOCAB)
        self.batches: list[Batch] = []
        self.copies: list[tuple[int, int]] = []
        self.failures: list[str] = []
        self._seen = [0] * limits.slots

    def run(self, batch: Batch) -> np.ndarray:
        self.batches.append(batch)
        if self.failures and self.failures[0] == "before":
            raise PlannedError(self.failures.pop())
        if not self._paging.shareable:
            self._check_unshared(batch)
        logits = super().run(batch)
        if self.failures and self.failures[0] == "after":
            raise PlannedError(self.failures.pop())
        return logits

    def copy_block(self, source: int, target: int) -> None:
        if self.failures and self.failures[0] == "copy":
            raise PlannedError(self.failures.pop())
        assert self._paging.shareable and source != target
        self.copies.append((source, target))
        super().copy_block(source, target)

    def holds(self, blocks: Sequence[int], tokens: Sequence[int]) -> bool:
        """Whether these tokens lie in these blocks."""
        return self._memory[list(blocks)].reshape(-1)[: len(tokens)].tolist() == list(tokens)

    def _check_unshared(self, batch: Batch) -> None:
        blocks = [block for row in batch.rows for block in row.blocks]
        assert len(set(blocks)) == len(blocks)
        for row in batch.rows:
            assert row.start in (0, self._seen[row.slot])
            self._seen[row.slot] = row.start + len(row.tokens)


class Drafts:
    """Extends rows by guesses, of which every `wrong`th is none of the model's."""

    def __init__(self, lookahead: int, wrong: int = 3) -> None:
        self.lookahead = lookahead
        self._wrong = wrong
        self.right = 0

    def propose(self, plan: Plan) -> Plan:
        return replace(plan, steps=tuple(self._extended(step) for step in plan.steps))

    def accept(self, plan: Plan, logits: np.ndarray) -> Sequence[Sequence[int]]:
        best = iter(logits.argmax(-1).tolist())
        rows = [step.row for step in plan.steps if step.row.logits]
        return [self._accepted(row.tokens[len(row.tokens) - row.logits + 1 :], best) for row in rows]

    def _extended(self, step: Any) -> Any:
        history = [*step.request.prompt, *step.request.generated]
        drafts = alone(history, step.room)
        drafts = [token + (not (len(history) + i) % self._wrong) for i, token in enumerate(drafts)]
        row = replace(step.row, tokens=(*step.row.tokens, *drafts), logits=step.row.logits + len(drafts))
        return replace(step, row=row)

    def _accepted(self, drafts: Sequence[int], best: Any) -> list[int]:
        tokens = [next(best) for _ in range(len(drafts) + 1)]
        right = next((i for i, draft in enumerate(drafts) if draft != tokens[i]), len(drafts))
        self.right += right
        return tokens[: right + 1]


def check_blocks(scheduler: Scheduler, session: CheckedSession) -> None:
    """Every reference is counted, every block is of one kind, and what counts as computed lies in memory."""
    places: Any = scheduler._places
    assert isinstance(places, SlotsAndBlocks)
    blocks: Any = places._blocks
    running = list(scheduler._running.values())
    held = Counter(block for place in running for block in place.blocks)
    assert blocks._references == [held[block] for block in range(len(blocks._references))]
    unused = [block for block, references in enumerate(blocks._references) if not references]
    assert sorted([*blocks._free, *blocks._cached]) == unused
    assert blocks._by_key == {key: block for block, key in enumerate(blocks._keys) if key is not None}
    assert all((block in blocks._cached) == (blocks._keys[block] is not None) for block in unused)
    assert sorted([*places._slots, *(place.slot for place in running)]) == list(range(scheduler._limits.slots))
    for place in running:
        assert len(set(place.blocks)) == len(place.blocks)
        tokens = place.request.tokens_from(0, place.computed)
        assert session.holds(place.blocks, tokens)
        assert len(place.blocks) <= -(-place.request.length // places._size)
        key = first_key(place.request.salt)
        for index in range(place.published):
            key = next_key(key, place.request.tokens_from(index * places._size, places._size))
            assert blocks._keys[place.blocks[index]] == key


def check_nothing_held(scheduler: Scheduler) -> None:
    counts = scheduler.counts.blocks
    places: Any = scheduler._places
    assert scheduler.idle and not counts.used and counts.cached + counts.free == counts.total
    assert not scheduler._queue._aside and not scheduler._queue._waiting
    assert not any(places._blocks._references) and not places.pop_copies()
