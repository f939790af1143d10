"""How large a model is, by a run of it without weights, as an export does it: shapes are observed, never guessed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from QEfficient.errors import first_line, raise_if_memory
from QEfficient.specs import LatentSpec
from QEfficient.transformers import mixers
from QEfficient.transformers.config_sizes import gathered, model_sizes
from QEfficient.transformers.latent import absorbed_weights
from QEfficient.transformers.loading import ModelSource
from QEfficient.transformers.observed_reads import observed_reads
from QEfficient.transformers.observed_tables import Shown, observed_graph
from QEfficient.transformers.replay import ReplayModule
from QEfficient.transformers.retained_module import RetainedModule
from QEfficient.transformers.retained_state import StatePlan
from QEfficient.transformers.size_records import Buffers, ModelSizes, Reads, StateCounts
from QEfficient.transformers.sized_runs import objection
from QEfficient.transformers.transform import retain, with_latent_states

logger = logging.getLogger(__name__)

PACKED = ("key", "value")
"""Kinds of state that a device may keep in a coarser type."""


@dataclass(frozen=True)
class Asked:
    """What a model is to become."""

    latent: LatentSpec | None = None
    """How its latent attention is exported."""
    ctx_len: int | None = None
    """The context that it has to run with."""


def observed_sizes(source: ModelSource, asked: Asked) -> ModelSizes:
    """What an export of the model would hold. Raises `UnsupportedModelError` where it would be refused."""
    model, mode = source.skeleton()
    retained = with_latent_states(retain(model), asked.latent)
    made, replaced = absorbed_weights(model)
    stored = model.state_dict().keys()
    buffers = dict(model.named_buffers())
    known = {**dict(model.named_parameters()), **{name: b for name, b in buffers.items() if name in stored}}
    shapes = {name: tuple(tensor.shape) for name, tensor in known.items() if name not in replaced}
    uses = {**_uses(model), **dict.fromkeys(made, "dense")}
    sizes = model_sizes(model.config, shapes, _state(retained), uses)
    absorbed = sum(known[name].numel() for name in made) - sum(known[name].numel() for name in replaced)
    constants = sum(b.numel() for name, b in buffers.items() if name not in stored and b.is_floating_point())
    weights = replace(sizes.weights, constants=constants, absorbed=absorbed)
    shown, reads = _shown_by(retained, mode, sizes.angles), _reads_of(retained, mode)
    return replace(
        sizes,
        weights=weights,
        vocab_size=retained.vocab_size,
        angles=shown.tables,
        positions=retained.context.positions,
        reads=None if reads is None or shown.reads is None else (*reads, *shown.reads),
        objection=_objection(retained, mode, asked.ctx_len),
    )


def _objection(retained: RetainedModule | ReplayModule, mode: FakeTensorMode, ctx_len: int | None) -> str:
    """What of a model that is replayed shows when it is traced, and not before."""
    return objection(retained, mode, ctx_len) if ctx_len and isinstance(retained, RetainedModule) else ""


def _reads_of(retained: RetainedModule | ReplayModule, mode: FakeTensorMode) -> tuple[Reads, ...] | None:
    """Where attention is more than one node; None where a run on sizes alone does not show it."""
    if isinstance(retained, ReplayModule) or all(plan.direct for plan in retained.plans):
        return ()
    try:
        return observed_reads(retained, mode)
    except Exception as error:  # whatever a model may trip over: a device takes the most that it can be then
        logger.info("what single operators read is not known: %s", first_line(error))
        return None


def _shown_by(retained: RetainedModule | ReplayModule, mode: FakeTensorMode, tables: tuple[int, ...]) -> Shown:
    """What a trace would show; these tables, which the config tells of, where a run on sizes alone does not."""
    if isinstance(retained, ReplayModule):
        return Shown()
    try:
        return observed_graph(retained, mode)
    except Exception as error:  # whatever a model may trip over
        raise_if_memory(error, "look for tables of positions")
        logger.warning("Tables of positions are those of the config; a run did not show them: %s", first_line(error))
        return Shown(tables, None)


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
