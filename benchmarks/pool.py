"""Worker processes: started when needed, asked one at a time, kept open as long as they are quiet and memory lasts."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.artifacts import tail

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
ANSWER_SECONDS = 1800.0
QUIET_SECONDS = 0.1
"""A worker that used at most a tick in this time is quiet."""
SETTLING_SECONDS = 3.0


class WorkerError(Exception):
    """A worker could not do what it was asked."""


class WorkerDied(WorkerError):
    """Its process is gone; says what it said last."""


class Worker:
    """One process, spoken to in lines of JSON."""

    def __init__(self, name: str, command: Sequence[str], log: Path, **popen: Any) -> None:
        self.name, self._log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=output, bufsize=0, **popen)
        self._unread = b""
        self.met: set[str] = set()
        """Cases that it has run."""

    def ask(self, operation: str, seconds: float = ANSWER_SECONDS, **arguments: Any) -> dict[str, Any]:
        """The answer, or `WorkerError`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": operation, **arguments}).encode() + b"\n")
        except BrokenPipeError:
            raise self._dead() from None
        answer: dict[str, Any] = json.loads(self._line(time.monotonic() + seconds, operation))
        if not answer.pop("ok"):
            raise WorkerError(f"{self.name} cannot {operation} {arguments}: {answer['error']}")
        return answer

    def _line(self, end: float, operation: str) -> bytes:
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            ready, _, _ = select.select([output], [], [], max(end - time.monotonic(), 0))
            if not ready:
                self.kill()
                raise WorkerDied(f"{self.name} did not answer '{operation}' in time and was ended ({self._log})")
            piece = os.read(output, 1 << 16)
            if not piece:
                raise self._dead()
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _dead(self) -> WorkerDied:
        status = self._process.wait()
        return WorkerDied(f"{self.name} died with status {status} ({self._log}): {tail(self._log)}")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def cpu_ticks(self) -> int:
        """Processor time that it has used."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return 0
        return int(fields[11]) + int(fields[12])

    @property
    def resident(self) -> int:
        try:
            return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * PAGE
        except FileNotFoundError:
            return 0

    def settle(self) -> bool:
        """Wait until its threads sleep; False if they do not."""
        end = time.monotonic() + SETTLING_SECONDS
        while time.monotonic() < end:
            before = self.cpu_ticks
            time.sleep(QUIET_SECONDS)
            if self.cpu_ticks - before <= 1:
                return True
        return False

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it, gently first."""
        if self.alive and self._process.stdin is not None:
            try:
                self._process.stdin.write(b'{"op": "close"}\n')
                self._process.wait(20)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class Pool:
    """The workers that are open, within so many bytes."""

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self._open: dict[str, Worker] = {}  # the last one used comes last
        self.restless: set[str] = set()
        """Whose threads went on after the answer; these are closed after each use."""

    def get(self, name: str, need: float, start: Callable[[], Worker]) -> tuple[Worker, bool]:
        """The worker of this name, and whether it was started for this. `need`: bytes that it will take."""
        worker = self._open.pop(name, None)
        fresh = worker is None or not worker.alive
        if fresh:
            self.make_room(need)
            worker = start()
        assert worker is not None
        self._open[name] = worker
        return worker, fresh

    def make_room(self, need: float) -> None:
        """Close workers until so many bytes fit into the budget, or none is left."""
        # In a round robin the one used last is wanted again latest
        while self._open and need + sum(worker.resident for worker in self._open.values()) > self._budget:
            self._open.popitem()[1].close()

    def rest(self, name: str) -> None:
        """Make sure that a worker does not disturb the next one."""
        worker = self._open.get(name)
        if worker is not None and worker.alive and not worker.settle():
            self.restless.add(name)
            self.drop(name)

    def drop(self, name: str) -> None:
        worker = self._open.pop(name, None)
        if worker is not None:
            worker.close()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
