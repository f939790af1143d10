"""What every decoding ends with: tokens chosen exactly as without drafts, and drafts kept as long as they are those.

Each token comes from the model's logits by the request's own adjustments, filters and random numbers, position by
position. A draft only spares a run: if it is the token that was chosen, the logits after it are there already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from QEfficient.generation.adjustments import ADJUSTMENTS, Adjustment
from QEfficient.generation.plan import Plan, Step
from QEfficient.generation.recording import record_prompt, record_tokens
from QEfficient.generation.request import Request
from QEfficient.generation.sampling import choose, likeliest, pick_rows


@dataclass(eq=False)
class Trial:
    """The end of a row: what comes next, as far as the drafts are right."""

    request: Request
    line: int
    """Of the logits after its last known token; those after its drafts follow."""
    drafts: Sequence[int]
    known: int
    """How many tokens the request had generated before."""
    tokens: list[int] = field(default_factory=list)

    def take(self, token: int | None) -> bool:
        """Keep a token; whether the next line tells what follows it."""
        self.request.exhausted = token is None
        if token is None:
            return False
        right = len(self.tokens) < len(self.drafts) and self.drafts[len(self.tokens)] == token
        self.tokens.append(token)
        return right and token not in self.request.end_ids


class Verification:
    """Chooses the new tokens of each row."""

    def __init__(self, adjustments: Sequence[Adjustment] = ADJUSTMENTS) -> None:
        self._adjustments = adjustments

    def accept(self, plan: Plan, logits: np.ndarray) -> Sequence[Sequence[int]]:
        """New tokens of each of `plan.sampled`: nothing for rows inside a prompt, whose logits are about the prompt."""
        steps = [step for step in plan.steps if step.row.logits]
        ends = np.cumsum([step.row.logits for step in steps]).tolist()
        for step, end in zip(steps, ends, strict=True):
            record_prompt(logits[end - step.row.logits : end], step.row, step.request)
        trials, lines = _trials(steps, ends)
        if trials:
            self._follow(pick_rows(logits, np.array(lines)), trials)
        found = {trial.request: tuple(trial.tokens) for trial in trials}
        return [found.get(request, ()) for request in plan.sampled]

    def _follow(self, logits: np.ndarray, trials: Sequence[Trial]) -> None:
        """All rows at once, position by position. While that goes on, a request has the tokens that it will get: what
        is done to logits depends on them."""
        best, going = likeliest(logits), trials
        try:
            while going:
                going = [t for t, token in zip(going, self._choose(logits, best, going), strict=True) if t.take(token)]
                for trial in going:
                    trial.request.generated.append(trial.tokens[-1])
        except Exception:
            if not any(trial.tokens for trial in trials):
                raise
            # A request's mask, say. Without drafts the tokens so far would have been out: the next step meets it anew.
        finally:
            for trial in trials:
                trial.request.shorten(trial.known)

    def _choose(self, logits: np.ndarray, best: np.ndarray, trials: Sequence[Trial]) -> list[int | None]:
        requests = [trial.request for trial in trials]
        rows = np.array([trial.line + len(trial.tokens) for trial in trials])
        tokens = choose(logits, best, rows, requests, self._adjustments)
        record_tokens(logits, rows, tokens, requests)
        return tokens


def _trials(steps: Sequence[Step], ends: Sequence[int]) -> tuple[list[Trial], list[int]]:
    """The rows that reach the ends of their requests, and the lines of logits that they need."""
    trials: list[Trial] = []
    lines: list[int] = []
    for step, end in zip(steps, ends, strict=True):
        request, tokens = step.request, step.row.tokens
        own = len(tokens) - step.drafts
        if step.row.start + own == request.length:
            trials.append(Trial(request, len(lines), tokens[own:], len(request.generated)))
            lines += range(end - 1 - step.drafts, end)
    return trials, lines
