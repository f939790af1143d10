"""An engine for the tasks of event loops: a thread steps it, and events come back to who waits for them."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import Future

from QEfficient.errors import EngineError, OptionError, QueueFullError, SessionLostError
from QEfficient.generation.engine import Engine, Event
from QEfficient.generation.handles import Failure, Handle, Item, Mailbox
from QEfficient.generation.request import FinishReason, Request
from QEfficient.generation.statistics import Statistics


class AsyncEngine:
    """Owns an engine, which nobody else may step. Every method may be called from any thread, `submit` from a task.

    When a step fails, every request in the engine ends with that error, and new ones are taken as before, unless the
    session is lost: then they are refused, and the program is to be opened again for another engine.
    """

    def __init__(self, engine: Engine, max_waiting: int | None = None) -> None:
        """`max_waiting`: how many requests may wait for a place; None: any number."""
        if max_waiting is not None and max_waiting < 0:
            raise OptionError(f"max_waiting must not be negative; it is {max_waiting}.")
        if not engine.idle:
            raise OptionError("the engine has requests already, of which only their owner knows. Give a new one.")
        self._engine = engine
        self._max_waiting = max_waiting
        self._running: dict[Request, Handle] = {}  # what the engine has; for its thread only
        self._changed = threading.Condition()  # guards all that follows
        self._inbox: list[tuple[Handle, FinishReason | None]] = []  # to be submitted, or to be ended
        self._open: dict[str, Handle] = {}
        self._mailboxes: dict[asyncio.AbstractEventLoop, Mailbox] = {}
        self._refusal: str | None = None
        self._closing = False
        self._places = self._free_places()
        self._drained: Future[None] = Future()
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, name="QEfficient engine", daemon=True)
        self._thread.start()

    @property
    def statistics(self) -> Statistics:
        return self._engine.statistics

    def submit(self, request: Request) -> Handle:
        """Queue a new request. Raises `PromptError` if it can never fit, `QueueFullError` if it would have to wait with
        too many others, `EngineError` after `drain` or `close`, and when the session is lost."""
        self._engine.scheduler.check(request)
        loop = asyncio.get_running_loop()
        with self._changed:
            self._check_open(request)
            handle = Handle(request, self._mailbox(loop), self.finish)
            self._open[request.id] = handle
            self._places -= 1
            self._inbox.append((handle, None))
            self._changed.notify()
        return handle

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        """Submit a request and yield its events. Closing the iterator, or cancelling its task, cancels the request."""
        handle = self.submit(request)
        try:
            async for event in handle:
                yield event
        finally:
            handle.cancel()

    def finish(self, request: Request | str, reason: FinishReason) -> None:
        """End a request, given itself or its id; nothing happens if it has ended already."""
        with self._changed:
            handle = self._open.get(request if isinstance(request, str) else request.id)
            if handle is not None and (isinstance(request, str) or handle.request is request):
                self._inbox.append((handle, reason))
                self._changed.notify()

    def cancel(self, request: Request | str) -> None:
        self.finish(request, "cancelled")

    async def drain(self) -> None:
        """Take no more requests, and wait until those that are here have ended."""
        with self._changed:
            self._refusal = self._refusal or "the engine is draining: it takes no more requests."
        self._settle()
        await asyncio.shield(asyncio.wrap_future(self._drained))

    async def close(self) -> None:
        """Cancel what is left and end the thread; idempotent. The session is its owner's to close."""
        with self._changed:
            self._refusal = "the engine is closed."
            self._closing = True
            self._changed.notify()
        await asyncio.shield(asyncio.wrap_future(self._ended))
        self._thread.join()

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _settle(self) -> None:
        """Let `drain` return when the last request has ended."""
        with self._changed:
            if self._refusal is not None and not self._open and not self._drained.done():
                self._drained.set_result(None)

    # With `_changed` held

    def _check_open(self, request: Request) -> None:
        if self._refusal is not None:
            raise EngineError(self._refusal)
        if request.id in self._open:
            raise OptionError(f"a request with the id {request.id} is in the engine already. Give this one another.")
        if self._places < 1:
            raise QueueFullError(
                f"a request would have to wait, but only {self._max_waiting} may (max_waiting). Try again later."
            )

    def _mailbox(self, loop: asyncio.AbstractEventLoop) -> Mailbox:
        if loop not in self._mailboxes:
            self._mailboxes = {old: box for old, box in self._mailboxes.items() if not box.closed}
            self._mailboxes[loop] = Mailbox(loop)
        return self._mailboxes[loop]

    # In the engine's thread

    def _work(self) -> None:
        failure = None
        try:
            while (inbox := self._next_inbox()) is not None:
                self._turn(inbox)
        except BaseException as error:  # a bug of ours: nobody may be left waiting for it
            failure = Failure(error, error.__traceback__)
        self._end_all(failure)
        self._ended.set_result(None)

    def _next_inbox(self) -> list[tuple[Handle, FinishReason | None]] | None:
        """What was asked for since; sleeps while there is nothing to do. None: it is time to end."""
        with self._changed:
            while not (self._inbox or self._closing or not self._engine.idle):
                self._changed.wait()
            if self._closing:
                return None
            inbox, self._inbox = self._inbox, []
            return inbox

    def _turn(self, inbox: Iterable[tuple[Handle, FinishReason | None]]) -> None:
        items: list[tuple[Handle, Item]] = []
        for handle, reason in inbox:
            items += self._submit(handle) if reason is None else self._finish(handle, reason)
        try:
            events = self._engine.step()
        except Exception as error:
            items += self._fail(Failure(error, error.__traceback__))
        else:
            items += [(self._running[event.request], event) for event in events if event.request in self._running]
        self._hand_over(items)

    def _submit(self, handle: Handle) -> list[tuple[Handle, Item]]:
        try:
            self._engine.submit(handle.request)
        except Exception as error:
            return [(handle, Failure(error, error.__traceback__))]
        self._running[handle.request] = handle
        return []

    def _finish(self, handle: Handle, reason: FinishReason) -> list[tuple[Handle, Item]]:
        if self._running.pop(handle.request, None) is None:
            return []
        self._engine.finish(handle.request, reason)
        return [(handle, _last_event(handle.request))]

    def _fail(self, failure: Failure) -> list[tuple[Handle, Item]]:
        if isinstance(failure.error, SessionLostError):
            with self._changed:
                lost = f"the engine's session is lost: open the program again. {failure.error}"
                self._refusal = self._refusal or lost
        items: list[tuple[Handle, Item]] = []
        for request, handle in self._running.items():
            items.append((handle, _last_event(request) if request.finished else failure))
            self._engine.finish(request, "error")
        return items

    def _hand_over(self, items: list[tuple[Handle, Item]]) -> None:
        """Make places for others, then post what came of a turn: who reads it may submit the next."""
        ended = [handle for handle, item in items if isinstance(item, Failure) or item.finish_reason is not None]
        deserted = [handle for handle in self._running.values() if handle.mailbox.closed]
        for handle in deserted:
            self._engine.cancel(handle.request)
        for handle in (*ended, *deserted):
            self._running.pop(handle.request, None)
        with self._changed:
            for handle in (*ended, *deserted):
                self._open.pop(handle.request.id, None)
            self._places = self._free_places() - sum(reason is None for _, reason in self._inbox)
        _post(items)
        self._settle()

    def _end_all(self, failure: Failure | None) -> None:
        with self._changed:
            self._refusal = self._refusal or "the engine's thread has failed."
            left = list(self._open.values())
            self._open.clear()
        self._running.clear()
        for handle in left:
            if failure is None:
                self._engine.finish(handle.request, "cancelled")
            elif not handle.request.finished:  # the engine may be what is broken
                handle.request.finish_reason = "error"
        _post([(handle, failure or _last_event(handle.request)) for handle in left])
        self._settle()

    def _free_places(self) -> float:
        """How many requests can come before one is refused."""
        if self._max_waiting is None:
            return math.inf
        waiting, running = self._engine.scheduler.waiting, self._engine.scheduler.running
        free = 0 if waiting else self._engine.session.limits.slots - running
        return self._max_waiting - waiting + free


def _post(items: Iterable[tuple[Handle, Item]]) -> None:
    by_mailbox: dict[Mailbox, list[tuple[Handle, Item]]] = {}
    for handle, item in items:
        by_mailbox.setdefault(handle.mailbox, []).append((handle, item))
    for mailbox, own in by_mailbox.items():
        mailbox.post(own)


def _last_event(request: Request) -> Event:
    return Event(request, (), request.finish_reason)
