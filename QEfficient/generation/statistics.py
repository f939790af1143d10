"""What an engine has done, in figures that take no room: totals since its beginning, and what it holds now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from QEfficient.devices import Limits
from QEfficient.generation.places import CacheCounts
from QEfficient.generation.plan import Plan
from QEfficient.generation.request import FinishReason


@dataclass(frozen=True)
class Statistics:
    """A snapshot: it may be read while the engine goes on."""

    steps: int = 0
    failed_steps: int = 0
    seconds: float = 0.0
    """In steps."""
    rows: int = 0
    tokens: int = 0
    """That the session was fed with: of prompts, generated ones, and drafts."""
    capacity: int = 0
    """How many tokens it could have been fed with in these steps."""
    sampled_rows: int = 0
    generated: int = 0
    drafted: int = 0
    """Tokens that a decoding added to rows, to be tried."""
    accepted: int = 0
    """Generated ones for which no row of their own had to run."""
    started: int = 0
    """Requests whose first tokens have run."""
    queue_seconds: float = 0.0
    """What they had waited by then, all together."""
    ended: Mapping[FinishReason, int] = field(default_factory=dict)
    """Requests by the reason for which they ended."""
    preemptions: int = 0
    """How often a request gave up its blocks to others."""
    cache: CacheCounts = CacheCounts()
    waiting: int = 0
    running: int = 0

    @property
    def fill(self) -> float:
        """How full the batches were."""
        return _ratio(self.tokens, self.capacity)

    @property
    def rows_per_step(self) -> float:
        return _ratio(self.rows, self.steps)

    @property
    def tokens_per_step(self) -> float:
        return _ratio(self.tokens, self.steps)

    @property
    def generated_per_row(self) -> float:
        """More than one where drafts are accepted."""
        return _ratio(self.generated, self.sampled_rows)

    @property
    def generated_per_second(self) -> float:
        return _ratio(self.generated, self.seconds)

    @property
    def mean_queue_seconds(self) -> float:
        return _ratio(self.queue_seconds, self.started)

    @property
    def hit_rate(self) -> float:
        """Which share of the tokens was computed before."""
        return _ratio(self.cache.hit_tokens, self.cache.lookup_tokens)

    @property
    def acceptance(self) -> float:
        """Which share of the drafts was kept."""
        return _ratio(self.accepted, self.drafted)

    def with_step(self, plan: Plan, limits: Limits, kept: Sequence[int], seconds: float) -> Statistics:
        """`kept`: how many new tokens each of the requests got that got some."""
        return replace(
            self,
            steps=self.steps + 1,
            seconds=self.seconds + seconds,
            rows=self.rows + len(plan.steps),
            tokens=self.tokens + sum(len(step.row.tokens) for step in plan.steps),
            capacity=self.capacity + _capacity(plan, limits),
            sampled_rows=self.sampled_rows + sum(step.row.logits > 0 for step in plan.steps),
            generated=self.generated + sum(kept),
            drafted=self.drafted + sum(step.drafts for step in plan.steps),
            accepted=self.accepted + sum(kept) - len(kept),
        )

    def with_start(self, queue_seconds: float) -> Statistics:
        return replace(self, started=self.started + 1, queue_seconds=self.queue_seconds + queue_seconds)

    def with_end(self, reason: FinishReason) -> Statistics:
        return replace(self, ended={**self.ended, reason: self.ended.get(reason, 0) + 1})


def _capacity(plan: Plan, limits: Limits) -> int:
    """Where only rows are counted, a run takes either whole chunks or single tokens."""
    if limits.tokens is not None:
        return limits.tokens
    several = any(len(step.row.tokens) > 1 for step in plan.steps)
    return limits.prefill_rows * limits.chunk if several else limits.decode_rows


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
