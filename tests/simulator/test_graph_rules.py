"""Every rule about graphs refuses one that breaks it and accepts its twin; exports pass, and none that is broken."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from qaic_simulator.command_line.arguments import Arguments
from qaic_simulator.command_line.checking import Checked
from qaic_simulator.graph.checks import Imported, check_graph
from qaic_simulator.graph.file import read_model
from qaic_simulator.graph.operators import CONSTANCY, CUSTOM_OPERATORS, OPERATORS
from qaic_simulator.profiles import profile_of
from qaic_simulator.rules import GRAPH_RULES, RULES, SEVERITIES, Refusal
from qaic_simulator.side_files.node_precision import NodePrecision
from qaic_simulator.side_files.partitions import Device, Partition, PartitionConfig
from qaic_simulator.side_files.specializations import Specialization

X = "float[n, 4] x"
HALF = ("convert-to-fp16",)
STATE = "float[n, 4] x, float[n, 32] past"


def graph(body: str, inputs: str = X, outputs: str = "float[m] y", opset: int = 18) -> onnx.ModelProto:
    """A program in ONNX's own notation."""
    head = f'<ir_version: 8, opset_import: ["" : {opset}, "com.qti.aisw.onnx" : 1, "own" : 1, "strange" : 1]>'
    return onnx.parser.parse_model(f"{head} program ({inputs}) => ({outputs}) {{ {body} }}")


def numbers(*values: int) -> str:
    return f"value = int64[{len(values)}] {{{', '.join(map(str, values))}}}"


@dataclass(frozen=True)
class Attempt:
    """A graph, and what the command says about it."""

    model: onnx.ModelProto
    flags: tuple[str, ...] = ()
    precisions: Mapping[str, str] = field(default_factory=dict)
    nodes: NodePrecision | None = None
    partitions: PartitionConfig | None = None
    change: Callable[[Path], object] = lambda path: None
    """What happens to the model's file before it is read."""
    entries: tuple[Mapping[str, int], ...] = ({"n": 2}, {"n": 3})
    sku: str = "ultra"


def attempt(body: str, inputs: str = X, outputs: str = "float[m] y") -> Attempt:
    return Attempt(graph(body, inputs, outputs))


def run(tried: Attempt, folder: Path, sdk: str = "1.22", strict: bool = True) -> Imported:
    path = folder / "model.onnx"
    path.write_bytes(tried.model.SerializeToString())
    tried.change(path)
    profile = profile_of(sdk, tried.sku, strict)
    entries = tuple(Specialization(f"Graph_{i}", symbols) for i, symbols in enumerate(tried.entries))
    arguments = Arguments("qaic-compile", dict.fromkeys(tried.flags, ("1",)))
    checked = Checked(arguments, tried.partitions, entries, tried.precisions, tried.nodes)
    return check_graph(read_model(path, profile), path, checked, profile)


def rule_of(tried: Attempt, folder: Path, strict: bool = True) -> str:
    """The rule that an attempt is refused for, or nothing."""
    try:
        run(tried, folder, strict=strict)
    except Refusal as refusal:
        return refusal.rule.id
    return ""


def with_versions(opset: int = 18, ir_version: int = 8) -> Attempt:
    model = graph("y = Relu(x)", opset=opset)
    model.ir_version = ir_version
    return Attempt(model)


def without_opset() -> Attempt:
    model = graph("y = Relu(x)")
    del model.opset_import[0]
    return Attempt(model)


def with_function(body: str, domain: str = "own") -> Attempt:
    """A graph that calls a function with its input and with the constant 4."""
    call = f"four = Constant<{numbers(4)}>() y = {domain}.Inner(x, four)"
    model = graph(call)
    versions = f'<domain: "{domain}", opset_import: ["" : 18]>'
    model.functions.append(onnx.parser.parse_function(f"{versions} Inner (data, count) => (result) {{ {body} }}"))
    return Attempt(model, ("sub-functions",))


def untyped() -> Attempt:
    """A graph whose output has no type."""
    model = graph("y = Concat<axis = 0>(x, x)")
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
    return Attempt(model)


def with_data(offset: int = 0, length: int = 1600, location: str = "data.bin", there: int = 1600) -> Attempt:
    """A graph whose weight is a file beside it, or is said to be."""
    model = graph("y = MatMul(x, weight)")
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[4, 100], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": str(offset), "length": str(length)}.items():
        weight.external_data.add(key=key, value=value)
    model.graph.initializer.append(weight)
    return Attempt(model, change=lambda path: (path.parent / location).write_bytes(bytes(there)))


