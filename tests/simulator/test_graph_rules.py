"""Every rule about graphs refuses one that breaks it and accepts its twin; exports pass, and none that is broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_attempts import (
    BY_SHAPE,
    HALF,
    PAIRS,
    PLAIN,
    Attempt,
    X,
    attempt,
    branches,
    divided,
    graph,
    precise,
    rule_of,
    run,
    scan,
    with_data,
    with_versions,
    with_weights,
)
from onnx import TensorProto

from qaic_simulator.graph.operators import CONSTANCY, CUSTOM_OPERATORS, OPERATORS
from qaic_simulator.rules import GRAPH_RULES, RULES, SEVERITIES, Refusal
from qaic_simulator.side_files.node_precision import NodePrecision


def test_every_rule_has_its_pair() -> None:
    assert set(PAIRS) == set(GRAPH_RULES) and not set(GRAPH_RULES) & set(RULES)
    for rule in GRAPH_RULES.values():
        assert rule.severity in SEVERITIES and rule.source and rule.sentence.endswith(".")


@pytest.mark.parametrize("rule", PAIRS)
def test_refused(rule: str, tmp_path: Path) -> None:
    assert rule_of(PAIRS[rule][0], tmp_path) == rule


@pytest.mark.parametrize("rule", PAIRS)
def test_twin_accepted(rule: str, tmp_path: Path) -> None:
    assert rule_of(PAIRS[rule][1], tmp_path) == ""


SHAPED_BY_CONSTANTS = {
    "Expand": "y = Expand(x, k)",
    "Slice": "k1 = Constant<value = int64[1] {0}>() y = Slice(x, k, k1)",
    "Pad": "y = Pad(x, k)",
    "Resize": "y = Resize<axes = [1]>(x, , , k)",
    "ConstantOfShape": "z = ConstantOfShape(k) y = Relu(x)",
    "OneHot": "i = ArgMax(x) v = Constant<value = float[2] {0, 1}>() y = OneHot(i, k, v)",
    "Squeeze": "y = Squeeze(x, k)",
    "Unsqueeze": "y = Unsqueeze(x, k)",
    "ReduceMean": "y = ReduceMean(x, k)",
    "TopK": "y, i = TopK(x, k)",
}


@pytest.mark.parametrize("operator", SHAPED_BY_CONSTANTS)
def test_operands_of_every_kind_must_be_constant(operator: str, tmp_path: Path) -> None:
    found = rule_of(attempt(SHAPED_BY_CONSTANTS[operator], f"{X}, int64[1] k"), tmp_path)
    assert found in {requirement.rule for requirement in CONSTANCY[operator]}


def test_a_sum_of_known_length_is_taken_whatever_operators_its_steps_have(tmp_path: Path) -> None:
    good, bad = scan("8", "shape = Shape(row) a = Reshape(row, shape)"), scan("8", "k = NonZero(row)")
    assert rule_of(good, tmp_path) == "" and rule_of(bad, tmp_path) == "nodes.data-dependent"
    assert run(good, tmp_path).specializations[0].outputs == {"y": (8, 4), "last": (4,)}


def test_a_branch_of_a_constant_condition_stands_for_both(tmp_path: Path) -> None:
    imported = run(branches(BY_SHAPE), tmp_path)
    assert [entry.outputs for entry in imported.specializations] == [{"y": (2, 4)}, {"y": (3, 4)}]


def test_a_value_that_is_constant_but_not_worked_out_decides_about_no_shape(tmp_path: Path) -> None:
    """ONNX Runtime folds a square root; the compiler does not."""
    root = "four = Constant<value = float[1] {4}>() root = Sqrt(four) k = Cast<to = 7>(root) y = Expand(x, k)"
    assert rule_of(attempt(root, "float[n, 1] x"), tmp_path) == "constancy.repeats"


TWO_OPERANDS = "step (float a, float b) => (float c) { c = Add(a, b) }"
MALFORMED = {
    "an attribute is missing": "y = Concat(x, x)",
    "an attribute is unknown": "y = Relu<alpha = 1.0>(x)",
    "an attribute is of another type": "y = Concat<axis = 1.5>(x, x)",
    "an operand is missing": "y = Add(x)",
    "an operand is too many": "y = Relu(x, x)",
    "the opset does not have it yet": "y = Gelu(x)",
    "the opset does not have it any more": "s = Constant<value = float[2] {1, 1}>() y = Upsample(x, s)",
    "the body is of another form": f"y = Scan<num_scan_inputs = 1, body = {TWO_OPERANDS}>(x)",
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_nodes_are_as_their_opset_says(fault: str, tmp_path: Path) -> None:
    assert rule_of(attempt(MALFORMED[fault]), tmp_path) == "graph.malformed"


MISFITS = {
    "Reshape": ("k = Constant<value_ints = [5]>() y = Reshape(x, k)", X),
    "Conv": ("y = Conv(z, w)", f"{X}, float[n, 3, 8, 8] z, float[2, 2, 3, 3] w"),
    "LayerNormalization": ("y = LayerNormalization(x, s)", f"{X}, float[3] s"),
    "Gather": ("k = Constant<value_int = -5>() y = Gather<axis = 1>(x, k)", X),
    "GatherElements": ("y = GatherElements(x, k)", f"{X}, int64[n] k"),
    "ScatterElements": ("y = ScatterElements(x, k, u)", f"{X}, int64[n, 2] k, float[n, 3] u"),
}


@pytest.mark.parametrize("operator", MISFITS)
def test_operands_that_onnx_does_not_compare(operator: str, tmp_path: Path) -> None:
    body, inputs = MISFITS[operator]
    assert rule_of(attempt(body, inputs), tmp_path) == "graph.mismatch"


def test_refusals_name_node_and_versions(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as found:
        run(PAIRS["constancy.reshape"][0], tmp_path)
    assert found.value.message == (
        "[Operator-'y', opset_version-18, ir_version-8] : Reshape: Non-constant shape tensor not supported."
    )


def test_a_lenient_profile_has_no_rules_of_ours_or_glows(tmp_path: Path) -> None:
    assert rule_of(with_versions(19), tmp_path, strict=False) == ""
    assert rule_of(with_versions(ir_version=2), tmp_path, strict=False) == ""
    assert rule_of(PAIRS["constancy.reshape"][0], tmp_path, strict=False) == "constancy.reshape"


def test_dead_inputs_tell_nothing_apart(tmp_path: Path) -> None:
    """What an output depends on by its shape only is alive; what no output depends on is not."""
    fixed = "float[2, 4] x, float[n] length"
    dead = attempt("z = Relu(length) y = Relu(x)", fixed)
    alive = attempt("z = Shape(length) y = Expand(x, z)", "float[1] x, float[n] length")
    assert rule_of(dead, tmp_path) == "specializations.indistinguishable"
    assert rule_of(alive, tmp_path) == "" and run(alive, tmp_path).live_inputs == ("x", "length")


def test_every_way_to_divide_is_one(tmp_path: Path) -> None:
    by = {"y = Reciprocal(root)", "k = Constant<value_float = -0.5>() y = Pow(safe, k)"}
    assert {rule_of(divided("1e-20", last), tmp_path) for last in by} == {"constants.epsilon"}
    assert rule_of(divided("1e-20", "y = Div(root, x)"), tmp_path) == ""
    assert rule_of(replace(divided("1e-20"), nodes=NodePrecision((), ("safe",))), tmp_path) == ""
    assert rule_of(replace(divided("1e-20"), flags=()), tmp_path) == ""


def test_a_state_has_a_precision_on_both_sides(tmp_path: Path) -> None:
    """The file alone cannot tell: other inputs have a precision without any partner."""
    assert rule_of(precise("float16", "x"), tmp_path) == ""
    assert rule_of(precise("float16", "past"), tmp_path) == "custom-io.pair"


def test_an_operator_is_sliced_as_its_partition_is(tmp_path: Path) -> None:
    assert rule_of(with_weights(1, rows=1997, devices=2), tmp_path) == ""
    assert rule_of(with_weights(1, rows=1997, flags=("mxfp6-matmul",)), tmp_path) == ""


def test_memory_depends_on_card_and_compression(tmp_path: Path) -> None:
    assert rule_of(replace(with_weights(7), sku="standard"), tmp_path) == "graph.memory"
    assert rule_of(replace(with_weights(7), sku="ultra"), tmp_path) == ""
    assert rule_of(replace(with_weights(7, flags=("mxfp6-matmul",)), sku="standard"), tmp_path) == ""
    assert rule_of(replace(PLAIN, entries=({"n": 2}, {"n": 2**31})), tmp_path) == "graph.memory"


def test_external_data_is_looked_at_for_fp16(tmp_path: Path) -> None:
    values = np.zeros(400, np.float32)
    values[399] = 1e6
    tried = replace(with_data(), change=lambda path: (path.parent / "data.bin").write_bytes(values.tobytes()))
    assert rule_of(tried, tmp_path) == ""
    assert rule_of(replace(tried, flags=HALF), tmp_path) == "constants.half-range"


@pytest.mark.parametrize(
    "steps", ["c = Exp(twenty)", "c = Pow(twenty, twenty)", "a = Exp(twenty) b = Neg(a) c = Abs(b)"]
)
def test_what_decides_about_no_shape_is_a_number_all_the_same(steps: str, tmp_path: Path) -> None:
    """Folded by the compiler, though not by the operators whose results we let decide about shapes."""
    text = f"twenty = Constant<value = float {{20}}>() {steps}"
    assert rule_of(replace(attempt(f"{text} y = Add(x, c)"), flags=HALF), tmp_path) == "constants.half-range"
    assert rule_of(replace(attempt(f"{text} d = Reciprocal(c) y = Add(x, d)"), flags=HALF), tmp_path) == ""
    assert rule_of(attempt(f"{text} y = Add(x, c)"), tmp_path) == ""


def test_an_input_of_which_nobody_says_the_shape(tmp_path: Path) -> None:
    tried = attempt("k = Shape(z) y = Reshape(x, k)", f"{X}, float[n, 4] z")
    tried.model.graph.input[1].type.tensor_type.ClearField("shape")
    assert rule_of(tried, tmp_path) == "graph.dynamic"


def test_small_external_data_may_decide_about_shapes(tmp_path: Path) -> None:
    model = graph("y = Reshape(x, k)")
    shape = TensorProto(name="k", data_type=TensorProto.INT64, dims=[1], data_location=TensorProto.EXTERNAL)
    shape.external_data.add(key="location", value="data.bin")
    model.graph.initializer.append(shape)
    value = np.array([-1]).tobytes()
    tried = Attempt(model, change=lambda path: (path.parent / "data.bin").write_bytes(value))
    assert run(tried, tmp_path).specializations[1].outputs == {"y": (12,)}


def test_custom_operators_are_none_of_onnx() -> None:
    schemas = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    assert schemas >= OPERATORS and not {name for _, name in CUSTOM_OPERATORS} & OPERATORS
