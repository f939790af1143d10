"""Does a model fit on these cards, and how fast will it be: arithmetic on published figures, no measurement.

Every constant is fitted to what others have published of real cards; docs/plan.md says how far off the results are.
What is said to fit is what the stand-in compiler takes, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil

from QEfficient.devices.cloud_ai_100.options import CORES, DEVICES
from QEfficient.devices.cloud_ai_100.plan.memory import (
    cache_bytes,
    copied_bytes,
    io_bytes,
    refusals,
    table_bytes,
)
from QEfficient.devices.cloud_ai_100.plan.records import (
    CARDS,
    FP16,
    GIB,
    SYSTEM,
    Buffers,
    Card,
    ModelSize,
    Precision,
    Setup,
    State,
    Weights,
    Workload,
)
from QEfficient.devices.cloud_ai_100.plan.speed import (
    COLLECTIVE,
    FASTEST,
    HOST,
    STREAMING,
    first_token_seconds,
    gathering_seconds,
    peak_share,
    step_seconds,
)

__all__ = (
    "CARDS", "CHOICES", "FP16", "GIB", "RESERVE", "Buffers", "Card", "Estimate", "ModelSize", "Precision", "Setup",
    "State", "Weights", "Workload", "estimate", "remedies", "smallest",
)  # fmt: skip

CHOICES = (1, 2, 4, 8, DEVICES)
"""Numbers of SoCs that slices of tensors are made for."""
RESERVE = 0.12
"""Of what is needed, for the program's code and its activations. The stand-in compiler asks for 10 %; the rest is for
small constants that are not counted."""


@dataclass(frozen=True)
class Estimate:
    """The answer. Bytes are of one SoC."""

    devices: int
    weights: int
    tables: int
    """Of what is looked up by a token's position in place of being computed."""
    cache: int
    copies: int
    """More of the cache, if SoCs that cannot share a head keep copies of it; no compiler says whether they do."""
    io: int
    usable: int
    seconds_to_first_token: float
    step_seconds: float
    """Of one token for every user."""
    tokens_per_second: float
    """Of all users together."""
    refusals: tuple[str, ...]
    """Why it cannot be compiled so, apart from memory."""
    assumptions: tuple[str, ...]

    @property
    def needed(self) -> int:
        """What is known to be needed."""
        return self.weights + self.tables + self.cache + self.io

    @property
    def wanted(self) -> int:
        """With all that may come to it."""
        return ceil((self.needed + self.copies) * (1 + RESERVE))

    @property
    def missing(self) -> int:
        """Bytes; nothing if it fits."""
        return max(0, self.wanted - self.usable)

    @property
    def fits(self) -> bool:
        return not self.missing and not self.refusals

    @property
    def tight(self) -> bool:
        """Whether it would fit only without the reserve: the stand-in compiler may refuse it, a card may take it."""
        return bool(self.missing) and not self.refusals and self.needed <= self.usable


def estimate(model: ModelSize, workload: Workload, setup: Setup) -> Estimate:
    """What is needed and what to expect."""
    step = step_seconds(model, workload, setup)
    return Estimate(
        setup.devices,
        ceil(model.weights.size(setup.precision) / setup.devices),
        ceil(table_bytes(model, workload, setup)),
        ceil(cache_bytes(model, workload, setup)),
        ceil(copied_bytes(model, workload, setup)),
        ceil(io_bytes(model, workload, setup)),
        setup.card.usable,
        first_token_seconds(model, workload, setup),
        step,
        workload.users / step if step else 0.0,  # headers that name no matrix tell of no speed
        tuple(refusals(model, workload, setup)),
        tuple(_assumptions(model, workload, setup)),
    )


def smallest(model: ModelSize, workload: Workload, precision: Precision, card: Card) -> int | None:
    """The fewest SoCs on which it fits, tightly if there are no others; None if it never does."""
    estimates = [estimate(model, workload, Setup(precision, devices, card)) for devices in CHOICES]
    fitting = [found.devices for found in estimates if found.fits]
    return next(iter([*fitting, *(found.devices for found in estimates if found.tight)]), None)


def remedies(model: ModelSize, workload: Workload, setup: Setup) -> list[str]:
    """What would make it fit, each thing alone; all of them together if none does."""

    def fits(workload: Workload, setup: Setup) -> bool:
        return estimate(model, workload, setup).fits

    found = [
        f"{flag} makes it fit"
        for flag, other in _other_precisions(setup.precision).items()
        if fits(workload, replace(setup, precision=other))
    ]
    both = replace(setup, precision=Precision(True, True))
    if not found and not (setup.precision.mxfp6 or setup.precision.mxint8) and fits(workload, both):
        found = ["--mxfp6-matmul with --mxint8-kv-cache makes it fit"]
    more = [n for n in CHOICES if n > setup.devices and fits(workload, replace(setup, devices=n))]
    found += [f"--num-devices {more[0]} makes it fit"] if more else []
    longest = _longest_context(model, workload, setup)
    found += [f"--ctx-len {longest} makes it fit"] if longest else []
    chunks = [n for n in _shorter_chunks(workload) if fits(replace(workload, chunk=n), setup)]
    found += [f"--prefill-seq-len {chunks[0]} makes it fit"] if chunks else []
    return found or _all_together(model, workload, setup.card)


