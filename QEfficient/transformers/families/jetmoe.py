"""JetMoe: tokens are sorted and split by expert, which depends on data; here each token gathers its experts' weights.

The router still says which token goes where; in place of how many tokens each expert gets, it says which expert each
row is for.
"""

from __future__ import annotations

from typing import Any

import torch

MODEL_TYPES = ("jetmoe",)


def adapt(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "input_linear") and hasattr(module, "router"):
            module.router.forward = _unsorted(module.router)
            for linear in (module.input_linear, module.output_linear):
                linear.forward = _gathered(linear)


def _unsorted(router: Any) -> Any:
    def forward(hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = router.layer(hidden_states).float()
        best, experts = logits.topk(router.top_k, dim=1)  # [tokens, top_k]
        gates = best.softmax(dim=1).type_as(hidden_states).flatten()
        rows = torch.arange(gates.shape[0])
        return rows, rows // router.top_k, gates, experts.flatten(), logits

    return forward


def _gathered(linear: Any) -> Any:
    def forward(inputs: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = (linear.weight[experts] @ inputs[:, :, None])[:, :, 0]
        return rows

    return forward
