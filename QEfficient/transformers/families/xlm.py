"""XLM and XLNet: they keep nothing, and their configs say whether tokens see those behind them. By default they do."""

from __future__ import annotations

from typing import Any

from QEfficient.transformers.replay import Replay

MODEL_TYPES = ("xlm", "xlnet")


def adapt(model: Any) -> Replay | None:
    config = model.config
    if getattr(config, "causal", False) or getattr(config, "attn_type", "bi") == "uni":
        return None
    return Replay("every token sees those behind it, so that each new one changes all answers", ahead=True, masked=True)
