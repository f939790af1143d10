"""Command lines run in this process, and what came of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from QEfficient.cloud.main import main

GEOMETRY = ("--device", "reference", "--ctx-len", "32", "--prompt-len", "8")


@dataclass(frozen=True)
class Result:
    """What came of a command line."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The only error; everything before it is a remark."""
        lines = self.err.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1 and lines[-1] == errors[0] and "Traceback" not in self.err, self.err
        return errors[0].removeprefix("error: ")


Cli = Callable[..., Result]


def run_words(*words: object) -> Result:
    """Run one command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:  # --help and --version
            code = int(end.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Home:
    """A store with one compiled program in it."""

    path: Path
    model: Path
    compiled: Path
    log: str
    """What was said on stderr while it was made."""

    @property
    def exported(self) -> Path:
        return self.compiled.parent
