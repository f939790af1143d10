"""The plain decoding: one new token a step, chosen by the sampler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from QEfficient.generation.sampling import CHAIN, Link, sample
from QEfficient.generation.scheduler import Plan


class OneToken:
    """Tries nothing ahead; keeps what the sampler's chain chooses."""

    def __init__(self, chain: Sequence[Link] = CHAIN) -> None:
        self._chain = chain

    def propose(self, plan: Plan) -> Plan:
        return plan

    def accept(self, plan: Plan, logits: np.ndarray) -> Sequence[Sequence[int]]:
        return [(token,) for token in sample(logits, plan.sampled, self._chain)]
