"""How long steps take, by how many tokens they have."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

KEPT = 5
PLAIN_AGE, AGE = 64, 128
"""After so many steps, a measurement of steps without drafts or with them says nothing any more."""


class Recent:
    """The last few measurements."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=KEPT)

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def __len__(self) -> int:
        return len(self._seconds)

    @property
    def usual(self) -> float:
        """The lower quartile: who else uses the machine makes it slower, never faster. 0 if nothing was measured."""
        return sorted(self._seconds)[(len(self._seconds) - 1) // 4] if self._seconds else 0.0


@dataclass
class _Size:
    last: int
    """The number of the last step of this size."""
    seconds: Recent = field(default_factory=Recent)


@dataclass(frozen=True)
class Curve:
    """Measured sizes and their seconds. Between them are straight lines. Beyond them nothing is known, so nothing
    changes: a step may leap where a device goes over to another kernel, and be flat from there on."""

    sizes: Sequence[int]
    seconds: Sequence[float]

    @property
    def reach(self) -> int:
        """The largest step that may be tried: twice what was measured."""
        return 2 * self.sizes[-1]

    def at(self, tokens: int) -> float:
        place = bisect_left(self.sizes, tokens)
        if place < len(self.sizes) and self.sizes[place] == tokens:
            return self.seconds[place]
        if place in (0, len(self.sizes)):
            return self.seconds[max(place - 1, 0)]
        left, right = place - 1, place
        slope = (self.seconds[right] - self.seconds[left]) / (self.sizes[right] - self.sizes[left])
        return self.seconds[left] + slope * (tokens - self.sizes[left])


class StepSeconds:
    """Learns from steps as they run. The first of a size is left out: devices make themselves ready for it."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._steps = 0

    def record(self, tokens: int, seconds: float) -> None:
        self._steps += 1
        size = self._sizes.get(tokens)
        if size is None:
            self._sizes[tokens] = _Size(self._steps)
            return
        if self._steps - size.last > AGE:
            size.seconds = Recent()
        size.last = self._steps
        size.seconds.add(seconds)

    def plain(self, rows: int) -> float | None:
        """Of steps of so many rows without drafts; None: some must run first."""
        size = self._sizes.get(rows)
        if size is None or len(size.seconds) < 2 or self._steps - size.last > PLAIN_AGE:
            return None
        return size.seconds.usual

    def curve(self) -> Curve:
        """What is known now."""
        fresh = sorted(n for n, size in self._sizes.items() if len(size.seconds) and self._steps - size.last <= AGE)
        usual = [self._sizes[tokens].seconds.usual for tokens in reversed(fresh)]
        return Curve(fresh, list(accumulate(usual, min))[::-1])  # fewer tokens never take more
