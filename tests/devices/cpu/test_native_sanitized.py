"""The native kernels under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from QEfficient.devices.cpu.native import FOLDER

COMPILER = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
KERNELS = ("linear", "experts", "path_avx512", "path_avx2", "path_portable")
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def build(folder: Path, *kernel_sources: Path) -> Path:
    program = folder / "sanitized"
    sources = [Path(__file__).parent / "sanitized.cpp", *kernel_sources]
    command = [str(COMPILER), *FLAGS, f"-I{FOLDER}", *map(str, sources), "-pthread", "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    return program


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="there is no compiler")
def test_the_sanitizers_find_nothing(tmp_path: Path) -> None:
    program = build(tmp_path, *(FOLDER / f"{name}.cpp" for name in KERNELS))
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert result.stdout == "all paths agree\n"
