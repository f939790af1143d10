"""Trials of the cache: where caches go wrong, each against what is true for its stage (`truth`).

Every trial opens a session of its own, feeds it through `Batch` and `Row` alone, and compares each logits row that
comes back with the expected one at the same position of the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from QEfficient.devices import Batch, Limits, Row, Session
from QEfficient.devices.slotted import SlottedSession
from QEfficient.errors import QEfficientError
from QEfficient.generation.decoding.selection import why_not_ahead
from QEfficient.verification.comparison import percent
from QEfficient.verification.fixed_blocks import with_fixed_blocks
from QEfficient.verification.forced import feed, rows_of
from QEfficient.verification.report import Check
from QEfficient.verification.truth import Truth

TRIED_SLOTS = 4
"""Most slots that a sequence is tried in."""


@dataclass(frozen=True)
class Bench:
    """A session under trial, and what is expected of it."""

    stage: str
    open: Callable[[bool], Session | None]
    """A fresh session; with True one whose state starts as NaN, or None where that cannot be had."""
    truth: Truth
    limits: Limits
    pool: Sequence[int]
    """Ids to make sequences of."""
    windows: Sequence[int] = ()
    """Sizes of the model's windows and chunks."""

    def tokens(self, length: int, seed: int = 0) -> tuple[int, ...]:
        """A sequence of up to `length` tokens that fits the context."""
        chosen = np.random.default_rng(seed).choice(self.pool, min(length, self.limits.ctx_len))
        return tuple(int(token) for token in chosen)

    def fresh(self) -> Session:
        session = self.open(False)
        assert session is not None
        return with_fixed_blocks(session)


@dataclass
class Findings:
    """What one trial saw."""

    bench: Bench
    error: float | None = None
    problem: str = ""
    skipped: str = ""
    tokens: tuple[int, ...] = ()

    def compare(self, what: str, tokens: Sequence[int], found: dict[int, np.ndarray]) -> None:
        """Hold logits by position against the reference; the first problem is kept."""
        ids, positions = tuple(tokens), sorted(found)
        truth = self.bench.truth
        rows = np.stack([found[position] for position in positions])
        result = truth.compare(truth.logits(ids, positions), rows, is_long=False)
        self.error = max(self.error or 0.0, result.relative_error)
        if not result.passed:
            step = result.first_error if result.first_error is not None else result.first_difference
            assert step is not None
            self.fail(f"{what}: off by {percent(result.relative_error)} from position {positions[step]} on", ids)

    def fail(self, problem: str, tokens: Sequence[int] = ()) -> None:
        if not self.problem:
            self.problem, self.tokens = problem, tuple(tokens)

    def check(self, name: str) -> Check:
        passed = False if self.problem else None if self.skipped else True
        detail, truth = self.problem or self.skipped, self.bench.truth
        return Check(self.bench.stage, name, passed, self.error, detail, self.tokens, truth.name, truth.allowed)


Trial = Callable[[Bench, Findings], None]


def torture(bench: Bench) -> list[Check]:
    """Every trial."""
    return [_tried(bench, name, trial) for name, trial in TRIALS.items()]


def _tried(bench: Bench, name: str, trial: Trial) -> Check:
    findings = Findings(bench)
    try:
        trial(bench, findings)
    except QEfficientError as error:
        findings.fail(str(error))
    return findings.check(name)


def _alone(session: Session, slot: int, tokens: Sequence[int], singly: int = 0) -> dict[int, np.ndarray]:
    """One sequence from position 0 on in one slot."""
    return feed(session, {slot: rows_of(slot, tokens, session.limits.chunk, singly)})[slot]


def chunk_boundaries(bench: Bench, findings: Findings) -> None:
    """Prompts that end just before, on, and just after the edge of a chunk, and two tokens more."""
    chunk = bench.limits.chunk
    with bench.fresh() as session:
        for number, length in enumerate(sorted({max(chunk - 1, 1), chunk, chunk + 1, 2 * chunk})):
            tokens = bench.tokens(length + 2, number)
            found = _alone(session, number % bench.limits.slots, tokens, singly=2)
            findings.compare(f"a prompt of {length}", tokens, found)


def company(bench: Bench, findings: Findings) -> None:
    """The same sequence alone, and in every slot beside others of other lengths."""
    limits = bench.limits
    count = min(limits.slots, limits.decode_rows, TRIED_SLOTS)
    sequences = [bench.tokens(limits.chunk + 4 + 5 * number, number) for number in range(count)]
    with bench.fresh() as session:
        findings.compare("alone", sequences[0], _alone(session, limits.slots - 1, sequences[0], singly=3))
    if count < 2:
        findings.skipped = "there is one slot only"
        return
    with bench.fresh() as session:
        for turn in range(count):
            placed = {(number + turn) % count: tokens for number, tokens in enumerate(sequences)}
            found = feed(session, {slot: rows_of(slot, t, limits.chunk, 3) for slot, t in placed.items()})
            for slot, tokens in placed.items():
                findings.compare(f"slot {slot} beside others", tokens, found[slot])


def slot_reuse(bench: Bench, findings: Findings) -> None:
    """A short sequence in a slot that a longer one left."""
    chunk = bench.limits.chunk
    longer, shorter = bench.tokens(3 * chunk + 1, 1), bench.tokens(chunk + 2, 2)
    with bench.fresh() as session:
        for slot in range(min(bench.limits.slots, 2)):
            findings.compare("the first", longer, _alone(session, slot, longer, singly=2))
            findings.compare(f"after a longer one in slot {slot}", shorter, _alone(session, slot, shorter, singly=2))


