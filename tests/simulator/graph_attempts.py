"""Graphs in ONNX's own notation that break one rule each, and their twins that break none."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qaic_simulator.command_line.arguments import Arguments
from qaic_simulator.command_line.checking import Checked
from qaic_simulator.graph.checks import Imported, check_graph
from qaic_simulator.graph.file import read_model
from qaic_simulator.profiles import profile_of
from qaic_simulator.rules import Refusal
from qaic_simulator.side_files.node_precision import NodePrecision
from qaic_simulator.side_files.partitions import Device, Partition, PartitionConfig
from qaic_simulator.side_files.specializations import Specialization

X = "float[n, 4] x"
HALF = ("convert-to-fp16",)
STATE = "float[n, 4] x, float[n, 32] past"


def graph(body: str, inputs: str = X, outputs: str = "float[m] y", opset: int = 18) -> onnx.ModelProto:
    """A program in ONNX's own notation; of an output of `m` numbers it does not say the shape."""
    head = f'<ir_version: 8, opset_import: ["" : {opset}, "com.qti.aisw.onnx" : 1, "own" : 1, "strange" : 1]>'
    model = onnx.parser.parse_model(f"{head} program ({inputs}) => ({outputs}) {{ {body} }}")
    for value in model.graph.output:
        if [size.dim_param for size in value.type.tensor_type.shape.dim] == ["m"]:
            value.type.tensor_type.ClearField("shape")
    return model


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
    versions = f'<domain: "{domain}", opset_import: ["" : 18, "{domain}" : 1]>'
    model.functions.append(onnx.parser.parse_function(f"{versions} Inner (data, count) => (result) {{ {body} }}"))
    return Attempt(model, ("sub-functions",))


def untyped() -> Attempt:
    """A graph whose output has no type."""
    model = graph("y = Concat<axis = 0>(x, x)")
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
    return Attempt(model)


def with_sparse() -> Attempt:
    """A graph with a constant of four numbers of which one is written down, which nobody uses."""
    model = graph("y = Relu(x)")
    one = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    place = helper.make_tensor("", TensorProto.INT64, [1], [2])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(one, place, [4]))
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
    parts = tuple(Partition(f"P{i}", (Device(i, 16),), tuple(name.split())) for i, name in enumerate(names))
    return Attempt(model, partitions=PartitionConfig(parts, ()))


def precision(name: str) -> Attempt:
    return replace(attempt("y = Relu(x)"), nodes=NodePrecision((), (name,)))


PLAIN = attempt("y = Relu(x)")
STATEFUL = attempt(REST, STATE, OUT)
KEPT = ("retained-state",)


def varied(flags: tuple[str, ...] = ()) -> Attempt:
    """A state that has as many rows as the input, which differ from one specialization to the other."""
    text = f"{CUT} rest = Slice(past, four, end, one) y = Relu(x) {KEEP}"
    return replace(attempt(text, STATE.replace("[n, 32]", "[n, 32]"), OUT), flags=flags)


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
        replace(attempt("y = Relu(x)", outputs="float[n, k] y"), entries=({"n": 2, "k": 4, "ctx_len": 1}, {"n": 3})),
    ),
    "graph.import": (with_function("result = Relu(data)", "foreign"), with_function("result = Relu(data)")),
    "graph.text": (
        attempt("z = Cast<to = 8>(x) y = Cast<to = 1>(z)"),
        attempt("z = Cast<to = 7>(x) y = Cast<to = 1>(z)"),
    ),
    "graph.recursion": (with_function("result = own.Inner(data, count)"), with_function("result = Neg(data)")),
    "graph.sparse": (with_sparse(), PLAIN),
    "graph.declared": (
        attempt("y = Transpose(x)", outputs="float[n, 4] y"),
        attempt("y = Transpose(x)", outputs="float[4, n] y"),
    ),
    "graph.bfloat16": (
        attempt("narrow = Cast<to = 16>(x) y = Cast<to = 1>(narrow)"),
        attempt("narrow = Cast<to = 10>(x) y = Cast<to = 1>(narrow)"),
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
    "states.shape": (
        attempt(
            "y = Relu(x) past_RetainedState = Concat<axis = 1>(past, x)", STATE, OUT.replace("float[m, 32]", "float[m]")
        ),
        STATEFUL,
    ),
    "states.sizes": (varied(KEPT), varied()),
    "states.copied": (attempt("y = Relu(x) a = Identity(past) past_RetainedState = Identity(a)", STATE, OUT), STATEFUL),
    "custom-io.name": (precise("float16", "past_key"), precise("float16", *BOTH_SIDES)),
    "custom-io.type": (
        replace(attempt("y = Cast<to = 1>(i)", "int64[n, 4] i"), precisions={"i": "float16"}),
        replace(attempt("y = Cast<to = 1>(i)", "float16[n, 4] i"), precisions={"i": "float16"}),
    ),
    "custom-io.blocks": (precise("mxint8", "x"), precise("mxint8", *BOTH_SIDES)),
    "node-precision.name": (precision("x"), precision("y")),
    "partitions.node-name": (two_partitions("first second third", "fourth"), two_partitions("first", "third fourth")),
    "partitions.order": (two_partitions("second third", "first"), two_partitions("first", "second third")),
}
