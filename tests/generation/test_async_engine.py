from __future__ import annotations

import asyncio
import random
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import pytest
from paged_world import CheckedSession, Clock, PlannedError, alone, check_nothing_held, paged_limits, request

from QEfficient.devices import Batch
from QEfficient.errors import EngineError, OptionError, PromptError, QueueFullError
from QEfficient.generation.async_engine import AsyncEngine
from QEfficient.generation.engine import Engine, Event
from QEfficient.generation.handles import Handle, Mailbox
from QEfficient.generation.request import Request

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds after which a test that hangs fails."""


def run(test: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return asyncio.run(asyncio.wait_for(test(), PATIENCE))


class GatedSession(CheckedSession):
    """Runs a batch only when a test lets it."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(paged_limits(**{"blocks": 64, **limits}))
        self.gate, self.arrived = threading.Semaphore(0), threading.Semaphore(0)
        self.opened = False

    def run(self, batch: Batch) -> np.ndarray:
        self.arrived.release()
        assert self.opened or self.gate.acquire(timeout=PATIENCE)
        return super().run(batch)

    def let(self, count: int = 1) -> None:
        self.gate.release(count)

    async def at_the_gate(self) -> None:
        assert await asyncio.to_thread(self.arrived.acquire, timeout=PATIENCE)

    def open(self) -> None:
        self.opened = True
        self.let()


@asynccontextmanager
async def engine_on(session: CheckedSession, **options: Any) -> AsyncIterator[AsyncEngine]:
    """An asynchronous engine, of which nothing is left at the end."""
    clock = options.pop("clock", None)
    inner = Engine(session, clock=clock) if clock else Engine(session)
    async with AsyncEngine(inner, **options) as engine:
        try:
            yield engine
        finally:
            if isinstance(session, GatedSession):
                session.open()
    assert not engine._thread.is_alive() and not engine._open and not engine._running
    check_nothing_held(inner.scheduler)


async def collect(engine: AsyncEngine, one: Request) -> list[int]:
    tokens: list[int] = []
    async for event in engine.stream(one):
        assert event.request is one
        tokens += event.tokens
    return tokens


def test_many_tasks_at_once() -> None:
    async def test() -> None:
        async with engine_on(CheckedSession(paged_limits(blocks=12))) as engine:
            requests = [request(1 + n % 20, n % 7, new=1 + n % 9) for n in range(120)]
            requests += [one.fork() for one in requests[::10]]
            found = await asyncio.gather(*(collect(engine, one) for one in requests))
            for one, tokens in zip(requests, found, strict=True):
                assert tokens == one.generated == alone(one.prompt, one.params.max_new_tokens or 0)
            assert engine.statistics.ended == {"length": 132}

    run(test)


@pytest.mark.parametrize("seed", range(3))
def test_tasks_that_come_and_go(seed: int) -> None:
    async def test() -> None:
        chance = random.Random(seed)
        async with engine_on(CheckedSession(paged_limits(blocks=10))) as engine:

            async def client(number: int) -> Request:
                one = request(1 + number % 25, number % 5, new=6, priority=number % 2)
                leave_after, way = chance.randrange(12), chance.choice(("break", "cancel", "id", "stay"))
                seen: list[int] = []
                events = engine.stream(one)
                async for event in events:
                    seen += event.tokens
                    if len(seen) > leave_after and way != "stay":
                        if way == "break":
                            break
                        engine.cancel(one if way == "cancel" else one.id)
                await events.aclose()  # type: ignore[attr-defined]
                assert seen == alone(one.prompt, len(seen))
                if way == "stay" or leave_after > 6:
                    assert len(seen) == min(6, 32 - len(one.prompt))
                return one

            tasks = [asyncio.create_task(client(number)) for number in range(100)]
            for task in chance.sample(tasks, 20):
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await engine.drain()
            assert not [t for t in tasks if not t.cancelled() and t.exception()]

    run(test)


def test_events_come_as_they_are_made() -> None:
    async def test() -> None:
        session = GatedSession()
        async with engine_on(session) as engine:
            one = request(3, new=3)
            handle = engine.submit(one)
            tokens = alone(one.prompt, 3)
            for number, token in enumerate(tokens):
                await session.at_the_gate()
                assert handle._items.empty()
                session.let()
                event = await anext(handle)
                assert event.tokens == (token,) and event.finish_reason == (None, None, "length")[number]
            with pytest.raises(StopAsyncIteration):
                await anext(handle)

    run(test)


