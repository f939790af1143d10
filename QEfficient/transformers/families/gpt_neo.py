"""GPT-Neo: attention slices a causal table by lengths; local layers get their window from the positions instead."""

from __future__ import annotations

from typing import Any

import torch

from QEfficient.transformers.retained_state import RetainedCache

MODEL_TYPES = ("gpt_neo",)


def adapt(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "_attn") and hasattr(module, "attention_type"):
            window = model.config.window_size if module.attention_type == "local" else None
            module._attn = _attention_of(module, window)


def _attention_of(module: Any, window: int | None) -> Any:
    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> Any:
        scores = query.float() @ key.float().transpose(-1, -2) + mask
        cache = RetainedCache.current
        if window is not None and isinstance(cache, RetainedCache):
            oldest = cache.position_ids[:, None, :, None] - window
            scores = torch.where(torch.arange(key.shape[2]) > oldest, scores, torch.finfo(torch.float32).min)
        weights = scores.softmax(-1).to(value.dtype)
        return weights @ value, weights

    return attention
