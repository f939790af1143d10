"""Tiny models of the types that are named: from a saved folder to tokens, static and in slots, against transformers.

Prints a line for each type; fails if one of them gives other tokens than transformers without a cache.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from typing import Any

import torch
import transformers

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.verification.tiny_models import prompts, tiny_model

TOKENS = 12


class Replays(logging.Handler):
    """Remembers that a model computes its whole context again, and why."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        _, replayed, reason = record.getMessage().partition("computes its whole context again at each step: ")
        self.reason = reason if replayed else self.reason


@torch.no_grad()
def greedy(model: Any, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(TOKENS):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def answers(folder: str, asked: list[list[int]], continuous_batching: bool) -> list[list[int]]:
    model = QEFFAutoModelForCausalLM.from_pretrained(folder, continuous_batching=continuous_batching)
    model.compile(prefill_seq_len=8, ctx_len=64, full_batch_size=2 if continuous_batching else None)
    found: list[list[int]] = model.generate(input_ids=asked, generation_len=TOKENS).generated_ids
    return found


def check(model_type: str) -> str:
    model = tiny_model(model_type)
    asked = prompts(model)
    wanted = [greedy(model, prompt) for prompt in asked]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        found = [answers(folder, asked, continuous_batching) for continuous_batching in (False, True)]
    return "exact" if found == [wanted, wanted] else "DIFFERENT"


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    replays = Replays()
    logging.getLogger("QEfficient").addHandler(replays)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    results = []
    for model_type in sys.argv[1:]:
        replays.reason = ""
        try:
            results.append(check(model_type))
        except Exception as error:  # of whatever kind: the other types are still of interest
            results.append(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        print(f"{model_type:16} {results[-1]}{' by replay: ' + replays.reason if replays.reason else ''}", flush=True)
    return int(results != ["exact"] * len(results))


if __name__ == "__main__":
    sys.exit(main())
