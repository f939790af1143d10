"""How events get from the thread of an engine to the tasks that wait for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

from QEfficient.generation.engine import Event
from QEfficient.generation.request import FinishReason, Request, RequestOutput, output_of


@dataclass(frozen=True)
class Failure:
    """An error that ends several requests. Each raises it anew, from where it came."""

    error: BaseException
    traceback: TracebackType | None


Item: TypeAlias = "Event | Failure"
Finish: TypeAlias = Callable[[Request, FinishReason], None]


class Handle:
    """A request that was submitted: an iterator over its events, for one task.

    Cancelling that task cancels the request. Leaving the loop early does not: call `cancel` then.
    """

    def __init__(self, request: Request, mailbox: Mailbox, finish: Finish) -> None:
        self.request = request
        self.mailbox = mailbox
        self._finish = finish
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        self._over = False

    def __aiter__(self) -> Handle:
        return self

    async def __anext__(self) -> Event:
        if self._over:
            raise StopAsyncIteration
        try:
            item = await self._items.get()
        except asyncio.CancelledError:
            self.cancel()
            raise
        self._over = isinstance(item, Failure) or item.finish_reason is not None
        if isinstance(item, Failure):
            raise item.error.with_traceback(item.traceback)
        return item

    async def result(self) -> RequestOutput:
        """What came of it, when it has ended."""
        async for _ in self:
            pass
        return output_of(self.request)

    def finish(self, reason: FinishReason) -> None:
        """End it; its last event says so. Nothing happens if it has ended already."""
        self._finish(self.request, reason)

    def cancel(self) -> None:
        self.finish("cancelled")

    def put(self, item: Item) -> None:
        """For its mailbox: in the thread of the event loop."""
        self._items.put_nowait(item)


class Mailbox:
    """Hands items over to the tasks of one event loop; one wakeup takes all that have come by then."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[tuple[Handle, Item]] = deque()
        self._called = False

    @property
    def closed(self) -> bool:
        """Whether nobody will ever look into it again."""
        return self._loop.is_closed()

    def post(self, items: Iterable[tuple[Handle, Item]]) -> None:
        """From the engine's thread. Nothing happens if the loop is closed."""
        self._items.extend(items)
        if self._called:  # and `_deliver` has not begun to take items
            return
        self._called = True
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # closed meanwhile
            self._items.clear()

    def _deliver(self) -> None:
        self._called = False  # before the first is taken: what comes from now on may need another call
        while self._items:
            handle, item = self._items.popleft()
            handle.put(item)
