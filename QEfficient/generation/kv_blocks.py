"""The blocks that hold the state of sequences: who refers to which, and what the computed ones contain.

A block is *used* while sequences refer to it, *cached* when nobody does but its content can still be found, and *free*
otherwise. A full block is found by a key that stands for its tokens and all the tokens before them: blocks with equal
keys have equal contents. Every operation takes constant time.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

KEY_BYTES = 32
"""Two contents never share a key: a wrong token would be the price."""


def first_key(salt: str = "") -> bytes:
    """What the key of a sequence's first block continues. Sequences with different salts share nothing."""
    return blake2b(salt.encode(), digest_size=KEY_BYTES, person=b"salt").digest()


def next_key(before: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a full block, from that of the block before it."""
    return blake2b(before + array("q", tokens).tobytes(), digest_size=KEY_BYTES).digest()


@dataclass(frozen=True)
class BlockCounts:
    """How many blocks there are, of which kind."""

    used: int = 0
    cached: int = 0
    free: int = 0

    @property
    def total(self) -> int:
        return self.used + self.cached + self.free


class KVBlocks:
    """Counts references to blocks. When none is free, the cached block that was left longest ago is taken."""

    def __init__(self, count: int) -> None:
        self._references = [0] * count
        self._keys: list[bytes | None] = [None] * count
        self._by_key: dict[bytes, int] = {}
        self._free = list(range(count))[::-1]
        self._cached: OrderedDict[int, None] = OrderedDict()  # the first was left longest ago
        self.evictions = 0

    @property
    def available(self) -> int:
        """How many blocks can be taken now."""
        return len(self._free) + len(self._cached)

    @property
    def counts(self) -> BlockCounts:
        return BlockCounts(len(self._references) - self.available, len(self._cached), len(self._free))

    def references(self, block: int) -> int:
        return self._references[block]

    def find(self, key: bytes) -> int | None:
        """The block with this content."""
        return self._by_key.get(key)

    def take(self) -> int:
        """A block for a new content. Something must be `available`."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
            self.evictions += 1
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """Refer to a block that is used or cached."""
        if not self._references[block]:
            del self._cached[block]
        self._references[block] += 1

    def release(self, block: int) -> None:
        """Give a reference back. Whoever gives back a sequence starts at its end: a block without those before it
        cannot be found, so they should stay longer."""
        self._references[block] -= 1
        if self._references[block]:
            return
        if self._keys[block] is None:
            self._free.append(block)
        else:
            self._cached[block] = None

    def own(self, block: int) -> int:
        """A block that its holder may write: this one if nobody else refers to it, else a new one in its stead.

        The caller then copies the content. With others on the block something must be `available`.
        """
        if self._references[block] == 1:
            self._forget(block)
            return block
        self._references[block] -= 1
        return self.take()

    def publish(self, block: int, key: bytes) -> int:
        """Let a full and computed block be found. Returns the block to use from now on: if two sequences computed the
        same at the same time, the second goes over to the block of the first."""
        found = self._by_key.setdefault(key, block)
        if found == block:
            self._keys[block] = key
        else:
            self.share(found)
            self.release(block)
        return found

    def _forget(self, block: int) -> None:
        key, self._keys[block] = self._keys[block], None
        if key is not None:
            del self._by_key[key]
