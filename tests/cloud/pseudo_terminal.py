"""A program in a terminal of its own: what is typed there, and what its screen shows."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path
from types import TracebackType

TOP = Path(__file__).parents[2]
SECONDS = 120
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|.", re.DOTALL)


class PseudoTerminal:
    """Runs `python -m …` in a terminal of 120 columns."""

    def __init__(self, *words: str, **environment: str) -> None:
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            own = {"TERM": "xterm-256color", "COLUMNS": "120", "INPUTRC": os.devnull, "PYTHONPATH": str(TOP)}
            os.execve(sys.executable, [sys.executable, "-m", *words], {**os.environ, **own, **environment})
        self.raw = ""
        self._read_until = 0

    def __enter__(self) -> PseudoTerminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._terminal)

    def wait_for(self, pattern: str) -> None:
        """Until something that was not waited for before matches."""
        end = time.monotonic() + SECONDS
        while (found := re.compile(pattern).search(self.raw, self._read_until)) is None:
            assert time.monotonic() < end, f"{pattern!r} did not come:\n{self.screen()}"
            assert self._read(), f"the program ended before {pattern!r} came:\n{self.screen()}"
        self._read_until = found.end()

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def end(self) -> int:
        """Wait for the program's end; returns its exit code."""
        while self._read():
            pass
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def screen(self) -> str:
        """What the terminal shows, as if it had no last line."""
        lines: list[list[str]] = [[]]
        row = column = 0
        for part in CONTROL.findall(self.raw):
            if part == "\n":
                row, column = row + 1, 0
                lines += [[] for _ in range(row + 1 - len(lines))]
            elif part == "\r":
                column = 0
            elif part == "\b":
                column = max(column - 1, 0)
            elif part.endswith("A") and len(part) > 1:
                row = max(row - int(part[2:-1] or 1), 0)
            elif part.endswith("K") and len(part) > 1:
                del lines[row][0 if part == "\x1b[2K" else column :]
            elif part.isprintable():
                lines[row] += [" "] * (column + 1 - len(lines[row]))
                lines[row][column] = part
                column += 1
        return "\n".join("".join(line).rstrip() for line in lines)

    def _read(self) -> bool:
        """Take what has come, waiting a little for it; False when there will be no more."""
        if not select.select([self._terminal], [], [], 1)[0]:
            return True
        try:
            found = os.read(self._terminal, 1 << 16)
        except OSError:  # Linux' way to say that nobody writes any more
            return False
        self.raw += found.decode(errors="replace")
        return bool(found)
