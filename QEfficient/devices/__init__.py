"""Devices: where a program is compiled and run. A device is a module of this package (or an entry point
`QEfficient.devices`) with a class `DEVICE`; listing devices imports none of their libraries.

numpy only: nothing right of the ONNX file needs torch.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import os
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from QEfficient.errors import DeviceError, OptionError, SessionLostError, did_you_mean
from QEfficient.program import CompiledEncoder, CompiledProgram, ExportedProgram, GraphSpec
from QEfficient.specs import CompileSpec, EncodeSpec

logger = logging.getLogger(__name__)

NOT_DEVICES = ("choosing", "handover", "routing", "slotted", "weight_file")
"""Modules of this package that devices share."""
FLOAT32_ERROR = 1e-3
"""Of a logit, as a part of the spread between largest and smallest: what another order of float32 sums may do."""


@dataclass(frozen=True)
class Choice:
    """How a program that chooses tokens itself is to choose the next one of a row."""

    random_numbers: np.ndarray
    """As many as `Limits.choice` says, between 0 and 1."""
    temperature: float = 0.0
    top_k: int = 0
    """0: as many as the program looks at."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    allowed: np.ndarray | None = None
    """Which tokens of the vocabulary may be said; None: all."""
    follows_prompt: bool = False
    """Whether the row's tokens are of a prompt; else they were chosen before."""


@dataclass(frozen=True)
class ChoiceLimits:
    """What a program that chooses tokens itself can do."""

    widest: int
    """Among so many of the likeliest tokens it chooses; so many random numbers it takes."""
    vocabulary: int
    guided: bool = False
    """Whether it can be told which tokens may be said."""


@dataclass(frozen=True)
class Row:
    """Some consecutive tokens of one sequence."""

    slot: int
    tokens: Sequence[int]
    start: int
    """Position of the first token."""
    logits: int = 1
    """After how many of the tokens, counted from the last, logits are wanted."""
    blocks: Sequence[int] = ()
    """Where a session with paging keeps the sequence, in order, with room for these tokens."""
    choice: Choice | None = None
    """Where the program itself chooses the token; None: the likeliest."""


@dataclass(frozen=True)
class Batch:
    """Which tokens of which sequences at which positions run now. A slot occurs once."""

    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Paging:
    """State in blocks of consecutive tokens, which sequences take as they grow."""

    block_size: int
    """Tokens of one block."""
    blocks: int
    shareable: bool = True
    """Whether the blocks are all the state there is: then sequences may share those of a common beginning, and a
    sequence may go back to an earlier position."""


