"""What devices with static shapes share: rows of a batch become padded calls of exactly the compiled shapes.

A call is `[rows, length]`; a padded token has position -1 and changes nothing. With continuous batching a line of a
call names its slot in `batch_index`; without it line i is slot i.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from QEfficient.devices import Batch, Limits, Row, Session
from QEfficient.errors import DeviceError, OptionError
from QEfficient.program import GraphSpec
from QEfficient.specs import CompileSpec, Specialization

FED = ("input_ids", "position_ids", "batch_index")
PADDING = -1


def slotted_limits(spec: CompileSpec, positions: int | None = None) -> Limits:
    """What the static shapes of `spec` can take, as far as the model has positions (`positions`)."""
    own = positions is not None and positions < spec.ctx_len
    ctx_len = min(spec.ctx_len, positions or spec.ctx_len)
    return Limits(spec.slots, spec.prefill_seq_len, ctx_len, spec.decode_rows, spec.prefill_rows, bounded_by_model=own)


def check_batching(graph: GraphSpec, spec: CompileSpec) -> None:
    """Refuse a geometry for continuous batching on a graph without it, and the reverse."""
    if graph.continuous_batching and not spec.continuous_batching:
        raise OptionError("the program was exported for continuous batching: compile it with full_batch_size.")
    if spec.continuous_batching and not graph.continuous_batching:
        raise OptionError(
            f"full_batch_size {spec.full_batch_size} was asked for, but the program was exported without continuous"
            " batching. Export it again with continuous_batching=True."
        )


def write_specializations(path: Path, specializations: Iterable[Specialization]) -> None:
    """Write them as the Cloud AI compiler reads them: every number a string."""
    entries = [{"name": s.name, "symbols": {k: str(v) for k, v in s.symbols.items()}} for s in specializations]
    path.write_text(json.dumps({"specializations": entries}, indent=4), encoding="utf-8")


class SlottedSession(Session):
    """A session whose device knows the calls `[prefill_rows, prefill_seq_len]` and `[decode_rows, 1]` only."""

    def __init__(self, spec: CompileSpec, graph: GraphSpec) -> None:
        check_batching(graph, spec)
        unfed = [tensor.name for tensor in graph.inputs if tensor.name not in FED]
        if unfed:
            raise DeviceError(f"the graph needs the input '{unfed[0]}', which a session for text does not feed.")
        self.limits = slotted_limits(spec, graph.context.positions)
        self._continuous_batching = graph.continuous_batching

    @abstractmethod
    def _execute(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """Run one call, keep the state; return logits `[rows, 1, vocabulary]` of any float type."""

    def states(self) -> dict[str, np.ndarray]:
        """A copy of every state tensor, by input name: for checks. Empty where the device keeps them to itself."""
        return {}

    def run(self, batch: Batch) -> np.ndarray:
        self.limits.check(batch)
        several = [row for row in batch.rows if len(row.tokens) > 1]
        single = [row for row in batch.rows if len(row.tokens) == 1]
        by_slot: dict[int, np.ndarray] = {}
        if several:
            by_slot |= self._call(several, (self.limits.prefill_rows, self.limits.chunk))
        if single:
            by_slot |= self._call(single, (self.limits.decode_rows, 1))
        wanted = [by_slot[row.slot] for row in batch.rows if row.logits]
        vocabulary = len(next(iter(by_slot.values())))
        return np.stack(wanted) if wanted else np.empty((0, vocabulary), np.float32)

    def _call(self, rows: Sequence[Row], shape: tuple[int, int]) -> dict[int, np.ndarray]:
        lines = range(len(rows)) if self._continuous_batching else [row.slot for row in rows]
        feeds = _padded(rows, lines, shape)
        if self._continuous_batching:
            feeds["batch_index"] = self._batch_index(rows, shape[0])
        logits = self._execute(feeds)
        return {row.slot: logits[line, -1].astype(np.float32) for row, line in zip(rows, lines, strict=True)}

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
