"""Types that cannot be served token by token yet, each with its reason: better no answer than a wrong one."""

from __future__ import annotations

from typing import Any

from QEfficient.errors import UnsupportedModelError

REASONS = {
    "cpmant": "attends to the whole context in both directions, so that padding changes its answers",
    "prophetnet": "gives each position another answer when tokens follow it, even without a cache",
    "reformer": "hashes all positions together, so that an answer depends on what follows",
    "rwkv": "loops over tokens in Python, and mixes rows up when several sequences take one token each",
    "xlstm": "loops over tokens in Python, with a state that nothing in transformers' cache holds",
}
MODEL_TYPES = tuple(REASONS)


def adapt(model: Any) -> None:
    kind = model.config.model_type
    if kind in REASONS:
        raise UnsupportedModelError(f"the type '{kind}' is not supported: it {REASONS[kind]}.")
