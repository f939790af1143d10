"""Attention in blocks, as `qaic_config` asks for it; and the sizes of blocks where it leaves them open."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from QEfficient.errors import OptionError
from QEfficient.specs import BlockingSpec, CompileSpec
from QEfficient.transformers.config_sizes import layer_numbers

ENABLE = "enable_blocking"
COUNTS = ("num_kv_blocks", "num_q_blocks", "head_block_size", "num_batch_blocks")
KEYS = ("blocking_mode", *COUNTS, "skip_kv")
"""Beside `enable_blocking`, without which they have no effect. Nor has `skip_kv`: which blocks are seen by nobody is
known while a program runs, and what it computes was laid down before."""
BYTES = 2
"""Of a number: the card computes in float16."""
BUDGET = 0.75 * 8 * 2**20
"""Bytes of a block: a part of the memory of one core."""
MOST_BLOCKS = 256
"""Of queries and of keys, one with each of the other: all are written out in the graph."""

Pair = tuple[int, int]
"""How many blocks of queries and of keys."""


def read_blocking(given: Mapping[str, Any]) -> BlockingSpec | None:
    """What the keys of `qaic_config` ask for."""
    if not given.get(ENABLE):
        return None
    mode = given.get("blocking_mode")
    if mode == "":
        raise OptionError("qaic_config['blocking_mode'] is empty: leave enable_blocking out.")
    return BlockingSpec(BlockingSpec.mode if mode is None else mode, **{name: given.get(name) for name in COUNTS})


@dataclass(frozen=True)
class AttentionSizes:
    """What one device computes in one layer, for one sequence."""

    heads: int
    kv_heads: int
    head_size: int
    queries: int
    """Tokens of the longest run."""
    keys: int
    devices: int = 1

    @classmethod
    def of(cls, config: Any, spec: CompileSpec, devices: int) -> AttentionSizes:
        """Those of a model's config and a geometry; the largest where layers differ."""
        queries = layer_numbers(config, "num_attention_heads")
        if not queries:
            raise OptionError("the model's config tells of no heads of attention: leave enable_blocking out.")
        heads = max(queries)
        kv_heads = max(layer_numbers(config, "num_key_value_heads") or queries)
        size = max(layer_numbers(config, "head_dim"), default=0) or max(layer_numbers(config, "hidden_size")) // heads
        tokens = max(spec.decode_lengths) if spec.prefill_only is False else spec.prefill_seq_len
        return cls(heads, kv_heads, size, tokens, spec.ctx_len, devices)

    def footprint(self, blocks: Pair, heads: int) -> int:
        """Bytes of the largest block: queries, keys and values, and every query with every key, of so many heads."""
        queries, keys = -(-self.queries // blocks[0]), -(-self.keys // blocks[1])
        numbers = queries * self.head_size + 2 * keys * self.head_size + queries * keys
        return numbers * -(-heads // self.devices) * BYTES


def with_sizes(asked: BlockingSpec, config: Any, spec: CompileSpec, devices: int) -> BlockingSpec:
    """What was asked for; with sizes for a model of that config and a geometry if it has none."""
    return chosen(asked, AttentionSizes.of(config, spec, devices)) if asked.is_automatic else asked


def chosen(asked: BlockingSpec, sizes: AttentionSizes) -> BlockingSpec:
    """The fewest blocks of which each fits. Where all of attention fits the mode is empty."""
    if sizes.footprint((1, 1), sizes.heads) <= BUDGET:
        return BlockingSpec("")
    together = min(sizes.devices, sizes.heads) if "h" in asked.axes else sizes.heads
    computed = max(together, sizes.heads // sizes.kv_heads)  # those of one head of keys are never parted
    pairs = list(_pairs(asked, sizes))
    fitting = [pair for pair in pairs if sizes.footprint(pair, computed) <= BUDGET]
    if not fitting:
        raise OptionError(
            f"blocking_mode '{asked.mode}': with at most {MOST_BLOCKS} blocks of {sizes.queries:,} queries and"
            f" {sizes.keys:,} keys none fits into {BUDGET:,.0f} bytes. Cut along more axes, lower ctx_len or"
            f" prefill_seq_len, or give sizes of your own ({', '.join(COUNTS)})."
        )
    best = min(fitting, key=lambda pair: (math.prod(pair), _unevenness(sizes, pair)))
    return _spec(best, together if together < sizes.heads else None)


def _unevenness(sizes: AttentionSizes, pair: Pair) -> float:
    """How far a block's numbers of queries and of keys are from one another."""
    return abs(math.log((sizes.queries / pair[0]) / (sizes.keys / pair[1])))


def _spec(pair: Pair, heads: int | None) -> BlockingSpec:
    """With the axes only that are cut."""
    q_blocks, kv_blocks = pair
    counts = {
        "head_block_size": ("h", heads),
        "num_q_blocks": ("q", q_blocks if q_blocks > 1 else None),
        "num_kv_blocks": ("kv", kv_blocks if kv_blocks > 1 else None),
    }
    cut = {name: (axis, count) for name, (axis, count) in counts.items() if count is not None}
    return BlockingSpec("".join(axis for axis, _ in cut.values()), **{name: count for name, (_, count) in cut.items()})


def _pairs(asked: BlockingSpec, sizes: AttentionSizes) -> Iterator[Pair]:
    """Numbers of blocks of queries and of keys that may be tried."""
    of_queries = list(_candidates(sizes.queries)) if "q" in asked.axes else [1]
    of_keys = list(_candidates(sizes.keys)) if "kv" in asked.axes else [1]
    yield from (pair for pair in itertools.product(of_queries, of_keys) if math.prod(pair) <= MOST_BLOCKS)


def _candidates(most: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, …"""
    count, step = 1, 1
    while count <= most:
        yield count
        if count >= 4 and count & (count - 1) == 0:
            step = count // 2
        count += step
