"""Norms whose squares stay in the range of float16, wherever they stand, and give what they gave."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices.cloud_ai_100.graph.steady_norms import steady_norms
from QEfficient.verification.tiny_models import tiny_model

NORM = """<ir_version: 10, opset_import: ["" : 18]>
norm (float[2, 3, 64] x) => (float[2, 3, 64] y, float[2, 3, 1] root) {
    axes = Constant<value = int64[1] {-1}>()
    two = Constant<value = float {2.0}>()
    epsilon = Constant<value = float {1.0e-6}>()
    SQUARE
    average = AVERAGE<keepdims = 1>(square, axes)
    shifted = Add(SUMMANDS)
    root = Sqrt(shifted)
    y = Div(x, root)
}"""
FORMS = [
    (square, average, summands)
    for square in ("square = Pow(x, two)", "square = Mul(x, x)")
    for average in ("ReduceMean", "ReduceSum")
    for summands in ("average, epsilon", "epsilon, average")
]


def norm(square: str, average: str, summands: str) -> onnx.ModelProto:
    text = NORM.replace("SQUARE", square).replace("AVERAGE", average).replace("SUMMANDS", summands)
    return parser.parse_model(text)


def run(model: onnx.ModelProto, values: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {"x": values})
    return found


def largest(model: onnx.ModelProto, values: np.ndarray) -> float:
    """Of anything that is computed on the way."""
    whole = copy.deepcopy(model)
    names = {output for node in model.graph.node if node.op_type != "Constant" for output in node.output}
    del whole.graph.output[:]
    for name in sorted(names):
        whole.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return max(float(np.abs(found).max()) for found in run(whole, values))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-3, 1.0, 300.0, 6e4])
def test_the_same_norm_without_large_numbers(form: tuple[str, str, str], size: float) -> None:
    model = norm(*form)
    values = (np.random.default_rng(3).standard_normal((2, 3, 64)) * size).clip(-size, size).astype(np.float32)
    wanted, names = run(model, values), [node.output[0] for node in model.graph.node]
    assert steady_norms(model)
    onnx.checker.check_model(model)
    assert set(names) <= {node.output[0] for node in model.graph.node}, (
        "names of nodes are what precisions are given by"
    )
    for found, want in zip(run(model, values), wanted, strict=True):
        assert np.allclose(found, want, rtol=1e-5, atol=1e-12)
    # what the root is then multiplied by, a sum over 64 numbers included, stays below as well
    assert largest(model, values) <= max(size, 1.0) * (8 if form[1] == "ReduceSum" else 1) + 64


@pytest.mark.parametrize(
    "change",
    [
        ("y = Div(x, root)", "y = Div(square, root)"),  # somebody else reads the square
        ("Pow(x, two)", "Pow(x, epsilon)"),
        ("keepdims = 1", "keepdims = 0"),
        (
            "epsilon = Constant",
            "other = Constant<value = float {1.0e-6}>() epsilon = Add(other, two) unused = Constant",
        ),
    ],
)
def test_what_is_no_such_norm_stays(change: tuple[str, str]) -> None:
    text = NORM.replace("SQUARE", "square = Pow(x, two)").replace("AVERAGE", "ReduceMean")
    model = parser.parse_model(text.replace("SUMMANDS", "average, epsilon").replace(*change))
    before = copy.deepcopy(model)
    assert not steady_norms(model)
    assert model == before


def test_within_functions_and_bodies() -> None:
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18, "own" : 1]>
        main (float[5, 4] x) => (float[5, 4] y, float[5, 4] z) {
            y = own.normed (x)
            unused, z = Scan <num_scan_inputs = 1, body = step (float[4] before, float[4] row) => (after, normed) {
                axes = Constant<value = int64[1] {0}>()
                two = Constant<value = float {2.0}>()
                epsilon = Constant<value = float {1.0e-5}>()
                square = Pow(row, two)
                average = ReduceMean(square, axes)
                shifted = Add(average, epsilon)
                root = Sqrt(shifted)
                normed = Div(row, root)
                after = Add(before, normed)
            }> (start, x)
        }
        <domain: "own", opset_import: ["" : 18]>
        normed (x) => (y) {
            axes = Constant<value = int64[1] {-1}>()
            epsilon = Constant<value_float = 1.0e-5>()
            square = Mul(x, x)
            average = ReduceMean(square, axes)
            shifted = Add(average, epsilon)
            root = Sqrt(shifted)
            y = Div(x, root)
        }""".replace("(float[5, 4] x) =>", "(float[5, 4] x, float[4] start) =>")
    )
    values = {
        "x": np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32),
        "start": np.zeros(4, np.float32),
    }

    def outputs() -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found: list[np.ndarray] = session.run(None, values)
        return found

    wanted = outputs()
    assert steady_norms(model)
    assert sum(node.op_type == "Abs" for node in model.functions[0].node) == 1
    assert str(model.graph).count("ReduceMax") == 1
    assert all(np.allclose(a, b, rtol=1e-5) for a, b in zip(outputs(), wanted, strict=True))


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "olmo2"])
def test_every_norm_of_a_model(model_type: str) -> None:
    path = QEFFAutoModelForCausalLM(tiny_model(model_type)).export()
    model = onnx.load(path, load_external_data=False)
    roots = sum(node.op_type == "Sqrt" for node in model.graph.node)
    steady_norms(model)
    assert roots and sum(node.op_type == "Abs" for node in model.graph.node) == roots
