"""What a model keeps between calls, found by running it twice on a few tokens and watching the cache.

Shapes are observed, never read from a config: latent attention, multi-query and per-layer head sizes come out right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

from QEfficient.errors import UnsupportedModelError
from QEfficient.transformers.attention import installed
from QEfficient.transformers.linear_states import states_of
from QEfficient.transformers.positions import WatchedLookups, lookups
from QEfficient.transformers.retained_state import MaskRule, RetainedCache, StatePlan

CALLS = ((0, 3), (3, 1))
"""(first position, tokens) of each observed call."""


@dataclass
class LayerRecord:
    """What one layer of the cache was used for."""

    key: torch.Tensor | None = None
    value: torch.Tensor | None = None
    indexer: torch.Tensor | None = None
    touched_by: dict[int, set[str]] = field(default_factory=dict)
    """State number → paths of the modules that read or wrote it."""
    attended: bool = False
    """Whether the attention function got the keys as the cache returned them."""
    altered: bool = False
    """Whether it got other values, or a mask that is not one of ours: then the layer wants its whole buffer."""
    rule: MaskRule | None = None
    conv: dict[int, torch.Tensor] = field(default_factory=dict)
    recurrent: dict[int, torch.Tensor] = field(default_factory=dict)


HIDDEN = -10_000.0
"""What is added to a score that nobody is to see is no more than this."""


class SeesAheadError(UnsupportedModelError):
    """A model of which no token is done with when it was computed."""


@dataclass
class MixerOutput:
    """The structure of a recurrent mixer's result for one token."""

    leaves: list[Any]
    structure: Any


class WatchedCache(DynamicCache):
    """transformers' own cache, with its calls noted."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.records: dict[int, LayerRecord] = {}
        self.stack: list[str] = []
        self.returned: dict[int, tuple[int, torch.Tensor, torch.Tensor]] = {}
        self.mask_rules: dict[int, tuple[MaskRule | None, torch.Tensor]] = {}

    def record(self, layer: int) -> LayerRecord:
        return self.records.setdefault(layer, LayerRecord())

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        record = self.record(layer_idx)
        record.key, record.value = key_states, value_states
        returned = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self.returned[id(returned[0])] = (layer_idx, *returned)
        return returned

    def update_indexer(self, indexer_key_states: torch.Tensor, layer_idx: int) -> torch.Tensor:
        self.record(layer_idx).indexer = indexer_key_states
        keys: torch.Tensor = super().update_indexer(indexer_key_states, layer_idx)
        return keys

    def _touch(self, layer: int, state_idx: int = 0, **_: Any) -> None:
        if self.stack:
            self.record(layer).touched_by.setdefault(state_idx, set()).add(self.stack[-1])

    # the number of the state is passed on only where it is given: older versions have one state and no number

    def update_conv_state(self, conv_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._touch(layer_idx, *args, **kwargs)
        state: torch.Tensor = super().update_conv_state(conv_states, layer_idx, *args, **kwargs)
        return state

    def update_recurrent_state(self, recurrent_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._touch(layer_idx, *args, **kwargs)
        state: torch.Tensor = super().update_recurrent_state(recurrent_states, layer_idx, *args, **kwargs)
        return state

    # the interface that the registered attention and mask functions expect of the current cache

    @property
    def position_ids(self) -> torch.Tensor:
        return self._positions

    def place(self, positions: torch.Tensor) -> None:
        self._positions = positions

    def is_direct(self, key: torch.Tensor, value: torch.Tensor) -> bool:
        """Notes whether keys, values and mask all arrive as they were given out."""
        found = self.returned.get(id(key))
        if found is not None and found[2] is not value:
            self.record(found[0]).altered = True
        return found is not None and found[2] is value

    def remember_mask(self, built: torch.Tensor, rule: MaskRule | None) -> None:
        self.mask_rules[id(built)] = (rule, built)

    def look_at(self, mask: torch.Tensor | None) -> None:
        if mask is None or isinstance(mask, FakeTensor) or mask.shape[-2] != mask.shape[-1]:
            return  # the square one is of the first tokens, with themselves
        seen = mask if mask.dtype == torch.bool else mask > HIDDEN
        if bool(seen.triu(1).any()):
            raise SeesAheadError("its tokens see those behind them, so that each new one changes all answers")

    def attend(self, query, key, value, mask, scale, softcap, sinks):  # type: ignore[no-untyped-def]
        record = self.record(self.returned[id(key)][0])
        found = self.mask_rules.get(id(mask)) if mask is not None else (MaskRule(), None)
        rule = found[0] if found else None
        record.attended = True
        record.altered |= rule is None or record.rule not in (None, rule)
        record.rule = rule
        return query.new_zeros((*query.shape[:3], value.shape[3]))


@dataclass
class Observation:
    """Everything that was seen."""

    plans: tuple[StatePlan, ...]
    mixers: dict[str, tuple[StatePlan, ...]]
    """Path of a module that is run token by token → the states that it moves."""
    outputs: dict[str, MixerOutput]
    mask_called: bool
    vocab_size: int
    """Width of the logits."""
    position_lookups: dict[int, int]
    """Table lookups of one run that are of positions, by number → offset."""
    longest: int | None
    """Positions that the shortest of these tables has."""


def accepts(model: torch.nn.Module, argument: str) -> bool:
    """Whether the model's forward names this argument."""
    return argument in inspect.signature(model.forward).parameters