def with_constant(value: object, kind: type = np.float32, body: str = "y = Add(x, c)") -> Attempt:
    model = graph(body)
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, kind), "c"))
    return Attempt(model, HALF)


def with_weights(matrices: int, devices: int = 1, flags: tuple[str, ...] = (), rows: int = 1000) -> Attempt:
    """Matrices of so many rows of 2**20, which share a file none of whose bytes are there: it is sparse."""
    size = rows * 2**20 * 4
    names = [f"weight{number}" for number in range(matrices)]
    model = graph(" ".join(f"y{name} = MatMul(x, {name})" for name in names) + f" y = Relu(y{names[-1]})")
    weight = with_data(length=size).model.graph.initializer[0]
    for name in names:
        weight.name, weight.dims[:] = name, [rows, 2**20]
        model.graph.initializer.append(weight)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = rows
    sliced = PartitionConfig((Partition("P", tuple(Device(i, 16) for i in range(devices)), ()),), ())
    return Attempt(model, flags, partitions=sliced, change=lambda path: sparse(path.parent / "data.bin", size))


def sparse(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


def grow(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def divided(epsilon: str, last: str = "y = Div(x, root)") -> Attempt:
    text = f"tiny = Constant<value_float = {epsilon}>() square = Mul(x, x) safe = Add(square, tiny) root = Sqrt(safe)"
    return replace(attempt(f"{text} {last}"), flags=HALF)


def scatter(updates: str) -> Attempt:
    """Each row of the input is written over by one of the updates."""
    return attempt("y = ScatterND(x, k, u)", f"{X}, int64[n, 1] k, {updates}")


def scan(length: str, extra: str = "") -> Attempt:
    """A running sum over the first axis of the input."""
    body = f"{{ next = Add(sum, row) {extra} out = Identity(next) }}"
    step = f"(float[4] sum, float[4] row) => (float[4] next, float[4] out) {body}"
    first = "zero = Constant<value = float {0}>() four = Constant<value = int64[1] {4}>() start = Expand(zero, four)"
    text = f"{first} last, y = Scan<num_scan_inputs = 1, body = sums {step}>(start, x)"
    tried = attempt(text, f"float[{length}, 4] x", "float[m] y, float[4] last")
    return replace(tried, entries=({"batch_size": 1},))


def loop(limit: str) -> Attempt:
    body = "(int64 i, bool go, float[n, 4] old) => (bool on, float[n, 4] new) { on = Identity(go) new = Add(old, x) }"
    text = f"{limit} yes = Constant<value = bool {{1}}>() y = Loop<body = rounds {body}>(limit, yes, x)"
    return attempt(text)


def branches(condition: str, outputs: str = "y", more: str = "") -> Attempt:
    kinds = ", ".join(f"float[n, 4] {{0}}{i}" for i in range(len(outputs.split(","))))
    bodies = [
        f"{name} () => ({kinds.format(name)}) {{ {name}0 = {op}(x) {more.format(name)} }}" for name, op in BRANCHES
    ]
    text = f"{condition} {outputs} = If<then_branch = {bodies[0]}, else_branch = {bodies[1]}>(condition)"
    return attempt(text, outputs=", ".join(f"float[n, 4] {name}" for name in outputs.split(",")))


BRANCHES = (("yes", "Neg"), ("no", "Abs"))
BY_SHAPE = "size = Size(x) few = Constant<value = int64 {100}>() condition = Less(size, few)"
BY_VALUE = "top = ReduceMax<keepdims = 0>(x) few = Constant<value = float {1}>() condition = Less(top, few)"
KEEP = "past_RetainedState = Concat<axis = 1>(x, rest)"
CUT = f"four = Constant<{numbers(4)}>() end = Constant<{numbers(32)}>() one = Constant<{numbers(1)}>()"
REST = f"{CUT} rest = Slice(past, four, end, one) y = Relu(x) {KEEP}"
OUT = "float[m] y, float[m, 32] past_RetainedState"
TO_INTEGER = "k = Cast<to = 7>(x)"
ROW = "zero = Constant<value = int64[1] {0}>() size = Constant<value = int64[1] {1}>() wide = Slice(x, zero, size)"


def from_input(operator: str, operands: str, shape: str = "k", attributes: str = "") -> Attempt:
    """An operand that decides about a shape, as an input."""
    return attempt(f"y = {operator}{attributes}({operands})", f"{X}, int64[{shape}] k")


def from_constant(operator: str, operands: str, k: str, attributes: str = "", y: str = "float[m] y") -> Attempt:
    return attempt(f"k = Constant<value = int64{k}>() y = {operator}{attributes}({operands})", outputs=y)


def two_partitions(*names: str) -> Attempt:
    model = graph("a = Relu(x) b = Neg(a) y = Abs(b)")
    for node, name in zip(model.graph.node, ("first", "second", "third"), strict=True):
        node.name = name
    parts = tuple(Partition(f"P{i}", (Device(i, 16),), (name,)) for i, name in enumerate(names))
    return Attempt(model, partitions=PartitionConfig(parts, ()))


def precision(name: str) -> Attempt:
    return replace(attempt("y = Relu(x)"), nodes=NodePrecision((), (name,)))


PLAIN = attempt("y = Relu(x)")
STATEFUL = attempt(REST, STATE, OUT)
LONELY = f"{OUT}, float[m] other_RetainedState"
TWO_STATES = f"{OUT}, float[m, 32] past_InternalRetainedState"


BOTH_SIDES = ("past", "past_RetainedState")


def precise(precision: str, *names: str) -> Attempt:
    return replace(STATEFUL, precisions=dict.fromkeys(names, precision))


SEQUENCE = "s = SequenceConstruct(x) zero = Constant<value = int64 {0}>() y = SequenceAt(s, zero)"
PAIRS: dict[str, tuple[Attempt, Attempt]] = {
    "graph.size": (replace(PLAIN, change=grow(2**31)), PLAIN),
    "graph.parse": (replace(PLAIN, change=lambda path: path.write_bytes(b"\xff\xff no protobuf")), PLAIN),
    "graph.external": (with_data(there=1599), with_data()),
    "graph.external-folder": (with_data(location="../data.bin"), with_data(location="./data.bin")),
    "graph.ir-version": (with_versions(ir_version=2), with_versions(ir_version=3)),
    "graph.no-opset": (without_opset(), PLAIN),
    "graph.opset": (with_versions(19), with_versions(13)),
    "graph.domain": (attempt("y = strange.Relu(x)"), with_function("result = Relu(data)")),
    "graph.operator": (attempt("y = Zeros(x)"), attempt("y = Tanh(x)")),
    "graph.malformed": (untyped(), attempt("y = Concat<axis = 0>(x, x)")),
    "graph.order": (attempt("y = Relu(a) a = Relu(x)"), attempt("a = Relu(x) y = Relu(a)")),
    "graph.twice": (attempt("y = Relu(x) y = Neg(x)"), attempt("a = Relu(x) y = Neg(x)")),
    "graph.mismatch": (
        attempt("y = Concat<axis = 1>(x, z)", f"{X}, float[5, 4] z"),
        attempt("y = Concat<axis = 1>(x, z)", f"{X}, float[n, 4] z"),
    ),
    "graph.unbound": (replace(PLAIN, entries=({"n": 2, "k": 1}, {"k": 3})), PLAIN),
    "graph.dynamic": (attempt("y = Relu(x)", "float[n, ?] x"), PLAIN),
    "graph.zero-dimension": (attempt("y = Relu(x)", f"float[0] z, {X}"), PLAIN),
    "graph.sequence": (attempt(SEQUENCE), PLAIN),
    "graph.complex": (
        attempt("y = Identity(z)", f"{X}, complex64[n] z", "complex64[n] y"),
        attempt("y = Identity(z)", f"{X}, float[n] z"),
    ),
    "graph.io-type": (
        attempt("y = Cast<to = 1>(x)", "double[n, 4] x"),
        attempt("y = Cast<to = 1>(x)", "int64[n, 4] x"),
    ),
    "graph.memory": (with_weights(15), with_weights(15, devices=2)),
    "graph.operator-memory": (with_weights(1, rows=1997), with_weights(1, rows=1996)),
    "graph.unknown-symbol": (
        replace(PLAIN, entries=({"n": 2, "k": 1}, {"n": 3})),
        replace(PLAIN, entries=({"n": 2, "m": 1, "ctx_len": 1}, {"n": 3})),
    ),
    "nodes.if-condition": (branches(BY_VALUE), branches(BY_SHAPE)),
    "nodes.if-outputs": (branches(BY_SHAPE, "y,z", "{0}1 = Relu(x)"), branches(BY_SHAPE)),
    "nodes.loop": (
        loop("limit = Constant<value = int64 {21}>()"),
        loop("limit = Constant<value = int64 {20}>()"),
    ),
    "nodes.scan": (scan("4097"), scan("4096")),
    "nodes.scatter-lengths": (scatter("float[n, 3] u"), scatter("float[n, 4] u")),
    "nodes.data-dependent": (
        attempt("y = NonZero(x)", outputs="int64[m] y"),
        attempt("y = ArgMax(x)", outputs="int64[m] y"),
    ),
    "nodes.einsum": (attempt('y = Einsum<equation = "ij,ij->i">(x, x)'), attempt("y = Mul(x, x)")),
    "nodes.cast-uint8": (
        attempt("y = Cast<to = 6>(x)", "uint8[n] x", "int32[m] y"),
        attempt("y = Cast<to = 6>(x)", "bool[n] x", "int32[m] y"),
    ),
    "nodes.cast-int8": (
        attempt("y = Cast<to = 6>(x)", "int8[n] x", "int32[m] y"),
        attempt("y = Cast<to = 1>(x)", "int32[n] x"),
    ),
    "constancy.reshape": (from_input("Reshape", "x, k", "1"), from_constant("Reshape", "x, k", "[1] {-1}")),
    "constancy.repeats": (from_input("Tile", "x, k", "2"), from_constant("Tile", "x, k", "[2] {1, 2}")),
    "constancy.range": (
        attempt("y = Range(k, k, k)", f"{X}, int64 k", "int64[m] y"),
        attempt("k = Constant<value = int64 {1}>() y = Range(k, k, k) z = Relu(x)", outputs="int64[m] y, float[m] z"),
    ),
    "constancy.split": (
        from_input("Split", "x, k", "2", "<axis = 1>"),
        attempt("k = Constant<value = int64[2] {1, 3}>() a, y = Split<axis = 1>(x, k)"),
    ),
    "constancy.axes": (from_input("ReduceSum", "x, k", "1"), from_constant("ReduceSum", "x, k", "[1] {1}")),
    "constancy.operand": (from_input("CumSum", "x, k", "1"), from_constant("CumSum", "x, k", "[1] {1}")),
    "constancy.parameter-range": (
        with_function(
            "one = Constant<value = int64 {1}>() end = Squeeze(count) r = Range(one, end, one) result = Neg(data)"
        ),
        with_function("one = Constant<value = int64 {1}>() r = Range(one, one, one) result = Neg(data)"),
    ),
    "constancy.parameter": (
        with_function("result = Expand(data, count)"),
        with_function("size = Shape(data) result = Reshape(data, size)"),
    ),
    "constancy.diagonal": (from_constant("Trilu", "x, k", "[1] {1}"), from_constant("Trilu", "x, k", " {1}")),
    "constants.half-range": (with_constant(-3e38), with_constant([65504.0, -np.inf, -65504.0, 1.0])),
    "constants.not-a-number": (with_constant([np.nan] * 4), with_constant([0.0] * 4)),
    "constants.int64-range": (
        with_constant(2**31, np.int64, "y = Relu(x) z = Neg(c)"),
        with_constant(2**31 - 1, np.int64, "y = Relu(x) z = Neg(c)"),
    ),
    "constants.epsilon": (divided("1e-20"), divided("1e-7")),
    "constants.filled": (
        attempt("k = Shape(x) y = ConstantOfShape<value = int64[1] {2147483647}>(k)", outputs="int64[m] y"),
        attempt("k = Shape(x) y = ConstantOfShape<value = int64[1] {2147483646}>(k)", outputs="int64[m] y"),
    ),
    "states.partner": (attempt(f"{REST} other_RetainedState = Neg(x)", STATE, LONELY), STATEFUL),
    "states.twice": (attempt(f"{REST} past_InternalRetainedState = Neg(past)", STATE, TWO_STATES), STATEFUL),
    "states.type": (
        attempt(
            "y = Relu(x) past_RetainedState = Cast<to = 10>(past)", STATE, OUT.replace("float[m, 32]", "float16[m]")
        ),
        STATEFUL,
    ),
    "states.shape": (attempt("y = Relu(x) past_RetainedState = Concat<axis = 1>(past, x)", STATE, OUT), STATEFUL),
    "states.copied": (attempt("y = Relu(x) a = Identity(past) past_RetainedState = Identity(a)", STATE, OUT), STATEFUL),
    "custom-io.name": (precise("float16", "past_key"), precise("float16", *BOTH_SIDES)),
    "custom-io.blocks": (precise("mxint8", "x"), precise("mxint8", *BOTH_SIDES)),
    "node-precision.name": (precision("x"), precision("y")),
    "partitions.node-name": (two_partitions("first", "fourth"), two_partitions("first", "third")),
    "partitions.order": (two_partitions("second", "first"), two_partitions("first", "second")),
}


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
