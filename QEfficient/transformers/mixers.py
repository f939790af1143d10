"""Recurrent mixers (state space, linear attention, short convolutions), one token at a time.

A mixer's own single-token code is the only thing trusted to move its state: run token by token, a padded token can be
left out exactly (the state before it is kept) and a sequence that starts at position 0 starts from zeros, whatever the
slot held. Eagerly that is a loop; in a traced program it is one node, whose body is a Scan over this step.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree
from transformers.cache_utils import DynamicCache

from QEfficient.operators.functions import DOMAIN
from QEfficient.transformers.linear_states import put_state, states_of
from QEfficient.transformers.observe import MixerOutput
from QEfficient.transformers.retained_state import RetainedCache, StatePlan


@dataclass
class StepRecord:
    """What the exporter needs to write the body of one mixer's node."""

    name: str
    step: torch.nn.Module
    """`(sequence leaves of one token…, states…) → (outputs…, next states…)`, all tensors, parameters as inputs."""
    sequences: int
    states: int
    outputs: int
    slots: bool
    """Whether the node has a `batch_index`."""
    shapes: tuple[list[tuple[int, ...]], list[tuple[int, ...]]] = ((), ())  # type: ignore[assignment]
    dtypes: list[torch.dtype] = field(default_factory=list)

    def examples(self, rows: int = 2) -> tuple[torch.Tensor, ...]:
        """Inputs to trace the step with: one token of each sequence, states, parameters."""
        whole = [(rows, 1, *shape) for shape in self.shapes[0]] + [(rows, *shape) for shape in self.shapes[1]]
        made = [torch.zeros(shape, dtype=dtype) for shape, dtype in zip(whole, self.dtypes, strict=True)]
        # empty, not the skeleton's own: those belong to the trace of the whole model, and empty ones take no memory
        step: Any = self.step
        parameters = tensors_of(step._held[0]).values()
        return (*made, *(torch.empty(tuple(p.shape), dtype=p.dtype) for p in parameters))


class StepCache(DynamicCache):
    """transformers' own cache for one layer, holding given states."""

    def __init__(self, config: Any, layer: int, states: dict[tuple[str, int], torch.Tensor]) -> None:
        super().__init__(config=config)
        target = self.layers[layer]
        for (kind, index), state in states.items():
            put_state(target, kind, index, state.clone())
        self._target = target

    def state(self, kind: str, index: int) -> torch.Tensor:
        return states_of(self._target, kind)[index]


