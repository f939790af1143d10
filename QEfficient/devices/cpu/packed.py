"""The session over packed tokens: rows of many sequences side by side, without padding.

Keys and values lie in blocks; what has no packed form has a slot for each sequence and is laid out on a grid.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from QEfficient.devices import Batch, Limits, Paging, Row, Session
from QEfficient.devices.cpu.buffers import StateBuffers
from QEfficient.devices.cpu.opening import ModelFile, infer, thread_count
from QEfficient.devices.cpu.options import CpuOptions, recorded_options
from QEfficient.errors import DeviceError
from QEfficient.program import CompiledProgram
from QEfficient.specs import CompileSpec

BLOCK = 32
"""Tokens of a block: what PagedAttention has on CPUs."""
MANY_SEQUENCES = 32
PADDING = -1
ROUNDED = ((8, 1), (64, 8))
"""Up to how many tokens their number is rounded up to a multiple of what; beyond to one of a block's."""
ALONE = Batch((Row(0, (0,), 0, blocks=(0,)),))
"""One token of one sequence. It has a program of its own, in which OpenVINO need not look at the sizes of everything
before each layer: these take a tenth of such a run."""


class PackedSession(Session):
    """Runs any mix of prompts' chunks and single tokens.

    The logits of a run are valid until the next; whoever gets them may write into them.
    """

    def __init__(self, compiled: CompiledProgram) -> None:
        options, report = recorded_options(compiled.report), compiled.report
        graph = compiled.program.graphs["lm"].spec
        self.limits = packed_limits(compiled.spec, options, graph.context.positions, bool(report["states"]))
        self._threads = thread_count(options)
        self._is_invariant = options.batch_invariant
        self._rounds_up = not options.compresses and not report["states"]
        self._requests: Any = self._open(ModelFile(compiled.folder, options))
        assert self.limits.paging is not None
        self._spare = self.limits.paging.blocks  # behind all the others
        caches = allocate_caches(self._requests[0], self._spare + 1)
        for name, tensor in caches.items():
            self._requests[-1].set_tensor(name, tensor)
        self._caches = [tensor.data for tensor in caches.values()]
        rows = {"batch_size": self.limits.slots, "full_batch_size": self.limits.slots}
        symbols = {**compiled.spec.specializations(graph.windows)[-1].symbols, **rows}
        states = [state for state in graph.states if state.input.name in report["states"]]
        self._buffers: Any = StateBuffers(self._requests[0], states, symbols)

    def _open(self, model: ModelFile) -> list[Any]:
        """The program for any batch, and last the one for a token alone; kernels other than ours may keep a copy of
        the weights for each program, so with them one has to do."""
        self._inputs = set(model.inputs)
        has_both = model.is_native and not self._is_invariant
        variants = [{}, self._sizes_of(ALONE)] if has_both else [{}]
        return [program.create_infer_request() for program in model.compiled_for(variants)]

    def run(self, batch: Batch) -> np.ndarray:
        self.limits.check(batch)
        if self._requests is None:
            raise DeviceError("the session is closed.")
        if self._is_invariant:
            batch = apart(batch, self._threads, self._spare)
        if self._rounds_up:
            batch = rounded_up(batch, self._spare)
        request = self._requests[-1 if _is_alone(batch) else 0]
        self._buffers.bind(request)
        logits = infer(request, self._feeds(batch))
        self._buffers.swap()
        return logits.reshape(-1, logits.shape[-1])

    def _feeds(self, batch: Batch) -> dict[str, np.ndarray]:
        given = feeds(batch)
        if "packed_index" in self._inputs:
            given |= grid_feeds(batch)
        return {name: value for name, value in given.items() if name in self._inputs}

    def _sizes_of(self, batch: Batch) -> dict[str, tuple[int, ...]]:
        """Of the inputs, but for the one that grows with the sequence."""
        return {name: value.shape for name, value in self._feeds(batch).items() if name != "block_indices"}

    def copy_block(self, source: int, target: int) -> None:
        for cache in self._caches:
            cache[target] = cache[source]

    def close(self) -> None:
        self._requests = self._buffers = None
        self._caches = []


def apart(batch: Batch, least: int, spare: int) -> Batch:
    """The same tokens, each as a sequence of its own over the blocks of its row: attention of OpenVINO adds up in
    another order for a chunk than for a token, and for fewer sequences than it has threads. Rows in the block `spare`
    make up for these."""
    rows = []
    for row in batch.rows:
        first = len(row.tokens) - row.logits
        for number, token in enumerate(row.tokens):
            rows.append(Row(row.slot, (token,), row.start + number, int(number >= first), row.blocks))
    return Batch((*rows, *[Row(0, (0,), 0, 0, (spare,))] * (least - len(rows))))


