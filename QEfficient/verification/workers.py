"""Processes that each work off one item after the other; one that dies or takes too long is replaced.

Not a pool of `concurrent.futures`: that one is broken as a whole by the death of a worker, and cannot end a slow one.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any


@dataclass(frozen=True)
class Failure:
    """An item that came to nothing: its worker died, or was ended."""

    reason: str


def run_each(work: Callable[[str], Any], items: Sequence[str], jobs: int, timeout: float) -> Iterator[tuple[str, Any]]:
    """`(item, work(item))` as they finish, in `jobs` fresh processes; a `Failure` instead of a result that never came.

    `work` must be a function of a module, and must not raise.
    """
    waiting = list(reversed(items))
    workers = [_Worker(work, timeout) for _ in range(min(jobs, len(items)))]
    try:
        for worker in workers:
            worker.give(waiting.pop())
        while busy := [worker for worker in workers if worker.item is not None]:
            left = min(worker.deadline for worker in busy) - time.monotonic()
            connection.wait([worker.pipe for worker in busy], max(left, 0.0))
            for worker in busy:
                result = worker.result()
                if result is not None:
                    yield str(worker.item), result
                    worker.give(waiting.pop() if waiting else None)
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    def __init__(self, work: Callable[[str], Any], timeout: float) -> None:
        self._work, self._timeout = work, timeout
        self.item: str | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end, self._work), daemon=True)
        self._process.start()
        far_end.close()

    def give(self, item: str | None) -> None:
        self.item = item
        self.deadline = time.monotonic() + self._timeout
        if item is not None:
            self.pipe.send(item)

    def result(self) -> Any | None:
        """What came of the item, or None as long as there is hope."""
        try:
            if self.pipe.poll():
                return self.pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            return self._replaced(f"its process died (exit code {self._process.exitcode})")
        if time.monotonic() > self.deadline:
            return self._replaced(f"not done after {self._timeout:.0f} s")
        return None

    def _replaced(self, reason: str) -> Failure:
        self._process.kill()
        self.end()
        self._start()
        return Failure(reason)

    def end(self) -> None:
        """Let an idle worker go home, and stop a busy one."""
        self.pipe.close()
        self._process.join(1)
        self._process.kill()
        self._process.join()


def _serve(pipe: Any, work: Callable[[str], Any]) -> None:
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        pipe.send(work(item))
