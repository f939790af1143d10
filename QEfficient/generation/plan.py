"""What one step runs, and the policies that choose it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from QEfficient.devices import Batch, Limits, Row
from QEfficient.generation.request import Request


@dataclass(frozen=True)
class Step:
    """The next row of a request."""

    request: Request
    row: Row
    arrival: int = 0
    """Its number among the requests."""
    room: int = 0
    """How many tokens a decoding may add to the row."""
    drafts: int = 0
    """How many it did add: the last ones of the row, which the request does not have yet."""


@dataclass(frozen=True)
class Plan:
    """What one step of the engine runs."""

    steps: tuple[Step, ...]
    copies: tuple[tuple[int, int], ...] = ()
    """Blocks to be copied before, in this order: source and target."""

    @property
    def batch(self) -> Batch:
        return Batch(tuple(step.row for step in self.steps))

    @property
    def sampled(self) -> list[Request]:
        """The requests whose logits come back, in row order."""
        return [step.request for step in self.steps if step.row.logits]


Policy = Callable[[Sequence[Step], Limits], Sequence[Step]]
"""Chooses, from the next step of every running request, those that run now. It may shorten rows (`shortened`)."""


def policy_for(limits: Limits) -> Policy:
    return prefill_first if limits.tokens is None else mixed


def prefill_first(ready: Sequence[Step], limits: Limits) -> Sequence[Step]:
    """Rows of many tokens as long as there are any, or else those that decode."""
    several = [step for step in ready if not limits.is_short(step.row)]
    return several[: limits.prefill_rows] or ready[: limits.decode_rows]


def mixed(ready: Sequence[Step], limits: Limits) -> Sequence[Step]:
    """Rows of one token first, so that nobody who generates has to wait; prompts share what is left of `tokens`."""
    assert limits.tokens is not None
    single = sorted((s for s in ready if len(s.row.tokens) == 1), key=lambda s: -s.request.priority)
    single = single[: min(limits.decode_rows, limits.tokens)]
    several = sorted((s for s in ready if len(s.row.tokens) > 1), key=lambda s: (-s.request.priority, s.arrival))
    left = limits.tokens - len(single)
    chosen: list[Step] = []
    for _, equals in groupby(several[: limits.prefill_rows], key=lambda s: s.request.priority):
        group = list(equals)
        parts = _parts([len(step.row.tokens) for step in group], left)
        left -= sum(parts)
        chosen += [shortened(step, part) for step, part in zip(group, parts, strict=True) if part]
    return [*single, *_within_decode_rows(chosen, limits.decode_rows - len(single))]


def shortened(step: Step, count: int) -> Step:
    """The step with the first `count` of its tokens only."""
    if count >= len(step.row.tokens):
        return step
    logits = step.request.logits_wanted(step.row.start, count)
    return replace(step, row=replace(step.row, tokens=step.row.tokens[:count], logits=logits))


def extended(step: Step, drafts: Sequence[int]) -> Step:
    """The step with tokens to try behind its own, each of which tells by its logits whether the next one is right."""
    row, count = step.row, len(drafts)
    row = replace(row, tokens=(*row.tokens, *drafts), logits=row.logits + count)
    return replace(step, row=row, drafts=step.drafts + count)


def _parts(wanted: Sequence[int], tokens: int) -> list[int]:
    """How many of the tokens each gets. In order, half of what is left by then: neither does a long prompt keep short
    ones waiting until it is through, nor do they stop it. Then, again in order, what nobody took."""
    parts = []
    for behind, want in zip(range(len(wanted))[::-1], wanted, strict=True):
        parts.append(min(want, -(-tokens // 2) if behind else tokens))
        tokens -= parts[-1]
    for number, want in enumerate(wanted):
        more = min(want - parts[number], tokens)
        parts[number] += more
        tokens -= more
    return parts


def _within_decode_rows(steps: Sequence[Step], left: int) -> list[Step]:
    """Leave out prompts that got a single token when a run takes no more such rows."""
    kept = []
    for step in steps:
        single = len(step.row.tokens) == 1
        if not single or left > 0:
            kept.append(step)
            left -= single
    return kept
