"""The plain decoding: one new token a step, chosen by the sampler."""

from __future__ import annotations

from QEfficient.generation.decoding.verification import Verification
from QEfficient.generation.plan import Plan


class OneToken(Verification):
    """Tries nothing ahead; keeps what the sampler chooses."""

    def propose(self, plan: Plan) -> Plan:
        return plan
