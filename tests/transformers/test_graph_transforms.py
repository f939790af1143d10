"""Clipping to half precision and splitting into files: exact values, exact names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from QEfficient.graph import weights
from QEfficient.graph.passes import clip_to_half
from QEfficient.graph.weights import ExternalData, place_initializers, write_weights

FLOATS = np.array([1e6, -1e6, 65504.0, -65505.0, 3.25, np.inf, -np.inf], np.float32)
CLIPPED = np.array([65504.0, -65504.0, 65504.0, -65504.0, 3.25, 65504.0, -np.inf], np.float32)


def graph_with(initializers: dict[str, ir.TensorProtocol], constant: np.ndarray) -> ir.Model:
    """Every initializer, and a constant node, as an output."""
    node = ir.node("Constant", [], {"value": ir.tensor(constant)}, name="constant")
    values = [ir.Value(name=name, const_value=tensor) for name, tensor in initializers.items()]
    for value in values:
        assert value.const_value is not None
        value.dtype, value.shape = value.const_value.dtype, ir.Shape(value.const_value.shape)
    outputs = [ir.node("Identity", [value]) for value in (*values, node.outputs[0])]
    ends = [n.outputs[0] for n in outputs]
    graph = ir.Graph([], ends, nodes=[node, *outputs], initializers=values, opset_imports={"": 18}, name="test")
    return ir.Model(graph, ir_version=10)


def test_clipping_keeps_what_half_precision_holds_and_true_minus_infinity() -> None:
    doubles, whole = np.array([1e9]), np.array([10**9])
    model = graph_with({"floats": ir.tensor(FLOATS), "doubles": ir.tensor(doubles), "whole": ir.tensor(whole)}, FLOATS)
    clip_to_half(model)
    found = {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value}
    np.testing.assert_array_equal(found["floats"], CLIPPED)
    np.testing.assert_array_equal(found["doubles"], doubles)
    np.testing.assert_array_equal(found["whole"], whole)
    constant = next(node for node in model.graph if node.op_type == "Constant")
    np.testing.assert_array_equal(constant.attributes["value"].as_tensor().numpy(), CLIPPED)


def test_streamed_weights_are_clipped_as_they_are_written(tmp_path: Path) -> None:
    data = ExternalData(tmp_path, "model", split=True, clip=65504.0)
    for name, dtype in (("wide", torch.float32), ("narrow", torch.float16)):
        data.reserve(name, dtype, (len(FLOATS),))
    data.allocate()
    for name in ("wide", "narrow"):
        data.write(name, torch.from_numpy(FLOATS))
    raw = (tmp_path / "model_0.onnx.data").read_bytes()
    for name, dtype in (("wide", np.float32), ("narrow", np.float16)):
        found = np.frombuffer(raw, dtype, len(FLOATS), data.places[name].offset)
        np.testing.assert_array_equal(found, CLIPPED.astype(dtype))


@pytest.mark.parametrize(
    ("split", "files"),
    [
        (True, {"model_0.onnx.data": 2, "model_1.onnx.data": 2, "model_2.onnx.data": 1}),
        (False, {"model.onnx.data": 5}),
    ],
)
def test_files_of_a_split_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: bool, files: dict[str, int]
) -> None:
    """Five tensors of 4 KiB in files of at most 10 KiB; one of 1,020 bytes stays in the ONNX file."""
    monkeypatch.setattr(weights, "CHUNK_LIMIT", 10 * 1024)
    large = {f"large_{n}": np.full(1024, n, np.float32) for n in range(5)}
    small = np.arange(255, dtype=np.float32)
    tensors = {name: ir.tensor(array) for name, array in {**large, "small": small}.items()}
    model = graph_with(tensors, np.zeros(1, np.float32))
    data = ExternalData(tmp_path, "model", split)
    ready = place_initializers(model, data)
    data.allocate()
    write_weights(data, ready, defaults={}, stream=lambda sink: None, aliases={})
    ir.save(model, tmp_path / "model.onnx")

    stored = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer
    places = {t.name: {e.key: e.value for e in t.external_data}.get("location") for t in stored}
    assert places["small"] is None
    assert {file: list(places.values()).count(file) for file in files} == files
    assert sorted(path.name for path in tmp_path.glob("*.data")) == sorted(files)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    for found, wanted in zip(session.run(None, {}), (*large.values(), small), strict=False):
        np.testing.assert_array_equal(found, wanted)
