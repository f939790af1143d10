"""How long a model takes: arithmetic on constants that were fitted to what others have published of real cards.

docs/plan.md says how far off the results are.
"""

from __future__ import annotations

from math import ceil

from QEfficient.devices.cloud_ai_100.plan.memory import cache_bytes, copied_bytes
from QEfficient.devices.cloud_ai_100.plan.records import FP16, ModelSize, Setup, Workload

STREAMING = 90e9
"""Bytes per second that a SoC really reads, of 137e9 on the data sheet."""
COLLECTIVE = 45e-6
"""Seconds for SoCs to add up their parts of a layer, which happens twice in each."""
PEAK_SHARE_ALONE, PEAK_SHARE_TOGETHER = 0.20, 0.155
"""Of the data sheet's operations per second, as prompts reach them on one SoC and on several."""
HOST = 0.018
"""Seconds that the host takes before the first token."""
FASTEST = 0.007
"""Seconds of the shortest published step."""
TILE = 32
"""A core multiplies by tiles of this width, whatever is in them."""


def peak_share(setup: Setup) -> float:
    return PEAK_SHARE_ALONE if setup.devices == 1 else PEAK_SHARE_TOGETHER


def step_seconds(model: ModelSize, workload: Workload, setup: Setup) -> float:
    """Of one token for every user."""
    if model.state.replays:
        return _run_seconds(model, workload, setup, workload.users * workload.ctx_len)
    cache = cache_bytes(model, workload, setup) + copied_bytes(model, workload, setup)
    read = _read_seconds(model, setup, model.experts_read(workload.users))
    return read + cache / STREAMING


def first_token_seconds(model: ModelSize, workload: Workload, setup: Setup) -> float:
    """Chunks run one after another."""
    tokens = workload.ctx_len if model.state.replays else workload.chunk
    one_by_one = (workload.chunk - 1) * model.weights.scanned * FP16 / setup.devices / STREAMING
    return HOST + workload.chunks * (_run_seconds(model, workload, setup, workload.prompts * tokens) + one_by_one)


def gathering_seconds(model: ModelSize, workload: Workload, setup: Setup) -> float:
    """For reading the experts of each token of a prompt anew, as many tokens as run at once."""
    if not model.expert_count:
        return 0.0
    tokens = workload.prompts * workload.chunk
    share = tokens * model.experts_per_token / model.expert_count
    return share * model.weights.experts * FP16 / setup.devices / STREAMING


def _run_seconds(model: ModelSize, workload: Workload, setup: Setup, tokens: int) -> float:
    """Of many tokens at once: as long as their arithmetic or as reading all weights. Every expert runs on every token:
    which tokens choose it is not known when shapes are."""
    experts = model.weights.experts * _padding(model, setup)
    attention = 4 * workload.ctx_len * model.attention_width * model.layers
    operations = tokens * (2 * (model.weights.dense + model.weights.scanned + experts) + attention)
    arithmetic = operations / (peak_share(setup) * setup.card.peak * setup.devices)
    return max(arithmetic, _read_seconds(model, setup, 1.0))


def _padding(model: ModelSize, setup: Setup) -> float:
    """How much wider experts become where each core's slice of them is filled up to whole tiles."""
    slices = setup.devices * setup.card.cores
    return ceil(model.expert_width / slices / TILE) * TILE * slices / model.expert_width if model.expert_width else 1.0


def _read_seconds(model: ModelSize, setup: Setup, experts: float) -> float:
    """For reading the weights that one call needs, of experts this share, with the layers' collectives."""
    weights = model.weights
    read = (weights.dense + weights.head) * setup.precision.weight + weights.scanned * FP16
    read += weights.experts * experts * FP16
    collectives = 2 * model.layers * COLLECTIVE if setup.devices > 1 else 0.0
    return read / setup.devices / STREAMING + collectives
