"""Scan, If and Loop with the numbers of the card: what is in a body is computed as it is outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from test_execution import images_of, parsed, product, run, weights, with_constants

from qaic_simulator.microscaling import round_mxfp6
from qaic_simulator.runtime.bodies import infer_types, name_apart
from qaic_simulator.runtime.execution import Network, card_model
from qaic_simulator.runtime.settings import read_settings

HEADER = "g (float[2] s, float[3,2] x, int64 i, float outer) => (float[2] f, float[3,2] y)"
STEP = """
    r = Reciprocal(outer)
    f, y = Scan<num_scan_inputs = 1, body = step (float[2] state, float[2] token) => (float[2] next, float[2] made)
        <float third = {0.333}, float[2] scaled> {
        tenth = Constant<value = float {0.1}>()
        scaled = Mul(token, tenth)
        more = Add(scaled, third)
        next = Add(state, more)
        made = Mul(next, r)
    }>(s, x)
"""
INPUTS = {
    "s": np.array([1000, 0.1], np.float32),
    "x": np.array([[1, 2.001], [3, 4], [60000, 1e6]], np.float32),
    "i": np.array(1),
    "outer": np.array(3, np.float32),
}


def stepped(kind: Any) -> tuple[np.ndarray, np.ndarray]:
    """STEP by hand."""
    with np.errstate(over="ignore"):
        tenth, third, r = kind(0.1), kind(0.333), kind(1) / kind(3)
        state, rows = INPUTS["s"].astype(kind), []
        for token in INPUTS["x"].astype(kind):
            state = state + (token * tenth + third)
            rows.append(state * r)
    return state, np.stack(rows)


def outputs(model: onnx.ModelProto, inputs: dict[str, np.ndarray] = INPUTS, **settings: Any) -> dict[str, np.ndarray]:
    return Network(images_of(model, **settings)).run(inputs)


@pytest.mark.parametrize("function", [False, True])
def test_each_operator_of_a_step_rounds(function: bool) -> None:
    """A function's body, too."""
    model = parsed(f"{HEADER} {{ {STEP} }}")
    if function:
        own = f'<domain: "own", opset_import: ["" : 18]> Steps (s, x, outer) => (f, y) {{ {STEP} }}'
        model = parsed(f"{HEADER} {{ f, y = own.Steps(s, x, outer) }}", functions=own)
    found, (state, rows) = outputs(model), stepped(np.float16)
    assert found["f"].dtype == found["y"].dtype == np.float16
    np.testing.assert_array_equal(found["f"], state)
    np.testing.assert_array_equal(found["y"], rows)
    exact = outputs(model, convert_to_fp16=False)["y"]
    assert np.isinf(rows).any() and (exact[:2] != rows[:2]).all()
    np.testing.assert_allclose(exact, stepped(np.float32)[1], rtol=1e-6)


@pytest.mark.parametrize("name", ["f", "call"])
def test_a_body_keeps_the_precision_of_its_node(name: str) -> None:
    own = f'<domain: "own", opset_import: ["" : 18]> Steps (s, x, outer) => (f, y) {{ {STEP} }}'
    model = parsed(f"{HEADER} {{ {STEP} }}")
    if name == "call":
        model = parsed(f"{HEADER} {{ f, y = own.Steps(s, x, outer) }}", functions=own)
    found = outputs(model, node_precision={"fp32": ["f"], "fp16": []})
    assert found["f"].dtype == found["y"].dtype == np.float32
    # What is put in is a float for the host. What is outside of the body still rounds, if it is not in the call.
    r = np.float32(np.float16(1) / np.float16(3)) if name == "f" else np.float32(1) / np.float32(3)
    np.testing.assert_allclose(found["y"], stepped(np.float32)[1] * 3 * r, rtol=1e-6)
    assert (found["y"][0] != stepped(np.float32)[1][0]).all() == (name == "f")


