"""What is said of a model's size. Numbers are counted, not bytes: what a number takes is a device's affair."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightCounts:
    """The weights of a model, by what is done with them."""

    dense: int
    """Of matrices that every token is multiplied with, without the head."""
    head: int
    """Of the matrix that gives the logits; the embedding table again if the two are tied."""
    experts: int
    """Of all experts that tokens are sent to."""
    other: int
    """Tables that are looked up, norms, biases, convolutions."""
    scanned: int = 0
    """Of matrices inside recurrent layers, which run token by token."""
    constants: int = 0
    """Of what no checkpoint has, but the graph: frequencies, tables of positions."""
    absorbed: int = 0
    """How many more there are than in the files, where latent attention was absorbed: others took the place of some."""
    tied: bool = False
    largest_matrix: int = 0
    """Of the largest single one among the dense ones and the head."""
    largest_other: int = 0
    """Of the largest tensor that is none of these: a table, or all experts of a layer."""
    expert_matrix: int = 0
    """Of the largest matrix of one expert."""
    expert_width: int = 0
    """Inside an expert."""

    @property
    def stored(self) -> int:
        """As in the files: a tied head lies there once, as the table."""
        return self.graph - self.absorbed

    @property
    def graph(self) -> int:
        """As in the exported program, beside its constants."""
        return self.dense + self.experts + self.other + self.scanned + (0 if self.tied else self.head)


@dataclass(frozen=True)
class Buffers:
    """States of one shape that a sequence has."""

    count: int
    heads: int
    """The most parts that one can be cut into."""
    width: int
    """Numbers of each head in each position."""
    slots: int | None = None
    """Positions that are kept; None: the whole context."""
    packs: bool = True
    """Keys and values, which a device may keep in a coarser type; others are sums over time."""
    direct: bool = False
    """Whether one node attends to them as they are; False also where nobody looked."""

    def numbers(self, ctx_len: int) -> int:
        kept = ctx_len if self.slots is None else min(self.slots, ctx_len)
        return self.count * self.heads * self.width * kept


@dataclass(frozen=True)
class StateCounts:
    """What a model keeps of one sequence."""

    buffers: tuple[Buffers, ...]
    unknown_layers: int = 0
    """Layers whose state the config does not tell; they are not counted."""
    not_observed: str = ""
    """Why it was read off the config, where no run showed it."""
    replays: bool = False
    """Whether the tokens are the state, and each step computes the whole context again."""

    @property
    def per_token(self) -> int:
        """Of each position, in layers that keep the whole context."""
        return sum(buffers.numbers(1) for buffers in self.buffers if buffers.slots is None)

    @property
    def heads(self) -> int:
        """Of keys and values, where there are most."""
        return max((buffers.heads for buffers in self.buffers if buffers.packs), default=1)

    def numbers(self, ctx_len: int) -> int:
        """All of it for one sequence."""
        return sum(buffers.numbers(ctx_len) for buffers in self.buffers)


@dataclass(frozen=True)
class Counts:
    """How many numbers there are, by the rows and tokens of a call."""

    fixed: int
    row: int
    token: int
    both: int
    """For each token of each row."""

    def plus(self, other: Counts) -> Counts:
        sums = (mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True))
        return Counts(*sums)

    def covers(self, other: Counts) -> bool:
        return all(mine >= theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True))


@dataclass(frozen=True)
class Reads:
    """What one operator reads."""

    floats: Counts
    """These three for each position of the context."""
    integers: Counts
    truths: Counts
    beside: Counts
    """Of operands without an axis of the context."""

    def covers(self, other: Reads) -> bool:
        """Whether it reads at least as much of everything, whatever the sizes."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return all(mine.covers(theirs) for mine, theirs in pairs)


@dataclass(frozen=True)
class FileCounts:
    """What the headers of weight files say that the files hold."""

    tensors: int
    numbers: int
    unreadable: str = ""
    """Why they could not be read; nothing is counted then."""


@dataclass(frozen=True)
class ModelSizes:
    """Everything that a plan needs to know of a model."""

    weights: WeightCounts
    state: StateCounts
    layers: int
    attention_heads: int
    attention_width: int
    """Heads times their size: the width of the queries."""
    vocab_size: int
    experts: int = 0
    experts_per_token: int = 0
    angles: tuple[int, ...] = ()
    """Cosines and sines, which follow from a token's position alone: numbers of one position in each tensor."""
    reads: tuple[Reads, ...] | None = None
    """Of operators, apart from what a device knows by itself: attention that is one node, and what reads weights alone;
    None where nobody could look."""
    positions: int | None = None
    """How many positions a learned table has; None if nothing but the context limits them."""
    objection: str = ""
    """Why the model does not run with the context that was asked for."""
    files: FileCounts | None = None
    """None where there are no files here to look into."""
