"""The likeliest tokens of each row, and the filters that narrow them: top-k, top-p, min-p, typical.

A vocabulary has a few hundred thousand tokens and a filter keeps a few of them, so the filters see the best ones only,
sorted. Whatever they keep is what they would keep of the whole vocabulary: a filter that would have to know the others
says so, and that row is sorted as a whole. A row's result depends on nothing but this row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from QEfficient.specs import SamplingParams

BLOCKS = 4096
LISTED = 1024
"""So many tokens are looked at where no top-k says how many are needed."""
NEGLIGIBLE = np.float32(-80.0)
"""Lower scores weigh nothing in a sum; and their exponentials are denormal numbers, which are slow."""
COLDEST = 1e-20
"""Lower temperatures count as this one: at all of them nothing but the best is ever drawn."""


@dataclass(frozen=True)
class Settings:
    """The filters of each row, as columns."""

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    typical_p: np.ndarray

    @classmethod
    def of(cls, params: Sequence[SamplingParams]) -> Settings:
        rows = [(p.temperature, p.top_k, p.top_p, p.min_p, p.typical_p) for p in params]
        temperature, top_k, *others = np.array(rows, np.float64).reshape(-1, 5).T
        return cls(np.maximum(temperature, COLDEST), top_k.astype(np.int64), *others)

    def __getitem__(self, rows: np.ndarray) -> Settings:
        return Settings(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def narrowing(self, vocabulary: int) -> np.ndarray:
        """Which rows have a filter that does anything."""
        top_k = (self.top_k > 0) & (self.top_k < vocabulary)
        return np.asarray(top_k | (self.top_p < 1) | (self.min_p > 0) | (self.typical_p < 1))


@dataclass
class Shortlist:
    """The best tokens of each row, best first, with what is known of all the others."""

    scores: np.ndarray
    """float64 `[rows, listed]`: 0 for the best, divided by the temperature; −inf: not to be drawn."""
    tokens: np.ndarray
    complete: np.ndarray
    """Whether a row needs nothing that is not listed: everything is listed, or a filter has shut the others out."""
    rest: np.ndarray
    """The weight (exp of the scores) of the others, where a filter needs it."""
    moment: np.ndarray
    """The sum of weight times score of the others, likewise."""
    short: np.ndarray
    """Whether a filter found that it has to know the others."""

    def keep(self, active: np.ndarray, kept: np.ndarray, short: np.ndarray) -> None:
        """Narrow the active rows; the others count no more for them."""
        self.scores[active[:, None] & ~kept] = -np.inf
        self.short |= active & ~self.complete & short
        self.complete |= active
        self.rest[active] = self.moment[active] = 0.0

    @property
    def last(self) -> np.ndarray:
        """The lowest score that is left in each row."""
        return np.asarray(np.where(np.isfinite(self.scores), self.scores, 0.0).min(axis=-1))


def top_k(found: Shortlist, k: np.ndarray) -> None:
    """Keep the k best, and what ties with the last of them."""
    place = np.clip(k, 1, found.scores.shape[1])[:, None] - 1
    kth = np.take_along_axis(found.scores, place, axis=-1)
    found.keep(k > 0, found.scores >= kth, k > np.isfinite(found.scores).sum(axis=-1))


def top_p(found: Shortlist, p: np.ndarray) -> None:
    """Keep the fewest best whose probabilities reach p, and what ties with the last of them."""
    mass, before = _sums(np.exp(found.scores))
    wanted = p * (mass + found.rest)
    count = np.maximum((before < wanted[:, None]).sum(axis=-1), 1)
    lowest = np.take_along_axis(found.scores, count[:, None] - 1, axis=-1)
    found.keep(p < 1, found.scores >= lowest, mass < wanted)


def min_p(found: Shortlist, p: np.ndarray) -> None:
    """Keep those that are at least p times as likely as the best."""
    lowest = np.log(np.maximum(p, np.finfo(np.float64).tiny))
    found.keep(p > 0, found.scores >= lowest[:, None], found.last >= lowest)


def typical(found: Shortlist, p: np.ndarray) -> None:
    """Keep those whose surprise is nearest to the expected one (the entropy) until their probabilities reach p."""
    own_mass, own_moment = _own_totals(found.scores)
    mass, weights = own_mass + found.rest, np.exp(found.scores)
    expected = -(own_moment + found.moment) / mass  # the logarithm of the mass would be in both, and is left out
    distance = np.where(weights > 0, np.abs(-found.scores - expected[:, None]), np.inf)
    order = _ascending(distance.astype(np.float32))
    sums = np.cumsum(np.take_along_axis(weights, order, axis=-1), axis=-1)
    wanted = p * mass
    count = (sums < wanted[:, None]).sum(axis=-1)
    place = np.minimum(count, found.scores.shape[1] - 1)[:, None]
    farthest = np.take_along_axis(distance, np.take_along_axis(order, place, axis=-1), axis=-1)[:, 0]
    short = (sums[:, -1] < wanted) | (farthest >= -found.last - expected)
    found.keep(p < 1, distance <= farthest[:, None], short)


def shortlist(scores: np.ndarray, settings: Settings, whole: bool = False) -> Shortlist:
    """What the filters leave of scores `[rows, vocabulary]`. Rows that turn out `short` want the whole list."""
    wanted = np.where(settings.top_k > 0, settings.top_k, LISTED)
    bounds = np.full(len(scores), -np.inf, scores.dtype) if whole else loose_bounds(scores, wanted)
    found = listed(scores, settings, bounds)
    narrow(found, settings)
    return found


def narrow(found: Shortlist, settings: Settings) -> None:
    """The filters in transformers' order; those that no row wants are left out."""
    if (settings.top_k > 0).any():
        top_k(found, settings.top_k)
    if (settings.top_p < 1).any():
        top_p(found, settings.top_p)
    if (settings.min_p > 0).any():
        min_p(found, settings.min_p)
    if (settings.typical_p < 1).any():
        typical(found, settings.typical_p)