def test_a_node_of_a_body_keeps_a_precision_of_its_own() -> None:
    """The rest of the body takes float16 of what it makes."""
    model, inputs = parsed(f"{HEADER} {{ {STEP} }}"), {**INPUTS, "s": np.zeros(2, np.float32)}
    inputs["x"] = np.array([[1991, 1], [0, 0], [0, 0]], np.float32)
    tenths = {(): np.float16(1991) * np.float16(0.1), ("scaled",): np.float16(np.float32(1991) * np.float32(0.1))}
    assert len(set(tenths.values())) == 2
    for pinned, tenth in tenths.items():
        found = outputs(model, inputs, node_precision={"fp32": pinned, "fp16": []})["y"]
        assert found.dtype == np.float16
        assert found[0, 0] == (tenth + np.float16(0.333)) * (np.float16(1) / np.float16(3))


def test_what_a_body_gives_has_the_type_of_its_node() -> None:
    """Even where what makes it has another: the sum is rounded there, and nowhere else."""
    model = parsed(f"{HEADER} {{ {STEP} }}")
    pinned, plain = outputs(model, node_precision={"fp32": ["next"], "fp16": []}), outputs(model)
    assert all(pinned[name].dtype == np.float16 and (pinned[name] == plain[name]).all() for name in plain)


BRANCHES = """
    g (float[2] x, int64 i) => (float[2] y) {
        c = Cast<to = 9>(i)
        doubled = Add(x, x)
        y = If(c) <then_branch = a () => (float[2] z) { t = Mul(doubled, x) z = Sqrt(t) },
                   else_branch = b () => (z) { z = Constant<value = float[2] {1.0001, 100000.0}>() }>
    }
"""


def test_branches_with_the_same_names_inside() -> None:
    x = np.array([40000, 1.001], np.float32)
    found = run(parsed(BRANCHES), {"x": x, "i": np.array(1)})
    half = x[1].astype(np.float16)
    assert found.dtype == np.float16 and found.tolist() == [np.inf, np.sqrt((half + half) * half)]
    assert run(parsed(BRANCHES), {"x": x, "i": np.array(0)}).tolist() == [1, np.inf]


LOOP = """
    g (float[2] x, int64 n) => (float[2] y, float[3,2] all) {
        goes = Constant<value = bool {1}>()
        y, all = Loop<body = b (int64 round, bool going, float[2] v) => (bool on, float[2] w, float[2] each) {
            on = Identity(going)
            whole = Cast<to = 1>(round)
            w = Add(v, whole)
            each = If(on) <then_branch = c () => (float[2] z) { q = Div(w, third) z = Mul(q, x) },
                           else_branch = d () => (float[2] z) { z = Identity(v) }>
        }>(n, goes, x)
    }
"""


def test_a_branch_in_a_loop() -> None:
    """It reads what the loop has and what is outside of both; a constant, too."""
    x, n = np.array([2048, 0.1], np.float32), np.array(3)
    model = with_constants(parsed(LOOP), third=np.array(0.333, np.float32))
    found = outputs(model, {"x": x, "n": n})
    value, rows = x.astype(np.float16), []
    for number in range(3):
        value = value + np.float16(number)
        with np.errstate(over="ignore"):
            rows.append(value / np.float16(0.333) * x.astype(np.float16))
    assert (found["y"] == value).all() and value[0] == 2050
    np.testing.assert_array_equal(found["all"], np.stack(rows))


INDICES = """
    g (float[3,2] s, int64[2,3,1] i, float[2,3,2] u) => (float[3,2] f, float[2,3,2] y) {
        f, y = Scan<num_scan_inputs = 2, body = b (float[3,2] v, int64[3,1] at, float[3,2] new) => (w, read) {
            w = ScatterND(v, at, new)
            read = GatherND(w, at)
        }>(s, i, u)
    }
"""


def test_indices_out_of_range_in_a_body() -> None:
    index = np.array([[[0], [2**31 - 1], [2]], [[3], [1], [-1]]])
    updates = np.arange(1, 13, dtype=np.float32).reshape(2, 3, 2)
    found = outputs(parsed(INDICES), {"s": np.zeros((3, 2), np.float32), "i": index, "u": updates})
    assert found["f"].tolist() == [[1, 2], [9, 10], [11, 12]]
    assert found["y"].tolist() == [[[1, 2], [1, 2], [5, 6]], [[1, 2], [9, 10], [11, 12]]]


def external(value: np.ndarray, name: str, start: int) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(value, name)
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, text in {"location": "constants.bin", "offset": str(start), "length": str(size)}.items():
        tensor.external_data.add(key=key, value=text)
    return tensor


