"""A compiler's run: what it was told and what it said, how it ended, and what it warned about."""

from __future__ import annotations

import errno
import logging
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from QEfficient.devices.cloud_ai_100.bound import bound
from QEfficient.errors import CompilationError

LOG = "compiler.log"
LAST_LINES = 12
SHELLS_SIGNALS = 128
"""A shell adds it to the number of the signal that ended its program."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WARNING = re.compile(r"(?:^|[\s\[])warning[:\]]", re.IGNORECASE)
"""`Warning: …`, `[warning] …`, `tool: WARNING: …`: how the compilers' lines begin is not documented."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ran:
    """A tool that ran to its end, without an error."""

    command: Sequence[str]
    said: str

    @property
    def tool(self) -> str:
        """Its name."""
        return Path(self.command[0]).name

    @property
    def log(self) -> str:
        """All of it, for the file that is kept."""
        return f"{shlex.join(self.command)}\n{self.said}"

    def describe(self) -> str:
        """For an error: how it ended says nothing, what it said may."""
        last = _last_lines(self.said)
        said = f", and said:\n{last}" if last else ", and said nothing"
        return f"It ended without an error{said}\ncommand: {shlex.join(self.command)}"


def run_compiler(
    arguments: Sequence[str], folder: Path, workplace: Path, environment: Mapping[str, str] | None = None
) -> Ran:
    """Run it to its end, in `workplace`; everything that it says is kept in `folder`, behind what was said before.
    Raises `CompilationError` if it fails, and the system's error if that is for lack of space in `folder`."""
    try:
        done = subprocess.run(
            bound(arguments),
            cwd=workplace,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise CompilationError(f"the compiler {arguments[0]} cannot be started: {error}.") from error
    ran = Ran(arguments, done.stdout + done.stderr)
    with (folder / LOG).open("a", encoding="utf-8") as log:
        log.write(ran.log)
    if done.returncode:
        last = _last_lines(done.stderr) or _last_lines(done.stdout)
        said = f":\n{last}" if last else ", and said nothing"
        command = f"command: {shlex.join(arguments)}"
        failed = CompilationError(f"{ran.tool} ended with {_ending(done.returncode)}{said}\n{command}")
        lack = _lack_of_space(done.returncode, ran.said)
        if lack is not None:  # whoever publishes the folder knows what to advise
            raise OSError(lack, os.strerror(lack), str(folder)) from failed
        raise failed
    return ran


def _ending(code: int) -> str:
    """`exit code 1`, or the signal that ended a program: as Python counts them, or as a shell around it does."""
    number = -code if code < 0 else code - SHELLS_SIGNALS
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"exit code {code}"
    ended = f"the signal {name}" if code < 0 else f"exit code {code}, which is a shell's for the signal {name}"
    return f"{ended}, as where memory has run out" if number == signal.SIGKILL else ended


def _lack_of_space(code: int, said: str) -> int | None:
    """The system's number for what a compiler lacked that could not write; None if it failed for another reason."""
    if -code == signal.SIGXFSZ:
        return errno.EFBIG
    return next((number for number in NO_SPACE if os.strerror(number) in said), None)


def tell_warnings(said: str) -> None:
    """Show the user what the compiler warned about: once each, in one warning of ours."""
    found = list(dict.fromkeys(line.strip() for line in said.splitlines() if WARNING.search(line)))
    if found:
        more = [f"… and {len(found) - LAST_LINES} more"] if len(found) > LAST_LINES else []
        listed = "".join(f"\n  {line}" for line in [*found[:LAST_LINES], *more])
        logger.warning("the compiler warns (all that it said is in %s beside the program):%s", LOG, listed)


def _last_lines(said: str) -> str:
    """For an error: the folder with all of it is not kept then."""
    return "\n".join(said.strip().splitlines()[-LAST_LINES:])
