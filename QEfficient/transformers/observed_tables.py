"""What a run on sizes alone shows of the exported graph: tables of positions, and what operators read of no context.

The retained module runs once, in the form that a trace sees, and each operator is noted with what it read. Of the
floats that are computed from `position_ids` and constants the last ones become tables: those that are read together
with something else. Equal ones are one table.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from QEfficient.transformers.observed_reads import TWICE, most
from QEfficient.transformers.retained_module import RetainedModule
from QEfficient.transformers.retained_state import StatePlan
from QEfficient.transformers.size_records import Counts, Reads

ROWS, TOKENS = 61, 127
"""Primes that are no part of a model's own sizes, so that an axis is known by them, also by a multiple of one."""
CONTEXT = 503
"""Another one: less than learned tables have rows."""
FEW = 4096
"""Numbers of one position: a device makes no table of more."""
RESHAPING = frozenset(
    {"alias", "clone", "detach", "expand", "permute", "squeeze", "t", "transpose", "unsqueeze"}
)  # fmt: skip
"""A table is taken before these."""
MOVING = RESHAPING | {
    "_reshape_alias", "_to_copy", "_unsafe_view", "as_strided", "cat", "copy", "embedding", "gather", "index",
    "index_select", "lift_fresh", "lift_fresh_copy", "repeat", "select", "slice", "split", "split_with_sizes", "stack",
    "unbind", "view", "view_as_complex", "view_as_real", "written",
}  # fmt: skip
"""These compute nothing: what came about by them alone is no table."""
MIXING = frozenset({"cumsum", "cumprod", "cummax", "cummin", "flip", "roll", "sort"})
"""These keep a tensor's shape, but give a token numbers that others had a part in."""
VIEWS = RESHAPING | {"_reshape_alias", "_unsafe_view", "view"}
"""What these read, what comes before or behind reads too; a trace has fewer of them."""
LOOKING_UP = frozenset({"embedding", "index", "index_select", "gather"})
NODES = frozenset({"_symbolic", "_symbolic_multi_out"})
"""Nodes of our own: constants are read by what is inside."""
NOTHING = Counts(0, 0, 0, 0)


