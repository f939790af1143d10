"""Two programs of one model, one for prefill and one for decoding, as one session: a sequence starts in the first and
is handed over to the second when it decodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from QEfficient.devices import Batch, Limits, Row, Session, get_device
from QEfficient.devices.slotted import SlottedSession
from QEfficient.errors import OptionError, SessionLostError
from QEfficient.program import CompiledProgram


def with_prefill(decode: Session, compiled: CompiledProgram, prefill: CompiledProgram) -> HandOverSession:
    """The session of a program, and one of another program that does prefill for it."""
    opened = None
    try:
        states, other = (program.program.graphs["lm"].spec.states for program in (compiled, prefill))
        if states != other:
            raise OptionError(
                "the program for prefill keeps another state than that for decoding: compile both from the same model,"
                " with the same options of export."
            )
        opened = get_device(prefill.device).load(prefill)
        if not isinstance(decode, SlottedSession) or not isinstance(opened, SlottedSession):
            raise OptionError(f"programs for device '{prefill.device}' hand nothing over to '{compiled.device}'.")
        return HandOverSession(opened, decode)
    except BaseException:
        for session in (opened, decode):
            if session is not None:
                session.close()
        raise


class HandOverSession(Session):
    """Rows of prefill and of decoding may come in any order: a slot's state follows its rows."""

    def __init__(self, prefill: SlottedSession, decode: SlottedSession) -> None:
        _check_alike(prefill.limits, decode.limits)
        self.limits = _limits(prefill.limits, decode.limits)
        self._prefill, self._decode = prefill, decode
        self._owners: dict[int, SlottedSession] = {}
        """Which session has the state of a slot."""

    def run(self, batch: Batch) -> np.ndarray:
        self.limits.check(batch)
        short = [row for row in batch.rows if self.limits.is_short(row)]
        long = [row for row in batch.rows if not self.limits.is_short(row)]
        by_slot: dict[int, np.ndarray] = {}
        guessed: dict[int, np.ndarray] = {}
        for session, rows in ((self._prefill, long), (self._decode, short)):
            if not rows:
                continue
            by_slot |= _by_slot(rows, self._run(session, rows))
            if session.guesses is not None:
                guessed |= _by_slot(rows, session.guesses)
        if self.limits.guesses:
            self.guesses = np.concatenate([guessed[row.slot] for row in batch.rows])
        return np.concatenate([by_slot[row.slot] for row in batch.rows])

    def _run(self, session: SlottedSession, rows: Sequence[Row]) -> np.ndarray:
        self._bring(session, [row.slot for row in rows if row.start])
        self._owners |= {row.slot: session for row in rows}
        return session.run(Batch(tuple(rows)))

    def _bring(self, session: SlottedSession, slots: Iterable[int]) -> None:
        """Copy the states of these slots from the session that has them."""
        moved = [slot for slot in slots if self._owners.get(slot, session) is not session]
        if not moved:
            return
        source = (self._decode if session is self._prefill else self._prefill).states()
        target = session.states()
        for name, state in target.items():
            state[moved] = source[name][moved]
        session.restore(target)

    @property
    def lost(self) -> SessionLostError | None:
        return self._prefill.lost or self._decode.lost

    def offer(self, owner: Callable[[], bool]) -> None:
        for session in (self._prefill, self._decode):
            session.offer(owner)

    def rest(self) -> bool:
        self._owners.clear()
        rested = [session.rest() for session in (self._prefill, self._decode)]
        return any(rested)

    def close(self) -> None:
        try:
            self._prefill.close()
        finally:
            self._decode.close()


def _by_slot(rows: Sequence[Row], values: np.ndarray) -> dict[int, np.ndarray]:
    """What belongs to each row of a run, of values for every token whose logits were wanted."""
    ends = np.cumsum([row.logits for row in rows])
    return {row.slot: values[end - row.logits : end] for row, end in zip(rows, ends, strict=True)}


def _check_alike(prefill: Limits, decode: Limits) -> None:
    for name in ("slots", "ctx_len", "guesses"):
        mine, other = getattr(prefill, name), getattr(decode, name)
        if mine != other:
            raise OptionError(
                f"the program for prefill was compiled for {name} {mine}, that for decoding for {other}."
                " Compile both with the same geometry."
            )


def _limits(prefill: Limits, decode: Limits) -> Limits:
    return replace(decode, chunk=max(prefill.chunk, decode.chunk), prefill_rows=prefill.prefill_rows)