def test_result() -> None:
    async def test() -> None:
        async with engine_on(CheckedSession(paged_limits(blocks=64))) as engine:
            output = await engine.submit(request(3, new=3)).result()
            assert list(output.generated_ids) == alone((1, 2, 3), 3) and output.finish_reason == "length"

    run(test)


def test_nothing_runs_while_there_is_nothing_to_do() -> None:
    async def test() -> None:
        async with engine_on(CheckedSession(paged_limits(blocks=64))) as engine:
            await collect(engine, request(3))
            turns = []
            inner: Any = engine._engine
            step, inner.step = inner.step, lambda: turns.append(1) or step()
            for _ in range(5):
                engine.cancel("nobody")
                with engine._changed:
                    engine._changed.notify()  # as a spurious wakeup would
                await asyncio.sleep(0)
            await collect(engine, request(3, new=2))
            assert len(turns) == 2

    run(test)


@pytest.mark.parametrize("way", ["task", "iterator", "request", "id", "handle"])
def test_cancel_what_runs(way: str) -> None:
    async def test() -> None:
        session = GatedSession()
        async with engine_on(session) as engine:
            one, other = request(3, new=9), request(4, 50, new=3)
            handle = None if way in ("task", "iterator") else engine.submit(one)
            events = engine.stream(one) if handle is None else handle
            first: Any = asyncio.ensure_future(anext(events))
            await session.at_the_gate()
            stays = asyncio.create_task(collect(engine, other))
            session.let()
            await first
            if way == "task":
                second: Any = asyncio.ensure_future(anext(events))
                await asyncio.sleep(0)
                second.cancel()
                with suppress(asyncio.CancelledError):
                    await second
            elif handle is None:
                await events.aclose()  # type: ignore[union-attr]
            else:
                handle.cancel() if way == "handle" else engine.cancel(one if way == "request" else one.id)
            session.open()
            if handle is not None:
                *_, last = [event async for event in handle]
                assert last.finish_reason == "cancelled"
            assert await stays == alone(other.prompt, 3)
            await engine.drain()
            assert one.finish_reason == "cancelled" and len(one.generated) <= 2

    run(test)


def test_a_task_cancelled_while_it_waits_for_a_handle() -> None:
    async def test() -> None:
        session = GatedSession()
        async with engine_on(session) as engine:
            one = request(3, new=9)
            waiting = asyncio.create_task(engine.submit(one).result())
            await session.at_the_gate()
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
            session.open()
            await engine.drain()
            assert one.finish_reason == "cancelled"

    run(test)


def test_finish_with_a_reason() -> None:
    async def test() -> None:
        session = GatedSession()
        async with engine_on(session) as engine:
            handle = engine.submit(request(3, new=20))
            await session.at_the_gate()
            handle.finish("stop")
            handle.finish("cancelled")  # too late
            session.let()
            *_, last = [event async for event in handle]
            assert last.finish_reason == "stop"
            with pytest.raises(StopAsyncIteration):
                await anext(handle)
            assert handle._items.empty()

    run(test)


def test_deadlines() -> None:
    async def test() -> None:
        session, clock = GatedSession(), Clock()
        async with engine_on(session, clock=clock) as engine:
            handle = engine.submit(request(3, new=20, deadline=1.0))
            await session.at_the_gate()
            clock.now += 2
            session.let()
            assert [event.finish_reason async for event in handle] == [None, "timeout"]

    run(test)


def test_too_many_wait() -> None:
    async def test() -> None:
        session = GatedSession(slots=2)
        async with engine_on(session, max_waiting=3) as engine:
            first = [engine.submit(request(3, n)) for n in range(5)]  # two have places
            with pytest.raises(QueueFullError, match=r"only 3 may \(max_waiting\)"):
                engine.submit(request(3))
            await session.at_the_gate()
            with pytest.raises(QueueFullError):
                engine.submit(request(3))
            session.open()
            await asyncio.gather(*(handle.result() for handle in first))
            again = [engine.submit(request(3, n, new=1)) for n in range(2)]
            await asyncio.gather(*(handle.result() for handle in again))

    run(test)


