"""Gemma 3n: its activation sparsity needs a quantile of the normal distribution, which is a number and no operation."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import torch

MODEL_TYPES = ("gemma3n_text",)


def adapt(model: Any) -> None:
    for module in model.modules():
        if getattr(module, "activation_sparsity", 0.0) > 0.0 and hasattr(module, "_gaussian_topk"):
            module._gaussian_topk = _above(NormalDist().inv_cdf(float(module.activation_sparsity)))


def _above(deviations: float) -> Any:
    def gaussian_topk(inputs: torch.Tensor) -> torch.Tensor:
        mean = inputs.mean(dim=-1, keepdim=True)
        spread = torch.std(inputs, dim=-1, keepdim=True, unbiased=False)
        return torch.relu(inputs - (mean + spread * deviations))

    return gaussian_topk
