"""Models that compute the same in float32 as before, and too much for float16: a factor goes in here and out there."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

LARGE, SMALL = 3e4, 1e-5
"""Beyond float16's range; squared below it."""


def layers_of(model: Any) -> Any:
    """The decoder layers, whatever they are called."""
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers)


def _scale(module: Any, factor: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor)


def _scale_norm(norm: Any, factor: float) -> None:
    """Some multiply by 1 + weight."""
    with torch.no_grad():
        offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0
        norm.weight.copy_((norm.weight + offset) * factor - offset)
        if getattr(norm, "bias", None) is not None:
            norm.bias.mul_(factor)


def _scale_weight(module: Any, factor: float) -> None:
    with torch.no_grad():
        module.weight.mul_(factor)


def gated_product(model: Any, layer: int, factor: float = LARGE) -> None:
    """The branch beside the gate grows, the projection behind it shrinks."""
    mlp = layers_of(model)[layer].mlp
    _scale_weight(mlp.up_proj, factor)
    _scale_weight(mlp.down_proj, 1 / factor)


def values(model: Any, layer: int, factor: float = LARGE) -> None:
    """What is kept in the cache grows, the projection behind attention shrinks."""
    attention = layers_of(model)[layer].self_attn
    _scale_weight(attention.v_proj, factor)
    _scale_weight(attention.o_proj, 1 / factor)


def norm_before_mlp(model: Any, layer: int, factor: float = LARGE) -> None:
    """The norm's weight grows, the projections that read it shrink."""
    parts = dict(layers_of(model)[layer].named_modules())
    norm = next(
        parts[name] for name in ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2") if name in parts
    )
    _scale_norm(norm, factor)
    for name in ("gate_proj", "up_proj", "c_fc"):
        if f"mlp.{name}" in parts:
            _scale_weight(parts[f"mlp.{name}"], 1 / factor)


def recurrent_norm(model: Any, layer: int, factor: float = LARGE) -> None:
    """The norm at the end of a recurrent mixer's step grows, the projection behind it shrinks."""
    mixer = next(m for m in layers_of(model)[layer].modules() if hasattr(m, "norm") and hasattr(m, "out_proj"))
    _scale_norm(mixer.norm, factor)
    _scale_weight(mixer.out_proj, 1 / factor)


def recurrent_skip(model: Any, layer: int, factor: float = LARGE) -> None:
    """The same for a mixer without a norm, with what passes its state by."""
    mixer = next(m for m in layers_of(model)[layer].modules() if hasattr(m, "D") and hasattr(m, "out_proj"))
    with torch.no_grad():
        mixer.D.mul_(factor)
        mixer.conv1d.bias.fill_(5.0)
    _scale_weight(mixer.out_proj, 1 / factor)


def residual_stream(model: Any, factor: float) -> None:
    """All that is added to the stream grows; norms take it out again. Their epsilon grows with it."""
    untie(model)
    _scale(model.get_input_embeddings(), factor)
    for name, module in model.named_modules():
        if name.endswith("wpe"):
            _scale(module, factor)
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon *= factor**2
        elif hasattr(module, "eps"):
            module.eps *= factor**2
    for layer in layers_of(model):
        parts = dict(layer.named_modules())
        behind = [parts.get("post_attention_layernorm"), parts.get("post_feedforward_layernorm")]
        if behind[1] is not None:  # norms behind attention and MLP decide what is added
            for norm in behind:
                _scale_norm(norm, factor)
                norm.eps /= factor**2
        else:
            for name in ("self_attn.o_proj", "mlp.down_proj", "attn.c_proj", "mlp.c_proj"):
                if name in parts:
                    _scale(parts[name], factor)


def untie(model: Any) -> None:
    """Give the head its own matrix."""
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.tie_weights = lambda *given, **more: None