def _all_together(model: ModelSize, workload: Workload, card: Card) -> list[str]:
    fewest = smallest(model, workload, Precision(True, True), card)
    if not fewest or not estimate(model, workload, Setup(Precision(True, True), fewest, card)).fits:
        return []
    return [f"--mxfp6-matmul, --mxint8-kv-cache and --num-devices {fewest} make it fit"]


def _other_precisions(precision: Precision) -> dict[str, Precision]:
    matrices = {} if precision.mxfp6 else {"--mxfp6-matmul": replace(precision, mxfp6=True)}
    flag = "leaving --mxint8-kv-cache out" if precision.mxint8 else "--mxint8-kv-cache"
    return {**matrices, flag: replace(precision, mxint8=not precision.mxint8)}


def _shorter_chunks(workload: Workload) -> Iterable[int]:
    """Powers of two, the largest first."""
    return (2**power for power in reversed(range(workload.chunk.bit_length())) if 2**power < workload.chunk)


def _longest_context(model: ModelSize, workload: Workload, setup: Setup) -> int:
    """The longest context that fits, in whole chunks; 0 if none holds the prompt."""
    lowest = max(1, ceil(workload.prompt_len / workload.chunk))
    low, high = lowest - 1, workload.ctx_len // workload.chunk
    while low < high:
        middle = (low + high + 1) // 2
        shorter = replace(workload, ctx_len=middle * workload.chunk)
        low, high = (middle, high) if estimate(model, shorter, setup).fits else (low, middle - 1)
    return low * workload.chunk if low >= lowest else 0


def _assumptions(model: ModelSize, workload: Workload, setup: Setup) -> Iterable[str]:
    yield setup.precision.described
    yield f"a SoC reads {STREAMING / 1e9:.0f} GB/s, and all weights of matrices once per step"
    yield f"each step reads the whole compiled context of {workload.ctx_len:,} tokens of every user"
    yield from _experts(model, workload, setup)
    yield from _layers(model)
    yield f"prompts reach {peak_share(setup):.0%} of the data sheet's peak, {workload.chunk:,} tokens at a time"
    yield f"the host takes {HOST * 1000:.0f} ms before the first token, and no time after it"
    yield f"{SYSTEM // GIB} GiB of each SoC are not for programs, and {RESERVE:.0%} of what is needed come to it"
    yield from _together(model, setup)
    if setup.card.cores < CORES:
        yield f"its SoCs have {setup.card.cores} cores: compile with num_cores {setup.card.cores}"
    if step_seconds(model, workload, setup) < FASTEST:
        yield f"no step under {FASTEST * 1000:.0f} ms was ever published: such speeds are beyond what is known"
    if setup.devices > 1 and workload.users > 1:
        yield "the card's power limit is not counted: it can slow batches down (published: by a third, once)"


def _experts(model: ModelSize, workload: Workload, setup: Setup) -> Iterable[str]:
    if not model.weights.experts:
        return
    yield f"a step reads {model.experts_read(workload.users):.0%} of the experts: no two tokens choose the same one"
    yield "experts are gathered, and so in float16 always; every one runs on all of a prompt, as published"
    seconds = gathering_seconds(model, workload, setup)
    yield f"gathering them for each token of a prompt instead would read for {seconds:.2f} s per chunk"


def _layers(model: ModelSize) -> Iterable[str]:
    if model.weights.scanned:
        yield "recurrent layers run token by token, and read their weights for each, in float16"
    if model.state.replays:
        yield "it keeps nothing but its tokens: each step computes the whole context again"
    if model.reads is None and not all(buffers.direct for buffers in model.state.buffers if buffers.packs):
        yield "what single operators of attention read was not seen: the most of common ways is taken, it may be more"


def _together(model: ModelSize, setup: Setup) -> Iterable[str]:
    """What is assumed of several SoCs."""
    if setup.devices == 1:
        return
    each = f"{COLLECTIVE * 1e6:.0f} µs"
    yield f"{setup.devices} SoCs share every layer; adding up their parts takes {each}, twice per layer"
    heads = min((buffers.heads for buffers in model.state.buffers), default=setup.devices)
    if setup.devices > heads:
        yield f"{heads} heads of a state cannot be cut into {setup.devices}: room is left for a copy on each SoC"
    if setup.devices > setup.card.socs:
        yield "nothing is published of SoCs on several cards: they are taken to be as near as on one card"
