"""Decodings: which tokens to try, and which to keep. One file per strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from QEfficient.generation.plan import Plan


@runtime_checkable
class Decoding(Protocol):
    """A strategy. It knows requests and logits, not devices."""

    def propose(self, plan: Plan) -> Plan:
        """The plan, its decoding rows extended by the tokens to try: at most `room` of their steps."""

    def accept(self, plan: Plan, logits: np.ndarray) -> Sequence[Sequence[int]]:
        """New tokens for each of `plan.sampled`, from the logits that its rows want `[tokens, vocabulary]`."""


@runtime_checkable
class Drafting(Decoding, Protocol):
    """A decoding that extends rows."""

    lookahead: int
    """By how many tokens at most; the scheduler keeps room for them as far as there is some."""
