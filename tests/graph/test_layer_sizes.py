"""Sizes in layers that become functions come from the shapes of what the layers are handed."""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir

from QEfficient.graph.layer_sizes import SizesOfLayers

GRAPH = """<ir_version: 10, opset_import: ["" : 18]>
toy (float[rows, tokens, 4] x, int64[rows, tokens] position_ids, float[rows, slots] state) => (float[r, n] y) {
    tokens1 = Shape<start = 1, end = 2>(x)
    slots1 = Shape<start = 1, end = 2>(state)
    two = Constant<value_ints = [2]>()
    doubled = Mul(tokens1, two)
    shape = Concat<axis = 0>(doubled, two)
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    slot_count = Squeeze(slots1)
    slot_range = Range(zero, slot_count, one)
    a = Add(position_ids, position_ids)
    b = Reshape(x, shape)
    c = Add(slot_range, a)
    y = Expand(b, slots1)
}"""
LAYER = ("a", "b", "c", "y")


def given_sizes() -> tuple[ir.Model, list[ir.Node]]:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(GRAPH))
    nodes = {node.outputs[0].name: node for node in model.graph}
    static = {nodes[name] for name in ("two", "zero", "one")}
    taken = set(nodes)

    def fresh(name: str) -> str:
        assert f"{name}_own" not in taken
        taken.add(f"{name}_own")
        return f"{name}_own"

    made = SizesOfLayers(model.graph, static, fresh).give_to((nodes[name], [nodes[name]]) for name in LAYER)
    return model, made


def test_sizes_are_computed_anew() -> None:
    model, made = given_sizes()
    assert [(node.op_type, node.outputs[0].name) for node in made] == [
        ("Shape", "tokens1_own"),
        ("Mul", "doubled_own"),
        ("Concat", "shape_own"),
        ("Shape", "slots1_own"),
    ]
    nodes = {node.outputs[0].name: node for node in model.graph}
    assert nodes["b"].inputs[1] is made[2].outputs[0] and nodes["y"].inputs[1] is made[3].outputs[0]
    assert nodes["doubled_own"].inputs[1] is nodes["two"].outputs[0]
    onnx.checker.check_model(ir.serde.serialize_model(model))  # in an order in which it can be computed


def test_a_size_is_read_off_what_the_layer_reads_first() -> None:
    _, made = given_sizes()
    source = made[0].inputs[0]
    assert source is not None and source.name == "position_ids"
    assert [made[0].attributes[name].as_int() for name in ("start", "end")] == [1, 2]


def test_tensors_as_long_as_a_size_are_none() -> None:
    model, _ = given_sizes()
    nodes = {node.outputs[0].name: node for node in model.graph}
    assert nodes["c"].inputs[0] is nodes["slot_range"].outputs[0]