def test_data_of_a_body_that_lie_elsewhere() -> None:
    one, two = np.array([1.5, 2.5], np.float32), np.array([4], np.int64)
    nodes = [
        helper.make_node("Constant", [], ["one"], value=external(one, "one", 0)),
        helper.make_node("Cast", ["two"], ["four"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Add", ["x", "one"], ["sum"]),
        helper.make_node("Mul", ["sum", "four"], ["z"]),
    ]
    inside = helper.make_graph(
        nodes, "b", [], [helper.make_empty_tensor_value_info("z")], [external(two, "two", one.nbytes)]
    )
    model = parsed("g (float[2] x, int64 i) => (float[2] y) { c = Cast<to = 9>(i) y = Abs(x) }")
    model.graph.node[1].CopyFrom(helper.make_node("If", ["c"], ["y"], then_branch=inside, else_branch=inside))
    inputs = {"x": np.ones(2, np.float32), "i": np.array(1)}
    assert run(model, inputs, constants=one.tobytes() + two.tobytes()).tolist() == [10, 14]


MATRICES = {
    "outside": ("", "d = MatMul(t, w)", -2),
    "transposed outside": ("v = Transpose<perm = [1, 0]>(w)", "d = MatMul(t, v)", -1),
    "transposed inside": ("", "v = Transpose<perm = [1, 0]>(w) d = MatMul(t, v)", -1),
    "of the body": ("", "v = Constant<value = float[1] {0.0}>() d = Gemm(t, v)", -2),
}


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_in_a_body_go_through_mxfp6(name: str) -> None:
    outside, inside, axis = MATRICES[name]
    w = weights(*((48, 8) if axis == -2 else (8, 48)))
    body = f"y = Scan<num_scan_inputs = 1, body = b (float[2,48] t) => (d) {{ {inside} }}>(x)"
    model = parsed(f"g (float[3,2,48] x) => (float[3,2,8] y) {{ {outside} {body} }}")
    if name == "of the body":
        model.graph.node[0].attribute[1].g.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(w))
    else:
        model = with_constants(model, w=w)
    rounded = round_mxfp6(w, axis)
    matrix, x = rounded if axis == -2 else rounded.T, weights(3, 2, 48)
    found = run(model, {"x": x}, mxfp6=True)
    np.testing.assert_allclose(found, product(x, matrix), rtol=2e-3, atol=2e-3)
    assert not np.allclose(found, run(model, {"x": x}), rtol=2e-3, atol=2e-3)


def test_what_a_body_reads_is_cast_once_where_it_is_made() -> None:
    """Not in each round, and not in both branches."""
    text = """
        g (float[2] x, int64 i) => (float[2] y) {
            c = Cast<to = 9>(i)
            y = If(c) <then_branch = a () => (float[2] z) { z = Sqrt(x) },
                       else_branch = b () => (float[2] z) { z = Exp(x) }>
        }
    """
    images = images_of(parsed(text))
    descriptor = Network(images).descriptor
    model = card_model(images, descriptor, read_settings(images["sim.json"]))
    (condition,) = (node for node in model.graph.node if node.op_type == "If")
    inside = [node for given in condition.attribute for node in given.g.node]
    assert sum("x" in node.input for node in model.graph.node) == 1
    assert sorted(node.op_type for node in inside) == ["Cast", "Cast", "Exp", "Sqrt"]


def test_names_that_branches_share_are_told_apart() -> None:
    model = parsed(BRANCHES)
    assert name_apart(model) == {"z": {"z.body1"}}
    onnx.checker.check_model(model)
    assert infer_types(model)["z.body1"] == infer_types(model)["z"] == onnx.TensorProto.FLOAT


def test_types_are_known_behind_foreign_operators() -> None:
    text = """
        g (float[2] s, float[3,2] x) => (f, y) {
            odd = own.Unheard(s)
            f, y = Scan<num_scan_inputs = 1, body = b (v, t) => (w, made) {
                w = own.Unheard(v)
                made = Identity(t)
            }>(odd, x)
        }
    """
    types = infer_types(parsed(text))
    assert {types[name] for name in ("odd", "v", "w", "f", "t", "y")} == {onnx.TensorProto.FLOAT}