@dataclass
class _Call:
    """The arguments of one mixer call, taken apart."""

    leaves: list[Any]
    structure: Any
    sequences: list[tuple[int, int]]
    """(leaf, its time axis)"""
    caches: list[int]

    @classmethod
    def take(cls, forward: Callable[..., Any], args: Any, kwargs: Any, cache: RetainedCache) -> _Call:
        """Every argument that is as long as the tokens is fed token by token; masks are dropped: padding is ours."""
        bound = inspect.signature(forward).bind(*args, **kwargs)
        named = {name: None if name == "attention_mask" else value for name, value in bound.arguments.items()}
        bound.arguments.update(named)
        leaves, structure = pytree.tree_flatten((bound.args, bound.kwargs), is_leaf=lambda leaf: leaf is cache)
        rows, length = cache.position_ids.shape
        caches = [index for index, leaf in enumerate(leaves) if leaf is cache]
        tensors = [(index, leaf) for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        wide = [(index, tensor) for index, tensor in tensors if tensor.dim() >= 2]
        sequences = [(i, 1) for i, t in wide if _same(t.shape[0], rows) and _same(t.shape[1], length)]
        return cls(leaves, structure, sequences, caches)

    def with_values(self, values: list[torch.Tensor], cache: Any) -> tuple[Any, Any]:
        leaves = list(self.leaves)
        for (index, _), value in zip(self.sequences, values, strict=True):
            leaves[index] = value
        for index in self.caches:
            leaves[index] = cache
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        return args, kwargs


def _same(found: Any, wanted: Any) -> bool:
    """Whether two sizes are one; in a trace by their example sizes, which are all different."""
    hints = [size.node.hint if isinstance(size, torch.SymInt) else size for size in (found, wanted)]
    return bool(hints[0] == hints[1])


@dataclass(frozen=True)
class Target:
    """A mixer in its model, and what it moves."""

    mixer: torch.nn.Module
    path: str
    forward: Callable[..., Any]
    plans: tuple[StatePlan, ...]


class _Attributes:
    """States that a mixer keeps as attributes of its modules: given values meanwhile, then put back."""

    def __init__(self, mixer: torch.nn.Module, path: str, values: dict[str, torch.Tensor]) -> None:
        self.values = {name: value.clone() for name, value in values.items()}
        self.places = {}
        for name in values:
            owner, _, attribute = name.removeprefix(f"{path}.").rpartition(".")
            self.places[name] = (mixer.get_submodule(owner), attribute)

    def __enter__(self) -> None:
        self.kept = {name: getattr(*place) for name, place in self.places.items()}
        for name, (module, attribute) in self.places.items():
            setattr(module, attribute, self.values[name])

    def __exit__(self, *_: object) -> None:
        for name, (module, attribute) in self.places.items():
            setattr(module, attribute, self.kept[name])

    def get(self, name: str) -> torch.Tensor:
        found: torch.Tensor = getattr(*self.places[name])
        return found


class MixerStep(torch.nn.Module):
    """One token through a mixer, everything that it depends on as an argument."""

    def __init__(self, target: Target, call: _Call, config: Any) -> None:
        super().__init__()
        self._held = (target.mixer, target.forward)  # in a tuple, so that its parameters do not become this module's
        self.call, self.plans, self.path, self.config = call, target.plans, target.path, config
        self.names = list(tensors_of(target.mixer))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mixer, forward = self._held
        count, states = len(self.call.sequences), len(self.plans)
        values, held = list(tensors[:count]), tensors[count : count + states]
        layer = self.plans[0].layer
        pairs = list(zip(self.plans, held, strict=True))
        cache = StepCache(self.config, layer, {(p.kind, p.index): s for p, s in pairs if not p.attribute})
        attributes = _Attributes(mixer, self.path, {p.attribute: s for p, s in pairs if p.attribute})
        args, kwargs = self.call.with_values(values, cache)
        parameters = {f"mixer.{n}": t for n, t in zip(self.names, tensors[count + states :], strict=True)}
        with attributes:
            result = torch.func.functional_call(_Bare(mixer, forward), parameters, args, kwargs)
            new = [attributes.get(p.attribute) if p.attribute else cache.state(p.kind, p.index) for p in self.plans]
        outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        return (*outputs, *new)


class _Bare(torch.nn.Module):
    """A mixer called through its class's own forward."""

    def __init__(self, mixer: torch.nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.mixer = mixer
        self._forward = (forward,)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward[0](*args, **kwargs)


def tensors_of(mixer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name."""
    return {**dict(mixer.named_parameters()), **dict(mixer.named_buffers())}


def install(
    model: torch.nn.Module, path: str, plans: tuple[StatePlan, ...], output: MixerOutput, records: dict[str, StepRecord]
) -> None:
    """Make the module at `path` of this model run token by token. Changes `model` in place."""
    mixer = model.get_submodule(path)
    own_forward = mixer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        cache = RetainedCache.current
        if not isinstance(cache, RetainedCache):
            return own_forward(*args, **kwargs)
        call = _Call.take(own_forward, args, kwargs, cache)
        step = MixerStep(Target(mixer, path, own_forward, plans), call, model.config)
        run = _traced if torch.compiler.is_exporting() else _looped
        outputs, states = run(step, cache, output, records, path)
        for plan, state in zip(plans, states, strict=True):
            cache.after[plan.key] = state
        leaves = list(output.leaves)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        for place, value in zip(places, outputs, strict=True):
            leaves[place] = value
        return pytree.tree_unflatten(leaves, output.structure)

    mixer.forward = forward


def _looped(
    step: MixerStep, cache: RetainedCache, output: MixerOutput, *_: Any
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    positions = cache.position_ids
    rows = slice(None) if cache.batch_index is None else cache.batch_index[:, 0]
    states = [cache.before[p.key][rows] for p in step.plans]
    parameters = list(tensors_of(step._held[0]).values())
    tokens = []
    for time in range(positions.shape[1]):
        now = positions[:, time]
        clean = [torch.where(_like(now == 0, s), torch.zeros((), dtype=s.dtype), s) for s in states]
        values = [step.call.leaves[i].narrow(axis, time, 1) for i, axis in step.call.sequences]
        result = step(*values, *clean, *parameters)
        count = len(result) - len(states)
        tokens.append(result[:count])
        pairs = zip(result[count:], states, strict=True)
        states = [torch.where(_like(now >= 0, old), new.to(old.dtype), old) for new, old in pairs]
    whole = [torch.cat(pieces, 1) for pieces in zip(*tokens, strict=True)]
    return whole, [_put(cache.before[p.key], s, cache.batch_index) for p, s in zip(step.plans, states, strict=True)]


def _like(flags: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    return flags.reshape(-1, *[1] * (state.dim() - 1))


def _put(before: torch.Tensor, rows: torch.Tensor, batch_index: torch.Tensor | None) -> torch.Tensor:
    if batch_index is None:
        return rows
    result = before.clone()
    result[batch_index[:, 0]] = rows
    return result


def _traced(
    step: MixerStep, cache: RetainedCache, output: MixerOutput, records: dict[str, StepRecord], path: str
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Emit the mixer as one node and remember its step for the exporter."""
    sequences = [step.call.leaves[i] for i, _ in step.call.sequences]
    states = [cache.before[p.key] for p in step.plans]
    parameters = list(tensors_of(step._held[0]).values())
    shapes = [leaf for leaf in output.leaves if isinstance(leaf, torch.Tensor)]
    name = _name(step._held[0], len(sequences), cache.batch_index is not None)
    rows, length = cache.position_ids.shape
    places = [cache.position_ids] if cache.batch_index is None else [cache.position_ids, cache.batch_index]
    results = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{name}",
        (*sequences, *places, *states, *parameters),
        dtypes=(*(s.dtype for s in shapes), *(s.dtype for s in states)),
        shapes=(*((rows, length, *s.shape[2:]) for s in shapes), *(s.shape for s in states)),
        version=1,
    )
    if name not in records:
        records[name] = StepRecord(name, step, len(sequences), len(states), len(shapes), cache.batch_index is not None)
        records[name].shapes = [tuple(t.shape[2:]) for t in sequences], [tuple(t.shape[1:]) for t in states]
        records[name].dtypes = [t.dtype for t in (*sequences, *states)]
    return list(results[: len(shapes)]), list(results[len(shapes) :])


def _name(mixer: torch.nn.Module, sequences: int, slots: bool) -> str:
    """One name for all mixers that compute the same from their arguments, so that they share one body."""
    facts = [type(mixer).__qualname__, str(sequences)]
    for path, module in mixer.named_modules():
        scalars = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str))}
        for number in ("layer_idx", "layer_id"):
            scalars.pop(number, None)
        facts.append(f"{path}:{type(module).__qualname__}:{sorted(scalars.items())}")
    facts += [f"{name}:{tuple(t.shape)}:{t.dtype}" for name, t in tensors_of(mixer).items()]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]
    return f"Recurrent{'CB' if slots else ''}_{type(mixer).__name__}_{digest}"
