"""Where running requests lie in a session: in a slot, or in a slot and blocks."""

from __future__ import annotations

import heapq
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

from QEfficient.devices import Limits
from QEfficient.errors import OptionError
from QEfficient.generation.kv_blocks import BlockCounts, KVBlocks, first_key, next_key
from QEfficient.generation.request import Request

NOWHERE = -1


@dataclass(eq=False)
class Place:
    """Where a request stands, from its arrival to its end."""

    request: Request
    arrival: int
    slot: int = NOWHERE
    computed: int = 0
    """How many of its tokens the session has seen."""
    blocks: list[int] = field(default_factory=list)
    published: int = 0
    """How many of its blocks, from the first, can be found by others."""
    keys: list[bytes] = field(default_factory=list)
    """Of its full blocks, as far as they were needed. They depend on tokens only, so they outlive its blocks."""

    @property
    def rank(self) -> tuple[int, int]:
        """The smaller goes first."""
        return (-self.request.priority, self.arrival)

    @property
    def through(self) -> bool:
        """Whether its prompt is computed."""
        return self.computed >= len(self.request.prompt)


@dataclass(frozen=True)
class CacheCounts:
    """Blocks and their reuse since the beginning."""

    blocks: BlockCounts = BlockCounts()
    evictions: int = 0
    lookup_tokens: int = 0
    """Tokens of the requests that were given a place."""
    hit_tokens: int = 0
    """Those of them that were computed already."""


class Places(ABC):
    """What a session has room for."""

    shareable = False
    """Whether a request can start from what another has computed."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slots = list(range(limits.slots))  # a heap: the lowest goes first

    @property
    def counts(self) -> CacheCounts:
        return CacheCounts()

    @property
    def full(self) -> bool:
        """Whether every slot is taken."""
        return not self._slots

    def spare(self, running: Iterable[Place]) -> int:
        """How many blocks those that run will not need soon."""
        return 0

    def needed(self, place: Place, origin: Place | None = None) -> int:
        """How many blocks it takes to let a request in."""
        return 0

    def enter(self, place: Place, origin: Place | None = None) -> None:
        """Give a slot to a place. It starts from what `origin` has computed of the same prompt."""
        place.slot = heapq.heappop(self._slots)

    def leave(self, place: Place) -> None:
        """Take everything back."""
        heapq.heappush(self._slots, place.slot)
        place.slot, place.computed = NOWHERE, 0

    @abstractmethod
    def skip(self, place: Place) -> None:
        """Pass over the next tokens as far as they were computed already, but never over the last."""

    @abstractmethod
    def grow(self, place: Place, end: int) -> int:
        """Make room for writing the next tokens, up to the position `end`; return up to where there is some."""

    @abstractmethod
    def extend(self, place: Place, end: int) -> int:
        """As `grow`, for a place that has grown for its next token."""

    @abstractmethod
    def record(self, place: Place) -> None:
        """Take note that tokens were computed and accepted."""

    def pop_copies(self) -> tuple[tuple[int, int], ...]:
        """The blocks to be copied before what was given room can run."""
        return ()

    def spoil(self) -> None:  # noqa: B027
        """Rely on nothing that was computed for sequences that have left: a run has failed."""


def places_for(limits: Limits, prefix_cache: bool = True) -> Places:
    if limits.paging is not None:
        return SlotsAndBlocks(limits, prefix_cache)
    return KeptSlots(limits) if limits.keeps_slots and prefix_cache else Slots(limits)


class Slots(Places):
    """A slot has room for a whole context."""

    def skip(self, place: Place) -> None:
        pass

    def grow(self, place: Place, end: int) -> int:
        return self._limits.ctx_len

    def extend(self, place: Place, end: int) -> int:
        return self._limits.ctx_len

    def record(self, place: Place) -> None:
        pass


@dataclass(frozen=True)
class _Kept:
    """What a free slot still holds."""

    tokens: tuple[int, ...] = ()
    salt: str = ""
    left: int = -1
    """The larger, the later it was left."""

    def common(self, request: Request) -> int:
        """How many of a request's tokens are there, but for its last, whose logits are needed."""
        wanted = request.tokens_from(0, request.length - 1) if request.salt == self.salt else ()
        pairs = zip(self.tokens, wanted, strict=False)
        return next((n for n, (mine, other) in enumerate(pairs) if mine != other), min(len(self.tokens), len(wanted)))