@dataclass(frozen=True)
class Recipe:
    """How to make a tensor: an operator and what it was given, with `Value`s in place of tensors."""

    function: Any
    leaves: tuple[Any, ...]
    structure: Any
    place: int
    """Which of the results it is."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the run."""

    name: str
    """Of the operator that made it."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    sources: tuple[Value, ...] = ()
    is_known: bool = False
    """Whether nothing but positions and constants is behind it."""
    origin: Recipe | torch.Tensor | None = None
    """How it is made if it is known; None where it is made of weights."""
    is_place: bool = False
    """Whether these are the positions themselves."""

    @cached_property
    def is_positional(self) -> bool:
        return self.is_place or (self.is_known and any(source.is_positional for source in self.sources))

    @cached_property
    def is_computed(self) -> bool:
        """Whether these are floats that some arithmetic with floats is behind."""
        if not self.is_positional or not (self.dtype.is_floating_point or self.dtype.is_complex):
            return False
        return self.name not in MOVING or any(source.is_computed for source in self.sources)

    @cached_property
    def is_own(self) -> bool:
        """Whether each number follows from the position of the token that it is of. Rows and tokens are there once for
        that, as axes or flattened into one: without tokens, it is something about all of them."""
        size = prod(self.shape)
        if self.name in MIXING or any(size % prime or not size % prime**2 for prime in (ROWS, TOKENS)):
            return False
        return all(source.is_own for source in self.sources if source.is_positional)

    @cached_property
    def is_table(self) -> bool:
        """Whether a table can stand for it."""
        if not (self.is_computed and self.is_own and {ROWS, TOKENS} <= set(self.shape)):
            return False
        return self.numbers <= FEW and not self.has_context

    @cached_property
    def has_context(self) -> bool:
        return any(size >= CONTEXT and size % CONTEXT <= 1 for size in self.shape)

    @property
    def numbers(self) -> int:
        """Of one position."""
        return prod(self.shape) // (ROWS * TOKENS)


def _content(value: Value, known: dict[Value, torch.Tensor | None]) -> torch.Tensor | None:
    """Its numbers; None where they hang on weights, which nobody has here. `known` takes what was computed."""
    if value not in known:
        recipe = value.origin
        found = {source: _content(source, known) for source in value.sources}
        if not isinstance(recipe, Recipe):
            known[value] = recipe
        elif any(content is None for content in found.values()):
            known[value] = None
        else:
            leaves = [found[leaf] if isinstance(leaf, Value) else leaf for leaf in recipe.leaves]
            args, kwargs = pytree.tree_unflatten(leaves, recipe.structure)
            known[value] = _tensors(recipe.function(*args, **kwargs))[recipe.place]
    return known[value]


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class WatchedOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which tensor was made from which. Known ones that are made in the same way are one value."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[Value] = []
        """In the order in which they were made."""
        self._values: dict[int, Value] = {}
        self._same_memory: dict[int, list[torch.Tensor]] = defaultdict(list)
        self._known: dict[Any, Value] = {}

    def enter(self, tensor: torch.Tensor, origin: torch.Tensor | None = None) -> Value:
        """An input of the run: the positions, if it is said which they are."""
        is_place = origin is not None
        value = Value("input", tuple(tensor.shape), tensor.dtype, (), is_place, origin, is_place)
        return self._keep(tensor, value)

    def enter_constant(self, tensor: torch.Tensor) -> None:
        """Equal ones, as layers may have each for itself, are one."""
        content = _digest(tensor)
        value = Value("constant", tuple(tensor.shape), tensor.dtype, is_known=True, origin=tensor)
        self._keep(tensor, self._known.setdefault(content, value))

    def value_of(self, tensor: torch.Tensor) -> Value:
        """What a tensor holds now; one that was never seen is a constant of the model."""
        found = self._values.get(id(tensor))
        if found is None:
            origin = None if isinstance(tensor, FakeTensor) else tensor
            value = Value("constant", tuple(tensor.shape), tensor.dtype, is_known=True, origin=origin)
            found = self._keep(tensor, value)
        return found

    def _keep(self, tensor: torch.Tensor, value: Value) -> Value:
        if id(tensor) not in self._values:
            self._same_memory[_memory(tensor)].append(tensor)  # kept: another would get its number otherwise
        self._values[id(tensor)] = value
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, structure = pytree.tree_flatten((args, kwargs))
        given = [self.value_of(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        result = func(*args, **kwargs)
        for place, tensor in enumerate(_tensors(result)):
            value = self._made(tensor, Recipe(func, tuple(given), structure, place))
            if func._schema.is_mutable:
                self._write(tensor, value)
            self._keep(tensor, value)
        return result

    def _made(self, tensor: torch.Tensor, recipe: Recipe) -> Value:
        function = recipe.function
        sources = tuple(each for each in recipe.leaves if isinstance(each, Value))
        is_known = torch.Tag.nondeterministic_seeded not in function.tags and all(each.is_known for each in sources)
        name = function._schema.name.rpartition("::")[2].removesuffix("_")
        origin = recipe if is_known and not function._schema.is_mutable else None
        value = Value(name, tuple(tensor.shape), tensor.dtype, sources, is_known, origin)
        if is_known:
            key = (str(function), str(recipe.structure), recipe.place, *map(_key, recipe.leaves))
            if key in self._known:
                return self._known[key]
            self._known[key] = value
        self.made.append(value)
        return value

    def _write(self, tensor: torch.Tensor, new: Value) -> None:
        """Other views of the same memory hold what was there, and what is there now."""
        for other in self._same_memory[_memory(tensor)]:
            old = self._values[id(other)]
            known = old.is_known and new.is_known
            self._values[id(other)] = value = Value("written", old.shape, old.dtype, (old, new), known)
            self.made.append(value)


def _memory(tensor: torch.Tensor) -> int:
    found: int = tensor.untyped_storage()._cdata
    return found


def _key(leaf: Any) -> Any:
    return id(leaf) if isinstance(leaf, Value) else repr(leaf)


@contextmanager
def _as_traced() -> Iterator[None]:
    """Let the code that runs believe that it is traced: nodes of our own are one operator then."""
    before = torch.compiler.is_exporting, torch.compiler.is_compiling
    torch.compiler.is_exporting = torch.compiler.is_compiling = lambda: True
    try:
        yield
    finally:
        torch.compiler.is_exporting, torch.compiler.is_compiling = before


@dataclass(frozen=True)
class Shown:
    """By a run of what a trace sees."""

    tables: tuple[int, ...] = ()
    """Numbers of one position in each."""
    reads: tuple[Reads, ...] | None = ()
    """Of operators that read nothing with an axis of the context, without those that never read most; None where a run
    does not show them."""


def observed_graph(retained: RetainedModule, mode: FakeTensorMode) -> Shown:
    """Run the module once."""
    watched = WatchedOperators()
    steps, places = dict(retained.steps), torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS)
    for buffer in retained.buffers():
        if buffer.is_floating_point() and not isinstance(buffer, FakeTensor):
            watched.enter_constant(buffer)
    try:
        with torch.no_grad(), mode:
            ids, positions = (torch.zeros((ROWS, TOKENS), dtype=torch.long) for _ in range(2))
            states = [_state(plan) for plan in retained.plans]
            for each in (ids, *states):
                watched.enter(each)
            watched.enter(positions, places)
            with _as_traced(), watched:
                results = retained(ids, positions, None, {}, states)
    finally:
        retained.steps.clear()
        retained.steps.update(steps)
    found = _last(watched.made, map(watched.value_of, results))
    # a program has no complex numbers: their two parts are tensors of their own
    tables = tuple(value.numbers for value in _different(found) for _ in range(1 + value.dtype.is_complex))
    return Shown(tables, most(_reads(value) for value in watched.made if _is_read_apart(value)))


def _state(plan: StatePlan) -> torch.Tensor:
    """Windows are as long as the context, so that an axis of theirs is known too."""
    return torch.empty([ROWS, *(CONTEXT if size is None else size for size in plan.shape)], dtype=plan.dtype)


def _last(made: list[Value], results: Iterable[Value]) -> list[Value]:
    """What is still used once all that a table can stand for has its numbers from there."""
    needed = set(results)
    for value in reversed(made):
        if value in needed and not value.is_table:
            needed.update(value.sources)
    found: dict[Value, None] = {}
    for value in made:
        if value in needed and value.is_table:
            while value.name in RESHAPING and value.sources[0].is_table:
                value = value.sources[0]
            found[value] = None
    return list(found)


def _different(found: list[Value]) -> list[Value]:
    """Each once: equal numbers are one table, however they came about."""
    sizes = Counter(value.numbers for value in found)
    tables: dict[Any, Value] = {}
    for value in found:
        content = _content(value, {}) if sizes[value.numbers] > 1 else None
        tables.setdefault(value if content is None else _digest(_leading(value, content)), value)
    return list(tables.values())


def _leading(value: Value, content: torch.Tensor) -> torch.Tensor:
    """Its rows, each with the numbers of one position."""
    return content.movedim((value.shape.index(ROWS), value.shape.index(TOKENS)), (0, 1))


def _digest(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What tensors have in common that are equal."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    numbers = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return tuple(plain.shape), plain.dtype, hashlib.sha256(numbers).digest()


def _is_read_apart(value: Value) -> bool:
    """Whether nothing that its operator reads has an axis of the context."""
    return value.name not in VIEWS and not any(source.has_context for source in value.sources)


def _reads(value: Value) -> Reads:
    """What the operator that made it reads, each operand once. Where something is looked up, the table is left out:
    there is one for all that it holds."""
    found = NOTHING
    is_inside = value.name in NODES or value.name in LOOKING_UP
    for source in dict.fromkeys(value.sources):
        counts = _counts(source)
        if not (is_inside and counts.fixed):
            found = found.plus(counts)
    if value.name in TWICE:
        found = found.plus(found)
    return Reads(NOTHING, NOTHING, NOTHING, found)


def _counts(value: Value) -> Counts:
    """Its numbers, as so many of two bytes: it goes with rows and tokens, with one of them, or with nothing."""
    size = prod(value.shape)
    if not value.dtype.is_floating_point:
        size = ceil(size * value.dtype.itemsize / 2)
    if not size % (ROWS * TOKENS):
        return Counts(0, 0, 0, size // (ROWS * TOKENS))
    if not size % ROWS:
        return Counts(0, size // ROWS, 0, 0)
    return Counts(0, 0, size // TOKENS, 0) if not size % TOKENS else Counts(size, 0, 0, 0)
