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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from QEfficient.devices.sessions import (
    Batch,
    Choice,
    ChoiceLimits,
    EncoderSession,
    Limits,
    Paging,
    Row,
    Session,
    Watch,
)
from QEfficient.errors import DeviceError, OptionError, did_you_mean, unknown_option
from QEfficient.program import CompiledEncoder, CompiledProgram, ExportedProgram, GraphSpec
from QEfficient.specs import CompileSpec, EncodeSpec

__all__ = (
    "AUTO_ORDER", "FLOAT32_ERROR", "FOREIGN_OPTIONS", "Accuracy", "Batch", "Choice", "ChoiceLimits", "Device",
    "EncoderSession", "Limits", "Paging", "Row", "Session", "Watch", "device_class", "device_names", "get_device",
)  # fmt: skip

logger = logging.getLogger(__name__)

NOT_DEVICES = ("choosing", "handover", "routing", "sessions", "slotted", "weight_file")
"""Modules of this package that devices share."""
FLOAT32_ERROR = 1e-3
"""Of a logit, as a part of the spread between largest and smallest: what another order of float32 sums may do."""


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
    def expected(cls) -> bool:
        """Whether somebody set this machine up for it: then it is a problem, and no choice, if it cannot be used."""
        return False

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
        """The given options that are this device's own. Refuses misspelt ones (`unknown_option`, so that a caller can
        name options of its own too); logs those of the Cloud AI 100."""
        own, foreign = {}, []
        for name, value in given.items():
            kind = self.options.get(name) or FOREIGN_OPTIONS.get(name)
            if kind is None:
                raise unknown_option(f"device '{self.name}'", name, {**self.options, **FOREIGN_OPTIONS})
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


def _say_passed_over(reasons: Mapping[str, str], chosen: str, task: str) -> None:
    """Warn where hardware of its own is here, and idle: whoever has it expects it to be used."""
    for name, reason in reasons.items():
        found = device_class(name)
        if task in found.tasks and found.expected():
            _say_instead(name, f"was set up here, and cannot be used: {reason}", chosen)
        elif found.has_ids and task not in found.tasks and found.availability() is None:
            _say_instead(name, f"does not run programs of the kind '{task}' yet.", chosen)


@functools.cache
def _say_instead(name: str, reason: str, chosen: str) -> None:
    logger.warning(
        "the best device here was asked for, but '%s' %s '%s' runs it instead; device='%s' says so by name.",
        *(name, reason, chosen, chosen),
    )
