"""Ctrl-C while a card generates, and commands that are killed while the compiler runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

SHAPE = ("--simulate", "--num-cores", "16", "--ctx-len", "2000", "--prompt-len", "8")
SECONDS = 120


@contextmanager
def command(name: str, model: Path, folder: Path, *words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """In a process of its own, whatever becomes of it; both its outputs are pipes."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("QEFF_", "QAIC_"))}
    own = {"QEFF_HOME": str(folder / "home"), "QAIC_SIM_STATE": str(folder / "cards.json"), **environment}
    arguments = [sys.executable, "-m", f"QEfficient.cloud.{name}", "--model-name", str(model), *SHAPE, *words]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**inherited, **own}
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(found: Callable[[], object]) -> None:
    ends = time.monotonic() + SECONDS
    while not found():
        assert time.monotonic() < ends, "nothing came in time"
        time.sleep(0.05)


def read(stream: IO[str] | None, count: int) -> str:
    assert stream is not None
    return stream.read(count)


def test_ctrl_c_ends_an_answer_as_everywhere(model_folder: Path, tmp_path: Path) -> None:
    words = ("--prompt", "In", "--ignore-eos", "--generation-len", "1900")
    with command("infer", model_folder, tmp_path, *words) as process:
        assert read(process.stdout, 20).startswith("In")  # text flows
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "error: interrupted" and "Traceback" not in said and "deactivate" not in said


def compilers(folder: Path) -> list[int]:
    """Which processes of the compiler work below a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if "qaic_simulator.compiler" in words and str(folder) in words:
            found.append(int(process.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir() or not shutil.which("setpriv"), reason="needs Linux with util-linux")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_compiler_ends_with_its_command(end: signal.Signals, model_folder: Path, tmp_path: Path) -> None:
    slow = {"QAIC_SIM_COMPILER_FAULT": f"slow:{SECONDS}"}
    with command("compile", model_folder, tmp_path, **slow) as process:
        wait_until(lambda: compilers(tmp_path) or process.poll() is not None)
        assert process.poll() is None
        process.send_signal(end)
        assert process.wait(timeout=10) == -end
        started = time.monotonic()
        wait_until(lambda: not compilers(tmp_path))
        assert time.monotonic() - started < 10
