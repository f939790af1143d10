"""What single operators read of the context, where a layer attends outside of the one node that attention usually is.

The retained module runs on sizes alone, four times: two numbers of rows, two of tokens. What an operator reads is
linear in each. Neither writing into states and reading them is looked at, nor attention that is one node: a device
knows both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from QEfficient.errors import UnsupportedModelError
from QEfficient.transformers.retained_module import RetainedModule
from QEfficient.transformers.size_records import Counts, Reads
from QEfficient.transformers.sized_runs import run_on_sizes

CONTEXT = 1_000_003
"""More than any size of a model, so that what has it is known by it, also with a few columns beside it."""
BESIDE_IT = 4096
"""Columns that may stand beside the context in an axis: what is more is another axis."""
ROWS, TOKENS = (2, 3), (5, 7)
PRODUCTS = frozenset({"baddbmm", "addmm", "addbmm"})
"""Of which the product is an operand of an addition."""
SUMS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", *PRODUCTS})
TWICE = frozenset({"silu", "gelu", "mish", "softplus", "logsigmoid"})
"""What is put together from operators that read both what comes in and what was made of it."""
HIDDEN = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})
"""What has operators inside that nobody can see from here."""
BESIDE = "beside"
KINDS = ("floats", "integers", "truths", BESIDE)


@dataclass(frozen=True)
class Operation:
    """An operator in one run: what it reads, as numbers of a kind."""

    name: str
    operands: tuple[tuple[str, int], ...]


class WatchedReads(TorchFunctionMode):
    """Notes what operators read if any of it has an axis of the context."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Operation] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "unknown")
        given, made = _tensors((args, kwargs)), _tensors(result)
        if name == "__get__" or not any(map(_has_context, given)):
            return result
        if name in HIDDEN:
            raise UnsupportedModelError(f"it calls {name}, whose operators cannot be seen.")
        if name in PRODUCTS:
            self._note("matmul", given[1:])
            self._note("add", [given[0], *made])
            return result
        fills = name == "where" and any(isinstance(each, float | int) for each in args)
        self._note(name, given, 2 if fills or name in TWICE else 1)
        return result

    def _note(self, name: str, given: list[torch.Tensor], times: int = 1) -> None:
        """That of what is no truth value `times` as much is read."""
        sizes = [_whole(given[0]) if _writes(name) else _size(given[0]), *map(_size, given[1:])]
        kinds = [_kind(each) for each in given]
        repeats = [1 if each.dtype == torch.bool else times for each in given]
        operands = zip(kinds, (size * each for size, each in zip(sizes, repeats, strict=True)), strict=True)
        self.found.append(Operation(name, tuple(operands)))


def _tensors(values: Any) -> list[torch.Tensor]:
    """Each once."""
    found = {id(leaf): leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)}
    return list(found.values())


def _has_context(tensor: torch.Tensor) -> bool:
    return any(size >= CONTEXT and size % CONTEXT <= BESIDE_IT for size in tensor.shape)


def _writes(name: str) -> bool:
    """Whether an operator changes its first operand: a part of a tensor is written by reading all of it."""
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def _whole(part: torch.Tensor) -> int:
    return max(_size(part), part.untyped_storage().nbytes() // part.element_size())


def _size(tensor: torch.Tensor) -> int:
    return prod(tensor.shape)


def _kind(tensor: torch.Tensor) -> str:
    if not _has_context(tensor):
        return BESIDE
    return "floats" if tensor.is_floating_point() else "truths" if tensor.dtype == torch.bool else "integers"


def observed_reads(retained: RetainedModule, mode: FakeTensorMode) -> tuple[Reads, ...]:
    """Of each operator; those that never read most are left out."""
    corners = [_run(retained, mode, rows, tokens) for rows in ROWS for tokens in TOKENS]
    shown = [[(each.name, [kind for kind, _ in each.operands]) for each in corner] for corner in corners]
    if any(each != shown[0] for each in shown):
        raise UnsupportedModelError("its operators are not the same for every number of rows and tokens.")
    return most(_reads(same) for same in zip(*corners, strict=True))


def most(reads: Iterable[Reads]) -> tuple[Reads, ...]:
    """Without those that never read most, whatever the sizes."""
    found = set(reads)
    return tuple(each for each in found if not any(other != each and other.covers(each) for other in found))


def _run(retained: RetainedModule, mode: FakeTensorMode, rows: int, tokens: int) -> list[Operation]:
    watched = WatchedReads()
    run_on_sizes(retained, mode, rows, tokens, CONTEXT, watched)
    return watched.found


def _reads(corners: Sequence[Operation]) -> Reads:
    found = dict.fromkeys(KINDS, Counts(0, 0, 0, 0))
    counted = []
    for operand in zip(*(corner.operands for corner in corners), strict=True):
        kind = operand[0][0]
        counted.append((kind, _counts([size // (1 if kind == BESIDE else CONTEXT) for _, size in operand])))
    is_spread = corners[0].name in SUMS and any(counts.token or counts.both for _, counts in counted)
    for kind, counts in counted:
        if is_spread and kind != BESIDE and not (counts.token or counts.both):
            # A device may count keys from each query: what is added for a key alone differs for each token then
            counts = Counts(0, 0, counts.fixed, counts.row)
        found[kind] = found[kind].plus(counts)
    return Reads(**found)


def _counts(corners: list[int]) -> Counts:
    """What goes with nothing, with the rows, with the tokens and with both, from the four corners."""
    (r1, r2), (t1, t2) = ROWS, TOKENS
    a, b, c, d = corners
    both, odd = divmod(d - c - b + a, (r2 - r1) * (t2 - t1))
    row = (c - a) // (r2 - r1) - both * t1
    token, odder = divmod(b - a, t2 - t1)
    token -= both * r1
    counts = Counts(a - row * r1 - token * t1 - both * r1 * t1, row, token, both)
    if odd or odder or min(vars(counts).values()) < 0:
        raise UnsupportedModelError(f"what an operator reads is not linear in rows and tokens: {corners}.")
    return counts
