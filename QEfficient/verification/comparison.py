"""How far two runs of the same tokens are apart, logit by logit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from QEfficient.devices import FLOAT32_ERROR

NEAR_TIE = 1e-5
"""Two logits that are closer than this part of the spread are equally good: rounding decides between them."""
TOLERANCE = FLOAT32_ERROR
"""Largest logit error of float32 that passes, as a part of the spread between largest and smallest logit."""


@dataclass(frozen=True)
class Comparison:
    """Some steps of one prompt, as expected and as found. Errors are infinite where something is not a number."""

    steps: int
    largest_error: float
    mean_error: float
    relative_error: float
    """Largest error as a part of the spread of the expected logits of its step."""
    kl: float
    """Largest Kullback-Leibler divergence of a step, in nats."""
    ties: int
    """Steps in which another token was as good as the expected one, and was found."""
    first_difference: int | None
    """The first step with another token."""
    worst_gap: float
    """Largest distance of the expected logits of the two tokens where they differ, as a part of the spread."""
    first_error: int | None
    """The first step whose relative error is not tolerated."""
    typical_error: float = 0.0
    """Half of the steps have a relative error of no more."""
    is_rough: bool = False
    """Whether that is too much."""
    outliers: int = 0
    """Steps with an error or a token that was not tolerated, too few to count."""
    differing: int = 0
    """Steps with another token than the expected one, whether that is tolerated or not."""

    @property
    def tokens_equal(self) -> bool:
        return self.first_difference is None

    @property
    def passed(self) -> bool:
        return self.tokens_equal and self.first_error is None and not self.is_rough

    def describe(self) -> str:
        """What is wrong, in one clause."""
        if self.tokens_equal and self.first_error is None:
            return f"logits off by {percent(self.typical_error)} of their spread in half of the steps"
        if self.first_difference is None:
            return f"logits off by {percent(self.relative_error)} of their spread from step {self.first_error} on"
        off = f"logits off by {percent(self.relative_error)} of their spread"
        return f"another token in step {self.first_difference}, {off}"


@dataclass(frozen=True)
class Agreement:
    """How far two runs of some prompts say the same, each continuing them by its own likeliest tokens."""

    against: str
    prompts: int = 0
    same: int = 0
    """Prompts that both continue by the same tokens."""
    steps: int = 0
    ties: int = 0
    """Steps in which they choose different tokens that are equally good."""
    outliers: int = 0
    error: float | None = None
    """Largest error of a logit, as a part of the spread of its step."""
    reason: str = ""
    """Why nothing could be compared."""

    def describe(self) -> str:
        if self.reason:
            return f"there is no {self.against} to compare with: {self.reason}"
        return f"{self.same} of {self.prompts} prompts are continued as by the {self.against}{self.others}"

    @property
    def others(self) -> str:
        """Steps that are not as they should be and yet good enough, as something to add."""
        counts = ((self.ties, "ties"), (self.outliers, "outliers"))
        return "".join(f", {count} of {self.steps} steps are {what}" for count, what in counts if count)


def agreement(against: str, comparisons: Sequence[Comparison]) -> Agreement:
    """Sum up comparisons of a run that was fed with the tokens of the other. As long as none differs, what it was fed
    with is what it would have chosen itself."""
    return Agreement(
        against,
        prompts=len(comparisons),
        same=sum(c.differing == 0 for c in comparisons),
        steps=sum(c.steps for c in comparisons),
        ties=sum(c.ties for c in comparisons),
        outliers=sum(c.outliers for c in comparisons),
        error=max(c.relative_error for c in comparisons),
    )


def percent(part: float) -> str:
    """`34 %`, `0.012 %`."""
    if not np.isfinite(part):
        return "more than anything (not a number)"
    return f"{100 * part:.0f} %" if part >= 0.1 else f"{100 * part:.2g} %"


def compare(
    expected: np.ndarray,
    found: np.ndarray,
    tolerance: float = TOLERANCE,
    near_tie: float = NEAR_TIE,
    typical: float = math.inf,
    outliers: float = 0.0,
) -> Comparison:
    """Compare logits `[steps, vocabulary]` of runs that were fed the same tokens: no step may be off by more than
    `tolerance` but for a part of `outliers`, half of them by no more than `typical`."""
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    errors = _errors(expected, found)
    spread = _spread(expected)
    relative = errors.max(1) / spread
    best, other = expected.argmax(1), np.where(np.isnan(found), -np.inf, found).argmax(1)
    steps = np.arange(len(expected))
    gaps = (expected[steps, best] - expected[steps, other]) / spread
    different = (best != other) & ~(gaps < near_tie)
    ties = int(((best != other) & ~different).sum())
    wrong = ~(relative <= tolerance)
    forgiven = _forgiven(wrong | different, relative, outliers)
    wrong, different = wrong & ~forgiven, different & ~forgiven
    usual = float(np.median(relative))
    return Comparison(
        steps=len(expected),
        largest_error=float(errors.max()),
        mean_error=float(errors.mean()),
        relative_error=float(relative.max()),
        kl=_divergence(expected, found),
        ties=ties,
        first_difference=_first(different),
        worst_gap=float(gaps[different].max(initial=0.0)),
        first_error=_first(wrong),
        typical_error=usual,
        is_rough=not usual <= typical,
        outliers=int(forgiven.sum()),
        differing=int((best != other).sum()),
    )


def _forgiven(bad: np.ndarray, relative: np.ndarray, outliers: float) -> np.ndarray:
    """The bad steps if they are few enough, else none; never those that are no numbers."""
    finite = bad & np.isfinite(relative)
    return finite if 0 < finite.sum() <= math.ceil(outliers * len(bad)) else np.zeros_like(bad)


def _first(flags: np.ndarray) -> int | None:
    return int(flags.argmax()) if flags.any() else None


def _errors(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Absolute errors; none where both are the same infinity, infinite where only one is no number."""
    with np.errstate(invalid="ignore"):
        errors = np.where(expected == found, 0.0, np.abs(expected - found))
    return np.where(np.isnan(errors), np.inf, errors)


def _spread(logits: np.ndarray) -> np.ndarray:
    """Distance between the largest and the smallest finite logit of each step."""
    known = np.isfinite(logits)
    high = np.where(known, logits, -np.inf).max(1)
    low = np.where(known, logits, np.inf).min(1)
    spread: np.ndarray = np.maximum(high - low, np.finfo(np.float32).tiny)
    return spread


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def _divergence(expected: np.ndarray, found: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        wanted, given = _log_softmax(expected), _log_softmax(found)
        terms = np.where(np.isneginf(wanted), 0.0, np.exp(wanted) * (wanted - given))
    total = float(terms.sum(1).max())
    return max(total, 0.0) if np.isfinite(total) else float("inf")