def test_those_who_come_during_a_step_count() -> None:
    async def test() -> None:
        session = GatedSession(slots=1)
        async with engine_on(session, max_waiting=1) as engine:
            handles = [engine.submit(request(3, new=2))]
            await session.at_the_gate()
            handles.append(engine.submit(request(3, 50, new=1)))
            session.let()
            await anext(handles[0])
            await session.at_the_gate()  # the second is in the engine's own queue now
            with pytest.raises(QueueFullError):
                engine.submit(request(3))
            session.open()
            await handles[1].result()
            await engine.submit(request(3, 90, new=1)).result()

    run(test)


def test_those_who_wait_for_blocks_count() -> None:
    async def test() -> None:
        session = GatedSession(blocks=8)
        async with engine_on(session, max_waiting=1) as engine:
            handles = [engine.submit(request(20, 1, new=8))]
            await session.at_the_gate()
            handles.append(engine.submit(request(20, 50, new=8)))
            for _ in range(2):
                session.let()
                await session.at_the_gate()
            # there are slots, but the second has to wait
            with pytest.raises(QueueFullError):
                engine.submit(request(3))
            session.open()
            await asyncio.gather(*(handle.result() for handle in handles))

    run(test)


def test_nobody_may_wait() -> None:
    async def test() -> None:
        async with engine_on(GatedSession(slots=1), max_waiting=0) as engine:
            engine.submit(request(3))
            with pytest.raises(QueueFullError):
                engine.submit(request(3))

    run(test)
    with pytest.raises(OptionError, match="-1"):
        AsyncEngine(Engine(CheckedSession(paged_limits())), max_waiting=-1)


def test_a_step_that_fails_reaches_all_and_new_requests_run() -> None:
    async def test() -> None:
        session = GatedSession(slots=2)
        async with engine_on(session) as engine:
            tasks = [asyncio.create_task(collect(engine, request(3, n))) for n in range(5)]
            await session.at_the_gate()
            session.let()
            await session.at_the_gate()  # now with all of them
            newcomer = request(9, new=3)
            session.failures = ["after"]
            late = engine.submit(newcomer)
            session.open()
            failed = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(error) for error in failed] == [PlannedError] * 5
            assert len({id(error) for error in failed}) == 1
            frames = [frame.name for frame in traceback.extract_tb(failed[0].__traceback__)]  # type: ignore[union-attr]
            assert frames.count("__anext__") == 1 and "_turn" in frames
            assert (await late.result()).generated_ids == tuple(alone(newcomer.prompt, 3))
            assert engine.statistics.ended == {"error": 5, "length": 1}

    run(test)


def test_a_request_that_ended_in_the_failed_step_keeps_its_reason() -> None:
    async def test() -> None:
        session, clock = GatedSession(), Clock()
        async with engine_on(session, clock=clock) as engine:
            late, other = engine.submit(request(3, deadline=1.0)), engine.submit(request(3, 50))
            await session.at_the_gate()
            clock.now += 2
            session.let()
            await anext(late)
            await session.at_the_gate()
            session.failures = ["before"]
            session.open()
            assert (await anext(late)).finish_reason == "timeout"
            with pytest.raises(PlannedError):
                await other.result()

    run(test)


def test_an_engine_that_breaks_leaves_nobody_waiting() -> None:
    async def test() -> None:
        inner: Any = Engine(CheckedSession(paged_limits(blocks=64)))
        breaks = threading.Event()
        inner.step = lambda: breaks.wait(PATIENCE) and 1 / 0
        inner.finish = lambda *_: [][0]
        engine = AsyncEngine(inner)
        requests = [request(3, n) for n in range(3)]
        handles = [engine.submit(one) for one in requests]
        breaks.set()
        failed = await asyncio.gather(*(handle.result() for handle in handles), return_exceptions=True)
        assert [type(error) for error in failed] == [IndexError] * 3
        with pytest.raises(EngineError, match="failed"):
            engine.submit(request(3))
        await engine.drain()
        await engine.close()
        assert {one.finish_reason for one in requests} == {"error"}

    run(test)


def test_drain() -> None:
    async def test() -> None:
        session = GatedSession(slots=2)
        async with engine_on(session) as engine:
            tasks = [asyncio.create_task(collect(engine, request(3, n, new=3))) for n in range(5)]
            await session.at_the_gate()
            draining = asyncio.create_task(engine.drain())
            for _ in range(9):
                await asyncio.sleep(0)
            with pytest.raises(EngineError, match="draining"):
                engine.submit(request(3))
            assert not draining.done()
            session.open()
            await draining
            assert [len(tokens) for tokens in await asyncio.gather(*tasks)] == [3] * 5
            await engine.drain()

    run(test)


