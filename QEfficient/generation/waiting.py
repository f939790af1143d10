"""Those who wait for a place."""

from __future__ import annotations

import heapq

from QEfficient.generation.places import Place
from QEfficient.generation.request import Request

SLACK = 64


class Queue:
    """Higher priority first, then in the order of arrival. Samples of one prompt wait aside until the first of them has
    computed it."""

    def __init__(self) -> None:
        self._waiting: dict[Request, Place] = {}
        self._heap: list[tuple[tuple[int, int], Place]] = []  # with some that have left
        self._aside: dict[Request, list[Place]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: Request) -> bool:
        return request in self._waiting

    def push(self, place: Place) -> None:
        self._waiting[place.request] = place
        heapq.heappush(self._heap, (place.rank, place))

    def push_aside(self, place: Place, other: Request) -> None:
        """As `push`, but not before `call` of the other."""
        self._waiting[place.request] = place
        self._aside.setdefault(other, []).append(place)

    def call(self, other: Request) -> None:
        """Let those in who waited for the other."""
        for place in self._aside.pop(other, ()):
            heapq.heappush(self._heap, (place.rank, place))

    @property
    def first(self) -> Place | None:
        while self._heap and not self._waits(self._heap[0][1]):
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> None:
        """Take the first out."""
        place = self.first
        assert place is not None
        heapq.heappop(self._heap)
        del self._waiting[place.request]

    def remove(self, request: Request) -> None:
        """Forget a request; nothing happens if it does not wait."""
        self._waiting.pop(request, None)
        if len(self._heap) > 2 * len(self._waiting) + SLACK:
            self._heap = [entry for entry in self._heap if self._waits(entry[1])]
            heapq.heapify(self._heap)

    def _waits(self, place: Place) -> bool:
        return self._waiting.get(place.request) is place