def rounded_up(batch: Batch, spare: int) -> Batch:
    """With some tokens in the block `spare`, for a number of tokens that comes again: OpenVINO makes a program for each
    number that its own linear layers meet, which takes time and is kept."""
    count = sum(len(row.tokens) for row in batch.rows)
    step = next((step for most, step in ROUNDED if count <= most), BLOCK)
    missing = -count % step
    return Batch((*batch.rows, Row(0, (0,) * missing, 0, 0, (spare,)))) if missing else batch


def _is_alone(batch: Batch) -> bool:
    return len(batch.rows) == 1 and len(batch.rows[0].tokens) == 1 and batch.rows[0].logits == 1


def packed_limits(
    spec: CompileSpec, options: CpuOptions, positions: int | None = None, has_states: bool = False
) -> Limits:
    """What a session of this geometry takes. With states in slots, rows of one length run together: the grid that
    these are laid out on would be mostly padding otherwise."""
    ctx_len = min(spec.ctx_len, positions or spec.ctx_len)
    tokens = max(options.kv_cache_tokens or spec.slots * -(-ctx_len // BLOCK) * BLOCK, ctx_len)
    given = spec.full_batch_size or (spec.batch_size if has_states or spec.batch_size > 1 else MANY_SEQUENCES)
    slots = min(options.max_sequences or given, options.max_tokens)
    return Limits(
        slots=slots,
        chunk=options.max_tokens,
        ctx_len=ctx_len,
        decode_rows=slots,
        prefill_rows=1 if has_states else slots,
        tokens=None if has_states else options.max_tokens,
        logits=options.max_tokens,
        paging=Paging(BLOCK, -(-tokens // BLOCK), shareable=not has_states),
        bounded_by_model=positions is not None and positions < spec.ctx_len,
    )


def allocate_caches(request: Any, blocks: int) -> dict[str, Any]:
    """Give the request its caches; their pages become resident as they are written."""
    import openvino

    caches = {}
    for port in request.model_inputs:
        name = port.any_name
        if "_cache." not in name:
            continue
        sizes = [blocks if size.is_dynamic else size.get_length() for size in port.partial_shape]
        tensor = openvino.Tensor(port.element_type, openvino.Shape(sizes))
        request.set_tensor(name, tensor)
        caches[name] = tensor
    return caches


def feeds(batch: Batch) -> dict[str, np.ndarray]:
    """The graph's inputs for a batch, its rows side by side."""
    rows = batch.rows
    counts = np.array([len(row.tokens) for row in rows])
    begins = np.concatenate(([0], np.cumsum(counts)))
    ends = np.array([row.start for row in rows]) + counts
    used = -(-ends // BLOCK)
    wanted = [np.arange(end - row.logits, end) for row, end in zip(rows, begins[1:], strict=True)]
    positions = [np.arange(row.start, end) for row, end in zip(rows, ends, strict=True)]
    blocks = [row.blocks[:count] for row, count in zip(rows, used, strict=True)]
    return {
        "input_ids": np.concatenate([row.tokens for row in rows]).astype(np.int64)[None],
        "position_ids": np.concatenate(positions).astype(np.int64)[None],
        "logits_index": np.concatenate(wanted).astype(np.int64),
        "past_lens": np.array([row.start for row in rows], np.int32),
        "subsequence_begins": begins.astype(np.int32),
        "block_indices": np.concatenate(blocks).astype(np.int32),
        "block_indices_begins": np.concatenate(([0], np.cumsum(used))).astype(np.int32),
        "max_context_len": np.array(ends.max(), np.int32),
    }


def grid_feeds(batch: Batch) -> dict[str, np.ndarray]:
    """Where each token lies on a grid of the rows, for what is not packed."""
    rows = batch.rows
    length = max(len(row.tokens) for row in rows)
    index, positions = np.zeros((len(rows), length), np.int64), np.full((len(rows), length), PADDING, np.int64)
    cells, begin = [], 0
    for line, row in enumerate(rows):
        count = len(row.tokens)
        index[line, :count] = np.arange(begin, begin + count)
        positions[line, :count] = np.arange(row.start, row.start + count)
        cells.append(np.arange(line * length, line * length + count))
        begin += count
    slots = np.array([[row.slot] for row in rows], np.int64)
    return {
        "grid_index": index,
        "grid_positions": positions,
        "grid_slots": slots,
        "packed_index": np.concatenate(cells),
    }