CACHE_NAMES = ("past_key_values", "cache_params", "cache")
"""How models call what they retain: the last since transformers 5.24."""


def cache_arguments(forward: Callable[..., Any], cache: Any) -> dict[str, Any]:
    """The cache by the names that `forward` has for it."""
    return {name: cache for name in CACHE_NAMES if name in inspect.signature(forward).parameters}


def passes_on(model: torch.nn.Module) -> bool:
    """Whether the model's forward hands arguments that it does not name to the modules inside."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def observe(model: torch.nn.Module, rolling: bool) -> Observation:
    """Run `model` (its seams installed) on three tokens, then one, and say what it keeps."""
    cache = WatchedCache(model.config)
    outputs: dict[str, MixerOutput] = {}
    tables, attributes = WatchedLookups(), WatchedAttributes()
    result: Any = None
    with torch.no_grad(), installed(), lookups(tables), _watching(model, cache, outputs):
        for start, length in CALLS:
            cache.place(torch.arange(start, start + length)[None].expand(2, -1))
            tables.begin()
            attributes.note(model)
            result = _call(model, _tokens(model, length), cache)
    attributes.note(model)
    _collect_linear_states(cache)
    if not cache.records and not attributes.changed:
        raise UnsupportedModelError(f"{type(model).__name__} kept nothing in transformers' cache.")
    plans = _plans(cache, rolling) + attributes.plans(model)
    offsets = tables.offsets(CALLS)
    return Observation(
        plans,
        _mixers(cache, plans),
        outputs,
        mask_called=bool(cache.mask_rules),
        vocab_size=result.logits.shape[-1],
        position_lookups=offsets,
        longest=tables.longest(offsets),
    )


def _tokens(model: torch.nn.Module, length: int) -> torch.Tensor:
    """Tokens that are no padding, and look like no positions: the same one throughout."""
    owner: Any = model
    config = owner.config.get_text_config()
    named = [getattr(config, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos")]
    special = {token for entry in named for token in (entry if isinstance(entry, list) else [entry])}
    ordinary = next(token for token in range(3, 100) if token not in special)
    return torch.full((2, length), ordinary, dtype=torch.long)


def _call(model: torch.nn.Module, ids: torch.Tensor, cache: Any) -> Any:
    """Run the model as a user would: it counts positions itself."""
    return model(input_ids=ids, use_cache=True, **cache_arguments(model.forward, cache))


@contextmanager
def _watching(model: torch.nn.Module, cache: WatchedCache, outputs: dict[str, MixerOutput]) -> Iterator[None]:
    """Keep the path of the running module, and the result of each, while the model runs."""
    handles = []

    def enter(path: str) -> Any:
        return lambda *_: cache.stack.append(path)

    def leave(path: str) -> Any:
        def hook(module: Any, args: Any, result: Any) -> None:
            cache.stack.pop()
            leaves, structure = pytree.tree_flatten(result)
            outputs[path] = MixerOutput(leaves, structure)

        return hook

    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(path)))
        handles.append(module.register_forward_hook(leave(path)))
    before, RetainedCache.current = RetainedCache.current, cache
    try:
        yield
    finally:
        RetainedCache.current = before
        for handle in handles:
            handle.remove()


class WatchedAttributes:
    """Tensors that modules keep as plain attributes: those that change from call to call are state."""

    def __init__(self) -> None:
        self.before: dict[str, torch.Tensor] = {}
        self.changed: dict[str, torch.Tensor] = {}

    def note(self, model: torch.nn.Module) -> None:
        """Look at all attributes, before the first call and after each."""
        now = {
            f"{path}.{name}": value
            for path, module in model.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, torch.Tensor)
        }
        known = {path: value for path, value in now.items() if path in self.before}
        self.changed = {path: value for path, value in known.items() if value is not self.before[path]}
        self.before = now

    def plans(self, model: torch.nn.Module) -> tuple[StatePlan, ...]:
        """A plan for each; the layer is the first number in its path."""
        found: list[StatePlan] = []
        for path, value in self.changed.items():
            layer = int(next((part for part in path.split(".") if part.isdigit()), 0))
            index = sum(plan.layer == layer for plan in found)
            shape = tuple(value.shape[1:])
            found.append(StatePlan("recurrent", layer, shape, value.dtype, index, attribute=path))
        return tuple(found)


def _mixers(cache: WatchedCache, plans: tuple[StatePlan, ...]) -> dict[str, tuple[StatePlan, ...]]:
    """Each state belongs to the innermost module around everything that touches it; nested ones become one."""
    owners: dict[str, list[StatePlan]] = {}
    for plan in plans:
        if plan.attribute:
            path = plan.attribute.rpartition(".")[0]
        elif plan.kind in ("conv", "recurrent"):
            path = _common_path(cache.records[plan.layer].touched_by[plan.index])
        else:
            continue
        owners.setdefault(path, []).append(plan)
    for inner in sorted(owners, key=len, reverse=True):
        outer = next((path for path in owners if path != inner and inner.startswith(f"{path}.")), None)
        if outer is not None:
            owners[outer] += owners.pop(inner)
    return {path: tuple(found) for path, found in owners.items()}


def _collect_linear_states(cache: WatchedCache) -> None:
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            for kind in ("conv", "recurrent"):
                found = states_of(layer, kind)
                if found:
                    setattr(cache.record(index), kind, found)


def _common_path(paths: set[str]) -> str:
    """The innermost module that contains all of them."""
    split = [path.split(".") for path in paths]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _plans(cache: WatchedCache, rolling: bool) -> tuple[StatePlan, ...]:
    records = sorted(cache.records.items())
    rules = {r.rule for _, r in records if r.key is not None}  # a layer without a rule keeps all
    mixed = rolling and len(rules) > 1
    return tuple(plan for layer, record in records for plan in _layer_plans(layer, record, mixed))


def _layer_plans(layer: int, record: LayerRecord, mixed: bool) -> Iterator[StatePlan]:
    direct = record.attended and not record.altered
    rule = record.rule if direct and record.rule else MaskRule()
    rolls = mixed and rule != MaskRule()
    for kind, tensor in (("key", record.key), ("value", record.value)):
        if tensor is not None:
            shape = (tensor.shape[1], None, tensor.shape[3])
            yield StatePlan(kind, layer, shape, tensor.dtype, rule=rule, rolling=rolls, direct=direct)
    if record.indexer is not None:
        yield StatePlan("indexer", layer, (1, None, record.indexer.shape[-1]), record.indexer.dtype, direct=False)
    for kind, states in (("conv", record.conv), ("recurrent", record.recurrent)):
        for index, state in states.items():
            yield StatePlan(kind, layer, tuple(state.shape[1:]), state.dtype, index)