def idle_rows(bench: Bench, findings: Findings) -> None:
    """While another slot runs, whole chunks and single tokens, nothing of this one changes."""
    limits = bench.limits
    if limits.slots < 2:
        findings.skipped = "there is one slot only"
        return
    kept, other = bench.tokens(limits.chunk + 4, 1), bench.tokens(2 * limits.chunk + 2, 2)
    first, rest = rows_of(0, kept, limits.chunk, singly=2)[:-2], rows_of(0, kept, limits.chunk, singly=2)[-2:]
    with bench.fresh() as session:
        found = feed(session, {0: first})[0]
        before = _slot_states(session, 0)
        findings.compare("the other slot", other, _alone(session, 1, other, singly=2))
        for name, state in _slot_states(session, 0).items():
            if not np.array_equal(state, before[name], equal_nan=state.dtype.kind == "f"):
                findings.fail(f"{name} of an idle slot changed", kept)
        found |= feed(session, {0: rest})[0]
        findings.compare("after its idle time", kept, found)


def _slot_states(session: Session, slot: int) -> dict[str, np.ndarray]:
    states = session.states() if isinstance(session, SlottedSession) else {}
    return {name: state[slot].copy() for name, state in states.items()}


def window_wrap(bench: Bench, findings: Findings) -> None:
    """A sequence that is longer than a window or an attention chunk, up to twice as long."""
    limits = bench.limits
    fitting = [window for window in sorted(set(bench.windows)) if window + 3 <= limits.ctx_len]
    if not fitting:
        wide = ", ".join(str(window) for window in bench.windows)
        findings.skipped = f"ctx_len {limits.ctx_len} is too short for {wide}" if wide else "the model has no window"
        return
    with bench.fresh() as session:
        for number, window in enumerate(fitting):
            tokens = bench.tokens(2 * window + limits.chunk + 3, number)
            singly = min(limits.chunk + 3, len(tokens) // 2)
            findings.compare(f"window of {window}", tokens, _alone(session, 0, tokens, singly))


def last_position(bench: Bench, findings: Findings) -> None:
    """The context filled to its last slot."""
    tokens = bench.tokens(bench.limits.ctx_len)
    with bench.fresh() as session:
        findings.compare(f"{len(tokens)} tokens", tokens, _alone(session, bench.limits.slots - 1, tokens, singly=2))


def past_the_end(bench: Bench, findings: Findings) -> None:
    """One token too many is refused, with the number that it broke; the sequence can go on as if nothing had been."""
    ctx_len = bench.limits.ctx_len
    tokens = bench.tokens(ctx_len, 3)
    too_far = [Row(0, tokens[:1], ctx_len)] + ([Row(0, tokens[:2], ctx_len - 1)] if bench.limits.chunk > 1 else [])
    *most, last = rows_of(0, tokens, bench.limits.chunk, singly=1)
    with bench.fresh() as session:
        found = feed(session, {0: most})[0]
        for row in too_far:
            try:
                session.run(Batch((row,)))
            except QEfficientError as error:
                if f"{ctx_len:,}" not in str(error):
                    findings.fail(f"the refusal does not name ctx_len {ctx_len}: {error}")
            else:
                findings.fail(f"position {row.start + len(row.tokens) - 1} was accepted with ctx_len {ctx_len}", tokens)
        found |= feed(session, {0: [last]})[0]
        findings.compare("after the refusal", tokens, found)


def unwritten_state(bench: Bench, findings: Findings) -> None:
    """Nothing is read that nobody wrote: a state full of NaN does not show."""
    session = bench.open(True)
    if session is None:
        findings.skipped = "this device does not let its state be spoilt"
        return
    with session:
        for slot in range(min(bench.limits.slots, 2)):
            tokens = bench.tokens(bench.limits.chunk + 3, slot)
            findings.compare(f"slot {slot}, which was NaN", tokens, _alone(session, slot, tokens, singly=2))


def tried_ahead(bench: Bench, findings: Findings) -> None:
    """Several tokens in one run, in every slot, with the logits after each; behind wrong ones the sequence goes on."""
    limits = bench.limits
    if obstacle := why_not_ahead(limits):
        findings.skipped = obstacle
        return
    count, most = min(limits.slots, limits.decode_rows, TRIED_SLOTS), min(limits.logits, limits.chunk)
    sequences = {slot: bench.tokens(limits.chunk + 1 + 3 * most + slot, slot) for slot in range(count)}
    with bench.fresh() as session:
        found = feed(session, {slot: _with_mistakes(slot, tokens, most, limits) for slot, tokens in sequences.items()})
    for slot, tokens in sequences.items():
        findings.compare(f"slot {slot}, up to {most} tokens at once", tokens, found[slot])


def _with_mistakes(slot: int, tokens: Sequence[int], most: int, limits: Limits) -> list[Row]:
    """A prompt, then by turns a row that is wrong but for its first token, and a right one from there on."""
    at, other = max(len(tokens) - 3 * most, 1), tokens[::-1]
    rows = rows_of(slot, tokens[:at], limits.chunk)
    for length in cycle((most, max(most - 1, 1))):
        if at >= len(tokens):
            return rows
        wrong = (tokens[at], *other[at + 1 : at + length])
        right = tokens[at + 1 : at + 1 + length]
        rows.append(Row(slot, wrong, at, len(wrong)))
        rows += [Row(slot, right, at + 1, len(right))] if right else []
        at += 1 + len(right)
    return rows


TRIALS: dict[str, Trial] = {
    "chunk boundaries": chunk_boundaries,
    "alone and among others": company,
    "slot reuse": slot_reuse,
    "idle rows": idle_rows,
    "window wrap": window_wrap,
    "last position": last_position,
    "one past the last": past_the_end,
    "unwritten state": unwritten_state,
    "tokens tried ahead": tried_ahead,
}
