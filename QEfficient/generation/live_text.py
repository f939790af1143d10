"""Answers that run together, told one after the other: pieces of a later one wait for their turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from QEfficient.generation.request import Request
from QEfficient.generation.text import TextEvent


class LiveText:
    """Each prompt, and behind it its answer as it comes."""

    def __init__(self, prompts: Mapping[Request, str], write: Callable[[str], object]) -> None:
        self._waiting = dict(prompts)
        self._write = write
        self._ended: set[Request] = set()
        self._turn: Request | None = None
        self._next()

    def tell(self, event: TextEvent) -> None:
        """Take in what has come."""
        if event.finish_reason is not None:
            self._ended.add(event.request)
        if event.request is self._turn:
            self._write(event.text)
        else:
            self._waiting[event.request] += event.text
        while self._turn in self._ended:
            self._write("\n")
            self._next()

    def _next(self) -> None:
        self._turn = next(iter(self._waiting), None)
        if self._turn is not None:
            self._write(self._waiting.pop(self._turn))
