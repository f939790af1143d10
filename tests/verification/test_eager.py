from __future__ import annotations

import numpy as np
import torch

from QEfficient.verification.eager import all_logits
from QEfficient.verification.tiny_models import tiny_model

IDS = [17, 60, 22, 81, 35, 9]


def one_call(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        rows: np.ndarray = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
    return rows


def test_a_causal_model_is_called_once_for_all_tokens() -> None:
    model = tiny_model("llama")
    assert np.array_equal(all_logits(model, IDS), one_call(model, IDS))


def test_a_model_that_looks_ahead_is_asked_token_by_token() -> None:
    model = tiny_model("cpmant")
    rows = all_logits(model, IDS)
    assert np.array_equal(rows, np.stack([one_call(model, IDS[:end])[-1] for end in range(1, len(IDS) + 1)]))
    assert np.abs(rows[2] - one_call(model, IDS)[2]).max() > 0.1
