"""Requests that end at a moment, whatever has become of them by then."""

from __future__ import annotations

import heapq
from itertools import count

from QEfficient.generation.request import Request

SLACK = 64


class Deadlines:
    """The earliest first. Most requests end long before, so those are dropped now and then."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._numbers = count()  # requests have no order
        self._most = SLACK

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, request: Request, moment: float) -> None:
        heapq.heappush(self._heap, (moment, next(self._numbers), request))
        if len(self._heap) > self._most:
            self._heap = [entry for entry in self._heap if not entry[-1].finished]
            heapq.heapify(self._heap)
            self._most = 2 * len(self._heap) + SLACK

    def pop(self, now: float) -> list[Request]:
        """The requests whose time is up."""
        late = []
        while self._heap and self._heap[0][0] <= now:
            request = heapq.heappop(self._heap)[-1]
            if not request.finished:
                late.append(request)
        return late
