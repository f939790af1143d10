"""A session that computes as the card would, on ONNX Runtime, and takes measures if asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from QEfficient.devices import Batch, Limits, Session
from QEfficient.devices.cloud_ai_100 import custom_io
from QEfficient.devices.cloud_ai_100.numerics.card_graph import CARD, CardGraph, Format, build
from QEfficient.devices.cloud_ai_100.numerics.flat import FlatGraph
from QEfficient.devices.cloud_ai_100.numerics.measures import Gathered, Measure
from QEfficient.devices.cloud_ai_100.numerics.microscaling import round_mxint8
from QEfficient.errors import DeviceError
from QEfficient.program import GraphSpec
from QEfficient.specs import CompileSpec

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


class CardSession(Session):
    """One sequence. With `measured` tensors the program as exported runs beside it."""

    def __init__(
        self,
        flat: FlatGraph,
        graph: GraphSpec,
        spec: CompileSpec,
        asked: Format = Format(),  # noqa: B008 it is frozen
        measured: Sequence[str] = (),
    ) -> None:
        self._graph, self._asked = graph, asked
        positions = graph.context.positions or spec.ctx_len
        each = spec.prefill_seq_len if all_tokens(graph) else 1
        self.limits = Limits(1, spec.prefill_seq_len, min(spec.ctx_len, positions), 1, 1, logits=each)
        made = build(flat, asked, measured)
        self._twins = made.names
        self._onnx: Any = _open(made, flat)
        self._matrices = {name: _value(matrix) for name, matrix in made.matrices.items()}
        self._gathered = {output: Gathered(names) for output, names in made.measured.items()}
        symbols = spec.specializations(graph.windows)[0].symbols
        taken = {value.name for value in self._onnx.get_inputs()}
        self._states: dict[str, Any] = {}
        for state in graph.states:
            empty = np.zeros(state.input.resolve(symbols), state.input.dtype)
            names = (state.input.name, state.input.name + CARD)
            self._states |= {name: _value(empty) for name in names if name in taken}
        self._given = taken

    def run(self, batch: Batch) -> np.ndarray:
        self.limits.check(batch)
        (row,) = batch.rows
        if self._onnx is None:
            raise DeviceError("the session is closed.")
        length = len(row.tokens)
        if self.limits.logits > 1:  # the rest of a chunk is filled with tokens: padding would be measured too
            length = min(self.limits.chunk, self.limits.ctx_len - row.start)
        tokens = np.resize(np.array(row.tokens, np.int64), length)[None]
        positions = np.arange(row.start, row.start + length)[None]
        slot = np.zeros((1, 1), np.int64)
        logits = self._execute({"input_ids": tokens, "position_ids": positions, "batch_index": slot})
        last = len(row.tokens) if self.limits.logits > 1 else 1
        return logits[0, last - row.logits : last].astype(np.float32)

    def measures(self) -> dict[str, Measure]:
        """What was measured in all runs together."""
        return {name: found for each in self._gathered.values() for name, found in each.found().items()}

    def close(self) -> None:
        self._onnx = None
        self._states = {}

    def _execute(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        given = {name: _value(array) for name, array in feeds.items() if name in self._given}
        names = [output.name for output in self._onnx.get_outputs()]
        try:
            found = self._onnx.run_with_ort_values(names, given | self._states | self._matrices)
        except Exception as error:  # ONNX Runtime's exceptions have no common class below this one
            raise DeviceError(f"ONNX Runtime could not run the program: {error}") from error
        results = dict(zip(names, found, strict=True))
        self._keep(results)
        for output, gathered in self._gathered.items():
            gathered.add(results[output].numpy())
        logits: np.ndarray = results[self._twins.get("logits", "logits")].numpy()
        return logits

    def _keep(self, results: Mapping[str, Any]) -> None:
        for state in self._graph.states:
            for name, made in (
                (state.input.name, state.output.name),
                (state.input.name + CARD, self._twins.get(state.output.name, "")),
            ):
                if name in self._states:
                    is_twin = made.endswith(CARD)
                    self._states[name] = self._stored(results[made], state.kind) if is_twin else results[made]

    def _stored(self, value: Any, kind: str) -> Any:
        """A state as the card's memory holds it."""
        kept: np.ndarray = value.numpy()
        if self._asked.half:
            with np.errstate(over="ignore"):
                kept = kept.astype(np.float16).astype(np.float32)
        if self._asked.mxint8 and kind in custom_io.CACHE:
            kept = round_mxint8(kept, -1)
        return _value(kept.astype(value.numpy().dtype, copy=False))


def all_tokens(graph: GraphSpec) -> bool:
    """Whether one run can give the logits after every token: not where the whole context is computed again."""
    return not any(state.kind == "tokens" for state in graph.states)


def _open(made: CardGraph, flat: FlatGraph) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Fused operators would round less often.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_reuse = options.enable_mem_pattern = False  # planning that takes the square of the nodes
    options.log_severity_level = 3
    options.add_session_config_entry(WEIGHTS_FOLDER, str(flat.folder))
    try:
        return onnxruntime.InferenceSession(made.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # see _execute
        raise DeviceError(f"ONNX Runtime {onnxruntime.__version__} cannot open the program: {error}") from error


def _value(array: np.ndarray) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
