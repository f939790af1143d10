"""Does a model fit on these cards, and how fast will it be: arithmetic on published figures, no measurement.

Every constant is fitted to what others have published of real cards; docs/plan.md says how far off the results are.
A SoC is what the options call a device: an Ultra card has four of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil

from QEfficient.devices.cloud_ai_100.options import DEVICES
from QEfficient.errors import OptionError

GIB = 2**30
CHOICES = (1, 2, 4, 8, DEVICES)
"""Numbers of SoCs that slices of tensors are made for."""

FP16, MXFP6, MXINT8 = 2.0, 6.25 / 8, 33 / 32
"""Bytes of a number; the shared scale of a block of 32 included."""
STREAMING = 90e9
"""Bytes per second that a SoC really reads, of 137e9 on the data sheet."""
COLLECTIVE = 45e-6
"""Seconds for SoCs to add up their parts of a layer, which happens twice in each."""
PEAK_SHARE_ALONE, PEAK_SHARE_TOGETHER = 0.20, 0.13
"""Of the data sheet's operations per second, as prompts reach them on one SoC and on several."""
HOST = 0.010
"""Seconds that the host takes before the first token."""
FASTEST = 0.007
"""Seconds of the shortest published step."""
RESERVE = 0.10
"""Of what is needed, for the program's code and its activations."""
SYSTEM = 2 * GIB
"""Of a SoC's memory, not for programs."""


@dataclass(frozen=True)
class Card:
    """One product: all figures but the first are of one SoC."""

    socs: int
    cores: int
    memory: int
    """Bytes of DRAM."""
    peak: float
    """FP16 operations per second."""

    @property
    def usable(self) -> int:
        """Bytes for weights, cache and buffers."""
        return self.memory - SYSTEM


CARDS: Mapping[str, Card] = {
    "standard": Card(1, 14, 16 * GIB, 110e12),
    "pro": Card(1, 16, 32 * GIB, 125e12),
    "ultra": Card(4, 16, 32 * GIB, 72.5e12),
}


