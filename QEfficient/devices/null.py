"""The device that computes nothing: schedulers, engines and servers are tested on it in milliseconds.

Its next token is a hash of everything that its slot was fed, so a token that is lost, repeated or fed to the wrong slot
shows in all that follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from QEfficient.devices import Batch, Device, Row, Session
from QEfficient.devices.slotted import slotted_limits
from QEfficient.errors import DeviceError
from QEfficient.program import CompiledProgram, ExportedProgram
from QEfficient.specs import CompileSpec

_MULTIPLIER, _MODULUS = 6364136223846793005, 2**64


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
        wanted = [self._logits(row.slot) for row in batch.rows if row.wants_logits]
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


class NullDevice(Device):
    """Compiles anything into nothing."""

    name = "null"

    @classmethod
    def availability(cls) -> str | None:
        return None

    def compile(self, program: ExportedProgram, spec: CompileSpec, folder: Path) -> Mapping[str, Any]:
        self.own_options(spec.device_options)
        return {}

    def load(self, compiled: CompiledProgram) -> Session:
        return NullSession(compiled.spec, compiled.program.model.vocab_size)


DEVICE = NullDevice
