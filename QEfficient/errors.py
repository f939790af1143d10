"""Every error that QEfficient raises on purpose.

QEfficientError
├── ModelError            the model cannot be found, read or understood
│   ├── WrongTaskError            another auto-class is for this model              (also a TypeError)
│   ├── UnsupportedModelError     an architecture or checkpoint format that is not supported; says why
│   └── WeightsError              weights are absent, incomplete or of another shape
├── OptionError           an argument is misspelt, contradictory or out of range   (also a ValueError)
│   └── UnknownOptionError        there is none of that name; another may be meant
├── PromptError           a prompt is empty or does not fit the compiled program   (also a ValueError)
├── ExportError           the exported graph breaks its own contract
├── ArtifactError         an artifact is missing, damaged or of another version
│   └── StorageError              the artifact store cannot be written (full, read-only)
├── DeviceError           a device is unknown, absent, or refused to compile or to run
│   ├── CompilationError          a compiler failed, or wrote something else         (also a RuntimeError)
│   ├── CoresTakenError           it has fewer free cores than the program needs
│   ├── DeviceMemoryError         it has less free memory than the program needs
│   ├── DeviceBusyError           it took no run, however often it was asked
│   └── SessionLostError          a run failed, and what the session kept on the device is gone
│       ├── DeviceTimeoutError            the run did not end in time
│       └── DeviceLostError               the device has failed, or is not there any more
├── EngineError           an engine takes no requests any more
│   └── QueueFullError            not now: too many wait already
├── HostMemoryError       this machine has too little memory for what is done on it  (also a MemoryError)
└── VerificationError     two stages that should agree do not

A message says what was asked, what was found and what to do. Commands print it as one line and exit 1; every other
exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QEfficientError(Exception):
    """The root of the tree."""


class ModelError(QEfficientError):
    """The model cannot be found, read or understood."""


class UnsupportedModelError(ModelError, NotImplementedError):
    """The architecture or checkpoint format is not supported."""


class WrongTaskError(ModelError, TypeError):
    """The model is for another task than the auto-class."""


class WeightsError(ModelError):
    """Weights are absent, incomplete or of another shape."""


class OptionError(QEfficientError, ValueError):
    """An argument is misspelt, contradictory or out of range."""


class UnknownOptionError(OptionError):
    """There is no option of that name; `unknown_option` makes it."""

    where = name = hint = ""
    known: tuple[str, ...] = ()

    def among(self, others: Iterable[str]) -> UnknownOptionError:
        """The same, where these names could have been meant too."""
        return unknown_option(self.where, self.name, (*self.known, *others), self.hint)


class PromptError(QEfficientError, ValueError):
    """A prompt is empty or does not fit."""


class ExportError(QEfficientError):
    """The exported graph breaks its own contract."""


class ArtifactError(QEfficientError):
    """An artifact is missing, damaged or of another version."""


class StorageError(ArtifactError):
    """The artifact store cannot be written."""


class DeviceError(QEfficientError):
    """A device is unknown, absent, or refused to compile or to run."""


class CompilationError(DeviceError, RuntimeError):
    """The device's compiler failed, or wrote something else than was asked for."""


class CoresTakenError(DeviceError):
    """The device has fewer free cores than the program needs."""


class DeviceMemoryError(DeviceError):
    """The device has less free memory than the program needs."""


class DeviceBusyError(DeviceError):
    """The device took no run, however often it was asked."""


class SessionLostError(DeviceError):
    """A run failed, and what the session kept on the device is gone."""


class DeviceTimeoutError(SessionLostError):
    """A run did not end in time."""


class DeviceLostError(SessionLostError):
    """The device has failed, or is not there any more."""


class EngineError(QEfficientError):
    """An engine takes no requests any more."""


class QueueFullError(EngineError):
    """Too many requests wait already."""


class HostMemoryError(QEfficientError, MemoryError):
    """This machine has too little memory for what is done on it."""


class VerificationError(QEfficientError):
    """Two stages that should agree do not."""


SAID_WITHOUT_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")
"""How PyTorch and others say it: their errors have no class for it."""


def raise_if_memory(error: BaseException, doing: str) -> None:
    """Say what memory was missing for, if that is what an error is about: it tells nothing of the model."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in SAID_WITHOUT_MEMORY):
        raise HostMemoryError(
            f"this machine, or what this process may use of it, has too little memory to {doing}: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """`ValueError: what it says first`, for a foreign error that ours reports."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` when something known is close to `wrong`, else an empty string."""
    close = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown_option(where: str, name: str, known: Iterable[str], hint: str = "") -> UnknownOptionError:
    """That `where` has no option `name`, with the one of `known` that may have been meant, and another hint."""
    known = tuple(known)
    error = UnknownOptionError(f"{where} does not know the option '{name}'.{did_you_mean(name, known)}{hint}")
    error.where, error.name, error.known, error.hint = where, name, known, hint
    return error
