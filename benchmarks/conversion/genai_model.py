"""onnxruntime-genai's model builder, int4 in blocks of 32, its default.

python -m benchmarks.conversion.genai_model MODEL OUT
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.conversion import write_record
from benchmarks.conversion.onnx_bytes import onnx_bytes


def convert(model: Path, out: Path) -> None:
    with TemporaryDirectory(dir=out) as scratch:
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model), "-o", str(out)]
        # Without this it computes the logits of every token of a prompt: 4 GB of them for 8,192 tokens
        options = ["-p", "int4", "-e", "cpu", "-c", scratch, "--extra_options", "prune_lm_head=true"]
        subprocess.run([*builder, *options], check=True)


def main(model: str, out: str) -> None:
    convert(Path(model), Path(out))
    write_record(Path(out), *onnx_bytes(Path(out) / "model.onnx"))


if __name__ == "__main__":
    main(*sys.argv[1:])
