"""The forms of `CachedAttention`: what a node uses stands in its name."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MASKED = -65504.0
"""Score of what must not be seen. Finite: a row that sees nothing (an idle one) then stays finite too. And no more than
float16 holds: compilers for it refuse a constant beyond."""


@dataclass(frozen=True)
class Parts:
    """In how many parts each axis is computed; `keys` are those that are read, `heads` those of keys."""

    batch: int = 1
    heads: int = 1
    queries: int = 1
    keys: int = 1

    @property
    def name(self) -> str:
        letters = {"B": self.batch, "H": self.heads, "Q": self.queries, "KV": self.keys}
        cut = "".join(f"{letter}{count}" for letter, count in letters.items() if count > 1)
        return f"Blocked{cut}" if cut else ""


@dataclass(frozen=True)
class Blocks:
    """How attention is asked to be cut, whatever the heads of a layer are."""

    batch: int = 1
    queries: int = 1
    keys: int = 1
    heads_of_block: int = 0
    """Heads of queries that are computed together; 0: all."""

    def parts(self, heads: int, kv_heads: int) -> Parts:
        """For so many heads. Those that share a head of keys are never parted."""
        together = max(1, self.heads_of_block * kv_heads // heads) if self.heads_of_block else kv_heads
        return Parts(self.batch, -(-kv_heads // together), self.queries, self.keys)


@dataclass(frozen=True)
class Variant:
    """The optional parts of one node, which make its name and its body."""

    slots: bool = False
    rolling: bool = False
    sinks: bool = False
    windowed: bool = False
    chunked: bool = False
    capped: bool = False
    bounded: bool = False
    """Reads as many slots as its last input is long."""
    parts: Parts = field(default_factory=Parts)

    @property
    def name(self) -> str:
        used = (getattr(self, flag) for flag in _FLAGS.values())
        return _NAME + "".join(part for part, is_used in zip(_FLAGS, used, strict=True) if is_used) + self.parts.name

    @classmethod
    def named(cls, name: str) -> Variant | None:
        """The variant of that name."""
        found = _PATTERN.fullmatch(name)
        if found is None:
            return None
        given = found.groupdict()
        counts = {axis: int(given[axis] or 1) for axis in ("batch", "heads", "queries", "keys")}
        flags = {flag: given[flag] is not None for flag in _FLAGS.values()}
        variant = cls(**flags, parts=Parts(**counts))
        return variant if variant.name == name else None


_NAME = "CachedAttention"
_FLAGS = {
    "CB": "slots",
    "Rolling": "rolling",
    "Sinks": "sinks",
    "Windowed": "windowed",
    "Chunked": "chunked",
    "Capped": "capped",
    "Bounded": "bounded",
}
_PATTERN = re.compile(
    _NAME
    + "".join(f"(?P<{flag}>{part})?" for part, flag in _FLAGS.items())
    + r"(Blocked(B(?P<batch>\d+))?(H(?P<heads>\d+))?(Q(?P<queries>\d+))?(KV(?P<keys>\d+))?)?"
)
