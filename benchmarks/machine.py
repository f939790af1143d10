"""What the machine is and what it can: the read bandwidth is the limit of every decoding step."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

# Eight sums side by side, so that adding is never what is waited for; the compiler makes vectors of them
STREAM = """
#include <stddef.h>
#include <stdint.h>
uint64_t stream_sum(const uint64_t *values, size_t count) {
    uint64_t sums[64] = {0};
    for (size_t i = 0; i + 64 <= count; i += 64)
        for (int j = 0; j < 64; j++) sums[j] += values[i + j];
    uint64_t total = 0;
    for (int j = 0; j < 64; j++) total += sums[j];
    return total;
}
"""


def read_bandwidth(threads: int, megabytes: int = 1024, repeats: int = 5) -> float:
    """Bytes per second of reading a buffer far above the last-level cache, with all threads; the best of several."""
    buffer = np.ones(megabytes * 2**20 // 8, np.uint64)
    parts = np.array_split(buffer, threads)
    total, best = _summing(), 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats + 1):  # the first wakes the threads
            started = time.perf_counter()
            found = sum(pool.map(total, parts))
            best = max(best, buffer.nbytes / (time.perf_counter() - started))
            assert found <= buffer.size
    return best


def _summing() -> Callable[[np.ndarray], int]:
    """A function that adds up an array without holding the interpreter's lock."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return lambda part: int(np.bitwise_or.reduce(part))
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "stream.c", Path(folder) / "stream.so"
        source.write_text(STREAM)
        subprocess.run([compiler, "-O3", "-march=native", "-shared", "-fPIC", source, "-o", library], check=True)
        function = ctypes.CDLL(str(library)).stream_sum
    function.restype, function.argtypes = ctypes.c_uint64, (ctypes.c_void_p, ctypes.c_size_t)
    return lambda part: int(function(part.ctypes.data, part.size))


def describe() -> dict[str, str]:
    """Processor, memory, system: what a reader needs to place the figures."""
    fields = dict(line.partition(":")[::2] for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
    cpu = {name.strip(): value.strip() for name, value in fields.items()}
    flags = [flag for flag in INSTRUCTIONS if flag in cpu.get("flags", "").split()]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1e6
    name, family, model = (cpu.get(key, "?") for key in ("model name", "cpu family", "model"))
    return {
        "processor": f"{name} (family {family}, model {model}), {os.cpu_count()} cores",
        "instructions": ", ".join(flags),
        "memory": f"{memory:.0f} GB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }


INSTRUCTIONS = ["avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"]
