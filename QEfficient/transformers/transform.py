"""`retain`: install the seams on a model, find out what it keeps, and wrap it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from QEfficient.errors import UnsupportedModelError, first_line, raise_if_memory
from QEfficient.specs import ExportSpec, LatentSpec
from QEfficient.transformers import attention, latent, mixers, rotary
from QEfficient.transformers.families import adapt, families_of
from QEfficient.transformers.observe import SeesAheadError, accepts, observe
from QEfficient.transformers.replay import Replay, ReplayModule
from QEfficient.transformers.retained_module import RetainedModule
from QEfficient.transformers.retained_state import StatePlan

logger = logging.getLogger(__name__)

REHEARSED_CONTEXT = 16
"""Slots, also of windows that are longer: they are real memory, in every layer."""

EXPERTS = "batched_mm"
"""transformers' experts function that gathers weights per token: no data-dependent shape, so it can be traced."""


def install_seams(model: torch.nn.Module) -> None:
    """Point every config of the model at our attention, mask and experts functions. Changes `model` in place."""
    rotary.install(model)
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    for config in configs.values():
        if hasattr(config, "_attn_implementation_internal"):
            config._attn_implementation_internal = attention.IMPLEMENTATION
        if hasattr(config, "_experts_implementation_internal"):
            config._experts_implementation_internal = EXPERTS


def retain(model: Any, rolling: bool = True) -> RetainedModule | ReplayModule:
    """The retained module of `model`, which is changed in place: attention, masks, cache and experts go through us."""
    model.eval()
    install_seams(model)
    asked = adapt(model)
    if asked is not None:
        return _replayed(model, asked)
    try:
        retained = _retained(model, rolling)
        _rehearse_with_mask(retained)
    except Exception as error:  # whatever a model may trip over; what it was is kept and said
        raise_if_memory(error, f"run {type(model).__name__} on a few tokens")
        ahead = isinstance(error, SeesAheadError)
        return _replayed(model, Replay(first_line(error), ahead=ahead, masked=ahead))
    return retained


def _replayed(model: Any, replay: Replay) -> ReplayModule:
    try:
        replaying = ReplayModule(model, replay)
    except Exception as error:
        raise_if_memory(error, f"run {type(model).__name__} on a few tokens")
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be traced: {first_line(error)}. Nor can it keep its state: {replay.reason}"
        ) from error
    logger.warning("%s computes its whole context again at each step: %s", type(model).__name__, replay.reason)
    return replaying


def _retained(model: Any, rolling: bool) -> RetainedModule:
    seen = observe(model, rolling)
    retained = RetainedModule(model, seen.plans, explicit_mask=not seen.mask_called)
    retained.vocab_size, retained.position_lookups = seen.vocab_size, seen.position_lookups
    retained.context = replace(retained.context, positions=seen.longest)
    for path, plans in seen.mixers.items():
        mixers.install(model, path, plans, seen.outputs[path], retained.steps)
    return retained


def _rehearse_with_mask(retained: RetainedModule) -> None:
    """Rehearse without a padding mask, which is how models are traced best; if that fails, with one."""
    try:
        _rehearse(retained)
    except RuntimeError:  # the shapes of tensors: it counted the new tokens where the context was meant
        if retained.explicit_mask or not accepts(retained.model, "attention_mask"):
            raise
        retained.padding_mask = True
        _rehearse(retained)


def _rehearse(retained: RetainedModule) -> None:
    """Run the module once on a few tokens: what does not run here would not trace either."""
    states = []
    for plan in retained.plans:
        slots = min(plan.window or REHEARSED_CONTEXT, REHEARSED_CONTEXT)
        shape = [2, *(slots if size is None else size for size in plan.shape)]
        states.append(torch.zeros(shape, dtype=plan.dtype))
    for start, length in ((0, 3), (3, 1)):
        positions = torch.arange(start, start + length)[None].expand(2, -1)
        with torch.no_grad():
            logits, *states = retained(torch.full((2, length), 3), positions, None, {}, states)
        if tuple(logits.shape) != (2, 1, retained.vocab_size):
            raise UnsupportedModelError(f"its logits have the shape {list(logits.shape)}")


def with_copied_heads(retained: RetainedModule | ReplayModule, copies: int) -> RetainedModule | ReplayModule:
    """Let the state hold each head of keys and values several times: so often where a layer has the fewest, and where
    others have more, as often as gives them as many. Changes `retained`."""
    heads = [plan.shape[0] for plan in retained.plans if _can_be_copied(plan)]
    if isinstance(retained, RetainedModule) and copies > 1 and heads:
        wanted = copies * min(int(count or 0) for count in heads)
        retained.plans = tuple(_copied(plan, wanted) for plan in retained.plans)
    return retained


