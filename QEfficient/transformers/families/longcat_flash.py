"""LongCat-Flash: experts of which some do nothing, looped over by data; here each token gathers its own."""

from __future__ import annotations

from typing import Any

import torch

MODEL_TYPES = ("longcat_flash",)


def adapt(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "identity_expert") and getattr(module, "gate_up_proj", None) is not None:
            module.forward = _gathered(module)


def _gathered(experts: Any) -> Any:
    def forward(hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states[:, None, :, None]  # [tokens, 1, hidden, 1]
        real = top_k_index.clamp(max=experts.num_routed_experts - 1)
        gate, up = (experts.gate_up_proj[real] @ tokens).chunk(2, dim=2)
        computed = (experts.down_proj[real] @ (experts.act_fn(gate) * up))[..., 0]  # [tokens, chosen, hidden]
        identity = top_k_index[..., None] >= experts.num_routed_experts
        mixed = torch.where(identity, hidden_states[:, None], computed)
        return (mixed * top_k_weights[..., None]).sum(1).to(hidden_states.dtype)

    return forward