def listed(scores: np.ndarray, settings: Settings, bounds: np.ndarray) -> Shortlist:
    """The tokens that reach their row's bound, and what the others weigh where a filter has to know."""
    best_scores, tokens = best_first(scores, bounds)
    best = best_scores[:, :1]
    relative = (best_scores.astype(np.float64) - best) / settings.temperature[:, None]
    complete = np.isneginf(bounds)
    rest, moment = np.zeros((2, len(scores)))
    needs = ~complete & (settings.top_k == 0) & ((settings.top_p < 1) | (settings.typical_p < 1))
    if needs.any():
        rows = slice(None) if needs.all() else needs  # a slice copies nothing
        surprised = bool((settings.typical_p < 1).any())
        weight, total = _totals(scores[rows], best[rows], settings.temperature[rows], surprised)
        own_weight, own_total = _own_totals(relative[rows])
        rest[rows], moment[rows] = np.maximum(weight - own_weight, 0.0), np.minimum(total - own_total, 0.0)
    return Shortlist(relative, tokens, complete, rest, moment, np.zeros(len(scores), np.bool_))


def _totals(
    scores: np.ndarray, best: np.ndarray, temperature: np.ndarray, moments: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of all weights, and of weights times scores where it is asked for, in single precision."""
    relative = scores - best
    relative /= temperature[:, None].astype(np.float32)
    np.maximum(relative, NEGLIGIBLE, out=relative)
    weights = np.exp(relative, out=None if moments else relative)
    sums = weights.sum(axis=-1)
    if not moments:
        return sums, np.zeros_like(sums)
    relative *= weights
    return sums, relative.sum(axis=-1)


def _own_totals(relative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of a list."""
    weights = np.exp(relative)
    return _sums(weights)[0], _sums(weights * np.where(weights > 0, relative, 0.0))[0]


def _sums(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum of each row and, for each column, of those before it. Added one by one: zeros behind change nothing."""
    running = np.cumsum(weights, axis=-1)
    before = np.concatenate([np.zeros((len(weights), 1)), running[:, :-1]], axis=-1)
    return running[:, -1], before


def loose_bounds(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """For each row a number that at least `counts` of its scores reach, and not many more; −inf for large counts.

    It is the count-th largest among the maxima of blocks of the row.
    """
    rows, width = scores.shape
    blocks = min(BLOCKS, width)
    whole = width // blocks * blocks
    maxima = scores[:, :whole].reshape(rows, -1, blocks).max(axis=1)
    np.maximum(maxima[:, : width - whole], scores[:, whole:], out=maxima[:, : width - whole])
    maxima.sort(axis=-1)
    place = np.maximum(blocks - counts, 0)
    return np.where(counts <= blocks, maxima[np.arange(rows), place], -np.inf).astype(scores.dtype)


def best_first(scores: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores that reach their row's bound, largest first, and their columns: `[rows, most]`, filled up with −inf.

    What ties stands in the order of the columns. A score of −inf reaches no bound.
    """
    rows, width = scores.shape
    reaching = scores >= np.maximum(bounds, np.finfo(scores.dtype).min)[:, None]
    if 2 * np.count_nonzero(reaching) > reaching.size:
        order = _ascending(-scores)
        return np.take_along_axis(scores, order, axis=-1), order
    flat = np.flatnonzero(reaching)
    row, column = np.divmod(flat, width)
    counts = np.bincount(row, minlength=rows)
    place = np.arange(flat.size) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.full((rows, counts.max()), -np.inf, scores.dtype)
    columns = np.zeros(found.shape, np.int64)
    found[row, place], columns[row, place] = scores.ravel()[flat], column
    order = _ascending(-found)
    return np.take_along_axis(found, order, axis=-1), np.take_along_axis(columns, order, axis=-1)


def _ascending(values: np.ndarray) -> np.ndarray:
    """The columns of each row in the order of its float32 values; what ties in the order of the columns.

    A value and its column make one whole number, and whole numbers are sorted several times as fast as columns.
    """
    bits = (values + np.float32(0.0)).view(np.uint32)  # which turns −0 into 0
    rising = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    keys = (rising.astype(np.uint64) << np.uint64(32)) | np.arange(values.shape[-1], dtype=np.uint64)
    keys.sort(axis=-1)
    return (keys & np.uint64(2**32 - 1)).astype(np.int64)
