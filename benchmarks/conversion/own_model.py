"""Ours: export, then compile for the CPU.

python -m benchmarks.conversion.own_model MODEL OUT int4 SEQUENCES TOKENS CTX_LEN THREADS
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.conversion import write_record
from benchmarks.conversion.onnx_bytes import onnx_bytes


def main(model: str, out: str, kind: str, sequences: str, tokens: str, ctx_len: str, threads: str) -> None:
    from QEfficient import QEFFAutoModelForCausalLM

    wrapped = QEFFAutoModelForCausalLM.from_pretrained(model, continuous_batching=True)
    folder = wrapped.compile(
        device="cpu",
        weight_format=kind,
        full_batch_size=int(sequences),
        kv_cache_tokens=int(tokens),
        ctx_len=int(ctx_len),
        num_threads=int(threads),
    )
    # The record names the store's folder; a link is all that is needed here
    target = Path(out) / "compiled"
    target.unlink(missing_ok=True)
    target.symlink_to(folder, target_is_directory=True)
    write_record(Path(out), *onnx_bytes(folder / "model.onnx"), compiled=str(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
