"""A device that fails takes its session with it: what engines tell those who wait, and those who come later."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from paged_world import CheckedSession, Drafts, paged_limits, request

from QEfficient.devices import Batch
from QEfficient.errors import DeviceError, DeviceLostError, EngineError, SessionLostError
from QEfficient.generation.async_engine import AsyncEngine
from QEfficient.generation.engine import Engine
from QEfficient.generation.plan import Plan

PATIENCE = 60.0
LOST = DeviceLostError("device 0 has failed. Reset it, then open the program again.")


class FailingSession(CheckedSession):
    """Raises in its third run, and in all that follow something that is of no use to anybody."""

    def __init__(self, error: Exception = LOST) -> None:
        super().__init__(paged_limits(blocks=64))
        self._errors = [error]
        self.gate = threading.Event()
        self.gate.set()

    def run(self, batch: Batch) -> np.ndarray:
        if len(self.batches) >= 2 and self._errors:
            assert self.gate.wait(PATIENCE)
            raise self._errors.pop()
        return super().run(batch)


def test_generate_raises_what_happened_and_the_engine_is_over() -> None:
    engine = Engine(FailingSession())
    requests = [request(3, n, new=9) for n in range(3)]
    with pytest.raises(DeviceLostError) as caught:
        engine.generate(requests)
    assert caught.value is LOST and engine.lost is LOST and engine.idle
    assert {each.finish_reason for each in requests} == {"cancelled"}
    for again in (lambda: engine.submit(request(3)), engine.step):
        with pytest.raises(EngineError, match=r"open the program again.* device 0 has failed") as refused:
            again()
        assert refused.value.__cause__ is LOST


def test_a_stream_of_the_same_engine_ends_with_a_reason() -> None:
    """Its state was in the session too: it must not go on with what is there after that."""
    engine = Engine(FailingSession())
    stream = engine.stream([request(3, new=9)])
    next(stream)
    with pytest.raises(DeviceLostError):
        engine.generate([request(5, 50, new=9)])
    with pytest.raises(EngineError, match="open the program again"):
        list(stream)
    assert engine.idle


def test_what_a_decoding_lost_counts_too() -> None:
    class Failing(Drafts):
        def propose(self, plan: Plan) -> Plan:
            raise LOST

    engine = Engine(CheckedSession(paged_limits()), Failing(2))
    with pytest.raises(DeviceLostError):
        engine.generate([request(3)])
    assert engine.lost is LOST


@pytest.mark.parametrize("error", [DeviceError("the card is busy."), ZeroDivisionError()])
def test_other_failures_leave_the_engine_usable(error: Exception) -> None:
    engine = Engine(FailingSession(error))
    with pytest.raises(type(error)):
        engine.generate([request(3, new=9)])
    assert engine.lost is None
    (output,) = engine.generate([request(3, new=9)])
    assert len(output.generated_ids) == 9


def test_an_asynchronous_engine_refuses_who_comes_later() -> None:
    async def test() -> None:
        session = FailingSession()
        session.gate.clear()
        async with AsyncEngine(Engine(session)) as engine:
            handles = [engine.submit(request(3, n, new=20)) for n in range(4)]
            session.gate.set()
            failed = await asyncio.gather(*(handle.result() for handle in handles), return_exceptions=True)
            assert all(isinstance(error, SessionLostError | EngineError) for error in failed) and LOST in failed
            with pytest.raises(EngineError, match=r"open the program again\. device 0 has failed"):
                engine.submit(request(3))
            await engine.drain()
            assert engine.statistics.ended["error"] == len([error for error in failed if error is LOST])

    asyncio.run(asyncio.wait_for(test(), PATIENCE))
