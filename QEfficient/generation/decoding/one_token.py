"""The plain decoding: one new token a step, chosen by the sampler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from QEfficient.generation.adjustments import ADJUSTMENTS, Adjustment
from QEfficient.generation.recording import record_prompt, record_tokens
from QEfficient.generation.request import Request
from QEfficient.generation.sampling import sample
from QEfficient.generation.scheduler import Plan, Step


class OneToken:
    """Tries nothing ahead; keeps what the sampler chooses."""

    def __init__(self, adjustments: Sequence[Adjustment] = ADJUSTMENTS) -> None:
        self._adjustments = adjustments

    def propose(self, plan: Plan) -> Plan:
        return plan

    def accept(self, plan: Plan, logits: np.ndarray) -> Sequence[Sequence[int]]:
        """Nothing for rows that end inside their prompt: their logits are about the prompt."""
        steps = [step for step in plan.steps if step.row.logits]
        ends = np.cumsum([step.row.logits for step in steps])
        for step, end in zip(steps, ends, strict=True):
            record_prompt(logits[end - step.row.logits : end], step.row, step.request)
        last = [place for place, step in enumerate(steps) if _reaches_the_end(step)]
        lines = logits if len(last) == len(logits) else logits[[ends[place] - 1 for place in last]]
        chosen = self._choose(lines, [steps[place].request for place in last])
        return [chosen.get(request, ()) for request in plan.sampled]

    def _choose(self, logits: np.ndarray, requests: Sequence[Request]) -> dict[Request, tuple[int, ...]]:
        if not requests:
            return {}
        tokens = sample(logits, requests, self._adjustments)
        record_tokens(logits, tokens, requests)
        for request, token in zip(requests, tokens, strict=True):
            request.exhausted = token is None
        return {r: () if token is None else (token,) for r, token in zip(requests, tokens, strict=True)}


def _reaches_the_end(step: Step) -> bool:
    return step.row.start + len(step.row.tokens) == step.request.length
