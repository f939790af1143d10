"""`retain`: install the seams on a model, find out what it keeps, and wrap it."""

from __future__ import annotations

from typing import Any

import torch

from QEfficient.transformers import attention, mixers
from QEfficient.transformers.observe import observe
from QEfficient.transformers.retained_module import RetainedModule

EXPERTS = "batched_mm"
"""transformers' experts function that gathers weights per token: no data-dependent shape, so it can be traced."""


def install_seams(model: torch.nn.Module) -> None:
    """Point every config of the model at our attention, mask and experts functions. Changes `model` in place."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    for config in configs.values():
        if hasattr(config, "_attn_implementation_internal"):
            config._attn_implementation_internal = attention.IMPLEMENTATION
        if hasattr(config, "_experts_implementation_internal"):
            config._experts_implementation_internal = EXPERTS


def retain(model: Any, rolling: bool = True) -> RetainedModule:
    """The retained module of `model`, which is changed in place: attention, masks, cache and experts go through us."""
    model.eval()
    install_seams(model)
    seen = observe(model, rolling)
    retained = RetainedModule(model, seen.plans, explicit_mask=not seen.mask_called)
    retained.vocab_size, retained.position_lookups = seen.vocab_size, seen.position_lookups
    for layer, path in seen.mixers.items():
        plans = [p for p in seen.plans if p.layer == layer and p.kind in ("conv", "recurrent")]
        mixers.install(model, path, plans, seen.outputs[path], retained.steps)
    return retained


def weight_aliases(retained: RetainedModule) -> dict[str, tuple[str, ...]]:
    """Name of a parameter or buffer in the model → its names in the retained module; tied ones have several."""
    groups: dict[int, list[str]] = {}
    tensors = {**dict(retained.named_parameters(remove_duplicate=False)), **dict(retained.named_buffers())}
    for name, tensor in tensors.items():
        groups.setdefault(id(tensor), []).append(name)
    return {name.removeprefix("model."): tuple(groups[id(tensor)]) for name, tensor in tensors.items()}
