"""What devices with static shapes share: rows of a batch become padded calls of exactly the compiled shapes.

A call is `[rows, length]`; a padded token has position -1 and changes nothing. With continuous batching a line of a
call names its slot in `batch_index`; without it line i is slot i. Of the compiled shapes a call has the smallest that
holds its rows, gives the logits that are wanted and reads as far as they look back. Programs that choose tokens decode
in no call that is as long as a prompt's, where they have another.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from QEfficient.devices import Batch, Limits, Row, Session, choosing
from QEfficient.errors import DeviceError, OptionError
from QEfficient.program import COMPUTE_CONTEXT, KEPT_LOGITS, GraphSpec, StateSpec
from QEfficient.specs import CompileSpec, Specialization

FED = ("input_ids", "position_ids", "batch_index", KEPT_LOGITS, COMPUTE_CONTEXT, *choosing.FED)
PADDING = -1


def slotted_limits(spec: CompileSpec, positions: int | None = None) -> Limits:
    """What the static shapes of `spec` can take, as far as the model has positions (`positions`)."""
    own = positions is not None and positions < spec.ctx_len
    ctx_len = min(spec.ctx_len, positions or spec.ctx_len)
    chunk, decode_chunk = spec.prefill_seq_len, max(spec.decode_lengths)
    decode_rows, prefill_rows = spec.decode_rows, spec.prefill_rows
    if spec.prefill_only is True:
        decode_rows, decode_chunk = prefill_rows, 1
    elif spec.prefill_only is False:
        chunk, prefill_rows = decode_chunk, decode_rows
    return Limits(
        spec.slots,
        chunk,
        ctx_len,
        decode_rows,
        prefill_rows,
        logits=decode_chunk,
        decode_chunk=decode_chunk,
        bounded_by_model=own,
    )


def check_slots(graph: GraphSpec, spec: CompileSpec) -> None:
    """Refuse a geometry for continuous batching on a graph without it, and the reverse."""
    if graph.continuous_batching and not spec.continuous_batching:
        raise OptionError("the program was exported for continuous batching: compile it with full_batch_size.")
    if spec.continuous_batching and not graph.continuous_batching:
        raise OptionError(
            f"{spec.batching_asked} was asked for, but the program was exported without continuous batching. Export it"
            " again with continuous_batching=True."
        )


def check_batching(graph: GraphSpec, spec: CompileSpec) -> None:
    """As `check_slots`; so with what steers a call."""
    check_slots(graph, spec)
    _check_control(graph, KEPT_LOGITS, "num_speculative_tokens", bool(spec.num_speculative_tokens))
    lengths = spec.comp_ctx_lengths_prefill, spec.comp_ctx_lengths_decode
    needed = [spec.prefill_only is not False, spec.prefill_only is not True]
    _check_control(graph, COMPUTE_CONTEXT, "comp_ctx_lengths_prefill and …_decode", any(lengths))
    if any(lengths) and any(need and not given for need, given in zip(needed, lengths, strict=True)):
        raise OptionError("comp_ctx_lengths_prefill and comp_ctx_lengths_decode go together: give both.")


def _check_control(graph: GraphSpec, name: str, option: str, asked: bool) -> None:
    there = any(tensor.name == name for tensor in graph.inputs)
    if there and not asked:
        raise OptionError(f"the program was exported with the input {name}: compile it with {option}.")
    if asked and not there:
        raise OptionError(f"{option} was asked for, but the program was exported without the input {name}.")


def _is_addressed(state: StateSpec) -> bool:
    """Whether every position has a place of its own."""
    return state.window is None and state.kind not in ("conv", "recurrent", "marks")


def write_specializations(path: Path, specializations: Iterable[Specialization]) -> None:
    """Write them as the Cloud AI compiler reads them: every number a string."""
    entries = [{"name": s.name, "symbols": {k: str(v) for k, v in s.symbols.items()}} for s in specializations]
    path.write_text(json.dumps({"specializations": entries}, indent=4), encoding="utf-8")


@dataclass(frozen=True)
class _Shape:
    """One kind of call that the program was compiled for."""

    rows: int
    length: int
    kept: int
    """Of how many last tokens of a row there are logits."""
    reads: int
    """How many slots attention sees."""

    @classmethod
    def of(cls, symbols: Mapping[str, int]) -> _Shape:
        reads = symbols.get(COMPUTE_CONTEXT, symbols["ctx_len"])
        return cls(symbols["batch_size"], symbols["seq_len"], symbols.get(KEPT_LOGITS, 1), reads)

    @property
    def cost(self) -> tuple[int, int]:
        return self.rows * self.length, self.reads

    def holds(self, rows: Sequence[Row], lines: Sequence[int]) -> bool:
        return max(lines) < self.rows and all(
            len(row.tokens) <= self.length and row.logits <= self.kept and row.start + len(row.tokens) <= self.reads
            for row in rows
        )

    def lines_of(self, row: Row) -> slice:
        """Where its wanted logits stand among those that the call gives of its line."""
        end = min(len(row.tokens), self.kept)
        return slice(end - row.logits, end)


class SlottedSession(Session):
    """A session whose device knows the calls of some shapes only."""

    def __init__(self, spec: CompileSpec, graph: GraphSpec) -> None:
        check_batching(graph, spec)
        unfed = [tensor.name for tensor in graph.inputs if tensor.name not in FED]
        if unfed:
            raise DeviceError(f"the graph needs the input '{unfed[0]}', which a session for text does not feed.")
        limits = slotted_limits(spec, graph.context.positions)
        keeps = all(_is_addressed(state) for state in graph.states)
        choice = choosing.choice_limits(graph)
        self.limits = replace(limits, keeps_slots=keeps, guesses=graph.guesses, choice=choice)
        self._graph = graph
        self._continuous_batching = graph.continuous_batching
        self._controls = {tensor.name for tensor in graph.controls}
        entries = spec.specializations(graph.windows)
        self._shapes = sorted((_Shape.of(entry.symbols) for entry in entries), key=lambda shape: shape.cost)

    @abstractmethod
    def _execute(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """Run one call, keep the state; return logits `[rows, kept, vocabulary]` of any float type; `[rows, kept, 1 +
        guesses, vocabulary]` of a graph that guesses; of one that chooses tokens these, `[rows, kept, 1]`."""

    def states(self) -> dict[str, np.ndarray]:
        """A copy of every state tensor, by input name."""
        raise DeviceError("this device does not give its state away.")

    def restore(self, states: Mapping[str, np.ndarray]) -> None:
        """Put every state tensor in place of what the session has: what `states` of another session gave."""
        raise DeviceError("this device takes no state from outside.")

    def run(self, batch: Batch) -> np.ndarray:
        self.limits.check(batch)
        short = [row for row in batch.rows if self.limits.is_short(row)]
        long = [row for row in batch.rows if not self.limits.is_short(row)]
        by_slot: dict[int, np.ndarray] = {}
        for rows in (long, short):
            by_slot |= self._run(rows) if rows else {}
        logits = np.concatenate([by_slot[row.slot] for row in batch.rows])
        if logits.ndim == 2:
            return logits
        self.guesses = logits[:, 1:].argmax(axis=-1)
        return np.ascontiguousarray(logits[:, 0])

    def _run(self, rows: Sequence[Row]) -> dict[int, np.ndarray]:
        lines = range(len(rows)) if self._continuous_batching else [row.slot for row in rows]
        shape = self._shape_for(rows, lines)
        if shape is not None:
            return self._call(rows, lines, shape)
        if all(len(row.tokens) == 1 for row in rows):
            listed = [(row.start, row.logits) for row in rows]
            raise DeviceError(f"the program was compiled for no call with these rows (position, logits): {listed}.")
        return self._run_singly(rows)

    def _shape_for(self, rows: Sequence[Row], lines: Sequence[int]) -> _Shape | None:
        """The smallest; of a program that chooses tokens, one that is no prompt's where a row decodes, if there is one:
        some programs tell a prompt by the length of the call alone."""
        answers = self._graph.chooses_tokens and any(choosing.decodes(row) for row in rows)
        held = [shape for shape in self._shapes if shape.holds(rows, lines)]
        return min(held, key=lambda shape: answers and shape.length > shape.kept, default=None)

    def _run_singly(self, rows: Sequence[Row]) -> dict[int, np.ndarray]:
        """Where prefill does not read far enough, or gives too few logits, tokens run one after the other."""
        found: dict[int, list[np.ndarray]] = {row.slot: [] for row in rows}
        for row in rows:
            for place, token in enumerate(row.tokens):
                wanted = int(place >= len(row.tokens) - row.logits)
                single = replace(row, tokens=(token,), start=row.start + place, logits=wanted)
                found[row.slot].append(self._run([single])[row.slot])
        return {slot: np.concatenate(parts) for slot, parts in found.items()}

    def _call(self, rows: Sequence[Row], lines: Iterable[int], shape: _Shape) -> dict[int, np.ndarray]:
        logits = self._execute(self._feeds(rows, lines, shape))
        if self._graph.chooses_tokens:
            logits = choosing.as_logits(logits, self._graph)
        return {
            row.slot: logits[line, shape.lines_of(row)].astype(np.float32)
            for row, line in zip(rows, lines, strict=True)
        }

    def _idle_feeds(self) -> dict[str, np.ndarray]:
        """A call without a token, which leaves every state as it is."""
        return self._feeds([], [], self._shapes[0])

    def _feeds(self, rows: Sequence[Row], lines: Iterable[int], shape: _Shape) -> dict[str, np.ndarray]:
        feeds = _padded(rows, lines, (shape.rows, shape.length))
        if self._continuous_batching:
            feeds["batch_index"] = self._batch_index(rows, shape.rows)
        if KEPT_LOGITS in self._controls:
            feeds[KEPT_LOGITS] = np.zeros((shape.kept, 1), np.int64)
        if COMPUTE_CONTEXT in self._controls:
            feeds[COMPUTE_CONTEXT] = np.zeros(shape.reads, np.int64)
        if self._graph.chooses_tokens:
            feeds |= choosing.choice_feeds(rows, lines, feeds["input_ids"], self._graph, shape.kept)
        return feeds

    def _batch_index(self, rows: Sequence[Row], height: int) -> np.ndarray:
        """Slots of the rows, then other slots for idle lines: two lines that write one slot would race."""
        taken = [row.slot for row in rows]
        idle = [slot for slot in range(self.limits.slots) if slot not in set(taken)]
        return np.array((taken + idle)[:height], np.int64)[:, None]


def _padded(rows: Sequence[Row], lines: Iterable[int], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    input_ids, position_ids = np.zeros(shape, np.int64), np.full(shape, PADDING, np.int64)
    for row, line in zip(rows, lines, strict=True):
        count = len(row.tokens)
        input_ids[line, :count] = row.tokens
        position_ids[line, :count] = np.arange(row.start, row.start + count)
    return {"input_ids": input_ids, "position_ids": position_ids}
