"""States as inputs and outputs of a model: two buffers for each, so that a run reads the one and writes the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from QEfficient.program import StateSpec


class StateBuffers:
    """The states of request objects that take turns. Nothing is copied between runs."""

    def __init__(self, request: Any, states: Sequence[StateSpec], symbols: Mapping[str, int]) -> None:
        """`request`: any of them; it tells the types."""
        self._names = [(state.input.name, state.output.name) for state in states]
        self._read = [_zeros(request, state, symbols) for state in states]
        self._write = [_zeros(request, state, symbols) for state in states]

    def bind(self, request: Any) -> None:
        """Before a run of this request."""
        for (old, new), read, write in zip(self._names, self._read, self._write, strict=True):
            request.set_tensor(old, read)
            request.set_tensor(new, write)

    def swap(self) -> None:
        """After a run."""
        self._read, self._write = self._write, self._read

    def copies(self) -> dict[str, np.ndarray]:
        return {old: np.array(tensor.data) for (old, _), tensor in zip(self._names, self._read, strict=True)}


def _zeros(request: Any, state: StateSpec, symbols: Mapping[str, int]) -> Any:
    import openvino

    kind = request.get_tensor(state.input.name).element_type
    tensor = openvino.Tensor(kind, openvino.Shape(list(state.input.resolve(symbols))))
    tensor.data[...] = 0
    return tensor
