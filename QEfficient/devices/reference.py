"""The graph as it was exported, run by ONNX Runtime on the CPU: the judge of every other device."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from QEfficient.devices import Device, EncoderSession, Session
from QEfficient.devices.slotted import SlottedSession, check_batching, write_specializations
from QEfficient.errors import ArtifactError, DeviceError
from QEfficient.program import CompiledEncoder, CompiledProgram, ExportedProgram, StateSpec, TensorSpec
from QEfficient.specs import CompileSpec, EncodeSpec

ORT_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "bool": "tensor(bool)",
}
ROLE = "lm"


class ReferenceDevice(Device):
    """Compiles nothing; opens the ONNX file."""

    name = "reference"
    tasks = frozenset({"causal-lm", "features"})
    options = {"num_threads": int}

    def __init__(self, poison: bool = False) -> None:
        """`poison` fills the initial state with NaN, so that a graph that reads what nobody wrote gives itself away."""
        self._poison = poison

    @classmethod
    def availability(cls) -> str | None:
        if importlib.util.find_spec("onnxruntime") is None:
            return "ONNX Runtime is not installed (pip install onnxruntime)."
        return None

    def compile(self, program: ExportedProgram, spec: CompileSpec, folder: Path) -> Mapping[str, Any]:
        self.own_options(spec.device_options)
        _refuse_bfloat16(program)
        graph = program.graphs[ROLE].spec
        check_batching(graph, spec)
        entries = spec.specializations(graph.windows)
        write_specializations(folder / "specializations.json", entries)
        return {"specializations": len(entries)}

    def load(self, compiled: CompiledProgram, device_ids: Sequence[int] | None = None) -> Session:
        self.has_no_ids(device_ids)
        return ReferenceSession(compiled, self._poison)

    def compile_encoder(self, program: ExportedProgram, spec: EncodeSpec, folder: Path) -> Mapping[str, Any]:
        self.own_options(spec.device_options)
        _refuse_bfloat16(program)
        write_specializations(folder / "specializations.json", spec.specializations())
        return {"specializations": len(spec.seq_lens)}

    def load_encoder(self, compiled: CompiledEncoder) -> EncoderSession:
        return ReferenceEncoder(compiled)


class ReferenceSession(SlottedSession):
    """State goes from one call's outputs to the next call's inputs without a copy."""

    def __init__(self, compiled: CompiledProgram, poison: bool = False) -> None:
        graph = compiled.program.graphs[ROLE].spec
        super().__init__(compiled.spec, graph)
        path = compiled.program.onnx_path(ROLE)
        self._onnx = _open(path, compiled.spec.device_options.get("num_threads", 0))
        _check_contract(path, "input", graph.all_inputs, self._onnx.get_inputs())
        _check_contract(path, "output", graph.all_outputs, self._onnx.get_outputs())
        self._outputs = [tensor.name for tensor in graph.all_outputs]
        self._answer = self._outputs.index(graph.answer)
        symbols = compiled.spec.specializations(graph.windows)[-1].symbols
        self._state = {s.input.name: _ort_value(_garbage(s, symbols, poison)) for s in graph.states}

    def _execute(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        if self._onnx is None:
            raise DeviceError("the session is closed.")
        values = {name: _ort_value(array) for name, array in feeds.items()}
        try:
            results = self._onnx.run_with_ort_values(self._outputs, values | self._state)
        except Exception as error:  # ONNX Runtime's exceptions have no common class below this one
            raise DeviceError(f"ONNX Runtime could not run the program: {error}") from error
        if self._state:
            self._state = dict(zip(self._state, results[-len(self._state) :], strict=True))
        answer: np.ndarray = results[self._answer].numpy()
        return answer

    def states(self) -> dict[str, np.ndarray]:
        return {name: value.numpy().copy() for name, value in self._state.items()}

    def restore(self, states: Mapping[str, np.ndarray]) -> None:
        self._state = {name: _ort_value(states[name]) for name in self._state}

    def close(self) -> None:
        self._onnx = None
        self._state = {}


class ReferenceEncoder(EncoderSession):
    """A graph without state."""

    def __init__(self, compiled: CompiledEncoder) -> None:
        super().__init__(compiled)
        path, graph = compiled.program.onnx_path(ROLE), compiled.program.graphs[ROLE].spec
        self._onnx = _open(path, compiled.spec.device_options.get("num_threads", 0))
        _check_contract(path, "input", graph.all_inputs, self._onnx.get_inputs())
        _check_contract(path, "output", graph.all_outputs, self._onnx.get_outputs())

    def _execute(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        if self._onnx is None:
            raise DeviceError("the session is closed.")
        try:
            results = self._onnx.run(None, {"input_ids": input_ids, "attention_mask": attention_mask})
        except Exception as error:  # see ReferenceSession
            raise DeviceError(f"ONNX Runtime could not run the program: {error}") from error
        features: np.ndarray = results[0]
        return features

    def close(self) -> None:
        self._onnx = None


def _refuse_bfloat16(program: ExportedProgram) -> None:
    if program.dtype == "bfloat16":
        raise DeviceError(
            "the program is bfloat16, for which ONNX Runtime has no CPU kernels. Export it with dtype float32."
        )


def _open(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # its warnings are about the graph's style, and go to stderr
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # see _execute
        version = onnxruntime.__version__
        raise DeviceError(f"ONNX Runtime {version} cannot open {path}: {error}") from error


def _ort_value(array: np.ndarray) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _garbage(state: StateSpec, symbols: Mapping[str, int], poison: bool) -> np.ndarray:
    """Initial content that would spoil the logits of a graph that reads it."""
    shape, dtype = state.tensor.resolve(symbols), np.dtype(state.tensor.dtype)
    if dtype.kind != "f":
        return np.ones(shape, dtype)  # a wild integer may be an index
    pattern = np.array([np.nan]) if poison else np.linspace(-1e3, 1e3, 997)
    return np.resize(pattern.astype(dtype), shape)


def _check_contract(path: Path, what: str, wanted: Iterable[TensorSpec], found: Iterable[Any]) -> None:
    """Refuse a file whose inputs or outputs are not those of its manifest."""
    there = {node.name: (node.type, node.shape) for node in found}
    asked = {t.name: (ORT_TYPES.get(t.dtype, t.dtype), t.shape) for t in wanted}
    for name in sorted(asked.keys() | there.keys()):
        if name not in there or name not in asked or not _same(asked[name], there[name]):
            raise ArtifactError(
                f"{path} breaks its contract: {what} '{name}' is {there.get(name, 'absent')} in the file,"
                f" {asked.get(name, 'absent')} in the manifest. Export the model again."
            )


def _same(asked: tuple[str, Iterable[int | str]], found: tuple[str, Iterable[Any]]) -> bool:
    """Symbols may be renamed by ONNX Runtime; types, ranks and numbers may not differ."""
    numbers = [[d if isinstance(d, int) else None for d in shape] for shape in (asked[1], found[1])]
    return asked[0] == found[0] and numbers[0] == numbers[1]


DEVICE = ReferenceDevice
