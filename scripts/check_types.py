"""Tiny models of the types that are named: from a saved folder to tokens, static and in slots, against transformers.

    python scripts/check_types.py llama mamba
    python scripts/check_types.py all --tokens 24 --prefill-seq-len 32 --ctx-len 128

What `qefficient models --test` leaves out: weights from a checkpoint, and tokens from `generate`. Prints a line for
each type; fails if one of them gives other tokens than transformers, loaded from the same folder, without a cache.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from typing import Any

import torch
import transformers

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.verification.tiny_models import causal_types, prompts, tiny_model


class Replays(logging.Handler):
    """Remembers that a model computes its whole context again, and why."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        _, replayed, reason = record.getMessage().partition("computes its whole context again at each step: ")
        self.reason = reason if replayed else self.reason


@torch.no_grad()
def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def answers(folder: str, asked: list[list[int]], slots: int | None, how: argparse.Namespace) -> list[list[int]]:
    model = QEFFAutoModelForCausalLM.from_pretrained(folder, continuous_batching=slots is not None)
    model.compile(prefill_seq_len=how.prefill_seq_len, ctx_len=how.ctx_len, full_batch_size=slots)
    found: list[list[int]] = model.generate(input_ids=asked, generation_len=how.tokens, ignore_eos=True).generated_ids
    return found


def check(model_type: str, how: argparse.Namespace) -> str:
    made = tiny_model(model_type)
    asked = prompts(made)
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        model = type(made).from_pretrained(folder, attn_implementation="eager").eval()
        wanted = [greedy(model, prompt, how.tokens) for prompt in asked]
        found = [answers(folder, asked, slots, how) for slots in (None, 2)]
    return "exact" if found == [wanted, wanted] else "DIFFERENT"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="+", metavar="TYPE", help="types of transformers, or `all`")
    parser.add_argument("--tokens", type=int, default=12, help="new tokens of each prompt")
    parser.add_argument("--prefill-seq-len", type=int, default=8)
    parser.add_argument("--ctx-len", type=int, default=64)
    return parser.parse_args()


def main() -> int:
    how = arguments()
    types = causal_types() if how.types == ["all"] else how.types
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    replays = Replays()
    logging.getLogger("QEfficient").addHandler(replays)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    results = []
    for model_type in types:
        replays.reason = ""
        try:
            results.append(check(model_type, how))
        except Exception as error:  # of whatever kind: the other types are still of interest
            results.append(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        print(f"{model_type:16} {results[-1]}{' by replay: ' + replays.reason if replays.reason else ''}", flush=True)
    return int(results != ["exact"] * len(results))


if __name__ == "__main__":
    sys.exit(main())
