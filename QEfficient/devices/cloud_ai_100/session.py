"""A compiled program on the card, behind the same session as everywhere: rows of a batch in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from QEfficient.devices.cloud_ai_100.container import read_description
from QEfficient.devices.cloud_ai_100.inference_session import QAICInferenceSession
from QEfficient.devices.slotted import SlottedSession
from QEfficient.errors import DeviceError
from QEfficient.program import CompiledProgram

ROLE = "lm"
LOGITS = "logits"


class CloudSession(SlottedSession):
    """The state stays on the card: neither goes it there, nor does it come back."""

    def __init__(self, compiled: CompiledProgram, device_ids: Sequence[int] | None = None) -> None:
        graph = compiled.program.graphs[ROLE].spec
        super().__init__(compiled.spec, graph)
        folder = compiled.folder / "qpc"
        self._allowed = read_description(folder / "programqpc.bin").sizes()
        devices = compiled.report["devices"]
        self._inference: Any = _opened(folder, device_ids or (range(devices) if devices > 1 else None))
        states = [name for state in graph.states for name in (state.input.name, state.output.name)]
        self._inference.skip_buffers(states)
        self._vocabulary = self._allowed[0][LOGITS][-1]

    def _execute(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        if self._inference is None:
            raise DeviceError("the session is closed.")
        self._check_shapes(feeds)
        rows = len(feeds["input_ids"])
        self._inference.set_buffers({LOGITS: np.zeros((rows, 1, self._vocabulary), np.float32)})
        try:
            logits: np.ndarray = self._inference.run(feeds)[LOGITS]
        except (MemoryError, ValueError, RuntimeError) as error:
            raise DeviceError(f"the card could not run the program: {error}") from error
        return logits

    def _check_shapes(self, feeds: dict[str, np.ndarray]) -> None:
        """The card would answer a wrong combination with a number only, and late."""
        shapes = {name: array.shape for name, array in feeds.items()}
        if not any(all(sizes.get(name) == shape for name, shape in shapes.items()) for sizes in self._allowed):
            listed = [{name: sizes.get(name) for name in shapes} for sizes in self._allowed]
            raise DeviceError(f"a call has the shapes {shapes}, but the program was compiled for {listed}.")

    def close(self) -> None:
        if self._inference is not None:
            self._inference.deactivate()
        self._inference = None


def _opened(folder: Path, device_ids: Sequence[int] | None) -> QAICInferenceSession:
    try:
        return QAICInferenceSession(folder, device_ids)
    except ImportError as error:
        raise DeviceError(str(error)) from error
    except RuntimeError as error:
        raise DeviceError(f"the program in {folder} cannot be brought onto the card: {error}") from error
