"""xLSTM: its cache is a class of its own, and its layers loop over tokens; here each layer holds its states."""

from __future__ import annotations

from typing import Any

import torch

from QEfficient.transformers.held_states import held, hold
from QEfficient.transformers.observe import cache_arguments

MODEL_TYPES = ("xlstm",)


def adapt(model: Any) -> None:
    model.config.max_inference_chunksize = 2**62  # no loop over chunks: states are held between calls anyway
    for module in model.modules():
        if hasattr(module, "mlstm_backend"):
            module.forward = _holding(module)
        if hasattr(module, "blocks"):
            module.forward = _without_cache(module.forward)


def _holding(layer: Any) -> Any:
    forward = layer.forward

    def with_held(x: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, None]:
        rows, heads = x.shape[0], layer.config.num_heads
        keys, values = layer.qk_dim // heads, layer.v_dim // heads
        shapes = {
            "memory": (rows, heads, keys, values),
            "normalizer": (rows, heads, keys),
            "exponent": (rows, heads, 1),
        }
        dtype = getattr(torch, layer.config.inference_state_dtype)
        output, states = forward(x, tuple(held(layer, name, shape, dtype) for name, shape in shapes.items()))
        for name, new in zip(shapes, states, strict=True):
            hold(layer, name, new)
        return output, None

    return with_held


def _without_cache(forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **{**kwargs, **cache_arguments(forward, None), "use_cache": False})

    return run
