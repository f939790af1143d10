"""Decodings: which tokens to try, and which to keep. One file per strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from QEfficient.generation.scheduler import Plan


class Decoding(Protocol):
    """A strategy. It knows requests and logits, not devices."""

    def propose(self, plan: Plan) -> Plan:
        """The plan, its decoding rows extended by the tokens to try."""

    def accept(self, plan: Plan, logits: np.ndarray) -> Sequence[Sequence[int]]:
        """New tokens for each of `plan.sampled`, from logits `[rows that want them, vocabulary]`."""
