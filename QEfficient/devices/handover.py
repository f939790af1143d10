"""Two programs of one model, one for prefill and one for decoding, as one session: a sequence starts in the first and
is handed over to the second when it decodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np

from QEfficient.devices import Batch, Limits, Row, Session, device_class, get_device
from QEfficient.devices.slotted import SlottedSession
from QEfficient.errors import OptionError, SessionLostError
from QEfficient.program import CompiledProgram, ExportedProgram, GraphSpec, StateSpec

ROLE = "lm"
EXPORT_RECORD = "hashed_export_params.json"
"""Lies beside an exported program: what it was named by."""


def with_prefill(decode: Session, compiled: CompiledProgram, prefill: CompiledProgram) -> HandOverSession:
    """The session of a program, and one of another program that does prefill for it."""
    opened = None
    try:
        check_alike(compiled, prefill)
        opened = get_device(prefill.device).load(prefill)
        if not isinstance(decode, SlottedSession) or not isinstance(opened, SlottedSession):
            raise _no_handover(compiled, prefill)
        return HandOverSession(opened, decode)
    except BaseException:
        for session in (opened, decode):
            if session is not None:
                session.close()
        raise


def check_alike(decode: CompiledProgram, prefill: CompiledProgram) -> None:
    """Refuse two programs of which one cannot go on from the other's states, before either is opened."""
    if not all(device_class(program.device).pads_calls for program in (decode, prefill)):
        raise _no_handover(decode, prefill)
    _check_models(decode.program, prefill.program)
    graph, other = (program.program.graphs[ROLE].spec for program in (decode, prefill))
    for name, mine, wanted in (
        ("slots", prefill.spec.slots, decode.spec.slots),
        ("ctx_len", prefill.spec.ctx_len, decode.spec.ctx_len),
        ("guesses", other.guesses, graph.guesses),
    ):
        if mine != wanted:
            raise OptionError(
                f"the program for prefill was compiled for {name} {mine}, that for decoding for {wanted}."
                " Compile both with the same geometry."
            )
    _check_choosing(graph, other)
    _check_states(graph.states, other.states)
    _check_forms(decode, prefill)


def _no_handover(decode: CompiledProgram, prefill: CompiledProgram) -> OptionError:
    return OptionError(
        f"programs for device '{prefill.device}' hand nothing over to '{decode.device}'. Compile both for a device that"
        " takes states from outside, or leave the program for prefill out."
    )


def _check_models(decode: ExportedProgram, prefill: ExportedProgram) -> None:
    """As far as both say whose they are, which those known by their container alone do not."""
    if not decode.fingerprint or not prefill.fingerprint or decode.fingerprint == prefill.fingerprint:
        return
    for name in ("name", "model_type", "vocab_size"):
        mine, wanted = getattr(prefill.model, name), getattr(decode.model, name)
        if mine != wanted:
            raise OptionError(
                f"the program for prefill is of another model than that for decoding: its {name} is {mine}, not"
                f" {wanted}. Compile both from the same model."
            )
    if not _may_be_same(_weights(prefill), _weights(decode)):
        raise OptionError(
            f"the program for prefill in {prefill.folder} has other weights than that for decoding in {decode.folder}."
            " Compile both from the same checkpoint."
        )


def _weights(program: ExportedProgram) -> Mapping[str, Any]:
    """What the export was told apart from others by; nothing where that is not kept."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        found = json.loads((program.folder / EXPORT_RECORD).read_text(encoding="utf-8"))["weights"]
        return found if isinstance(found, dict) else {}
    return {}


def _may_be_same(weights: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether nothing says that they are different ones. A copy of a file has another time, and is the same."""
    if weights.get("kind") != other.get("kind"):
        return True
    files, others = (
        {file["name"]: {**file, "modified": None} for file in each.get("files", ())} for each in (weights, other)
    )
    if weights.get("sha256") != other.get("sha256") or files.keys() != others.keys():
        return False
    return all(
        file[key] == others[name][key] for name, file in files.items() for key in file.keys() & others[name].keys()
    )


def _check_choosing(decode: GraphSpec, prefill: GraphSpec) -> None:
    if decode.chooses_tokens == prefill.chooses_tokens:
        return
    ways = ("ends in logits", "chooses tokens itself")
    raise OptionError(
        f"the program for prefill {ways[prefill.chooses_tokens]}, that for decoding {ways[decode.chooses_tokens]}."
        " Compile both from models loaded with the same qaic_config: with include_sampler, or without."
    )


def _check_states(states: Sequence[StateSpec], other: Sequence[StateSpec]) -> None:
    if states == other:
        return
    advice = "Compile both from the same model, with the same options of export."
    layers, others = (len({state.layer for state in each}) for each in (states, other))
    if layers != others:
        raise OptionError(
            f"the program for prefill keeps the states of {others} layers, that for decoding of {layers}. {advice}"
        )
    for wanted, mine in zip_longest(states, other):
        if wanted != mine:
            raise OptionError(
                f"the program for prefill keeps another state than that for decoding: {_described(mine)}, not"
                f" {_described(wanted)}. {advice}"
            )


def _described(state: StateSpec | None) -> str:
    if state is None:
        return "nothing"
    shape = ", ".join(map(str, state.tensor.shape))
    window = "" if state.window is None else f" that rolls over {state.window} positions"
    return f"{state.tensor.name} ({state.kind}, {state.tensor.dtype} [{shape}]{window})"


def _check_forms(decode: CompiledProgram, prefill: CompiledProgram) -> None:
    """Bytes of a form of the device's own, taken for numbers, would be other numbers."""
    wanted, mine = (device_class(program.device).packed_states(program) for program in (decode, prefill))
    for name in sorted(wanted.keys() | mine.keys()):
        if mine.get(name) != wanted.get(name):
            raise OptionError(
                f"the program for prefill keeps {name} {_form(mine.get(name))}, that for decoding"
                f" {_form(wanted.get(name))}. Compile both with the same options for the cache (mxint8_kv_cache)."
            )


def _form(name: str | None) -> str:
    return "as plain numbers" if name is None else f"in {name}"


class HandOverSession(Session):
    """Rows of prefill and of decoding may come in any order: a slot's state follows its rows."""

    def __init__(self, prefill: SlottedSession, decode: SlottedSession) -> None:
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


def _limits(prefill: Limits, decode: Limits) -> Limits:
    """Short rows are the one program's, all others the other's, whose chunk may be smaller than that of the first."""
    return replace(decode, chunk=max(prefill.chunk, decode.decode_chunk), prefill_rows=prefill.prefill_rows)