@dataclass(frozen=True)
class Workload:
    """What is asked of the model."""

    ctx_len: int
    prompt_len: int = 128
    batch_size: int = 1
    full_batch_size: int | None = None
    """Continuous batching: this many decode together, and prompts come one by one."""
    chunk: int = 128
    """Tokens of a prompt that run at once."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise OptionError(f"{name} must be at least 1, not {value}.")
        for name, value in (("a prompt", self.prompt_len), ("a chunk", self.chunk)):
            if value > self.ctx_len:
                raise OptionError(
                    f"{name} of {value:,} tokens does not fit into a ctx_len of {self.ctx_len:,}. Raise ctx_len."
                )

    @property
    def users(self) -> int:
        """Sequences that decode together."""
        return self.full_batch_size or self.batch_size

    @property
    def prompts(self) -> int:
        """Prompts that run together."""
        return 1 if self.full_batch_size else self.batch_size

    @property
    def chunks(self) -> int:
        return ceil(self.prompt_len / self.chunk)


@dataclass(frozen=True)
class Precision:
    """How numbers are kept; float16 otherwise."""

    mxfp6: bool = False
    """Weights of matrices."""
    mxint8: bool = False
    """Keys and values."""

    @property
    def weight(self) -> float:
        return MXFP6 if self.mxfp6 else FP16

    @property
    def cache(self) -> float:
        return MXINT8 if self.mxint8 else FP16

    @property
    def described(self) -> str:
        """In words."""
        weights, cache = "weights of matrices in MXFP6", "keys and values in MXINT8"
        chosen = [*([weights] if self.mxfp6 else []), *([cache] if self.mxint8 else [])]
        return ", ".join([*chosen, "everything else in float16"]) if chosen else "all numbers in float16"


@dataclass(frozen=True)
class Weights:
    """Numbers, by what is done with them."""

    dense: int
    """Of matrices that every token is multiplied with."""
    head: int
    """Of the matrix that gives the logits, also where it is the embedding table."""
    other: int
    """The embedding table, norms: kept in float16 and hardly read."""
    experts: int = 0
    """Of all experts together."""


@dataclass(frozen=True)
class State:
    """Numbers that one sequence keeps."""

    per_token: int
    windows: tuple[tuple[int, int], ...] = ()
    """Numbers of each position, and positions kept."""
    fixed: int = 0
    """Recurrent states, always in float16."""
    heads: int = 1
    """SoCs share the state by heads; more SoCs than heads keep copies."""

    def size(self, ctx_len: int, precision: Precision) -> float:
        """Bytes of one sequence."""
        kept = self.per_token * ctx_len + sum(numbers * min(slots, ctx_len) for numbers, slots in self.windows)
        return kept * precision.cache + self.fixed * FP16


@dataclass(frozen=True)
class ModelSize:
    """What the arithmetic needs to know of a model."""

    weights: Weights
    state: State
    layers: int
    attention_width: int
    """Heads times their size."""
    vocab_size: int
    expert_count: int = 0
    experts_per_token: int = 0

    def experts_read(self, tokens: int) -> float:
        """Share of the experts that so many tokens need at most."""
        known = self.expert_count and self.experts_per_token
        return min(1.0, tokens * self.experts_per_token / self.expert_count) if known else 1.0


@dataclass(frozen=True)
class Setup:
    """Where a model runs and how it is kept there."""

    precision: Precision = Precision()
    devices: int = 1
    card: Card = CARDS["ultra"]


@dataclass(frozen=True)
class Estimate:
    """The answer. Bytes are of one SoC."""

    devices: int
    weights: int
    cache: int
    io: int
    usable: int
    seconds_to_first_token: float
    step_seconds: float
    """Of one token for every user."""
    tokens_per_second: float
    """Of all users together."""
    assumptions: tuple[str, ...]

    @property
    def needed(self) -> int:
        return self.weights + self.cache + self.io

    @property
    def missing(self) -> int:
        """Bytes; nothing if it fits."""
        return max(0, self.needed - self.usable)

    @property
    def fits(self) -> bool:
        return not self.missing

    @property
    def tight(self) -> bool:
        """Whether it fits only without the reserve for code and activations."""
        return self.fits and self.needed * (1 + RESERVE) > self.usable


def estimate(model: ModelSize, workload: Workload, setup: Setup) -> Estimate:
    """What is needed and what to expect."""
    step = _step_seconds(model, workload, setup)
    return Estimate(
        setup.devices,
        int(_weight_bytes(model.weights, setup.precision) / setup.devices),
        int(_cache_bytes(model, workload, setup)),
        _io_bytes(model, workload),
        setup.card.usable,
        _first_token_seconds(model, workload, setup),
        step,
        workload.users / step,
        tuple(_assumptions(model, workload, setup)),
    )


def smallest(model: ModelSize, workload: Workload, precision: Precision, card: Card) -> int | None:
    """The fewest SoCs on which it fits with the reserve, without it if there are none; None if it never fits."""
    estimates = [estimate(model, workload, Setup(precision, devices, card)) for devices in CHOICES]
    fitting = [found.devices for found in estimates if found.fits]
    comfortable = [found.devices for found in estimates if found.fits and not found.tight]
    return next(iter(comfortable or fitting), None)


def remedies(model: ModelSize, workload: Workload, setup: Setup) -> list[str]:
    """What would make it fit, each thing alone; all of them together if none does."""

    def fits(workload: Workload, setup: Setup) -> bool:
        return estimate(model, workload, setup).fits

    found = [
        f"{flag} makes it fit"
        for flag, better in _better(setup.precision).items()
        if better != setup.precision and fits(workload, replace(setup, precision=better))
    ]
    both = replace(setup, precision=Precision(True, True))
    if not found and not (setup.precision.mxfp6 or setup.precision.mxint8) and fits(workload, both):
        found = ["--mxfp6-matmul with --mxint8-kv-cache makes it fit"]
    more = [n for n in CHOICES if n > setup.devices and fits(workload, replace(setup, devices=n))]
    found += [f"--num-devices {more[0]} makes it fit"] if more else []
    longest = _longest_context(model, workload, setup)
    found += [f"--ctx-len {longest} makes it fit"] if longest else []
    fewest = None if found else smallest(model, workload, both.precision, setup.card)
    if fewest:
        found = [f"--mxfp6-matmul, --mxint8-kv-cache and --num-devices {fewest} make it fit"]
    return found


def _better(precision: Precision) -> dict[str, Precision]:
    return {"--mxfp6-matmul": replace(precision, mxfp6=True), "--mxint8-kv-cache": replace(precision, mxint8=True)}


def _longest_context(model: ModelSize, workload: Workload, setup: Setup) -> int:
    """The longest context that fits, in whole chunks; 0 if none holds the prompt."""
    lowest = max(1, ceil(workload.prompt_len / workload.chunk))
    low, high = lowest - 1, workload.ctx_len // workload.chunk
    while low < high:
        middle = (low + high + 1) // 2
        shorter = replace(workload, ctx_len=middle * workload.chunk)
        low, high = (middle, high) if estimate(model, shorter, setup).fits else (low, middle - 1)
    return low * workload.chunk if low >= lowest else 0


def _weight_bytes(weights: Weights, precision: Precision) -> float:
    return (weights.dense + weights.head + weights.experts) * precision.weight + weights.other * FP16


def _cache_bytes(model: ModelSize, workload: Workload, setup: Setup) -> float:
    """Of all users, on one SoC."""
    whole = workload.users * model.state.size(workload.ctx_len, setup.precision)
    return whole / min(setup.devices, model.state.heads)


def _io_bytes(model: ModelSize, workload: Workload) -> int:
    """Logits in float32, token ids and positions, for prompts and for decoding."""
    rows = workload.users + workload.prompts
    return rows * model.vocab_size * 4 + (workload.prompts * workload.chunk + workload.users) * 16


def _read_seconds(model: ModelSize, workload: Workload, setup: Setup, tokens: int) -> float:
    """For reading all weights that one call needs, with the layers' collectives."""
    weights = model.weights
    numbers = weights.dense + weights.head + weights.experts * model.experts_read(tokens)
    collectives = 2 * model.layers * COLLECTIVE if setup.devices > 1 else 0.0
    return numbers * setup.precision.weight / setup.devices / STREAMING + collectives


