"""What the sessions of this process hold of the cards, and who lets go of it when another session lacks room."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from weakref import WeakMethod, WeakSet

from QEfficient.errors import CoresTakenError, DeviceMemoryError

SHORTAGES = (CoresTakenError, DeviceMemoryError)

Taken = TypeVar("Taken")


@dataclass(eq=False)
class Share:
    """One session's part. It lives as long as the session does."""

    program: Path
    devices: tuple[int, ...]
    """Empty: the runtime chooses."""
    held: bool = False
    owner: WeakMethod[Callable[[], bool]] | None = None
    """Lets the session rest if nothing needs it now, and says whether it did."""
    used: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        with _guard:
            _shares.add(self)

    def touch(self) -> None:
        """It is in use just now."""
        self.used = time.monotonic()

    def take(self, take: Callable[[], Taken]) -> Taken:
        """What `take` gives. While the devices lack room, idle sessions that can come back by themselves let go of
        theirs, those first that were left alone longest, and it is tried again."""
        while True:
            try:
                return take()
            except RuntimeError as error:
                if not isinstance(error.__cause__, SHORTAGES) or not self._make_room():
                    raise

    def _make_room(self) -> bool:
        others = [share for share in _held_on(self.devices) if share is not self]
        return any(share._lets_go() for share in sorted(others, key=lambda share: share.used))

    def _lets_go(self) -> bool:
        ask = self.owner() if self.owner is not None else None
        return ask is not None and ask()


def held_here(devices: Sequence[int]) -> list[Path]:
    """The programs that sessions of this process keep on these devices."""
    return sorted({share.program for share in _held_on(devices)})


def _held_on(devices: Sequence[int]) -> list[Share]:
    with _guard:
        held = [share for share in _shares if share.held]
    return [share for share in held if not devices or not share.devices or set(devices) & set(share.devices)]


_guard = threading.RLock()
_shares: WeakSet[Share] = WeakSet()
