"""The cost of an export: seconds and peak memory, beside `transformers.exporters.OnnxExporter`, interleaved.

    python -m benchmarks.export                 a Llama-3.2-1B-shaped bfloat16 checkpoint, both exporters, 3 rounds
    python -m benchmarks.export --shape 8b      an 8B-shaped one in shards, ours alone

The checkpoint is made on the spot with random weights. Each export runs in a process of its own; the peak is that
process's largest resident set.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.checkpoints import SHAPES, make_checkpoint

OURS = """
import sys
from QEfficient import QEFFAutoModelForCausalLM
print(QEFFAutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="bfloat16").export())
"""
PEER = """
import sys, torch
from transformers import AutoModelForCausalLM
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
ids = torch.ones((2, 8), dtype=torch.long)
inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic=True)).save_pretrained(sys.argv[2])
"""


def measured(script: str, arguments: Sequence[str], store: Path) -> tuple[float, float]:
    """Seconds and peak GB of one process."""
    environment = {**os.environ, "QEFF_HOME": str(store)}
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"an export failed with status {status}")
    return seconds, usage.ru_maxrss / 1e6


def run(shape: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="benchmark-export-") as name:
        folder = Path(name)
        # In a process of its own: a child inherits its parent's peak, which would count as the export's
        making = [sys.executable, "-m", "benchmarks.export", "--shape", shape, "--only-make", str(folder / "model")]
        subprocess.run(making, check=True)
        size = sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors"))
        print(f"{shape}: checkpoint of {size / 1e9:.2f} GB, {torch.get_num_threads()} threads")
        exporters = {"ours": OURS} if shape == "8b" else {"ours": OURS, "transformers.exporters": PEER}
        results: dict[str, list[tuple[float, float]]] = {exporter: [] for exporter in exporters}
        for turn in range(rounds):
            for exporter, script in exporters.items():
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    out = [str(folder / "model"), str(Path(scratch) / "out")]
                    results[exporter].append(measured(script, out, Path(scratch) / "store"))
                seconds, peak = results[exporter][-1]
                print(f"  round {turn + 1}, {exporter}: {seconds:.1f} s, {peak:.2f} GB", flush=True)
        _summary(results)


def _summary(results: dict[str, list[tuple[float, float]]]) -> None:
    medians = {e: [statistics.median(column) for column in zip(*runs, strict=True)] for e, runs in results.items()}
    for exporter, (seconds, peak) in medians.items():
        print(f"{exporter}: median {seconds:.1f} s, {peak:.2f} GB")
    if len(medians) == 2:
        ours, peer = medians.values()
        print(f"time {ours[0] / peer[0]:.2f} of the peer's, memory {ours[1] / peer[1]:.2f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-make", type=Path, metavar="FOLDER", help="only write the checkpoint")
    given = parser.parse_args(arguments)
    if given.only_make:
        make_checkpoint(given.shape, given.only_make)
        return
    run(given.shape, given.rounds)


if __name__ == "__main__":
    main()
