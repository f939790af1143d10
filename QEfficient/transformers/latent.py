"""Latent attention: keys and values are made from one small vector per token, which is all that the state holds.

Made anew at each step they cost as much as the whole context is long. Absorbed, they are never made: what would make a
key from the vector is multiplied into the query, what would make a value into the result, and attention is computed on
the vectors themselves, which all heads share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from QEfficient.errors import UnsupportedModelError
from QEfficient.specs import LatentSpec
from QEfficient.transformers.checkpoint import LazyTensor, Sink
from QEfficient.transformers.retained_state import StatePlan

ONLINE, FUSED = "absorb.online", "absorb.fused"
"""What is recorded of a model whose latent attention was absorbed."""
ABSORBED = "absorbed"
"""Name of the child that an attention has then."""
SIZES = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
EXPANSION = "kv_b_proj"
QUERIES = ("q_b_proj", "q_proj")


def latent_layers(model: torch.nn.Module) -> dict[str, Any]:
    """Path → attention, of every one that makes its keys and values in a method of its own, from what it retained."""
    return {
        path: module
        for path, module in model.named_modules()
        if callable(getattr(module, "expand_kv", None)) and hasattr(module, EXPANSION)
    }


class Absorbed(torch.nn.Module):
    """The weights that take the place of those which make keys and values."""

    def __init__(self, attention: Any, fused: bool) -> None:
        super().__init__()
        rank, plain, rotary, values = (getattr(attention, name) for name in SIZES)
        expansion = getattr(attention, EXPANSION).weight
        heads = expansion.shape[0] // (plain + values)
        self.sizes: list[int] = [plain, rotary]
        self.value_up = _parameter(expansion, (heads, rank, values))
        if fused:
            projection = getattr(attention, _queries_of(attention))
            self.query = _parameter(projection.weight, (heads * (rank + rotary), projection.weight.shape[1]))
        else:
            self.key_up = _parameter(expansion, (heads, plain, rank))

    def scores(self, query: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Of each query `[b, h, s, d]` with each vector `[b, 1, C, d]`."""
        if not hasattr(self, "query"):  # else the projection of queries has done it
            plain, rotary = torch.split(query, self.sizes, -1)
            query = torch.cat((plain @ self.key_up, rotary), -1)
        return _with_all_heads(query, vectors.transpose(2, 3))

    def values(self, weights: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """What each query takes `[b, h, s, C]` of the vectors, as values."""
        return _with_all_heads(weights, vectors) @ self.value_up


def _with_all_heads(rows: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """`rows` `[b, h, s, n]` times what all heads share `[b, 1, n, m]`: one product, nothing is repeated."""
    batch, heads, steps, width = rows.shape
    return (rows.reshape(batch, 1, heads * steps, width) @ shared).reshape(batch, heads, steps, shared.shape[-1])


def _parameter(like: torch.Tensor, shape: tuple[int, ...]) -> torch.nn.Parameter:
    return torch.nn.Parameter(like.new_empty(shape), requires_grad=False)


def absorb(model: Any, fused: bool) -> None:
    """Let every latent attention of `model` attend to what it retained as it is. Changes it in place."""
    for path, attention in latent_layers(model).items():
        _check(path, attention, fused)
        absorbed = Absorbed(attention, fused)
        setattr(attention, ABSORBED, absorbed)
        attention.expand_kv = _not_expanded
        if fused:
            _project_with(attention, absorbed)


def _not_expanded(latent: torch.Tensor, rotary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In place of the method that makes keys and values: the vectors are both."""
    return torch.cat((latent, rotary), -1), latent


def _project_with(attention: Any, absorbed: Absorbed) -> None:
    """Let queries come out as wide as the vectors are."""

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(hidden, absorbed.query)

    rank, _, rotary, _ = (getattr(attention, name) for name in SIZES)
    getattr(attention, _queries_of(attention)).forward = forward
    attention.qk_nope_head_dim, attention.qk_head_dim = rank, rank + rotary


def _queries_of(attention: Any) -> str:
    """The projection that queries come from; nothing where it is not known."""
    return next((name for name in QUERIES if getattr(attention, name, None) is not None), "")


def _check(path: str, attention: Any, fused: bool) -> None:
    """Refuse an attention that does something else than what is taken from it."""
    if not _expands_as_known(attention):
        raise UnsupportedModelError(
            f"{path} ({type(attention).__name__}) makes its keys in another way than known: leave 'absorption' out."
        )
    if getattr(getattr(attention, EXPANSION), "bias", None) is not None:
        raise UnsupportedModelError(f"{path}.{EXPANSION} has a bias, which nothing absorbs: leave 'absorption' out.")
    if fused and not _fuses(attention):
        raise UnsupportedModelError(
            f"{path} makes its queries in another way than by one projection, which cannot be fused: ask for 'online'."
        )


def _fuses(attention: Any) -> bool:
    """Whether its queries are what one projection gives."""
    projection = getattr(attention, _queries_of(attention), None)
    if projection is None or getattr(projection, "bias", None) is not None:
        return False
    return not any(size in _normed(attention) for size in _query_sizes(attention))


def _normed(attention: Any) -> set[int]:
    """The sizes of what norms of this attention weigh."""
    weights = (getattr(child, "weight", None) for name, child in attention.named_children() if "norm" in name)
    inner = {getattr(attention, name, None) for name in ("q_lora_rank", "kv_lora_rank")}
    return {int(weight.shape[-1]) for weight in weights if weight is not None} - inner


def _query_sizes(attention: Any) -> tuple[int, ...]:
    _, plain, rotary, _ = (getattr(attention, name) for name in SIZES)
    return plain, rotary, plain + rotary


def _expands_as_known(attention: Any) -> bool:
    """Whether its method does on a few numbers what absorbing takes it for."""
    heads, rank, plain, rotary, values = 2, 4, 3, 2, 5
    sizes = dict(zip(SIZES, (rank, plain, rotary, values), strict=True))
    with torch.random.fork_rng(devices=[]):  # the caller's next random numbers stay what they were
        expansion = torch.nn.Linear(rank, heads * (plain + values), bias=False)
        latent, turned = torch.randn(1, 1, 6, rank), torch.randn(1, 1, 6, rotary)
    probe = SimpleNamespace(**sizes, **{EXPANSION: expansion})
    key_up, value_up = _split(expansion.weight, heads, plain)
    try:
        with torch.no_grad():
            keys, made = type(attention).expand_kv(probe, latent, turned)
            wanted = torch.cat((latent @ key_up.transpose(1, 2), turned.expand(-1, heads, -1, -1)), -1)
            return torch.allclose(keys, wanted, atol=1e-5) and torch.allclose(made, latent @ value_up, atol=1e-5)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # it reads more than that, or other sizes
        return False


def _split(weight: torch.Tensor, heads: int, plain: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What makes keys `[heads, plain, rank]`, and what makes values `[heads, rank, values]`."""
    each = weight.reshape(heads, -1, weight.shape[-1])
    return each[:, :plain], each[:, plain:].transpose(1, 2)


def named(plans: tuple[StatePlan, ...], model: torch.nn.Module, spec: LatentSpec | None) -> tuple[StatePlan, ...]:
    """The plans, those of latent layers marked: their states go by other names."""
    if spec is None:
        return plans
    layers = {attention.layer_idx for attention in latent_layers(model).values()}
    if not layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no latent attention, which mla_absorption is for: leave it out."
        )
    return tuple(
        replace(plan, latent=plan.layer in layers and plan.kind in ("key", "value") and not plan.direct)
        for plan in plans
    )


def absorbed_weights(model: torch.nn.Module) -> tuple[set[str], set[str]]:
    """Names of the parameters that absorbing made, and of those that they take the place of."""
    made, replaced = set(), set()
    for path, attention in _absorbed_attentions(model).items():
        made |= {f"{path}.{ABSORBED}.{name}" for name, _ in getattr(attention, ABSORBED).named_parameters()}
        replaced |= {f"{path}.{name}.weight" for name in _needed(attention)}
    return made, replaced


def _absorbed_attentions(model: torch.nn.Module) -> dict[str, Any]:
    return {path: each for path, each in latent_layers(model).items() if hasattr(each, ABSORBED)}


def _needed(attention: Any) -> tuple[str, ...]:
    """The children whose weights become those of an absorbed attention."""
    fused = hasattr(getattr(attention, ABSORBED), "query")
    return (EXPANSION, _queries_of(attention)) if fused else (EXPANSION,)


class AbsorbedWeights:
    """Makes the weights of absorbed attentions from those that a checkpoint streams, and hands both on."""

    def __init__(self, model: torch.nn.Module, sink: Sink) -> None:
        self._sink = sink
        self._attentions = _absorbed_attentions(model)
        self._waiting: dict[str, dict[str, torch.Tensor]] = {path: {} for path in self._attentions}

    def __call__(self, name: str, tensor: LazyTensor | torch.Tensor) -> None:
        """A sink of the stream."""
        self._sink(name, tensor)
        path, _, parameter = name.removesuffix(".weight").rpartition(".")
        if path not in self._waiting or parameter not in (needed := _needed(self._attentions[path])):
            return
        self._waiting[path][parameter] = tensor.read() if isinstance(tensor, LazyTensor) else tensor
        if len(self._waiting[path]) == len(needed):
            for made, value in self._made(self._attentions[path], self._waiting.pop(path)):
                self._sink(f"{path}.{ABSORBED}.{made}", value)

    @staticmethod
    def _made(attention: Any, weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        absorbed = getattr(attention, ABSORBED)
        heads, (plain, rotary) = absorbed.value_up.shape[0], absorbed.sizes
        key_up, value_up = _split(weights[EXPANSION], heads, plain)
        yield "value_up", value_up.contiguous()
        if len(weights) == 1:
            yield "key_up", key_up.contiguous()
            return
        query = weights[_queries_of(attention)].float().reshape(heads, plain + rotary, -1)
        fused = torch.cat((key_up.float().transpose(1, 2) @ query[:, :plain], query[:, plain:]), 1)
        yield "query", fused.flatten(0, 1)
