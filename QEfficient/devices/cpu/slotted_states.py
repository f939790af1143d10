"""The session for graphs that cannot be packed: the graph as exported, over padded calls, its states in slots."""

from __future__ import annotations

from typing import Any

import numpy as np

from QEfficient.devices.cpu.buffers import StateBuffers
from QEfficient.devices.cpu.opening import ModelFile, infer
from QEfficient.devices.cpu.options import recorded_options
from QEfficient.devices.slotted import SlottedSession
from QEfficient.errors import DeviceError
from QEfficient.program import CompiledProgram


class SlottedStatesSession(SlottedSession):
    """Runs exactly the compiled shapes."""

    def __init__(self, compiled: CompiledProgram) -> None:
        graph = compiled.program.graphs["lm"].spec
        super().__init__(compiled.spec, graph)
        model = ModelFile(compiled.folder, recorded_options(compiled.report)).compiled()
        self._request: Any = model.create_infer_request()
        symbols = compiled.spec.specializations(graph.windows)[-1].symbols
        self._buffers: Any = StateBuffers(self._request, graph.states, symbols)

    def _execute(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        if self._request is None:
            raise DeviceError("the session is closed.")
        self._buffers.bind(self._request)
        logits = infer(self._request, feeds)
        self._buffers.swap()
        return logits

    def states(self) -> dict[str, np.ndarray]:
        copies: dict[str, np.ndarray] = self._buffers.copies()
        return copies

    def close(self) -> None:
        self._request = None
        self._buffers = None