def _can_be_copied(plan: StatePlan) -> bool:
    return plan.kind in ("key", "value") and plan.direct and plan.shape[0] is not None


def _copied(plan: StatePlan, wanted: int) -> StatePlan:
    heads = plan.shape[0]
    if not _can_be_copied(plan) or not heads or heads >= wanted:
        return plan
    if wanted % heads:
        raise UnsupportedModelError(
            f"layer {plan.layer} has {heads} heads of keys, which cannot be copied to be {wanted}, as in other layers:"
            " leave replicate_kv_heads out."
        )
    return replace(plan, shape=(wanted, *plan.shape[1:]), copies=wanted // heads)


def check_steered(retained: RetainedModule | ReplayModule, spec: ExportSpec) -> None:
    """Refuse what the states of a model cannot do: to go back behind rejected tokens, to be read in part."""
    name = type(retained.model).__name__
    if spec.several_logits:
        recurrent = [plan for plan in retained.plans if plan.kind in ("conv", "recurrent")]
        if recurrent:
            raise UnsupportedModelError(
                f"{name} cannot be the target of speculative decoding: its recurrent states cannot go back behind a"
                " token that was wrong."
            )
        if any(plan.rolling for plan in retained.plans):
            raise UnsupportedModelError(
                f"{name} cannot be the target of speculative decoding as long as its windows roll: a token that was"
                " wrong has overwritten one that is still seen. Pass retain_full_kv=True."
            )
        if isinstance(retained, ReplayModule) and retained.ahead:
            raise UnsupportedModelError(
                f"{name} cannot be the target of speculative decoding: its tokens see those behind them, so that drafts"
                " change what they are held against."
            )
    if spec.sampler is not None and not isinstance(retained, RetainedModule):
        raise UnsupportedModelError(
            f"{name} computes its whole context again, and chooses no tokens: no include_sampler."
        )
    if spec.projections is not None and not isinstance(retained, RetainedModule):
        raise UnsupportedModelError(f"{name} computes its whole context again, and takes no projections.")
    if spec.compute_context and not any(plan.kind == "key" and not plan.rolling for plan in retained.plans):
        raise UnsupportedModelError(f"{name} has no layer that reads a whole context: leave comp_ctx_lengths out.")
    attending = [plan for plan in retained.plans if plan.kind == "key" and plan.direct and not plan.rolling]
    if spec.blocking is not None and not (isinstance(retained, RetainedModule) and attending):
        raise UnsupportedModelError(
            f"{name} has no layer whose attention can be cut into blocks: leave enable_blocking out."
        )


def with_latent_states(
    retained: RetainedModule | ReplayModule, spec: LatentSpec | None
) -> RetainedModule | ReplayModule:
    """Let latent attention show what it retains, and attend to it as it is if that is asked for. Changes `retained`."""
    retained.plans = latent.named(retained.plans, retained.model, spec)
    if spec is not None and spec.absorption and isinstance(retained, RetainedModule):
        latent.absorb(retained.model, spec.fused)
        _rehearse(retained)
    return retained


def transform_names(retained: RetainedModule | ReplayModule, spec: ExportSpec) -> tuple[str, ...]:
    """What was done to the model before it is traced, in order: for the records of what a program was made from."""
    families = [f"{family.__name__.rpartition('.')[2]}.{adapt.__name__}" for family in families_of(retained.model)]
    asked = {
        "mixers.install": any(plan.kind in ("conv", "recurrent") for plan in retained.plans),
        with_copied_heads.__name__: any(plan.copies > 1 for plan in retained.plans),
        "choose_tokens": spec.sampler is not None,
        "Projections": spec.projections is not None,
        "blocked_attention": spec.blocking is not None,
        latent.ONLINE: spec.latent is not None and spec.latent.absorption and not spec.latent.fused,
        latent.FUSED: spec.latent is not None and spec.latent.absorption and spec.latent.fused,
    }
    return (install_seams.__name__, *families, type(retained).__name__, *(name for name, done in asked.items() if done))


def weight_aliases(retained: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """Name of a parameter or buffer in the model → its names in the retained module; tied ones have several."""
    groups: dict[int, list[str]] = {}
    tensors = {**dict(retained.named_parameters(remove_duplicate=False)), **dict(retained.named_buffers())}
    for name, tensor in tensors.items():
        groups.setdefault(id(tensor), []).append(name)
    return {name.removeprefix("model."): tuple(groups[id(tensor)]) for name, tensor in tensors.items()}
