"""Engines on the null device, and what it must answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from paged_world import Clock

from QEfficient.devices import Batch
from QEfficient.devices.null import NullSession, null_next_token
from QEfficient.generation.engine import Engine
from QEfficient.specs import CompileSpec

VOCAB = 1000
GEOMETRIES = {
    "static": CompileSpec(batch_size=3, prefill_seq_len=8, ctx_len=32),
    "continuous": CompileSpec(full_batch_size=3, prefill_seq_len=8, ctx_len=32),
    "more slots": CompileSpec(full_batch_size=2, kv_cache_batch_size=4, prefill_seq_len=8, ctx_len=32),
    "one by one": CompileSpec(full_batch_size=3, prefill_seq_len=1, ctx_len=32),
    "one slot": CompileSpec(prefill_seq_len=8, ctx_len=32),
    "whole context": CompileSpec(full_batch_size=2, prefill_seq_len=32, ctx_len=32),
}


class RecordingSession(NullSession):
    """Remembers the batches that it ran."""

    def __init__(self, spec: CompileSpec) -> None:
        super().__init__(spec, VOCAB)
        self.batches: list[Batch] = []

    def run(self, batch: Batch) -> np.ndarray:
        self.batches.append(batch)
        return super().run(batch)


@pytest.fixture(params=list(GEOMETRIES.values()), ids=list(GEOMETRIES))
def spec(request: pytest.FixtureRequest) -> CompileSpec:
    found: CompileSpec = request.param
    return found


@pytest.fixture
def engine(spec: CompileSpec) -> Engine:
    return Engine(RecordingSession(spec))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def greedy() -> Callable[[tuple[int, ...], int], list[int]]:
    """The greedy continuation of a prompt on the null device."""

    def continuation(prompt: tuple[int, ...], count: int) -> list[int]:
        history = list(prompt)
        for _ in range(count):
            history.append(null_next_token(history, VOCAB))
        return history[len(prompt) :]

    return continuation
