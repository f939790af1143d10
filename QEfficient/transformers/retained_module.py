"""The flat signature: tokens, positions and states in; last logits and states out."""

from __future__ import annotations

from typing import Any

import torch

from QEfficient.errors import UnsupportedModelError
from QEfficient.operators.last_token import last_token, last_tokens
from QEfficient.program import COMPUTE_CONTEXT, KEPT_LOGITS, Context
from QEfficient.specs import BlockingSpec, SamplerSpec
from QEfficient.transformers.attention import installed
from QEfficient.transformers.mixers import StepRecord
from QEfficient.transformers.observe import accepts, cache_arguments, passes_on
from QEfficient.transformers.positions import RetainedLookups, lookups
from QEfficient.transformers.projections import Projections
from QEfficient.transformers.retained_state import RetainedCache, StatePlan, blocks_of
from QEfficient.transformers.rotary import trained_length
from QEfficient.transformers.sampling_head import Call, Controls, choose_tokens


def in_model_dtype(logits: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """Some models widen their logits; the contract's are of the program's dtype."""
    return logits.to(next(p.dtype for p in model.parameters() if p.is_floating_point()))


def output_embedding(model: Any) -> torch.nn.Module | None:
    """What a model's logits come from, if it says so."""
    found: torch.nn.Module | None = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return found


def width_of(model: Any) -> int:
    """Of what its output embedding sees."""
    weight = getattr(output_embedding(model), "weight", None)
    if weight is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} names no output embedding, which projections stand before."
        )
    return int(weight.shape[-1])


class RetainedModule(torch.nn.Module):
    """A model whose state comes in and goes out. The model inside has its seams installed (see `transform`)."""

    def __init__(self, model: Any, plans: tuple[StatePlan, ...], explicit_mask: bool) -> None:
        super().__init__()
        self.model = model
        self.plans = plans
        self.explicit_mask = explicit_mask
        """The model builds no mask through transformers' mask functions, so it is handed a finished one."""
        self.padding_mask = False
        """The model counts the context by its padding mask (for ALiBi), so it is handed one without padding."""
        self.vocab_size = 0
        self.position_lookups: dict[int, int] = {}
        self.context = Context(trained=trained_length(model))
        self.cache_type = RetainedCache
        self.sampler: SamplerSpec | None = None
        """It ends in tokens then, and takes the sampler's memory behind its own states."""
        self.projections: Projections | None = None
        """Logits come with those of the tokens behind then."""
        self.blocking: BlockingSpec | None = None
        self.steps: dict[str, StepRecord] = {}
        """Filled while tracing: the bodies that the recurrent nodes need."""

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        batch_index: torch.Tensor | None,
        controls: Controls,
        states: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        reads = controls.get(COMPUTE_CONTEXT)
        own = states[: len(self.plans)]
        cache = self.cache_type(self.plans, own, position_ids, batch_index, self._context(own), reads)
        cache.blocks = blocks_of(self.blocking)
        tables = RetainedLookups(self.position_lookups, position_ids)
        selection = LastRowsOnly(self.model, position_ids, controls.get(KEPT_LOGITS), self.projections)
        with cache.running(), installed(), lookups(tables), selection:
            output = self.model(**self._arguments(input_ids, cache))
            new_states = cache.next_states()
        logits = selection.of(output.logits)
        if self.sampler is None:
            return (in_model_dtype(logits, self.model), *new_states)
        call = Call(input_ids, position_ids, batch_index, controls)
        chosen, memory = choose_tokens(logits, call, states[len(self.plans) :], self.sampler)
        return (*chosen, *new_states, *memory)

    def notes(self) -> dict[str, int]:
        """How many layers keep their state in which way."""
        ways = {"attention": 0, "rolling attention": 0, "buffer": 0, "recurrent": 0}
        for layer in {plan.layer for plan in self.plans}:
            plans = [plan for plan in self.plans if plan.layer == layer]
            keys = next((plan for plan in plans if plan.kind == "key"), None)
            if keys is not None:
                ways["buffer" if not keys.direct else "rolling attention" if keys.rolling else "attention"] += 1
            ways["recurrent"] += any(plan.kind in ("conv", "recurrent") for plan in plans)
        return {way: count for way, count in ways.items() if count}

    def _context(self, states: list[torch.Tensor]) -> Any:
        """Slots of the buffers in which a slot is a position."""
        for plan, state in zip(self.plans, states, strict=True):
            if None in plan.shape and not plan.rolling:
                return state.shape[1 + plan.shape.index(None)]
        return next((s.shape[2] for p, s in zip(self.plans, states, strict=True) if None in p.shape), 0)

    def _arguments(self, input_ids: torch.Tensor, cache: RetainedCache) -> dict[str, Any]:
        positions = cache.position_ids.clamp(min=0)  # padding is -1 for the state only; an embedding wants an index
        arguments: dict[str, Any] = {"input_ids": input_ids, "use_cache": True}
        arguments.update(cache_arguments(self.model.forward, cache))
        if accepts(self.model, "position_ids") or passes_on(self.model):
            arguments["position_ids"] = positions
        if self.explicit_mask and accepts(self.model, "attention_mask"):
            arguments["attention_mask"] = self._mask(cache)
        elif self.padding_mask:
            rows = positions.shape[0]
            arguments["attention_mask"] = torch.ones((rows, cache.context), dtype=torch.int64)
        return arguments

    def _mask(self, cache: RetainedCache) -> torch.Tensor:
        slots = torch.arange(cache.context)
        seen = slots[None, None, None, :] <= cache.position_ids[:, None, :, None]
        dtype = next(self.model.parameters()).dtype
        lowest = torch.full((), torch.finfo(dtype).min, dtype=dtype)
        return torch.where(seen, torch.zeros((), dtype=dtype), lowest)


class LastRowsOnly:
    """While active, the output embedding sees the last token only, or as many as `kept` is long: a vocabulary-wide row
    for each token is wasted."""

    def __init__(
        self,
        model: Any,
        position_ids: torch.Tensor,
        kept: torch.Tensor | None = None,
        projections: Projections | None = None,
    ) -> None:
        self.head = output_embedding(model)
        self.position_ids, self.kept, self.projections = position_ids, kept, projections
        self.done = False

    def of(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of these rows: all that there are, if the output embedding saw no others."""
        if self.projections is not None and not self.done:
            raise UnsupportedModelError("its output embedding is not what its logits come from: no projections.")
        return logits if self.done else self._chosen(logits)

    def _chosen(self, values: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            return last_token(values, self.position_ids)
        return last_tokens(values, self.position_ids, self.kept)

    def _select(self, module: torch.nn.Module, args: tuple[Any, ...]) -> Any:
        hidden = args[0] if args else None
        if not isinstance(hidden, torch.Tensor) or hidden.dim() != 3 or self.done:
            return None
        self.done = True
        chosen = self._chosen(hidden)
        return (chosen if self.projections is None else self.projections(chosen), *args[1:])

    def __enter__(self) -> LastRowsOnly:
        self.handle = self.head.register_forward_pre_hook(self._select) if self.head is not None else None
        return self

    def __exit__(self, *_: object) -> None:
        if self.handle is not None:
            self.handle.remove()
