"""What follows from positions alone, token by token, becomes a table: rotary cosines and sines, scales of long texts.

In float16, which the compiler gives all floats, positions beyond 2,048 run together before anything is computed from
them. The numbers of every position that the context has are computed here, in the precision of the graph, and looked
up by the integer. A tensor gets a table if

1. it is made from `position_ids` and constants (sizes of inputs that all specializations share are such too),
2. by arithmetic with floats: a position itself would be no better in a table,
3. with numbers that a token's own position decides: tried with positions that repeat and come in no order,
4. of which a token has few, however long the context is: no masks, no distances to every key.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from QEfficient.devices.cloud_ai_100.graph.half_range import LARGEST, nodes_of
from QEfficient.devices.cloud_ai_100.graph.positional_part import RESHAPING, PositionalPart, Symbols
from QEfficient.devices.cloud_ai_100.graph.table_lookups import Axes, Table, computed, insert, remove_unused

CONTEXT = "ctx_len"
MOST_NUMBERS = 4096
"""Of one token in one table: heads that are written out; a context is longer."""
TRIALS = (((3, 7), 23), ((2, 5), 24))
"""Rows, tokens of a row, and every other size: what an axis is of shows when all of them change."""
TOLERANCE = 1e-6
"""Of numbers around 1: vectors and single numbers may differ in the last bit. float16 tells apart what is 5e-4 off."""
DATA = "position_tables.data"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Places:
    """Where a graph's external data lie, and where those that are added go."""

    source: Path
    added: Path


def tabulate(model: onnx.ModelProto, places: Places, symbols: Symbols) -> bool:
    """Put tables into the graph, in place; whether there was something to put there. `symbols` are the sizes that all
    specializations share."""
    part = PositionalPart(model, places.source, symbols)
    if part.row_symbols is None or CONTEXT not in symbols or not part.computed:
        return False
    tables = _find_tables(part, symbols[CONTEXT])
    if tables:
        insert(model.graph, tables, symbols[CONTEXT], places.added / DATA)
        remove_unused(model.graph, part.producers.keys() | {computed(name) for name in tables})
    return bool(tables)


def _find_tables(part: PositionalPart, context: int) -> dict[str, Table]:
    """By tensor, the last ones that a table can stand for."""
    axes = _token_axes(part)
    tables: dict[str, Table] = {}
    while waiting := [name for name in _last(part, axes.keys()) if name not in tables]:
        for name, table in _filled(part, {name: axes[name] for name in waiting}, context):
            if table is None:
                del axes[name]  # what it was made from is the last then
            else:
                tables[name] = table
    return tables


def _token_axes(part: PositionalPart) -> dict[str, Axes]:
    """Tensors that have some numbers for each token, however many tokens there are."""
    rows, tokens = part.row_symbols or ("", "")
    shapes = []
    for size, other in TRIALS:
        symbols = {name: other for name in part.symbols if name not in (rows, tokens)}
        positions = np.arange(math.prod(size)).reshape(size)
        shapes.append({n: v.shape for n, v in part.evaluate(part.computed, positions, symbols).items()})
    found = {name: _axes_of(first, shapes[1][name]) for name, first in shapes[0].items()}
    return {name: axes for name, axes in found.items() if axes is not None}


def _axes_of(first: tuple[int, ...], second: tuple[int, ...]) -> Axes | None:
    """The axes that changed as rows and tokens did, if no other did."""
    (size, _), (other, _) = TRIALS
    if len(first) != len(second) or math.prod(first) > MOST_NUMBERS * math.prod(size):
        return None
    changed = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    wanted = list(zip(size, other, strict=True))
    if sorted(changed) != sorted(wanted):
        return None
    places = [list(zip(first, second, strict=True)).index(sizes) for sizes in wanted]
    return Axes(*places)


def _last(part: PositionalPart, names: Set[str]) -> list[str]:
    """Those of the tensors that are still used once they all have their numbers from elsewhere."""
    needed = {value.name for value in part.graph.output}
    for node in reversed(part.graph.node):
        if needed.difference(names).intersection(node.output):
            needed |= used_by(node)
    found: dict[str, None] = {}
    for name in part.computed:
        if name in needed & names:
            while part.producers[name].op_type in RESHAPING and part.producers[name].input[0] in names:
                name = part.producers[name].input[0]
            found[name] = None
    return list(found)


def used_by(node: onnx.NodeProto) -> set[str]:
    """What it reads, in its bodies too."""
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return set(node.input).union(*(inner.input for inner in nodes_of(*bodies)))


def _filled(part: PositionalPart, axes: Mapping[str, Axes], context: int) -> Iterator[tuple[str, Table | None]]:
    """Tables; None where what they give would not be what the graph computes, or not within float16."""
    trial = np.random.default_rng(0).integers(0, context, TRIALS[0][0])
    trial[0, :3], trial[1, 0] = (context - 1, 0, context - 1), trial[2, 1]
    for name, own in axes.items():  # one after the other: a table may be large
        try:
            wanted = own.leading(part.evaluate([name], trial, part.symbols)[name])
            every = own.leading(part.evaluate([name], np.arange(context)[None], part.symbols)[name])
        except Exception as error:  # ONNX Runtime's exceptions have no common class below this one
            logger.info("%s stays computed: not every position below %s can be: %s", name, f"{context:,}", error)
            yield name, None
            continue
        table = np.ascontiguousarray(every[0])
        is_right = np.allclose(table[trial], wanted, TOLERANCE, TOLERANCE) and (np.abs(table) <= LARGEST).all()
        yield name, Table(table, own) if is_right else None
