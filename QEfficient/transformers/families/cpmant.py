"""CPM-Ant: every token sees the whole text in both directions, so that each new one changes all answers.

Its own mask counts padding on the left; here the tokens behind the last are masked.
"""

from __future__ import annotations

from typing import Any

import torch

from QEfficient.transformers.replay import Replay, ReplayModule

MODEL_TYPES = ("cpmant",)


def adapt(model: Any) -> Replay:
    for module in model.modules():
        if hasattr(module, "prompt_length"):
            module._prepare_attention_mask = _mask(module.prompt_length)
    return Replay("every token sees those behind it, so that each new one changes all answers", ahead=True)


def _mask(prompt_length: int) -> Any:
    def mask(input_ids: torch.Tensor, span: torch.Tensor, context: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        lengths = length[:, None] if ReplayModule.lengths is None else ReplayModule.lengths
        live = torch.arange(input_ids.shape[1]) < lengths + prompt_length
        return live[:, :, None] & live[:, None, :]

    return mask
