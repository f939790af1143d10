"""How much of long work is done, from deep inside it to whoever listens, a terminal for one.

A variable of the context rather than an argument: what lies between has nothing to do with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[int, int | None], None]
"""Called with the bytes that are done, and with those of the whole, if they are known."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` what is done inside."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def tell(done: int, total: int | None = None) -> None:
    """So many bytes are done."""
    listener = _listener.get()
    if listener is not None:
        listener(done, total)
