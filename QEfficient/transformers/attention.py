"""The attention and mask functions that transformers calls in place of its eager ones.

They stand in under the name `eager`, and only while a retained module runs: models ask for that name in places, and a
name of our own would send them down the paths of flash kernels. A mask is built from the retained positions, in full,
so that whatever a model does with it stays right. What rule it follows (causal, window, chunk) is found by evaluating
transformers' own predicate on a few positions. When the very same mask object reaches the attention function, the rule
replaces it and the tensor is never used.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from QEfficient.errors import UnsupportedModelError
from QEfficient.operators.attention_variants import MASKED
from QEfficient.transformers.latent import ABSORBED
from QEfficient.transformers.retained_state import MaskRule, RetainedCache

IMPLEMENTATION = "eager"


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """One layer's attention: the retained operator if the keys come straight from the cache, else plain attention."""
    _refuse_unknown(module, kwargs)
    scale = float(scaling) if scaling is not None else float(query.shape[-1]) ** -0.5
    cache, absorbed = RetainedCache.current, getattr(module, ABSORBED, None)
    if cache is not None:
        cache.look_at(attention_mask)
    if cache is not None and cache.is_direct(key, value):
        output = cache.attend(query, key, value, attention_mask, scale, float(softcap or 0.0), s_aux)
    elif absorbed is not None:
        scores = absorbed.scores(query, key) * scale
        output = absorbed.values(_weights(scores, attention_mask, float(softcap or 0.0), s_aux), value)
    else:
        output = _plain(query, key, value, attention_mask, scale, float(softcap or 0.0), s_aux)
    return output.transpose(1, 2).contiguous(), None


HARMLESS = frozenset({"position_ids", "position_embeddings", "cache_position", "dropout"})
"""Tensors that models hand along and eager attention does not read."""


def _refuse_unknown(module: torch.nn.Module, keywords: dict[str, Any]) -> None:
    """A tensor that we would not use (a position bias, say) must not be dropped in silence."""
    for name, value in keywords.items():
        if isinstance(value, torch.Tensor) and name not in HARMLESS:
            raise UnsupportedModelError(
                f"{type(module).__name__} hands '{name}' to its attention, which is not supported."
            )


def _plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scale
    return _weights(scores, mask, softcap, sinks) @ value.repeat_interleave(groups, 1)


def _weights(
    scores: torch.Tensor, mask: torch.Tensor | None, softcap: float, sinks: torch.Tensor | None
) -> torch.Tensor:
    """How much of each value; in the type of the scores."""
    dtype = scores.dtype
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = torch.where(mask, scores, MASKED) if mask.dtype == torch.bool else scores + mask
    scores = scores.float()
    if sinks is not None:
        column = sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return weights.to(dtype)


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Any = None,
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> torch.Tensor | None:
    """The additive mask `[b, 1, s, C]` of the retained positions, remembered together with its rule."""
    cache = RetainedCache.current
    if cache is None:
        positions = torch.arange(q_length)[None].expand(batch_size, -1)
        return _additive(mask_function, positions, kv_length, dtype)
    built = _additive(mask_function, cache.position_ids.clamp(min=0), kv_length, dtype)
    cache.remember_mask(built, _rule_of(mask_function))
    return built


def _additive(mask_function: Any, positions: torch.Tensor, kv_length: int, dtype: torch.dtype) -> torch.Tensor:
    rows = torch.arange(positions.shape[0])[:, None, None, None]
    heads = torch.zeros((1, 1, 1, 1), dtype=torch.long)
    seen = mask_function(rows, heads, positions[:, None, :, None], torch.arange(kv_length)[None, None, None, :])
    seen = seen.expand(positions.shape[0], 1, positions.shape[1], kv_length)
    return torch.where(seen, torch.zeros((), dtype=dtype), torch.full((), torch.finfo(dtype).min, dtype=dtype))


def _sizes(mask_function: Any) -> set[int]:
    """Every whole number that a composed predicate closes over: the candidates for its window or chunk."""
    found: set[int] = set()
    pending, seen = [mask_function], set()
    while pending:
        function = pending.pop()
        if id(function) in seen or not callable(function):
            continue
        seen.add(id(function))
        for cell in getattr(function, "__closure__", None) or ():
            content = cell.cell_contents
            if isinstance(content, int) and not isinstance(content, bool):
                found.add(content)
            pending.extend(content if isinstance(content, (tuple, list)) else [content])
    return {size for size in found if size > 0}


def _rule_of(mask_function: Any) -> MaskRule | None:
    """The rule that agrees with the predicate on every probed pair of positions, or None if there is none."""
    sizes = sorted(_sizes(mask_function))
    candidates = [MaskRule()] + [MaskRule(window=n) for n in sizes] + [MaskRule(chunk=n) for n in sizes]
    edges = {e for n in [*sizes, 4] for base in (n, 2 * n) for e in (base - 1, base, base + 1)} | set(range(4))
    try:
        with _disable_current_modes():  # real numbers, also in the middle of a trace
            points = torch.tensor(sorted(e for e in edges if e >= 0))
            queries, keys = points[None, None, :, None], points[None, None, None, :]
            zero = torch.zeros((1, 1, 1, 1), dtype=torch.long)
            seen = _with_zeros(mask_function)(zero, zero, queries, keys)
            matches = [rule for rule in candidates if bool((rule.visible(queries, keys) == seen).all())]
    except (RuntimeError, IndexError, TypeError):  # a predicate that reads other tensors: the mask itself is used then
        return None
    return matches[0] if matches else None


def _with_zeros(function: Any) -> Any:
    """A copy of a predicate in which every tensor it closes over (the left padding of a chunk) is zero."""
    if isinstance(function, (tuple, list)):
        return type(function)(_with_zeros(part) for part in function)
    if isinstance(function, torch.Tensor):
        return torch.zeros([int(size) if isinstance(size, int) else 1 for size in function.shape], dtype=function.dtype)
    if not isinstance(function, types.FunctionType) or function.__closure__ is None:
        return function
    cells = tuple(types.CellType(_with_zeros(cell.cell_contents)) for cell in function.__closure__)
    return types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)


@contextmanager
def installed() -> Iterator[None]:
    """Let transformers call these functions meanwhile."""
    replaced = ((ALL_ATTENTION_FUNCTIONS, attend), (ALL_MASK_ATTENTION_FUNCTIONS, mask))
    for interface, function in replaced:
        interface[IMPLEMENTATION] = function
    try:
        yield
    finally:
        for interface, _ in replaced:
            del interface[IMPLEMENTATION]
