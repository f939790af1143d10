"""Epsilons that float16 does not hold, and integers that int32 does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from QEfficient.devices.cloud_ai_100.graph.half_range import within_half
from QEfficient.devices.cloud_ai_100.graph.small_constants import SMALLEST, raise_epsilons

HEAD = '<ir_version: 10, opset_import: ["" : 18, "own" : 1]> toy (float[2] x) => (float[2] y) '
END = "zero = Sub(x, x) sum = Add(zero, small) root = Sqrt(sum) y = Div(x, root)"


def graph(body: str, rest: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(f"{HEAD}{body}{rest}")


def result(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    computed: np.ndarray = session.run(None, {"x": np.array([0.5, -3.0], np.float32)})[0]
    return computed


RAISED = np.array([0.5, -3.0]) / np.sqrt(SMALLEST)


@pytest.mark.parametrize(
    "model",
    [
        graph("<float small = {1e-20}> {" + END + "}"),
        graph("{ small = Constant<value_float = 1e-20>() " + END + "}"),
        graph("{ tiny = Constant<value_float = 1e-20>() small = CastLike(tiny, x) " + END + "}"),
        graph(
            "{ y = own.Safe(x) }",
            '<domain: "own", opset_import: ["" : 18]> Safe (x) => (y) { small = Constant<value_float = 1e-20>() '
            + END
            + "}",
        ),
        graph("<float small = {1e-20}> { zero = Sub(x, x) sum = Max(small, zero) root = Sqrt(sum)"
              " inverse = Reciprocal(root) y = Mul(x, inverse) }"),
        graph("<float small = {1e-20}> { zero = Sub(x, x) sum = Clip(zero, small) less = Constant<value_float = -0.5>()"
              " inverse = Pow(sum, less) y = Mul(x, inverse) }"),
    ],
    ids=["initializer", "constant", "cast", "function", "reciprocal", "power"],
)  # fmt: skip
def test_what_keeps_a_denominator_from_zero(tmp_path: Path, model: onnx.ModelProto) -> None:
    assert raise_epsilons(model, tmp_path)
    np.testing.assert_allclose(result(model), RAISED, rtol=1e-6)
    assert not raise_epsilons(model, tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        "<float small = {1e-20}> { sum = Add(x, small) y = Sqrt(sum) }",
        "<float small = {1e-20}> { product = Mul(x, small) y = Div(x, product) }",
        "<float small = {1e-7}> { sum = Add(x, small) y = Div(x, sum) }",
        "<float small = {1e-20}> { sum = Add(x, small) y = Div(sum, x) }",
    ],
    ids=["no division", "a factor", "large enough", "a numerator"],
)
def test_other_numbers_stay(tmp_path: Path, body: str) -> None:
    model = graph(body)
    before = model.SerializeToString()
    assert not raise_epsilons(model, tmp_path)
    assert model.SerializeToString() == before


def test_the_same_number_stays_where_it_is_none(tmp_path: Path) -> None:
    model = graph("<float small = {1e-20}> { sum = Add(x, small) ratio = Div(x, sum) y = Mul(ratio, small) }")
    assert raise_epsilons(model, tmp_path)
    assert [float(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer] == [np.float32(1e-20)]
    assert model.graph.node[-1].input[1] == "small" != model.graph.node[1].input[1]


def test_attributes(tmp_path: Path) -> None:
    scale = "<float[2] scale = {1.0, 1.0}> "
    model = graph(scale + "{ y = LayerNormalization<epsilon = 1e-12>(x, scale) }")
    assert raise_epsilons(model, tmp_path) and model.graph.node[0].attribute[0].f == SMALLEST
    assert not raise_epsilons(graph(scale + "{ y = LayerNormalization<epsilon = 1e-5>(x, scale) }"), tmp_path)


def integers(folder: Path, body: str) -> list[int]:
    onnx.save(graph(body), folder / "m.onnx")
    (folder / "scratch").mkdir()
    model = onnx.load(within_half(folder / "m.onnx", folder / "scratch"))
    found = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    found += [a.ints or [a.i] for node in model.graph.node for a in node.attribute if a.name.startswith("value_int")]
    return [int(number) for numbers in found for number in np.ravel(numbers)]


def test_bounds_of_slices_are_of_32_bits(tmp_path: Path) -> None:
    far = (
        f"<int64[1] end = {{{2**63 - 1}}}> {{ start = Constant<value_ints = [{-(2**63)}]>() y = Slice(x, start, end) }}"
    )
    assert integers(tmp_path, far) == [2**31 - 1, -(2**31)]


def test_integers_that_are_computed_with_stay(tmp_path: Path) -> None:
    far = (
        f"<int64[1] end = {{{2**40}}}> {{ one = Constant<value_ints = [1]>() e = Mul(end, one) y = Slice(x, one, e) }}"
    )
    assert integers(tmp_path, far) == [2**40, 1]
