"""DBRX: its experts loop over those that were chosen, which depends on data; here each token gathers its own."""

from __future__ import annotations

from typing import Any

import torch

MODEL_TYPES = ("dbrx",)


def adapt(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "mlp") and hasattr(module.mlp, "w1") and hasattr(module, "num_experts"):
            module.forward = _gathered(module)


def _gathered(experts: Any) -> Any:
    def forward(hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.reshape(-1, 1, 1, experts.hidden_size)  # [tokens, 1, 1, hidden]
        shape = (experts.num_experts, experts.ffn_hidden_size, experts.hidden_size)
        w1, v1, w2 = (getattr(experts.mlp, name).view(shape)[top_k_index] for name in ("w1", "v1", "w2"))
        gate = experts.mlp.activation_fn(tokens @ w1.transpose(2, 3))  # [tokens, chosen, 1, ffn]
        mixed = ((gate * (tokens @ v1.transpose(2, 3))) @ w2)[:, :, 0]  # [tokens, chosen, hidden]
        output: torch.Tensor = (mixed * top_k_weights[..., None]).sum(1).view(hidden_states.shape)
        return output

    return forward
