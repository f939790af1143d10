"""The device that computes nothing: schedulers, engines and servers are tested on it in milliseconds.

Its next token is a hash of everything that its slot or its blocks were fed, so a token that is lost, repeated or fed to
the wrong place shows in all that follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from QEfficient.devices import Batch, Device, Limits, Row, Session
from QEfficient.devices.slotted import slotted_limits
from QEfficient.errors import DeviceError
from QEfficient.program import CompiledProgram, ExportedProgram
from QEfficient.specs import CompileSpec

_MULTIPLIER, _MODULUS = 6364136223846793005, 2**64
NOTHING = -1


def _fold(digest: int, tokens: Iterable[int]) -> int:
    for token in tokens:
        digest = (digest * _MULTIPLIER + token + 1) % _MODULUS
    return digest


def _next_token(digest: int, vocab_size: int) -> int:
    return (digest >> 33) % vocab_size


def null_next_token(history: Iterable[int], vocab_size: int) -> int:
    """The token that a null session likes best after `history`."""
    return _next_token(_fold(0, history), vocab_size)


class NullSession(Session):
    """Enforces its limits strictly; logits fall from the next token on (10, 9, … around the vocabulary)."""

    def __init__(self, spec: CompileSpec, vocab_size: int) -> None:
        self.limits = slotted_limits(spec)
        self._vocab_size = vocab_size
        self._seen = [0] * spec.slots
        self._digest = [0] * spec.slots
        self._ramp = 10.0 - np.arange(vocab_size, dtype=np.float32)

    def run(self, batch: Batch) -> np.ndarray:
        self.limits.check(batch)
        for row in batch.rows:
            self._check_start(row)
        for row in batch.rows:
            self._feed(row)
        wanted = [self._logits(row.slot) for row in batch.rows if row.logits]
        return np.stack(wanted) if wanted else np.empty((0, self._vocab_size), np.float32)

    def close(self) -> None:
        pass

    def _check_start(self, row: Row) -> None:
        seen = self._seen[row.slot]
        if row.start not in (0, seen):
            raise DeviceError(f"slot {row.slot} has seen {seen} tokens, but a row starts at position {row.start}.")

    def _feed(self, row: Row) -> None:
        before = self._digest[row.slot] if row.start else 0
        self._digest[row.slot] = _fold(before, row.tokens)
        self._seen[row.slot] = row.start + len(row.tokens)

    def _logits(self, slot: int) -> np.ndarray:
        return np.roll(self._ramp, _next_token(self._digest[slot], self._vocab_size))


class PagedNullSession(Session):
    """The same tokens out of blocks. A block keeps the tokens themselves, with what was written there before."""

    def __init__(self, limits: Limits, vocab_size: int) -> None:
        assert limits.paging is not None
        self.limits, self._paging = limits, limits.paging
        self._vocab_size = vocab_size
        self._memory = np.full((limits.paging.blocks, limits.paging.block_size), NOTHING, np.int64)
        self._ramp = 10.0 - np.arange(vocab_size, dtype=np.float32)

    def run(self, batch: Batch) -> np.ndarray:
        self.limits.check(batch)
        self._check_writers(batch)
        for row in batch.rows:
            for position, token in enumerate(row.tokens, row.start):
                self._memory[self._place(row, position)] = token
        wanted = [logits for row in batch.rows if row.logits for logits in self._logits(row)]
        return np.stack(wanted) if wanted else np.empty((0, self._vocab_size), np.float32)

    def copy_block(self, source: int, target: int) -> None:
        self._memory[target] = self._memory[source]

    def close(self) -> None:
        pass

    def _place(self, row: Row, position: int) -> tuple[int, int]:
        return row.blocks[position // self._paging.block_size], position % self._paging.block_size

    def _check_writers(self, batch: Batch) -> None:
        """No block that one row writes may be another's: the order of rows must not matter."""
        size = self._paging.block_size
        used = [set(row.blocks[: -(-(row.start + len(row.tokens)) // size)]) for row in batch.rows]
        for i, row in enumerate(batch.rows):
            written = set(row.blocks[row.start // size : -(-(row.start + len(row.tokens)) // size)])
            others = set().union(*(blocks for j, blocks in enumerate(used) if j != i))
            if written & others:
                raise DeviceError(
                    f"slot {row.slot} writes the blocks {sorted(written & others)}, which others use too."
                )

    def _logits(self, row: Row) -> list[np.ndarray]:
        end = row.start + len(row.tokens)
        history = [int(self._memory[self._place(row, position)]) for position in range(end)]
        if NOTHING in history:
            raise DeviceError(f"slot {row.slot} reads position {history.index(NOTHING)}, which nobody wrote.")
        ends = range(end - row.logits + 1, end + 1)
        return [np.roll(self._ramp, null_next_token(history[:stop], self._vocab_size)) for stop in ends]


class NullDevice(Device):
    """Compiles anything into nothing."""

    name = "null"

    @classmethod
    def availability(cls) -> str | None:
        return None

    def compile(self, program: ExportedProgram, spec: CompileSpec, folder: Path) -> Mapping[str, Any]:
        self.own_options(spec.device_options)
        return {}

    def load(self, compiled: CompiledProgram, device_ids: Sequence[int] | None = None) -> Session:
        self.has_no_ids(device_ids)
        return NullSession(compiled.spec, compiled.program.model.vocab_size)


DEVICE = NullDevice
