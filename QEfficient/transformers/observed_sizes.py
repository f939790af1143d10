"""How large a model is, by a run of it without weights, as an export does it: shapes are observed, never guessed."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from QEfficient.errors import first_line
from QEfficient.specs import LatentSpec
from QEfficient.transformers import mixers
from QEfficient.transformers.config_sizes import gathered, model_sizes
from QEfficient.transformers.latent import absorbed_weights
from QEfficient.transformers.loading import ModelSource
from QEfficient.transformers.observed_reads import observed_reads
from QEfficient.transformers.replay import ReplayModule
from QEfficient.transformers.retained_module import RetainedModule
from QEfficient.transformers.retained_state import StatePlan
from QEfficient.transformers.size_records import Buffers, ModelSizes, Reads, StateCounts
from QEfficient.transformers.transform import retain, with_latent_states

logger = logging.getLogger(__name__)

PACKED = ("key", "value")
"""Kinds of state that a device may keep in a coarser type."""
FREQUENCIES = "inv_freq"
"""How transformers names the buffers of rotary frequencies; a kind of layer may stand before it."""


def observed_sizes(source: ModelSource, spec: LatentSpec | None = None) -> ModelSizes:
    """What an export of the model would hold. Raises `UnsupportedModelError` where it would be refused."""
    model, mode = source.skeleton()
    with _watched_angles(model) as angles:
        retained = with_latent_states(retain(model), spec)
    made, replaced = absorbed_weights(model)
    stored = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    known = {**dict(model.named_parameters()), **{name: b for name, b in buffers.items() if name in stored}}
    shapes = {name: tuple(tensor.shape) for name, tensor in known.items() if name not in replaced}
    uses = {**_uses(model), **dict.fromkeys(made, "dense")}
    sizes = model_sizes(model.config, shapes, _state(retained), uses)
    absorbed = sum(known[name].numel() for name in made) - sum(known[name].numel() for name in replaced)
    constants = sum(buffer.numel() for name, buffer in buffers.items() if name not in stored)
    weights = replace(sizes.weights, constants=constants, absorbed=absorbed)
    return replace(
        sizes,
        weights=weights,
        vocab_size=retained.vocab_size,
        angles=() if sizes.state.replays else tuple(width for widths in angles.values() for width in widths),
        positions=retained.context.positions,
        reads=_reads_of(retained, mode),
    )


def _reads_of(retained: RetainedModule | ReplayModule, mode: FakeTensorMode) -> tuple[Reads, ...] | None:
    """Where attention is more than one node; None where a run on sizes alone does not show it."""
    if isinstance(retained, ReplayModule) or all(plan.direct for plan in retained.plans):
        return ()
    try:
        return observed_reads(retained, mode)
    except Exception as error:  # whatever a model may trip over: a device takes the most that it can be then
        logger.info("what single operators read is not known: %s", first_line(error))
        return None


Angles = dict[tuple[str, ...], tuple[int, ...]]
"""Kind of a layer → the numbers of one position in each tensor that its angles give."""


@contextmanager
def _watched_angles(model: Any) -> Iterator[Angles]:
    """What modules with rotary frequencies give for a position, while the model runs. Layers of one kind share it."""
    found: Angles = {}

    def watch(path: str) -> Any:
        def hook(module: Any, given: Any, named: Any, result: Any) -> None:
            kind = (re.sub(r"\.\d+", "", path), *(each for each in (*given, *named.values()) if isinstance(each, str)))
            tensors = [each for each in pytree.tree_leaves(result) if isinstance(each, torch.Tensor)]
            found[kind] = tuple(prod(each.shape[2:]) * (2 if each.is_complex() else 1) for each in tensors)

        return hook

    handles = [
        module.register_forward_hook(watch(path), with_kwargs=True)
        for path, module in model.named_modules()
        if any(name.endswith(FREQUENCIES) for name, _ in module.named_buffers(recurse=False))
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _state(retained: Any) -> StateCounts:
    replays = isinstance(retained, ReplayModule)
    buffers = [] if replays else [_buffers(plan) for plan in retained.plans]
    return StateCounts(gathered(buffers), replays=replays)


def _buffers(plan: StatePlan) -> Buffers:
    """A state with a place for each position, or one of fixed size."""
    heads, *rest = plan.shape
    grows = None in plan.shape
    width = prod(size for size in rest if size is not None)
    packs = grows and plan.kind in PACKED
    return Buffers(1, heads or 1, width, plan.window if grows else 1, packs, packs and plan.direct)


def _uses(model: Any) -> dict[str, str]:
    """What only the model knows of its parameters: which is the head, and which are inside recurrent layers."""
    named = dict(model.named_parameters())
    scanned = {name: "scanned" for name in _inside_mixers(model) if name in named and named[name].dim() > 1}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight = getattr(head, "weight", None)
    names = [name for name, each in model.named_parameters(remove_duplicate=False) if each is weight]
    known = {name: "head" if len(names) == 1 else "shared" for name in names if name in named}
    return {**scanned, **known}


def _inside_mixers(model: Any) -> Iterator[str]:
    """Names of the parameters of modules that run token by token: `mixers` gave them a forward of its own."""
    for path, module in model.named_modules():
        own = vars(module).get("forward")
        if getattr(own, "__module__", "") == mixers.__name__:
            yield from (f"{path}.{name}" for name, _ in module.named_parameters())
