"""The peers' own environment: a venv in the cache folder, with the versions of peers.txt."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
LISTS = (HERE / "peers.txt", HERE / "peers_alone.txt")
# Built here, for the processor that is here: a wheel for everybody would leave its instructions unused, and one from
# pip's cache may have been built with other options.
BUILT_HERE = "llama-cpp-python"
BUILD_OPTIONS = "-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release"


def peers_fingerprint() -> str:
    """Changes whenever the environment has to be built again."""
    parts = [path.read_bytes() for path in LISTS] + [sys.version.encode(), BUILD_OPTIONS.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def peers_python(cache: Path) -> Path:
    """The interpreter of the peers' environment, which is made first if it is not there or out of date."""
    folder = cache / "peers"
    stamp, wanted = folder / ".installed", peers_fingerprint()
    python = folder / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"Making the peers' environment in {folder}; llama.cpp is compiled, which takes some minutes.", flush=True)
    started = time.perf_counter()
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--upgrade", "pip"])
    built = next(line for line in LISTS[0].read_text().splitlines() if line.startswith(BUILT_HERE))
    _run([*pip, "--no-cache-dir", "--no-binary", BUILT_HERE, built], CMAKE_ARGS=BUILD_OPTIONS)
    _run([*pip, "-r", str(LISTS[0])])
    _run([*pip, "--no-deps", "-r", str(LISTS[1])])
    stamp.write_text(wanted)
    print(f"The peers' environment is ready after {time.perf_counter() - started:.0f} s.", flush=True)
    return python


def _run(command: Sequence[str], **environment: str) -> None:
    print("  " + " ".join(command), flush=True)
    done = subprocess.run(command, env={**os.environ, **environment})
    if done.returncode:
        raise RuntimeError(
            f"the peers' environment could not be made: `{' '.join(command)}` ended with {done.returncode}. What pip"
            " said stands above. `--engines ours` measures without peers."
        )
