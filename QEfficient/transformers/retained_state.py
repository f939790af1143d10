"""The cache that owns positions, and the plan of what it retains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers.cache_utils import Cache

from QEfficient.errors import ExportError
from QEfficient.operators.attention_variants import Blocks
from QEfficient.operators.cached_attention import AttentionRule, Retained, cached_attention
from QEfficient.operators.context import gather, scatter, zero_dead
from QEfficient.specs import BlockingSpec


@dataclass(frozen=True)
class MaskRule:
    """Which keys a query sees, beyond causality."""

    window: int = 0
    chunk: int = 0

    def visible(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        seen = keys <= queries
        if self.window:
            seen = seen & (keys > queries - self.window)
        if self.chunk:
            seen = seen & (keys // self.chunk == queries // self.chunk)
        return seen


@dataclass(frozen=True)
class StatePlan:
    """One state tensor of one layer, as observed."""

    kind: str
    """key | value | indexer | conv | recurrent | tokens"""
    layer: int
    shape: tuple[int | None, ...]
    """Without the slot axis; None stands for the context."""
    dtype: torch.dtype
    index: int = 0
    """Which of several states of this kind the layer has."""
    attribute: str = ""
    """Where a module keeps the state itself: the attribute's path from the model."""
    rule: MaskRule = field(default_factory=MaskRule)
    rolling: bool = False
    direct: bool = True
    """Whether the keys reach the attention function untouched; else the buffer is written and handed back whole."""
    copies: int = 1
    """How often each head is held, one beside the other."""
    latent: bool = False
    """Keys and values are made from it, and it goes by the name of what it is."""

    @property
    def window(self) -> int | None:
        """Slots of a rolling buffer."""
        return (self.rule.window or self.rule.chunk) if self.rolling else None

    @property
    def key(self) -> tuple[str, int, int]:
        return self.kind, self.layer, self.index


def blocks_of(blocking: BlockingSpec | None) -> Blocks:
    """How the attention of every layer is cut."""
    if blocking is None:
        return Blocks()
    return Blocks(
        blocking.num_batch_blocks or 1,
        blocking.num_q_blocks or 1,
        blocking.num_kv_blocks or 1,
        blocking.head_block_size or 0,
    )


class _Layer:
    """What models ask of `cache.layers[i]`."""

    keys = values = torch.empty(0)
    is_sliding = False
    is_initialized = True
    is_compileable = True
    supports_early_init = False

    def __init__(self, cache: RetainedCache, index: int) -> None:
        self._cache, self._index = cache, index

    def get_seq_length(self) -> Any:
        return self._cache.get_seq_length(self._index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.get_mask_sizes(query_length, self._index)


class RetainedCache(Cache):
    """State tensors that come in and go out, addressed by positions. It is `current` while its model runs."""

    current: ClassVar[RetainedCache | None] = None

    def __init__(
        self,
        plans: tuple[StatePlan, ...],
        states: list[torch.Tensor],
        position_ids: torch.Tensor,
        batch_index: torch.Tensor | None,
        context: int,
        reads: torch.Tensor | None = None,
    ) -> None:
        self.plans = {plan.key: plan for plan in plans}
        self.before = {plan.key: state for plan, state in zip(plans, states, strict=True)}
        self.after = dict(self.before)
        self.position_ids, self.batch_index = position_ids, batch_index
        self.reads = reads
        self.context = context if reads is None else reads.shape[0]
        count = 1 + max((plan.layer for plan in plans), default=-1)
        self.layers: Any = [_Layer(self, index) for index in range(count)]
        self.blocks = Blocks()
        self.layer_class_to_replicate = None
        self.offloading = False
        self._fresh: dict[int, tuple[int, torch.Tensor, torch.Tensor]] = {}
        self._masks: dict[int, tuple[MaskRule | None, torch.Tensor]] = {}
        self._pending: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the attention function find this cache."""
        before = RetainedCache.current
        RetainedCache.current = self
        try:
            yield
        finally:
            RetainedCache.current = before

    # what models call

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any):  # type: ignore[no-untyped-def]
        if self.plans["key", layer_idx, 0].direct:
            self._fresh[id(key_states)] = (layer_idx, key_states, value_states)
            self._pending[layer_idx] = (key_states, value_states)
            return key_states, value_states
        return self._written("key", layer_idx, key_states), self._written("value", layer_idx, value_states)

    def update_indexer(self, indexer_key_states: torch.Tensor, layer_idx: int) -> torch.Tensor:
        return self._written("indexer", layer_idx, indexer_key_states[:, None])[:, 0]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.context, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self.context

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return True

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self.layers)

    @property
    def is_linear(self) -> list[bool]:
        return [False] * len(self.layers)

    @property
    def is_dummy(self) -> list[bool]:
        return [False] * len(self.layers)

    # what the attention function calls

    def remember_mask(self, built: torch.Tensor, rule: MaskRule | None) -> None:
        self._masks[id(built)] = (rule, built)

    def look_at(self, mask: torch.Tensor | None) -> None:
        """What a layer hands to its attention; one that only watches (see `observe`) wants to know."""

    def is_direct(self, key: torch.Tensor, value: torch.Tensor) -> bool:
        """Whether these are the untouched keys and values of a layer that attends through the operator."""
        found = self._fresh.get(id(key))
        return found is not None and found[2] is value

    def _rule_of(self, mask: torch.Tensor | None) -> MaskRule:
        """The rule of a mask, which was passed on unchanged (as observed); no mask at all means causal."""
        if mask is None:
            return MaskRule()
        found = self._masks.get(id(mask))
        if found is None or found[0] is None:
            raise ExportError("a layer got another mask than when it was observed.")
        return found[0]

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        softcap: float,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        layer = self._fresh[id(key)][0]
        plan = self.plans["key", layer, 0]
        rule = self._rule_of(mask)
        operator_rule = AttentionRule(scale, rule.window, rule.chunk, softcap, plan.rolling, self.blocks)
        # `before`, not `after`: layers that share keys attend over the same past, each writing the same new keys
        past_key, past_value = self.before["key", layer, 0], self.before["value", layer, 0]
        key, value = (heads.repeat_interleave(plan.copies, 1) if plan.copies > 1 else heads for heads in (key, value))
        past = Retained(past_key, past_value, self.position_ids, self.batch_index, self.reads)
        output, new_key, new_value = cached_attention(query, key, value, past, operator_rule, sinks)
        self._pending.pop(layer, None)
        self.after["key", layer, 0], self.after["value", layer, 0] = new_key, new_value
        return output

    def next_states(self) -> list[torch.Tensor]:
        """Every state's next value, in the order of the plan."""
        for layer in list(self._pending):  # keys that no attention function took, such as those of a skipped layer
            key, value = self._pending.pop(layer)
            self._written("key", layer, key)
            self._written("value", layer, value)
        return [self.after[key] for key in self.plans]

    def _written(self, kind: str, layer: int, new: torch.Tensor) -> torch.Tensor:
        """Write into the buffer and read it back whole."""
        state = scatter(self.before[kind, layer, 0], self.position_ids, new, self.batch_index)
        self.after[kind, layer, 0] = state
        return zero_dead(gather(state, self.position_ids, self.batch_index, self.reads), self.position_ids)