def _step_seconds(model: ModelSize, workload: Workload, setup: Setup) -> float:
    read = _read_seconds(model, workload, setup, workload.users)
    return read + _cache_bytes(model, workload, setup) / STREAMING


def _first_token_seconds(model: ModelSize, workload: Workload, setup: Setup) -> float:
    """Chunks run one after another; each takes as long as its arithmetic or as reading the weights."""
    tokens = workload.prompts * workload.chunk
    per_token = 2 * (model.weights.dense + model.weights.experts * model.experts_read(1))
    attention = 4 * workload.ctx_len * model.attention_width * model.layers
    share = PEAK_SHARE_ALONE if setup.devices == 1 else PEAK_SHARE_TOGETHER
    arithmetic = tokens * (per_token + attention) / (share * setup.card.peak * setup.devices)
    return HOST + workload.chunks * max(arithmetic, _read_seconds(model, workload, setup, tokens))


def _assumptions(model: ModelSize, workload: Workload, setup: Setup) -> Iterable[str]:
    share = PEAK_SHARE_ALONE if setup.devices == 1 else PEAK_SHARE_TOGETHER
    yield setup.precision.described
    yield f"a SoC reads {STREAMING / 1e9:.0f} GB/s, and all weights of matrices once per step"
    yield f"each step reads the whole compiled context of {workload.ctx_len:,} tokens of every user"
    if model.weights.experts:
        yield f"a step reads {model.experts_read(workload.users):.0%} of the experts: no two tokens choose the same one"
        yield "of mixtures of experts only figures two to three times slower than such arithmetic were published"
    yield f"prompts reach {share:.0%} of the data sheet's peak, {workload.chunk:,} tokens at a time"
    yield f"the host takes {HOST * 1000:.0f} ms before the first token, and no time after it"
    yield f"{SYSTEM // GIB} GiB of each SoC are not for programs; less than {RESERVE:.0%} to spare counts as tight"
    yield from _together(model, setup)
    if _step_seconds(model, workload, setup) < FASTEST:
        yield f"no step under {FASTEST * 1000:.0f} ms was ever published: such speeds are beyond what is known"
    if setup.devices > 1 and workload.users > 1:
        yield "the card's power limit is not counted: it can slow batches down (published: by a third, once)"


def _together(model: ModelSize, setup: Setup) -> Iterable[str]:
    """What is assumed of several SoCs."""
    if setup.devices == 1:
        return
    each = f"{COLLECTIVE * 1e6:.0f} µs"
    yield f"{setup.devices} SoCs share every layer; adding up their parts takes {each}, twice per layer"
    if setup.devices > model.state.heads:
        yield f"{model.state.heads} heads of keys and values cannot be cut into {setup.devices}: SoCs keep copies"
    if setup.devices > setup.card.socs:
        yield "nothing is published of SoCs on several cards: they are taken to be as near as on one card"