def test_drain_may_be_cancelled_and_asked_for_again() -> None:
    async def test() -> None:
        session = GatedSession()
        async with engine_on(session) as engine:
            handle = engine.submit(request(3))
            draining = asyncio.create_task(engine.drain())
            await asyncio.sleep(0)
            draining.cancel()
            with pytest.raises(asyncio.CancelledError):
                await draining
            session.open()
            await engine.drain()
            assert len((await handle.result()).generated_ids) == 4

    run(test)


def test_close_cancels_what_is_left() -> None:
    async def test() -> None:
        session = GatedSession(slots=1)
        engine = AsyncEngine(Engine(session))
        running, waiting = engine.submit(request(3)), engine.submit(request(3))
        await session.at_the_gate()
        fresh = engine.submit(request(3))  # still in the inbox
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        session.open()
        await closing
        await engine.close()
        for handle in (running, waiting, fresh):
            assert (await handle.result()).finish_reason == "cancelled"
        assert not engine._thread.is_alive()
        check_nothing_held(engine._engine.scheduler)
        with pytest.raises(EngineError, match="closed"):
            engine.submit(request(3))
        await engine.drain()

    run(test)


def test_refusals() -> None:
    async def test() -> None:
        session = GatedSession()
        async with engine_on(session) as engine:
            with pytest.raises(PromptError, match="ctx_len 32"):
                engine.submit(request(32))
            handle = engine.submit(request(3, id="one"))
            with pytest.raises(OptionError, match="the id one"):
                engine.submit(request(3, id="one"))
            engine.cancel(request(3, id="one"))  # another with this id
            session.open()
            assert (await handle.result()).finish_reason == "length"

    run(test)
    busy = Engine(CheckedSession(paged_limits(blocks=64)))
    busy.submit(request(3))
    with pytest.raises(OptionError, match="has requests already"):
        AsyncEngine(busy)


def test_a_request_runs_once() -> None:
    async def test() -> None:
        async with engine_on(CheckedSession(paged_limits(blocks=64))) as engine:
            once = request(3, new=1)
            await collect(engine, once)
            with pytest.raises(OptionError, match="submitted before"):
                await collect(engine, once)
            assert once.finish_reason == "length"

    run(test)


def test_a_loop_that_is_gone() -> None:
    """Its requests are cancelled; those of other loops run on."""
    session = GatedSession()
    engine = AsyncEngine(Engine(session))
    deserted = request(3, new=20)

    async def desert() -> None:
        engine.submit(deserted)
        await session.at_the_gate()

    run(desert)

    async def test() -> None:
        handle = engine.submit(request(3, new=3))
        session.open()
        assert len((await handle.result()).generated_ids) == 3
        await engine.close()
        assert len(engine._mailboxes) == 1

    run(test)
    assert deserted.finish_reason == "cancelled" and len(deserted.generated) <= 1


def test_several_loops() -> None:
    engine = AsyncEngine(Engine(CheckedSession(paged_limits(blocks=20))))
    found: dict[int, list[list[int]]] = {}

    def one_loop(number: int) -> None:
        async def test() -> None:
            requests = [request(3 + n, number, new=5) for n in range(20)]
            found[number] = await asyncio.gather(*(collect(engine, one) for one in requests))

        run(test)

    threads = [threading.Thread(target=one_loop, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    asyncio.run(engine.close())
    for number in range(3):
        assert found[number] == [alone(range(number, number + 3 + n), 5) for n in range(20)]


def test_one_wakeup_for_all_that_came_meanwhile() -> None:
    wakeups: list[Callable[[], None]] = []

    class Loop:
        def call_soon_threadsafe(self, wakeup: Callable[[], None]) -> None:
            wakeups.append(wakeup)

    mailbox = Mailbox(Loop())  # type: ignore[arg-type]
    handle = Handle(request(3), mailbox, lambda *_: None)
    events = [Event(handle.request, (n,), None) for n in range(4)]
    mailbox.post([(handle, events[0]), (handle, events[1])])
    mailbox.post([(handle, events[2])])
    assert len(wakeups) == 1
    wakeups[0]()
    mailbox.post([(handle, events[3])])
    assert len(wakeups) == 2
    wakeups[1]()
    assert [handle._items.get_nowait() for _ in range(4)] == events
