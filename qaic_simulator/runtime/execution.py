"""Runs a compiled program with the numbers of the card: its float32 graph in float16, on onnxruntime.

What the card does otherwise than ONNX is written into the graph: float math is rounded to float16 after each operator,
with infinities beyond its range; constant matrices go through MXFP6; a scatter to an index out of range is dropped,
and a gather from one reads index 0.

A retained state in MXINT8 is rounded as a whole after each run, the rows that were there before along with the new
ones: rounding what was rounded changes nothing. The run that makes a row still reads it as it was before rounding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from qaic_simulator.container import CONSTANTS
from qaic_simulator.microscaling import round_mxint8
from qaic_simulator.network_descriptor import NetworkDescriptor, decode_descriptor
from qaic_simulator.runtime.bodies import infer_types
from qaic_simulator.runtime.constants import take_constants
from qaic_simulator.runtime.functions import flatten
from qaic_simulator.runtime.halving import Halving, node_rule
from qaic_simulator.runtime.matrices import round_half_matrices, round_matrices, rounding
from qaic_simulator.runtime.noise import RUN, noise_ulps, with_noise
from qaic_simulator.runtime.pacing import is_paced, pace_of
from qaic_simulator.runtime.settings import DESCRIPTOR, MODEL, SETTINGS, ExecutionError, Settings, read_settings
from qaic_simulator.side_files.custom_io import input_of_state

FATAL = 4
"""The level of onnxruntime's log at which it does not tell of errors, which it raises as well."""
_IN_MEMORY = 1 << 30
"""Bytes of a model that is handed to onnxruntime as one message; those have a limit of 2 GiB."""


class Network:
    """A program that is ready to run; it keeps no state between runs, but their number where noise is asked for."""

    def __init__(self, images: Mapping[str, bytes]) -> None:
        missing = [name for name in (MODEL, SETTINGS) if name not in images]
        if missing:
            raise ExecutionError(f"the container has no {missing[0]}: the stand-in compiler did not make it.")
        self.descriptor = decode_descriptor(images[DESCRIPTOR])
        self.settings = read_settings(images[SETTINGS])
        self.states = _pair_states(self.descriptor) if self.settings.retained_state else {}
        ulps = noise_ulps()
        model = card_model(images, self.descriptor, self.settings)
        self.pace = pace_of(images[MODEL], self.descriptor, self.settings) if is_paced() else None
        self._session = _open_session(with_noise(model, ulps) if ulps else model)
        self._types = {value.name: _numpy_type(value.type) for value in self._session.get_inputs()}
        self._runs = count() if RUN in self._types else None
        self._types.pop(RUN, None)
        unknown = self._types.keys() - {binding.name for binding in self.descriptor.inputs}
        if unknown:
            raise ExecutionError(f"the descriptor lacks the input {min(unknown)} of the graph.")

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs, in the precision that the graph has; states in MXINT8 are rounded."""
        feeds = {name: inputs[name].astype(kind, copy=False) for name, kind in self._types.items()}
        if self._runs is not None:
            feeds[RUN] = np.array(next(self._runs))
        names = [binding.name for binding in self.descriptor.outputs]
        return {
            name: self.rounded(name, np.asarray(value))
            for name, value in zip(names, self._session.run(names, feeds), strict=True)
        }

    def rounded(self, name: str, values: np.ndarray) -> np.ndarray:
        """What is left of the values of an input or output when the card has stored it."""
        if (input_of_state(name) or name) not in self.settings.mxint8:
            return values
        return round_mxint8(values, -1, rounding()).astype(values.dtype)

    def garbage(self, name: str) -> np.ndarray:
        """What memory holds before anybody wrote to it: NaN as float16, large as any other type."""
        shape = next(binding.shape for binding in self.descriptor.inputs if binding.name == name)
        kind = np.dtype(self._types[name])
        size = int(np.prod(shape.dims, dtype=np.int64)) * kind.itemsize
        return np.full(size, 0x7F, np.uint8).view(kind).reshape(shape.dims)


def card_model(images: Mapping[str, bytes], descriptor: NetworkDescriptor, settings: Settings) -> onnx.ModelProto:
    """The graph as the card runs it."""
    try:
        model = onnx.ModelProto.FromString(images[MODEL])
    except DecodeError as error:
        raise ExecutionError(f"{MODEL} is no model.") from error
    model, pinned = flatten(model, [settings.fp16, settings.fp32])
    types = infer_types(model)
    constants = take_constants(model, images.get(CONSTANTS, b""))
    if settings.mxfp6:
        types |= dict.fromkeys(round_matrices(model.graph, constants), int(onnx.TensorProto.FLOAT))
        types |= dict.fromkeys(round_half_matrices(model.graph), int(onnx.TensorProto.FLOAT16))
    if not settings.half and not settings.fp16:
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    else:
        Halving(model.graph, types, constants, node_rule(settings.half, *pinned)).apply(descriptor)
    return model


def _pair_states(descriptor: NetworkDescriptor) -> dict[str, str]:
    """The output of each retained state by its input."""
    inputs = {binding.name for binding in descriptor.inputs}
    pairs = {input_of_state(binding.name): binding.name for binding in descriptor.outputs}
    return {entry: output for entry, output in pairs.items() if entry in inputs}


def _open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # Fused operators would round less often.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = FATAL  # a run that fails has a status, and a line of the runtime's own
    providers = ["CPUExecutionProvider"]
    if model.ByteSize() < _IN_MEMORY:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        onnx.save_model(model, path, save_as_external_data=True, location=CONSTANTS)
        return onnxruntime.InferenceSession(path, options, providers=providers)


def _numpy_type(text: str) -> np.dtype:
    """The type of an input as onnxruntime spells it: `tensor(float16)`."""
    name = text.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))
