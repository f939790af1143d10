"""Llama 4: rotary embedding in complex numbers, and a temperature counted from the cache's length; both by position."""

from __future__ import annotations

from typing import Any

import torch

from QEfficient.transformers.retained_state import RetainedCache

MODEL_TYPES = ("llama4_text",)


def adapt(model: Any) -> None:
    for module in model.modules():
        if getattr(module, "attn_temperature_tuning", False) and not module.use_rope:
            module.attn_temperature_tuning = False
            module.q_proj.register_forward_hook(_tempered(module.floor_scale, module.attn_scale))
        if type(module).__name__.endswith("RotaryEmbedding") and hasattr(module, "inv_freq"):
            module.register_forward_hook(lambda _module, _args, table: _Table(table))


class _Table:
    """The complex table, asked for a head axis by `[:, :, None, :]`: indexing complex numbers so has no ONNX form."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

    def to(self, device: Any) -> _Table:
        return self

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.table.unsqueeze(2)


def _tempered(floor_scale: float, attn_scale: float) -> Any:
    """Scales the queries of a layer without rotary embedding, which reach attention as they are projected."""

    def hook(module: torch.nn.Module, args: Any, queries: torch.Tensor) -> torch.Tensor:
        cache = RetainedCache.current
        positions = cache.position_ids if cache is not None else torch.arange(queries.shape[1])[None]
        scale = torch.log1p(torch.floor((positions.clamp(min=0).float() + 1.0) / floor_scale)) * attn_scale + 1.0
        return (queries * scale[..., None]).to(queries.dtype)

    return hook