@dataclass(frozen=True)
class Limits:
    """What a session can be fed with; the scheduler plans within it."""

    slots: int
    chunk: int
    """Most tokens of one row in one run."""
    ctx_len: int
    decode_rows: int
    """Most one-token rows in one run."""
    prefill_rows: int
    """Most rows longer than one token in one run."""
    tokens: int | None = None
    """Most tokens of all rows in one run. A session with this limit runs rows of one token and of several together at
    no loss; None: they are run apart, and only the rows are counted."""
    logits: int = 1
    """Most `logits` of one row."""
    decode_chunk: int = 1
    """Most tokens of a row that counts among the `decode_rows`: more than one where tokens can be tried ahead in such a
    run."""
    guesses: int = 0
    """How many tokens behind the next one the program guesses; what, `Session.guesses` says after a run."""
    choice: ChoiceLimits | None = None
    """The program chooses tokens itself: of its logits all are 0 but that of the token, which is 1."""
    paging: Paging | None = None
    keeps_slots: bool = False
    """Whether a slot holds what its last sequence has computed, position by position, so that another that begins alike
    can go on from there."""
    bounded_by_model: bool = False
    """Whether `ctx_len` is what the model has positions for, less than what the program was compiled for."""

    def is_short(self, row: Row) -> bool:
        """Whether a row counts among the `decode_rows`."""
        return len(row.tokens) <= self.decode_chunk

    def check(self, batch: Batch) -> None:
        """Refuse a batch that does not fit, saying both numbers."""
        taken = [row.slot for row in batch.rows]
        if not taken or len(set(taken)) != len(taken):
            raise DeviceError(f"a batch needs rows, each of another slot; these are its slots: {taken}.")
        for row in batch.rows:
            self._check_row(row)
        short = sum(self.is_short(row) for row in batch.rows)
        one = "one" if self.decode_chunk == 1 else f"at most {self.decode_chunk}"
        counts = ((one, short, self.decode_rows), ("several", len(taken) - short, self.prefill_rows))
        for what, count, most in counts:
            if count > most:
                raise DeviceError(f"a batch has {count} rows of {what} token(s), but one run takes {most}.")
        total = sum(len(row.tokens) for row in batch.rows)
        if self.tokens is not None and total > self.tokens:
            raise DeviceError(f"a batch has {total} tokens, but one run takes {self.tokens}.")

    def _check_row(self, row: Row) -> None:
        if not 0 <= row.slot < self.slots:
            raise DeviceError(f"slot {row.slot} was asked for, but there are {self.slots} (0 to {self.slots - 1}).")
        if not 1 <= len(row.tokens) <= self.chunk:
            raise DeviceError(f"a row has {len(row.tokens)} tokens, but one run takes 1 to {self.chunk}.")
        end = row.start + len(row.tokens)
        if row.start < 0 or end > self.ctx_len:
            raise DeviceError(
                f"a row covers the positions {row.start:,} to {end - 1:,}, but the program was compiled for"
                f" ctx_len {self.ctx_len:,}. Compile again with a larger ctx_len."
            )
        most = min(self.logits, len(row.tokens))
        if not 0 <= row.logits <= most:
            raise DeviceError(f"a row wants the logits of {row.logits} tokens, but it can have those of 0 to {most}.")
        if self.paging is not None:
            self._check_blocks(row, self.paging)

    @staticmethod
    def _check_blocks(row: Row, paging: Paging) -> None:
        needed = -(-(row.start + len(row.tokens)) // paging.block_size)
        if len(row.blocks) < needed:
            raise DeviceError(f"a row of slot {row.slot} needs {needed} blocks and has {len(row.blocks)}.")
        if len(set(row.blocks)) != len(row.blocks) or not all(0 <= b < paging.blocks for b in row.blocks):
            raise DeviceError(
                f"slot {row.slot} has the blocks {list(row.blocks)}; {paging.blocks} different ones are there."
            )


@dataclass(frozen=True)
class Accuracy:
    """How far logits may be from those of the same weights in float32, as parts of the spread of a step's logits."""

    largest: float = FLOAT32_ERROR
    """Of any logit of any step."""
    typical: float = FLOAT32_ERROR
    """The largest error of a step, in half of the steps."""
    outliers: float = 0.0
    """Part of the steps that may be off by more: a choice of experts turns on the last bits of a router, and a token
    with another expert is another token."""


class Session(ABC):
    """Live buffers and state of one compiled program. Not thread-safe."""

    limits: Limits
    guesses: np.ndarray | None = None
    """Of a program that guesses, `[tokens whose logits were wanted, guesses]`: what it takes for the likeliest tokens
    behind the next one, of the last run."""

    @abstractmethod
    def run(self, batch: Batch) -> np.ndarray:
        """Feed the rows; return float32 logits `[tokens whose logits are wanted, vocabulary]`, in their order."""

    def copy_block(self, source: int, target: int) -> None:
        """Make one block a copy of another. For sessions with paging."""
        raise DeviceError("this session keeps no blocks.")

    @property
    def lost(self) -> SessionLostError | None:
        """Why it can run nothing any more, although nobody has closed it."""
        return None

    def offer(self, owner: Callable[[], bool]) -> None:  # noqa: B027
        """Say whom a device may ask that lacks room for another program of this process: the owner, a bound method that
        is held weakly, lets the session rest if nothing needs it now, and says whether it did."""

    def rest(self) -> bool:
        """Give the device to others until the next run, which takes it again; what was computed is gone then. False: it
        has nothing that others could use."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Give everything back; idempotent."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EncoderSession(ABC):
    """One compiled program without state. Not thread-safe."""

    def __init__(self, compiled: CompiledEncoder) -> None:
        model, self.spec = compiled.program.model, compiled.spec
        pad = model.pad_token_id
        self._pad_id = pad if pad is not None and 0 <= pad < model.vocab_size else 0

    @abstractmethod
    def _execute(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Run one call of exactly a compiled shape; return `[rows, length, hidden]` or, pooled, `[rows, hidden]`."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; idempotent."""

    def encode(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """float32 features of at most `batch_size` rows `[rows, length]`, which are padded to a compiled shape."""
        rows, length = input_ids.shape
        if rows > self.spec.batch_size:
            most = self.spec.batch_size
            raise DeviceError(f"a call has {rows} rows, but the program was compiled for batch_size {most}.")
        shape = (self.spec.batch_size, self.spec.padded_length(length))
        ids, mask = np.full(shape, self._pad_id, np.int64), np.zeros(shape, np.int64)
        ids[:rows, :length], mask[:rows, :length] = input_ids, attention_mask
        mask[rows:, 0] = 1  # a row that may look at nothing would be a mean of nothing
        features = self._execute(ids, mask)[:rows].astype(np.float32)
        return features[:, :length] if features.ndim == 3 else features

    def __enter__(self) -> EncoderSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Watch:
    """What a session shows of its runs, for those who look for an error."""

    folder: Path | None = None
    """Where the buffers of its first runs are written."""
    debug: bool = False
    """Whether the device's runtime logs all that it does."""


class Device(ABC):
    """One way to compile and run programs."""

    name: str
    tasks: frozenset[str] = frozenset({"causal-lm"})
    """What it can run, in the words of `ModelFacts.task`; `features` goes with the two methods for encoders."""
    options: Mapping[str, type] = {}
    """Names and types of this device's own compile options."""
    pads_calls = True
    """Whether a run is a padded call of a compiled shape. Programs that choose or guess tokens themselves are made for
    that; otherwise tokens are packed, and such programs refused."""
    has_ids = False
    """Whether there may be several of it, which `load` tells apart by numbers."""
    shows_runs = False
    """Whether `load_watched` opens sessions."""
    computes_in: str = "float32"
    """What it rounds to after each operator of a float32 program, where it is not told otherwise."""
    in_small_pieces: Mapping[str, Any] = {}
    """Options with which its sessions cut prompts into small pieces, beside a small `prefill_seq_len`: for checks."""

    @classmethod
    @abstractmethod
    def availability(cls) -> str | None:
        """None if the device can be used here, else a sentence that says what is missing."""

    @classmethod
    def lacks_to_run(cls, asking: bool = False) -> str:
        """Why what is compiled here cannot run here; `asking`: the device itself too, which may take a while."""
        return ""

    def check_runs(self) -> None:
        """Refuse a device that runs nothing here, before the long work is done for it."""
        if lacking := self.lacks_to_run():
            raise DeviceError(
                f"device '{self.name}' can compile here, but not run: {lacking} `qefficient compile` works without;"
                " --device chooses another device."
            )

    @classmethod
    def software(cls) -> str:
        """What is installed here that it works with, for people; empty where that is a library like others."""
        return ""

    @classmethod
    def version(cls) -> str:
        """Of what `software` names, for documents: without the place where it lies."""
        return ""

    @classmethod
    def simulated(cls) -> bool:
        """Whether stand-ins answer in its place: whoever shows what came of it says so."""
        return False

    @classmethod
    def output(cls, folder: Path) -> Path:
        """What of a compiled program's folder `compile` of the auto-classes names: all of it."""
        return folder

    @classmethod
    def packed_states(cls, compiled: CompiledProgram) -> Mapping[str, str]:
        """The states that a program keeps in a form of the device's own, by input name, and what that is called: no
        session but one of the same form can take them."""
        return {}

    def for_scripts(self, custom_io: Path | None) -> Device | None:
        """This device as the old `compile` function of Qualcomm's library: it writes what scripts look for, by the
        names that they know. None where that function never compiled. `custom_io`: the user's own file of precisions.
        """
        return None

    @abstractmethod
    def compile(self, program: ExportedProgram, spec: CompileSpec, folder: Path) -> Mapping[str, Any]:
        """Write what the device needs into the empty `folder`; return a report. Raises `DeviceError`."""

    @abstractmethod
    def load(self, compiled: CompiledProgram, device_ids: Sequence[int] | None = None) -> Session:
        """Open a session: on these, where there are several of this device."""

    def load_watched(self, compiled: CompiledProgram, device_ids: Sequence[int] | None, watch: Watch) -> Session:
        """As `load`, for a device that `shows_runs`."""
        raise DeviceError(f"device '{self.name}' shows nothing of its runs.")

    def stored_program(self, compiled: CompiledProgram, folder: Path) -> ExportedProgram | None:
        """Write the exported program with the weights that the compiled form holds into the empty `folder`, in float32
        or in a precision of its own that the reference device runs; None where it holds those of the exported
        program."""
        return None

    def exactly(self, compiled: CompiledProgram) -> CompiledProgram | None:
        """The same compiled form to be opened with as little rounding beside its weights as this device can do; None
        where `compiled` is that already."""
        return None

    def accuracy(self, compiled: CompiledProgram) -> Accuracy:
        """How far from what `stored_program` gives on the reference device this one computes, at most."""
        return Accuracy()

    def compile_encoder(self, program: ExportedProgram, spec: EncodeSpec, folder: Path) -> Mapping[str, Any]:
        """As `compile`, for a program without state."""
        raise DeviceError(f"device '{self.name}' does not run encoders. Choose another with device=.")

    def load_encoder(self, compiled: CompiledEncoder) -> EncoderSession:
        """As `load`, for a program without state."""
        raise DeviceError(f"device '{self.name}' does not run encoders. Choose another with device=.")

    def ingredients(self, own: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the compiled form depends on beside the program and these options: the version of what this device
        writes, the content of files that options name."""
        return {}

    def check_ids(self, own: Mapping[str, Any], device_ids: Sequence[int]) -> None:  # noqa: B027
        """Refuse numbers of devices on which a program that is compiled with these options would not run."""

    def export_dtype(self, dtype: str, own: Mapping[str, Any]) -> str:
        """In which type a model is to be exported that was asked for in `dtype`: another one where these options name
        hardware that cannot compute in that."""
        return dtype

    def check_calls(self, spec: CompileSpec, own: Mapping[str, Any]) -> None:  # noqa: B027
        """Refuse shapes that cannot be compiled with these options, before a program is made."""

    def check_layers(self, layers: int, own: Mapping[str, Any]) -> None:  # noqa: B027
        """Refuse a number of layers that cannot be divided as these options ask, before a program is made."""

    def check_graph(self, graph: GraphSpec, own: Mapping[str, Any]) -> None:  # noqa: B027
        """Refuse a graph that cannot be compiled with these options, before the work of writing it is done."""

    def has_no_ids(self, device_ids: Sequence[int] | None) -> None:
        """Say once that the numbers of devices, which scripts pass whatever the device, have no effect here."""
        if device_ids:
            _say_without_effect(self.name)

    def own_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The given options that are this device's own. Refuses misspelt ones; logs those of the Cloud AI 100."""
        own, foreign = {}, []
        for name, value in given.items():
            kind = self.options.get(name) or FOREIGN_OPTIONS.get(name)
            if kind is None:
                known = {**self.options, **FOREIGN_OPTIONS}
                raise OptionError(f"device '{self.name}' does not know the option '{name}'.{did_you_mean(name, known)}")
            if name not in self.options:
                foreign.append(name)
            elif type(value) is not kind:
                raise OptionError(f"option '{name}' of device '{self.name}' must be {kind.__name__}, not {value!r}.")
            else:
                own[name] = value
        if foreign:
            logger.info("device '%s' has no use for %s: options of another device.", self.name, ", ".join(foreign))
        return own


@functools.cache
def _say_without_effect(name: str) -> None:
    logger.info("device '%s' has no use for device ids: there is one of it.", name)


FOREIGN_OPTIONS: Mapping[str, type] = {
    "num_cores": int,
    "num_devices": int,
    "mxfp6_matmul": bool,
    "mxint8_kv_cache": bool,
    "aic_enable_depth_first": bool,
    "mos": int,
    "allow_mxint8_mdp_io": bool,
    "aic_hw_version": str,
    "node_precision_info": str,
    "enable_qnn": bool,
    "qnn_config": str,
    "compile_only": bool,
}
"""Options of the Cloud AI 100 that scripts pass whatever the device; accepted everywhere, named in one log line."""


def device_names() -> list[str]:
    """Every known device: the modules of this package, then entry points."""
    names = [m.name for m in pkgutil.iter_modules(__path__) if m.name not in NOT_DEVICES]
    names += [e.name for e in importlib.metadata.entry_points(group="QEfficient.devices")]
    return sorted(set(names))


def device_class(name: str) -> type[Device]:
    """The class behind a name. Imports the device's module."""
    for entry in importlib.metadata.entry_points(group="QEfficient.devices"):
        if entry.name == name:
            loaded: type[Device] = entry.load()
            return loaded
    if name not in device_names():
        known = ", ".join(device_names())
        raise DeviceError(f"there is no device '{name}'; known are auto, {known}.{did_you_mean(name, device_names())}")
    found: type[Device] = importlib.import_module(f"{__name__}.{name}").DEVICE
    return found


AUTO_ORDER = ("cloud_ai_100", "cpu", "reference")


def get_device(name: str | None = None, task: str = "causal-lm") -> Device:
    """The device called `name`; default the environment's `QEFF_DEVICE`, then `auto`: the best one usable here."""
    asked = name or os.environ.get("QEFF_DEVICE") or "auto"
    candidates = [n for n in AUTO_ORDER if n in device_names()] if asked == "auto" else [asked]
    reasons: dict[str, str] = {}
    for candidate in candidates:
        found = device_class(candidate)
        reason = found.availability() if task in found.tasks else f"it runs no programs of the kind '{task}'."
        if reason is None:
            _say_passed_over(reasons, candidate, task)
            return found()
        reasons[candidate] = reason
    raise DeviceError(f"device '{asked}' cannot be used here. " + " ".join(f"{n}: {r}" for n, r in reasons.items()))


def _say_passed_over(names: Iterable[str], chosen: str, task: str) -> None:
    """Warn where hardware of its own is here, and idle: whoever has it expects it to be used."""
    for name in names:
        found = device_class(name)
        if found.has_ids and task not in found.tasks and found.availability() is None:
            logger.warning(
                "the best device here was asked for, but '%s' does not run programs of the kind '%s' yet: '%s' runs it"
                " instead. device='%s' says so by name.",
                *(name, task, chosen, chosen),
            )
