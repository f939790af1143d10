"""Teacher forcing: sessions are fed with the tokens that are expected, and their logits are kept.

Because the tokens that are fed are the expected ones, logits stay comparable after a difference; as long as there is
none, the tokens are those that greedy generation gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from QEfficient.devices import Batch, Row, Session
from QEfficient.generation.engine import Engine
from QEfficient.generation.plan import Plan
from QEfficient.generation.request import Request
from QEfficient.specs import SamplingParams
from QEfficient.verification.eager import Expected


class Recorder:
    """A decoding that keeps all logits and accepts the token that `choose` makes of them.

    `choose` is told the request's number, which of its tokens is due, and the logits."""

    def __init__(self, requests: int, choose: Callable[[int, int, np.ndarray], int]) -> None:
        self._choose = choose
        self.logits: list[list[np.ndarray]] = [[] for _ in range(requests)]

    def propose(self, plan: Plan) -> Plan:
        return plan

    def accept(self, plan: Plan, logits: np.ndarray) -> Sequence[Sequence[int]]:
        tokens = []
        for request, row in zip(plan.sampled, logits, strict=True):
            number = int(request.id)
            self.logits[number].append(row.copy())  # a session may write there again
            tokens.append((self._choose(number, len(request.generated), row),))
        return tokens


def forced_logits(session: Session, given: Sequence[Expected]) -> list[np.ndarray]:
    """Run all of `given` through an engine; logits `[tokens, vocabulary]` of each."""
    return _recorded(session, given, lambda number, step, _: given[number].tokens[step])


def greedy(session: Session, given: Sequence[Expected]) -> list[Expected]:
    """The prompts of `given`, continued as far by the session itself, each by its likeliest tokens."""
    rows = _recorded(session, given, lambda number, step, logits: int(logits.argmax()))
    tokens = [tuple(map(int, logits.argmax(1))) for logits in rows]
    return [Expected(e.prompt, t, logits) for e, t, logits in zip(given, tokens, rows, strict=True)]


def _recorded(
    session: Session, given: Sequence[Expected], choose: Callable[[int, int, np.ndarray], int]
) -> list[np.ndarray]:
    decoding = Recorder(len(given), choose)
    requests = [
        Request(e.prompt, SamplingParams(max_new_tokens=len(e.tokens), ignore_eos=True), id=str(n))
        for n, e in enumerate(given)
    ]
    Engine(session, decoding).generate(requests)
    return [np.stack(rows) for rows in decoding.logits]


def logits_at(session: Session, tokens: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """Logits `[positions, vocabulary]` of one sequence in the first slot, from a session that may give only those of
    a row's last token."""
    rows, start = [], 0
    for position in sorted(positions):
        rows += rows_of(0, tokens[start : position + 1], session.limits.chunk, start=start)
        start = position + 1
    found = feed(session, {0: rows})[0]
    return np.stack([found[position] for position in positions])


def rows_of(slot: int, tokens: Sequence[int], chunk: int, singly: int = 0, start: int = 0) -> list[Row]:
    """The rows of one sequence: as long as they may be, the last `singly` tokens one by one."""
    edge = max(len(tokens) - singly, 0)
    bounds = [(at, min(at + chunk, edge)) for at in range(0, edge, chunk)]
    bounds += [(at, at + 1) for at in range(edge, len(tokens))]
    return [Row(slot, tuple(tokens[a:b]), start + a) for a, b in bounds]


def feed(session: Session, waiting: Mapping[int, Sequence[Row]]) -> dict[int, dict[int, np.ndarray]]:
    """Run the rows of some slots side by side; for each slot, position → logits after it, as many as rows want."""
    queues = {slot: list(rows) for slot, rows in waiting.items()}
    found: dict[int, dict[int, np.ndarray]] = {slot: {} for slot in queues}
    while ready := [rows[0] for rows in queues.values() if rows]:
        several = [row for row in ready if not session.limits.is_short(row)][: session.limits.prefill_rows]
        now = _within(several or ready[: session.limits.decode_rows], session.limits.tokens)
        ends = np.cumsum([row.logits for row in now])
        logits = session.run(Batch(tuple(now)))
        for row, end in zip(now, ends, strict=True):
            behind = row.start + len(row.tokens)
            for back in range(1, row.logits + 1):
                found[row.slot][behind - back] = logits[end - back].copy()
            queues[row.slot].pop(0)
    return found


def _within(rows: Sequence[Row], tokens: int | None) -> Sequence[Row]:
    """The first rows that have no more tokens together than one run takes."""
    if tokens is None:
        return rows
    totals = np.cumsum([len(row.tokens) for row in rows])
    return rows[: int((totals <= tokens).sum())]
