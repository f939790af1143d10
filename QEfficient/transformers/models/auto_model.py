"""What every auto-class has: where its model comes from, what has been made of it so far, and what that is called."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from QEfficient.artifacts import ArtifactStore
from QEfficient.devices import Device, EncoderSession
from QEfficient.generation.opened import OpenedProgram
from QEfficient.program import CompiledEncoder, CompiledProgram, ExportedProgram, ModelFacts, load_exported
from QEfficient.transformers.loading import CALLED, ModelSource

Compiled = TypeVar("Compiled", CompiledProgram, CompiledEncoder)
Loaded = TypeVar("Loaded", OpenedProgram, EncoderSession)


class AutoModel(ABC, Generic[Compiled, Loaded]):
    """A model on its way from the checkpoint to a session, or to what opens one."""

    export: Callable[..., str]
    """The first verb; each class has options of its own."""

    def __init__(self, source: ModelSource, facts: ModelFacts) -> None:
        self._source, self._facts = source, facts
        self._program: ExportedProgram | None = None
        self._compiled: Compiled | None = None
        self._session: Loaded | None = None
        self._device: Device | None = None
        self.progress: Callable[[str], None] = lambda stage: None
        """Called with the name of each stage of long work."""

    def __repr__(self) -> str:
        """What it is made from, and the last that was made of it."""
        source = self._source
        called = source.called if source.live is not None else source.name
        said: dict[str, Any] = {"architecture": self.model_architecture or self.model_name, "dtype": source.dtype}
        if self._compiled is not None:
            said |= {"device": self._compiled.device, "qpc_path": self.qpc_path}
        elif self._program is not None:
            said["onnx_path"] = self.onnx_path
        of = repr(called) if called else f"<{self.model_name} object>"
        return f"{type(self).__name__}({', '.join([of, *(f'{name}={value!r}' for name, value in said.items())])})"

    @property
    def config(self) -> Any:
        return self._source.config

    @property
    def get_model_config(self) -> dict[str, Any]:
        return dict(self.config.to_dict())

    @functools.cached_property
    def model(self) -> Any:
        """The model: yours if you passed an object, else its skeleton, whose parameters hold no data."""
        return self._source.live if self._source.live is not None else self._source.skeleton()[0]

    @property
    def model_name(self) -> str:
        return self._facts.name

    @property
    def model_architecture(self) -> str | None:
        return self._facts.architecture or None

    @property
    def onnx_path(self) -> str | None:
        return str(self._program.onnx_path()) if self._program else None

    def get_onnx_path(self, **options: Any) -> str:
        """Where the ONNX program is; exports it with these options if there is none yet."""
        if self._program is None:
            self.export(**options)
        assert self._program is not None
        return str(self._program.onnx_path())

    @property
    def qpc_path(self) -> str | None:
        """What `compile` returned, as text."""
        return str(self._output()) if self._compiled else None

    @property
    def compiled(self) -> Compiled | None:
        """The record of the compiled program."""
        return self._compiled

    @property
    def export_hash(self) -> str | None:
        return self._program.fingerprint if self._program else None

    @property
    def hash_params(self) -> dict[str, Any]:
        return {**self._identity(), CALLED: self._source.location or self._source.called}

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """What tells two exports of one model by this class apart."""

    def _program_or(self, onnx_path: str | Path | None, export: Callable[[], Any]) -> ExportedProgram:
        """The program at `onnx_path` if one is named, else the one that is there, else what `export` leaves."""
        if onnx_path is not None:
            self._program = load_exported(ArtifactStore().open(Path(onnx_path).parent))
        elif self._program is None:
            export()
        assert self._program is not None
        return self._program

    def _output(self) -> Path:
        """The folder of the compiled program that its device reads."""
        assert self._compiled is not None and self._device is not None
        return self._device.output(self._compiled.folder)

    def _forget_session(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None

    def _forget_compiled(self) -> None:
        self._forget_session()
        self._compiled = None
