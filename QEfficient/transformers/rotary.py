"""Rotary frequencies that depend on the length of the text: here they follow the context of the compiled program.

transformers recomputes them (`longrope`, `dynamic`) as a text grows, for a whole batch at once, and starts over with an
empty cache. Keys that are retained keep the frequencies they were rotated with, so one choice must hold for all.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from QEfficient.transformers.retained_state import RetainedCache

LONG = "longrope"


def install(model: torch.nn.Module) -> None:
    """Let the context choose the frequencies of every such module. Changes `model` in place."""
    for module in model.modules():
        if follows_length(module):
            module.forward = _by_context(module, module.forward)


def trained_length(model: torch.nn.Module) -> int | None:
    """The longest context in which the frequencies are those of short texts; None if they never change."""
    lengths = [_trained(m, layer_type) for m in model.modules() for layer_type in _kinds(m)]
    return min(lengths, default=None)


def follows_length(module: torch.nn.Module) -> bool:
    """Whether its frequencies depend on how long the text is."""
    return bool(_kinds(module))


def context_of(embeds: torch.Tensor) -> Any:
    """The context that what runs now is compiled for; None where a plain model runs, whose own code sees to it."""
    cache = RetainedCache.current
    if isinstance(cache, RetainedCache):
        return cache.context
    return embeds.shape[1] if torch.compiler.is_exporting() else None  # nothing is retained: the text is all there


def _kinds(module: Any) -> dict[str | None, str]:
    """Layer type (None if there is one for all) → how its frequencies follow the length; without those that do not."""
    found = getattr(module, "rope_type", None)
    kinds = found if isinstance(found, dict) else {None: found}
    return {
        layer: kind for layer, kind in kinds.items() if isinstance(kind, str) and (kind == LONG or "dynamic" in kind)
    }


def _by_context(module: Any, by_length: Any) -> Any:
    plain = inspect.unwrap(type(module).forward)  # without the decorator that looks at the positions

    @torch.no_grad()
    def forward(x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None) -> Any:
        own = {} if layer_type is None else {"layer_type": layer_type}
        if layer_type not in _kinds(module):
            return plain(module, x, position_ids, **own)
        context = context_of(x)
        if context is None:
            return by_length(x, position_ids, **own)
        with _frequencies(module, layer_type, context):
            return plain(module, x, position_ids, **own)

    return forward


@contextmanager
def _frequencies(module: Any, layer_type: str | None, context: Any) -> Iterator[None]:
    """The module's frequencies are those of this context meanwhile; an attribute, as a trace takes no other buffer."""
    prefix = "" if layer_type is None else f"{layer_type}_"
    name, scaling = f"{prefix}inv_freq", f"{prefix}attention_scaling"
    kept, kept_scaling = module._buffers.pop(name), getattr(module, scaling)
    frequencies, new_scaling = _computed(module, layer_type, context, getattr(module, f"{prefix}original_inv_freq"))
    setattr(module, name, frequencies)
    setattr(module, scaling, new_scaling)
    try:
        yield
    finally:
        delattr(module, name)
        module._buffers[name] = kept
        setattr(module, scaling, kept_scaling)


def _computed(module: Any, layer_type: str | None, context: Any, original: torch.Tensor) -> tuple[torch.Tensor, Any]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    compute = ROPE_INIT_FUNCTIONS[_kinds(module)[layer_type]]
    own = {} if layer_type is None else {"layer_type": layer_type}
    length = torch.scalar_tensor(context, dtype=torch.int64)
    if _kinds(module)[layer_type] != LONG:
        frequencies, scaling = compute(module.config, original.device, seq_len=length, **own)
        return frequencies, scaling
    trained = _trained(module, layer_type)
    long, scaling = compute(module.config, original.device, seq_len=trained + 1, **own)
    return torch.where(length > trained, long, original), scaling


def _trained(module: Any, layer_type: str | None) -> int:
    parameters = module.config.rope_parameters
    parameters = parameters if layer_type is None else parameters[layer_type]
    if _kinds(module)[layer_type] == LONG:
        return int(parameters["original_max_position_embeddings"])
    return int(module.config.max_position_embeddings)
