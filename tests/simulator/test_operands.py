"""Operands that ONNX's own inference does not compare are compared all the same, and as ONNX Runtime would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from graph_attempts import HALF, Attempt, attempt, rule_of

N4, ROW = "float[1, 4, 8] x", "float[2, 4] x"
INDEX = "k = Constant<value = int64[1, 1, 1] {{{0}}}>()"
PLACE = "k = Constant<value = int64[1, 2] {{{0}}}>()"
PAIRS = {
    "AveragePool": ("y = AveragePool<kernel_shape = [9]>(x)", "y = AveragePool<kernel_shape = [8]>(x)", N4),
    "Clip": ("y = Clip(x, four)", "y = Clip(x, one)", f"{N4}, float[4] four, float one"),
    "Conv": ("y = Conv(x, w, five)", "y = Conv(x, w, six)", f"{N4}, float[6, 4, 1] w, float[5] five, float[6] six"),
    "Conv groups": (
        "y = Conv<group = 2>(x, w)",
        "y = Conv<group = 2>(x, v)",
        f"{N4}, float[7, 2, 1] w, float[6, 2, 1] v",
    ),
    "Conv window": ("y = Conv<dilations = [4]>(x, w)", "y = Conv<dilations = [3]>(x, w)", f"{N4}, float[6, 4, 3] w"),
    "Conv window in strides": (
        "y = Conv<strides = [3]>(x, w)",
        "y = Conv<strides = [3], pads = [1, 1]>(x, w)",
        f"{N4}, float[6, 4, 10] w",
    ),
    "ConvTranspose": (
        "y = ConvTranspose(x, w)",
        "y = ConvTranspose(x, v)",
        f"{N4}, float[3, 2, 1] w, float[4, 2, 1] v",
    ),
    "CumSum": (
        "k = Constant<value = int64 {3}>() y = CumSum(x, k)",
        "k = Constant<value = int64 {-3}>() y = CumSum(x, k)",
        N4,
    ),
    "DepthToSpace": ("y = DepthToSpace<blocksize = 2>(z)", "y = DepthToSpace<blocksize = 3>(z)", "float[1, 9, 2, 2] z"),
    "DequantizeLinear": (
        "y = DequantizeLinear(q, s)",
        "y = DequantizeLinear(q, t)",
        "int8[4, 6] q, float[4] s, float[6] t",
    ),
    "DequantizeLinear axis": (
        "y = DequantizeLinear<axis = 2>(q, t)",
        "y = DequantizeLinear<axis = -1>(q, t)",
        "int8[4, 6] q, float[6] t",
    ),
    "GRU": (
        "h, y = GRU<hidden_size = 5>(x, w, r, , , h0)",
        "h, y = GRU<hidden_size = 5>(x, w, r, , , h1)",
        "float[3, 2, 8] x, float[1, 15, 8] w, float[1, 15, 5] r, float[1, 3, 5] h0, float[1, 2, 5] h1",
    ),
    "GatherElements": (
        "y = GatherElements<axis = 2>(x, k)",
        "y = GatherElements<axis = 2>(x, l)",
        f"{N4}, int64[1, 5, 1] k, int64[1, 3, 9] l",
    ),
    "GatherElements index": (
        f"{INDEX.format(8)} y = GatherElements<axis = 2>(x, k)",
        f"{INDEX.format(-8)} y = GatherElements<axis = 2>(x, k)",
        N4,
    ),
    "GatherND index": (
        f"{PLACE.format('0, 4')} y = GatherND(x, k)",
        f"{PLACE.format('0, -4')} y = GatherND(x, k)",
        N4,
    ),
    "Gemm": ("y = Gemm(x, w, b)", "y = Gemm(x, w, c)", f"{ROW}, float[4, 5] w, float[7] b, float[2, 1] c"),
    "InstanceNormalization": (
        "y = InstanceNormalization(x, b, b)",
        "y = InstanceNormalization(x, c, c)",
        f"{N4}, float[3] b, float[4] c",
    ),
    "LSTM": (
        "h, y = LSTM<hidden_size = 5>(x, w, r)",
        "h, y = LSTM<hidden_size = 5>(x, v, r)",
        "float[3, 2, 8] x, float[1, 20, 7] w, float[1, 20, 8] v, float[1, 20, 5] r",
    ),
    "LpNormalization": ("y = LpNormalization<axis = 2>(x)", "y = LpNormalization<axis = 1>(x)", ROW),
    "MatMulInteger": (
        "z = MatMulInteger(a, b, p) y = Cast<to = 1>(z)",
        "z = MatMulInteger(a, b, , q) y = Cast<to = 1>(z)",
        "int8[3, 4] a, int8[4, 5] b, int8[3] p, int8[5] q",
    ),
    "MaxPool": ("y = MaxPool<kernel_shape = [9]>(x)", "y = MaxPool<kernel_shape = [8]>(x)", N4),
    "PRelu": ("y = PRelu(x, s)", "y = PRelu(x, t)", f"{ROW}, float[3] s, float[4] t"),
    "ReverseSequence": (
        "y = ReverseSequence(z, k)",
        "y = ReverseSequence(z, l)",
        "float[4, 3] z, int64[4] k, int64[3] l",
    ),
    "RoiAlign": (
        "y = RoiAlign(z, r, k)",
        "y = RoiAlign(z, s, k)",
        "float[2, 2, 8, 8] z, float[3, 5] r, float[3, 4] s, int64[3] k",
    ),
    "ScatterElements index": (
        f"{INDEX.format(8)} y = ScatterElements<axis = 2>(x, k, u)",
        f"{INDEX.format(7)} y = ScatterElements<axis = 2>(x, k, u)",
        f"{N4}, float[1, 1, 1] u",
    ),
    "ScatterND index": (
        f"{PLACE.format('0, -5')} y = ScatterND(x, k, u)",
        f"{PLACE.format('0, 3')} y = ScatterND(x, k, u)",
        f"{N4}, float[1, 8] u",
    ),
}
"""By what does not fit: a node that is refused, one that is not, and their inputs."""


def tried(body: str, inputs: str) -> Attempt:
    return replace(attempt(body, inputs), entries=({"batch_size": 1},))


def runs(model: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime makes numbers of the graph, all inputs being ones."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    feeds = {}
    for value in model.graph.input:
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = np.ones([size.dim_value for size in value.type.tensor_type.shape.dim], kind)
    try:
        found = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)
    except Exception:  # onnxruntime has no base for what its sessions raise
        return False
    return all(value.size for value in found)


@pytest.mark.parametrize("name", PAIRS)
def test_operands_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    bad, good, inputs = PAIRS[name]
    assert rule_of(tried(bad, inputs), tmp_path) == "graph.mismatch"
    assert rule_of(tried(good, inputs), tmp_path) == ""


@pytest.mark.parametrize("name", [name for name in PAIRS if not name.endswith("in strides")])
def test_what_runs_elsewhere_is_what_is_accepted(name: str) -> None:
    """But for windows that stride over data shorter than they are, of which ONNX Runtime makes one number."""
    bad, good, inputs = PAIRS[name]
    assert [runs(tried(body, inputs).model) for body in (bad, good)] == [False, True]


def test_scales_of_blocks(tmp_path: Path) -> None:
    node = "y = DequantizeLinear<axis = 0, block_size = 32>(q, s)"
    found = {}
    for rows in (2, 3):
        model = tried(node, f"int8[64, 4] q, float[{rows}, 4] s").model
        model.ir_version, model.opset_import[0].version = 10, 21
        found[rows] = rule_of(Attempt(model, entries=({"batch_size": 1},)), tmp_path)
    assert found == {2: "", 3: "graph.mismatch"}


@pytest.mark.parametrize(
    ("steps", "rule"),
    [
        ("c = Add(most, three) y = Add(i, c)", "constants.int64-range"),
        ("c = Add(most, three) y = Slice(i, c, three)", ""),
        ("c = Add(most, three) d = Div(c, three) y = Add(i, d)", ""),
        ("size = Size(i) c = Mul(most, size) y = Add(i, c)", "constants.int64-range"),
    ],
)
def test_folded_integers_fit_into_32_bits_but_for_bounds(steps: str, rule: str, tmp_path: Path) -> None:
    text = f"most = Constant<value_ints = [2147483647]>() three = Constant<value_ints = [3]>() {steps}"
    bound = text.replace("Slice(i, c, three)", "Slice(i, three, c)")
    found = replace(attempt(bound, "int64[8] i", "int64[m] y"), flags=HALF, entries=({"batch_size": 1},))
    assert rule_of(found, tmp_path) == rule


def test_unsigned_constants_fit_into_32_bits(tmp_path: Path) -> None:
    text = "c = Constant<value = uint64 {1099511627776}>() z = Cast<to = 13>(i) s = Add(z, c) y = Cast<to = 1>(s)"
    found = replace(attempt(text, "int64[8] i"), flags=HALF, entries=({"batch_size": 1},))
    assert rule_of(found, tmp_path) == "constants.int64-range"


@pytest.mark.parametrize(("kind", "rule"), [("uint8", "nodes.cast-uint8"), ("int8", "nodes.cast-int8"), ("int32", "")])
def test_a_cast_like_another_is_a_cast(kind: str, rule: str, tmp_path: Path) -> None:
    assert rule_of(attempt("y = CastLike(z, x)", f"float[n, 4] x, {kind}[n] z"), tmp_path) == rule
