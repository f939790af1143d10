"""Phi-3.5-MoE: its cosines and sines are scaled by the length of the text; here the context says which."""

from __future__ import annotations

from typing import Any

import torch

from QEfficient.transformers.rotary import context_of

MODEL_TYPES = ("phimoe",)


def adapt(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "rope_init_fn") and "long_mscale" in module.config.rope_parameters:
            module.forward = _scaled_by_context(module, module.forward)


def _scaled_by_context(module: Any, by_length: Any) -> Any:
    parameters = module.config.rope_parameters

    @torch.no_grad()
    def forward(x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        context = context_of(x)
        if context is None:
            return by_length(x, position_ids)
        is_long = torch.scalar_tensor(context, dtype=torch.int64) > parameters["original_max_position_embeddings"]
        scale = torch.where(is_long, parameters["long_mscale"], parameters["short_mscale"])
        frequencies, _ = module.rope_init_fn(module.config)
        angles = position_ids[..., None].float() * frequencies.float()
        both = torch.cat((angles, angles), dim=-1)
        return (both.cos() * scale).to(x.dtype), (both.sin() * scale).to(x.dtype)

    return forward
