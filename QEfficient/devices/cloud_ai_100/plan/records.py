"""What is asked of a plan: the model's size, the workload, the cards and the precision.

A SoC is what the options call a device: an Ultra card has four of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from QEfficient.errors import OptionError

GIB = 2**30

FP16, MXFP6, MXINT8 = 2.0, 6.25 / 8, 33 / 32
"""Bytes of a number; the shared scale of a block of 32 included."""
BLOCK = 32
"""Numbers that share a scale."""
SYSTEM = 2 * GIB
"""Of a SoC's memory, not for programs."""


@dataclass(frozen=True)
class Card:
    """One product: all figures but the first are of one SoC."""

    socs: int
    cores: int
    memory: int
    """Bytes of DRAM."""
    peak: float
    """FP16 operations per second."""

    @property
    def usable(self) -> int:
        """Bytes for weights, cache and buffers."""
        return self.memory - SYSTEM


CARDS: Mapping[str, Card] = {
    "standard": Card(1, 14, 16 * GIB, 110e12),
    "pro": Card(1, 16, 32 * GIB, 125e12),
    "ultra": Card(4, 16, 32 * GIB, 72.5e12),
}


@dataclass(frozen=True)
class Workload:
    """What is asked of the model."""

    ctx_len: int
    prompt_len: int = 128
    batch_size: int = 1
    full_batch_size: int | None = None
    """Continuous batching: this many decode together, and prompts come one by one."""
    chunk: int = 128
    """Tokens of a prompt that run at once."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise OptionError(f"{name} must be at least 1, not {value}.")
        for name, value in (("a prompt", self.prompt_len), ("a chunk", self.chunk)):
            if value > self.ctx_len:
                raise OptionError(
                    f"{name} of {value:,} tokens does not fit into a ctx_len of {self.ctx_len:,}. Raise ctx_len."
                )

    @property
    def users(self) -> int:
        """Sequences that decode together."""
        return self.full_batch_size or self.batch_size

    @property
    def prompts(self) -> int:
        """Prompts that run together."""
        return 1 if self.full_batch_size else self.batch_size

    @property
    def chunks(self) -> int:
        return ceil(self.prompt_len / self.chunk)


@dataclass(frozen=True)
class Precision:
    """How numbers are kept; float16 otherwise."""

    mxfp6: bool = False
    """Weights of matrices."""
    mxint8: bool = False
    """Keys and values."""

    @property
    def weight(self) -> float:
        return MXFP6 if self.mxfp6 else FP16

    @property
    def cache(self) -> float:
        return MXINT8 if self.mxint8 else FP16

    @property
    def described(self) -> str:
        """In words."""
        weights, cache = "weights of matrices in MXFP6", "keys and values in MXINT8"
        chosen = [*([weights] if self.mxfp6 else []), *([cache] if self.mxint8 else [])]
        return ", ".join([*chosen, "everything else in float16"]) if chosen else "all numbers in float16"


@dataclass(frozen=True)
class Weights:
    """Numbers, by what is done with them."""

    dense: int
    """Of matrices that every token is multiplied with."""
    head: int
    """Of the matrix that gives the logits, also where it is the embedding table."""
    other: int
    """The embedding table, norms: kept in float16 and hardly read."""
    experts: int = 0
    """Of all experts together: in float16, since tokens gather them, and only matrices as they are become MXFP6."""
    scanned: int = 0
    """Of matrices in recurrent layers: in float16 for the same reason."""
    largest_matrix: int = 0
    """Of the largest single one among the dense ones and the head."""
    largest_other: int = 0
    """Of the largest tensor that is none of these."""
    expert_matrix: int = 0
    """Of the largest matrix of one expert."""

    def size(self, precision: Precision) -> float:
        """Bytes of all of them."""
        return (self.dense + self.head) * precision.weight + (self.other + self.experts + self.scanned) * FP16


@dataclass(frozen=True)
class Buffers:
    """States of one shape that a sequence has."""

    count: int
    heads: int
    """The most SoCs that can share one."""
    width: int
    """Numbers of each head in each position."""
    slots: int | None = None
    """Positions that are kept; None: the whole context."""
    packs: bool = True
    """Keys and values; others are always in float16."""
    direct: bool = False
    """Whether one node attends to it as it is; otherwise, and where nobody knows, its heads may be repeated before."""

    def kept(self, ctx_len: int) -> int:
        """Positions of a context that have a place."""
        return ctx_len if self.slots is None else min(self.slots, ctx_len)

    def size(self, ctx_len: int, precision: Precision) -> float:
        """Bytes of one sequence."""
        each = precision.cache if self.packs else FP16
        return self.count * self.heads * self.width * self.kept(ctx_len) * each


@dataclass(frozen=True)
class State:
    """What one sequence keeps."""

    buffers: tuple[Buffers, ...] = ()
    replays: bool = False
    """Nothing but its tokens: each step computes the whole context again."""

    def size(self, ctx_len: int, precision: Precision) -> float:
        """Bytes of one sequence."""
        return sum(buffers.size(ctx_len, precision) for buffers in self.buffers)

    def per_token(self, precision: Precision) -> float:
        """Bytes of one more position, in layers that keep all of them."""
        return sum(buffers.size(1, precision) for buffers in self.buffers if buffers.slots is None)


@dataclass(frozen=True)
class Counts:
    """How many numbers there are, by the rows and tokens of a call."""

    fixed: int
    row: int
    token: int
    both: int
    """For each token of each row."""

    def of(self, rows: int, tokens: int) -> int:
        return self.fixed + self.row * rows + self.token * tokens + self.both * rows * tokens


@dataclass(frozen=True)
class OperatorReads:
    """What one operator reads, outside of the nodes that write and read states, or attend as one."""

    floats: Counts
    """These three for each position of the context."""
    integers: Counts
    truths: Counts
    beside: Counts
    """Of operands without an axis of the context."""

    def size(self, rows: int, tokens: int, ctx_len: int) -> float:
        """Bytes."""
        kinds = ((self.floats, FP16), (self.integers, 8), (self.truths, 1))
        each = sum(counts.of(rows, tokens) * size for counts, size in kinds)
        return ctx_len * each + self.beside.of(rows, tokens) * FP16


@dataclass(frozen=True)
class ModelSize:
    """What the arithmetic needs to know of a model."""

    weights: Weights
    state: State
    layers: int
    attention_width: int
    """Heads times their size."""
    vocab_size: int
    expert_count: int = 0
    experts_per_token: int = 0
    expert_width: int = 0
    """Inside one expert; 0 if it is not known."""
    attention_heads: int = 1
    angles: tuple[int, ...] = ()
    """Of each table of positions that the compiled program has: numbers of one position of the context."""

    reads: tuple[OperatorReads, ...] | None = None
    """Of operators that attend, where attention is more than one node, and of those that read nothing of the context.
    None where nobody looked."""
    objection: str = ""
    """Why it does not run with the context that is asked for."""

    def table_numbers(self, ctx_len: int) -> int:
        """Of all tables that have a row for each position."""
        return sum(self.angles) * ctx_len

    def experts_read(self, tokens: int) -> float:
        """Share of the experts that so many tokens need at most."""
        known = self.expert_count and self.experts_per_token
        return min(1.0, tokens * self.experts_per_token / self.expert_count) if known else 1.0


@dataclass(frozen=True)
class Setup:
    """Where a model runs and how it is kept there."""

    precision: Precision = Precision()
    devices: int = 1
    card: Card = CARDS["ultra"]
