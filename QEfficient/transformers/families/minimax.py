"""MiniMax: its linear layers keep their state in a cache class of its own; here each holds it.

Given a state, such a layer loops over tokens in Python and moves it one at a time; that is the part that we use.
"""

from __future__ import annotations

from typing import Any

import torch

from QEfficient.transformers.held_states import held, hold
from QEfficient.transformers.observe import cache_arguments

MODEL_TYPES = ("minimax",)


def adapt(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "slope_rate"):
            module.forward = _holding(module)
        if hasattr(module, "layers"):
            module.forward = _any_cache(module.forward)


class _OwnState:
    """What a linear layer asks of its cache."""

    def __init__(self, layer: Any, rows: int) -> None:
        self._layer, self._shape = layer, (rows, layer.num_attention_heads, layer.head_dim, layer.head_dim)

    def get_linear_cache(self, layer_idx: int) -> torch.Tensor:
        return held(self._layer, "memory", self._shape, self._layer.qkv_proj.weight.dtype)

    def set_linear_cache(self, layer_idx: int, state: torch.Tensor) -> None:
        hold(self._layer, "memory", state)


def _holding(layer: Any) -> Any:
    forward = layer.forward

    def with_held(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        state = cache_arguments(forward, _OwnState(layer, hidden_states.shape[0]))
        output, _ = forward(hidden_states, **{**kwargs, **state})
        return output, None

    return with_held


def _any_cache(forward: Any) -> Any:
    """The model accepts a cache of another class only where it is told not to use one."""
    return lambda *args, **kwargs: forward(*args, **{**kwargs, "use_cache": False})
