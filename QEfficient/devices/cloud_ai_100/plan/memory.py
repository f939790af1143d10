"""What a model takes of a SoC's memory, by the same arithmetic that decides whether the stand-in compiler refuses it.

Tensors are cut into equal slices. Where the compiler's own way is not known, the larger figure is taken.
"""

from __future__ import annotations

from collections.abc import Iterator

from QEfficient.devices.cloud_ai_100.plan.records import (
    BLOCK,
    FP16,
    GIB,
    Buffers,
    ModelSize,
    OperatorReads,
    Precision,
    Setup,
    Workload,
)

WINDOW = int(3.9 * GIB)
"""Bytes that a core can map for one operator."""
INDEX, PLACE = 3 * 8, 8
"""Bytes of one index into a buffer: of row, head and position; or of the position alone, as is read without slots."""
MASK = 1
"""Bytes of one truth value."""
SMALLER = 1.05
"""What an operator reads beside its large operands."""


def table_bytes(model: ModelSize, workload: Workload, setup: Setup) -> float:
    """Of the tables that are put in place of rotary angles, on one SoC: in float16, whatever weights are in."""
    return model.table_numbers(workload.ctx_len) * FP16 / setup.devices


def cache_bytes(model: ModelSize, workload: Workload, setup: Setup) -> float:
    """Of all users, on one SoC."""
    return workload.users * model.state.size(workload.ctx_len, setup.precision) / setup.devices


def copied_bytes(model: ModelSize, workload: Workload, setup: Setup) -> float:
    """More of it, if SoCs keep copies of what has fewer heads than there are SoCs."""
    return sum(
        workload.users * buffers.size(workload.ctx_len, setup.precision) * (1 / shares - 1 / setup.devices)
        for buffers in model.state.buffers
        if (shares := min(setup.devices, buffers.heads)) < setup.devices
    )


def io_bytes(model: ModelSize, workload: Workload, setup: Setup) -> float:
    """Logits in float32; token ids, positions and places in the cache. Prompts and decoding use the same memory."""
    calls = ((workload.prompts, workload.chunk), (workload.users, 1))
    largest = max(rows * (model.vocab_size * 4 + tokens * 16 + 8) for rows, tokens in calls)
    tokens = workload.users * workload.ctx_len * 8 if model.state.replays else 0
    return (largest + tokens) / setup.devices


def operand_bytes(model: ModelSize, workload: Workload, setup: Setup) -> float:
    """What the largest operator reads, on one SoC."""
    weights = model.weights
    largest = [weights.largest_matrix * setup.precision.weight, weights.largest_other * FP16]
    largest.append(max(model.angles, default=0) * workload.ctx_len * FP16)
    for rows, tokens in ((workload.prompts, workload.chunk), (workload.users, 1)):
        run = rows * (workload.ctx_len if model.state.replays else tokens)
        largest.append(run * model.experts_per_token * weights.expert_matrix * FP16)
        largest += _attention(model, workload, rows, tokens)
        largest += (_read(reads, (rows, tokens, workload.ctx_len), setup.precision) for reads in model.reads or ())
    return SMALLER * max(largest) / setup.devices


def _attention(model: ModelSize, workload: Workload, rows: int, tokens: int) -> Iterator[float]:
    """Reading all of a buffer, of all users' that are in it, and writing into it; then what is computed with it."""
    context, heads = workload.ctx_len, model.attention_heads
    if model.state.replays:
        yield 2 * rows * heads * context * context * FP16
    for buffers in model.state.buffers:
        kept = buffers.kept(context)
        row, index = buffers.width * FP16, INDEX if workload.full_batch_size else PLACE
        if not buffers.packs and buffers.slots == 1 and model.reads is not None:
            # A node of its own moves it, and is among what was seen; with slots it takes rows out and puts them back
            put = rows if workload.full_batch_size else 0
            yield (workload.users + put) * buffers.heads * row + put * PLACE
            continue
        yield buffers.heads * kept * (workload.users * row + rows * index)
        yield buffers.heads * (workload.users * (kept + 1) * row + rows * tokens * (row + INDEX))
        if buffers.packs and (buffers.direct or model.reads is None):
            seen = kept if buffers.slots is None else kept + tokens
            yield from _products(model, buffers, rows, tokens, seen)


def _read(reads: OperatorReads, sizes: tuple[int, int, int], precision: Precision) -> float:
    """Bytes, for so many rows, tokens and positions. What is there once beside no context is a matrix of weights."""
    multiplied = not any((*vars(reads.floats).values(), *vars(reads.integers).values(), *vars(reads.truths).values()))
    return reads.size(*sizes) - multiplied * reads.beside.fixed * (FP16 - precision.weight)


def _products(model: ModelSize, buffers: Buffers, rows: int, tokens: int, seen: int) -> Iterator[float]:
    """The scores and what hides some of them; their product with the values."""
    heads, row = model.attention_heads, buffers.width * FP16
    scores = rows * heads * tokens * seen * FP16
    if buffers.direct:
        yield scores + rows * tokens * seen * MASK
        yield scores + rows * buffers.heads * seen * row
        return
    yield 2 * scores + rows * tokens * seen * MASK
    yield scores + rows * heads * seen * row
    if buffers.heads == 1 and heads * buffers.width != model.attention_width:
        # No keys or values of one head for all: those of each head are put together from what all heads share.
        yield 2 * rows * model.attention_width * seen * FP16


def refusals(model: ModelSize, workload: Workload, setup: Setup) -> Iterator[str]:
    """Why a model cannot be compiled so, however much memory there is."""
    if model.objection:
        yield f"with a ctx_len of {workload.ctx_len:,} the model does not run: {model.objection}"
    read = operand_bytes(model, workload, setup)
    if read > WINDOW:
        yield f"one operator would read {read / GIB:,.1f} GiB of a SoC, and a core maps {WINDOW / GIB:.1f} GiB"
    if setup.precision.mxint8:
        yield from (_uneven(width) for width in _uneven_widths(model.state.buffers))


def _uneven_widths(buffers: tuple[Buffers, ...]) -> list[int]:
    return sorted({each.width for each in buffers if each.packs and each.width % BLOCK})


def _uneven(width: int) -> str:
    return f"MXINT8 keeps whole blocks of {BLOCK} numbers, and a head of the keys or values has {width}"