class KeptSlots(Slots):
    """A request goes on from the free slot that holds most of its beginning. Of those with nothing to offer it takes
    the one that was left first. With more slots than a run has rows, the others are for what may come back."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._kept: dict[int, _Kept] = {}
        self._departures = itertools.count()
        self._lookup_tokens = self._hit_tokens = 0

    @property
    def counts(self) -> CacheCounts:
        return CacheCounts(lookup_tokens=self._lookup_tokens, hit_tokens=self._hit_tokens)

    @property
    def full(self) -> bool:
        taken = self._limits.slots - len(self._slots)
        return taken >= min(self._limits.slots, max(self._limits.decode_rows, self._limits.prefill_rows))

    def enter(self, place: Place, origin: Place | None = None) -> None:
        request = place.request
        common = {slot: self._kept.get(slot, _Kept()).common(request) for slot in self._slots}
        place.slot = max(self._slots, key=lambda slot: (common[slot], -self._kept.get(slot, _Kept()).left, -slot))
        self._slots.remove(place.slot)
        self._kept.pop(place.slot, None)
        place.computed = common[place.slot] if not request.wants_prompt_logits else 0
        self._lookup_tokens += request.length
        self._hit_tokens += place.computed
        if not request.generated:
            request.cached_tokens += place.computed

    def leave(self, place: Place) -> None:
        tokens = place.request.tokens_from(0, place.computed)
        self._kept[place.slot] = _Kept(tokens, place.request.salt, next(self._departures))
        self._slots.append(place.slot)
        place.slot, place.computed = NOWHERE, 0
        if not place.request.generated:
            place.request.cached_tokens = 0

    def spoil(self) -> None:
        self._kept.clear()


class SlotsAndBlocks(Places):
    """Blocks are taken as a sequence grows, shared with those that begin alike, and copied before they part."""

    def __init__(self, limits: Limits, prefix_cache: bool = True) -> None:
        super().__init__(limits)
        assert limits.paging is not None
        self._size = limits.paging.block_size
        self.shareable = limits.paging.shareable
        self._caches = prefix_cache and self.shareable
        self._blocks = KVBlocks(limits.paging.blocks)
        self._copies: list[tuple[int, int]] = []
        self._lookup_tokens = self._hit_tokens = 0
        if limits.paging.blocks * self._size < limits.ctx_len:
            raise OptionError(
                f"a sequence of ctx_len {limits.ctx_len:,} needs {self._count(limits.ctx_len):,} blocks of"
                f" {self._size} tokens, but the session has {limits.paging.blocks:,}. Give it more blocks."
            )

    @property
    def counts(self) -> CacheCounts:
        return CacheCounts(self._blocks.counts, self._blocks.evictions, self._lookup_tokens, self._hit_tokens)

    def spare(self, running: Iterable[Place]) -> int:
        return self._blocks.available - sum(max(self._wanted(place) - len(place.blocks), 0) for place in running)

    def needed(self, place: Place, origin: Place | None = None) -> int:
        """Blocks that others use already cost nothing, but for the block of the last token: that one is written."""
        shared = (place.request.length - 1) // self._size
        return self._wanted(place) - (shared if origin is not None else self._count_used(place, shared))

    def enter(self, place: Place, origin: Place | None = None) -> None:
        super().enter(place)
        self._lookup_tokens += place.request.length
        if origin is not None:
            self._join(place, origin)

    def leave(self, place: Place) -> None:
        super().leave(place)
        while place.blocks:
            self._blocks.release(place.blocks.pop())
        place.published = 0
        if not place.request.generated:
            place.request.cached_tokens = 0

    def skip(self, place: Place) -> None:
        if not self._caches or len(place.blocks) * self._size != place.computed:
            return
        before, length = place.computed, place.request.length
        while len(place.blocks) * self._size == place.computed <= length - self._size:
            found = self._blocks.find(self._key(place, len(place.blocks)))
            if found is None:
                break
            self._blocks.share(found)
            place.blocks.append(found)
            place.published += 1
            place.computed = min(place.computed + self._size, length - 1)
        self._count_hits(place, place.computed - before)

    def grow(self, place: Place, end: int) -> int:
        return self.extend(place, end) if self._own_next(place) else place.computed

    def extend(self, place: Place, end: int) -> int:
        while len(place.blocks) * self._size < end and self._blocks.available:
            place.blocks.append(self._blocks.take())
        return len(place.blocks) * self._size

    def record(self, place: Place) -> None:
        if self._caches:
            for index in range(place.published, place.computed // self._size):
                place.blocks[index] = self._blocks.publish(place.blocks[index], self._key(place, index))
                place.published += 1
        while len(place.blocks) > self._count(place.request.length):  # taken for tokens that were not accepted
            self._blocks.release(place.blocks.pop())

    def pop_copies(self) -> tuple[tuple[int, int], ...]:
        copies, self._copies = tuple(self._copies), []
        return copies

    def _count(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-tokens // self._size)

    def _key(self, place: Place, index: int) -> bytes:
        keys = place.keys
        while len(keys) <= index:
            before = keys[-1] if keys else first_key(place.request.salt)
            keys.append(next_key(before, place.request.tokens_from(len(keys) * self._size, self._size)))
        return keys[index]

    def _wanted(self, place: Place) -> int:
        """How many blocks a request should be able to have: for its tokens and as many new ones as a block holds. With
        less, somebody would soon be sent away for it."""
        request, most = place.request, self._limits.ctx_len
        if request.params.max_new_tokens is not None:
            most = min(most, len(request.prompt) + request.params.max_new_tokens)
        return self._count(min(request.length + self._size, most))

    def _count_used(self, place: Place, most: int) -> int:
        used = 0
        for index in range(most if self._caches else 0):
            found = self._blocks.find(self._key(place, index))
            if found is None:
                break
            used += self._blocks.references(found) > 0
        return used

    def _join(self, place: Place, origin: Place) -> None:
        """Take over a computed prompt but for its last token, whose logits are needed."""
        place.computed = place.request.length - 1
        place.blocks = origin.blocks[: self._count(place.computed)]
        place.published = min(origin.published, place.computed // self._size)
        for block in place.blocks:
            self._blocks.share(block)
        self._count_hits(place, place.computed)

    def _count_hits(self, place: Place, tokens: int) -> None:
        self._hit_tokens += tokens
        if not place.request.generated:
            place.request.cached_tokens += tokens

    def _own_next(self, place: Place) -> bool:
        """See to it that the block of the next token, if there is one, is nobody else's."""
        index = place.computed // self._size
        if index >= len(place.blocks):
            return True
        block = place.blocks[index]
        if self._blocks.references(block) > 1 and not self._blocks.available:
            return False
        place.blocks[index] = self._blocks.own(block)
        place.published = min(place.published, index)
        if place.blocks[index] != block:
            self._copies.append((block, place.blocks[index]))
        return True
