"""Changes of a graph and of its weights, each of which breaks a rule."""

from __future__ import annotations

from random import Random

import numpy as np
import onnx
from mutants import Mutant, Mutation
from onnx import TensorProto, helper, numpy_helper

EMPTY, LONG = 0, 2**40


def rename_state(mutant: Mutant, chance: Random) -> None:
    value = mutant.state(chance)
    node, place = mutant.maker(value.name)
    value.name = node.output[place] = f"other{chance.randrange(100)}_RetainedState"


def drop_state(mutant: Mutant, chance: Random) -> None:
    """Its output; the file of precisions still lists it."""
    mutant.graph.output.remove(mutant.state(chance))


def spoil_state(mutant: Mutant, chance: Random) -> None:
    """Its output becomes another type, another shape, or its input."""
    value = mutant.state(chance)
    node, place = mutant.maker(value.name)
    node.output[place] = "made"
    kind = chance.choice(["Cast", "Transpose", "Identity", "Concat"])
    if kind == "Cast":
        number = chance.choice([TensorProto.FLOAT16, TensorProto.INT32])
        value.type.tensor_type.elem_type = number
        mutant.append(kind, ["made"], [value.name], to=number)
    elif kind == "Concat":
        mutant.append(kind, ["made", "made"], [value.name], axis=chance.randrange(4))
    else:
        given = "made" if kind == "Transpose" else value.name.removesuffix("_RetainedState")
        mutant.append(kind, [given], [value.name])


def double_state(mutant: Mutant, chance: Random) -> None:
    """A second output of a state, under the name that sub-functions have."""
    value = mutant.state(chance)
    other = onnx.ValueInfoProto.FromString(value.SerializeToString())
    other.name = value.name.replace("_RetainedState", "_InternalRetainedState")
    mutant.graph.output.append(other)
    mutant.append("Neg", [value.name], [other.name])


def append_misfit(mutant: Mutant, chance: Random) -> None:
    """A layer whose weights do not fit its data, though ONNX's inference finds the shape of what it makes."""
    shapes = {"PRelu": [(3,)], "InstanceNormalization": [(5,), (5,)], "Gemm": [(4, 7), (3,)]}
    operator = chance.choice(sorted(shapes))
    given = ["flat" if operator == "Gemm" else "logits"]
    if operator == "Gemm":
        mutant.append("ConstantOfShape", ["two"], ["flat"])
        mutant.graph.initializer.append(numpy_helper.from_array(np.array([2, 4]), "two"))
    for number, shape in enumerate(shapes[operator]):
        given.append(f"misfit{number}")
        mutant.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), given[-1]))
    mutant.append(operator, given, ["misfit"])
    mutant.graph.output.append(helper.make_empty_tensor_value_info("misfit"))
    mutant.graph.output[-1].type.tensor_type.elem_type = TensorProto.FLOAT


def fold_beyond(mutant: Mutant, chance: Random) -> None:
    """Two numbers of 32 bits whose sum has more, added to positions."""
    for name, value in (("most", 2**31 - 1), ("more", chance.randrange(1, 99))):
        mutant.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    mutant.append("Add", ["most", "more"], ["beyond"])
    mutant.append("Add", ["position_ids", "beyond"], ["shifted"])
    mutant.graph.output.append(helper.make_empty_tensor_value_info("shifted"))
    mutant.graph.output[-1].type.tensor_type.elem_type = TensorProto.INT64


def contradict(mutant: Mutant, chance: Random) -> None:
    """Say of an inner value what it is not."""
    name = mutant.node(chance, "MatMul", "Add", "Mul").output[0]
    others = [value for value in mutant.graph.value_info if value.name != name]
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in others]
    del mutant.graph.value_info[:]
    mutant.graph.value_info.extend([*kept, helper.make_tensor_value_info(name, TensorProto.INT8, [1, 2, 3])])


def freeze_batch(mutant: Mutant, chance: Random) -> None:
    """One input's, which then fits the others in no specialization that has several rows."""
    inputs = [v for v in mutant.graph.input if v.type.tensor_type.shape.dim[0].dim_param == "batch_size"]
    chance.choice(inputs).type.tensor_type.shape.dim[0].dim_value = chance.choice([2, 3, 5])


def freeze_everything(mutant: Mutant, chance: Random) -> None:
    """The sizes that tell specializations apart, as an exporter does that saw one example."""
    for value in mutant.graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in ("batch_size", "seq_len"):
                dimension.dim_value = 1


def open_dimension(mutant: Mutant, chance: Random) -> None:
    value = chance.choice(mutant.graph.input)
    dimension = chance.choice([d for d in value.type.tensor_type.shape.dim if d.dim_param])
    dimension.ClearField("dim_param")
    if chance.random() < 0.5:
        dimension.dim_param = "anything"


def feed_shape(mutant: Mutant, chance: Random) -> None:
    """The shape of a Reshape, or the bounds of a Slice, as an input of the graph."""
    node = mutant.node(chance, "Reshape", "Slice", "Unsqueeze", "ReduceMean")
    length = 1 if node.op_type in ("Slice", "Unsqueeze", "ReduceMean") else 3
    mutant.graph.input.append(helper.make_tensor_value_info("fed", TensorProto.INT64, [length]))
    node.input[1] = "fed"


def compute_shape(mutant: Mutant, chance: Random) -> None:
    """The shape of a Reshape, out of token numbers."""
    node = mutant.node(chance, "Reshape")
    makers = [
        helper.make_node("ReduceMax", ["input_ids"], ["largest"], keepdims=0),
        helper.make_node("Constant", [], ["whole"], value_ints=[-1]),
        helper.make_node("Reshape", ["largest", "whole"], ["computed"]),
    ]
    mutant.insert_before(node, 1, "computed", *makers)


def misname_operator(mutant: Mutant, chance: Random) -> None:
    mutant.node(chance).op_type = chance.choice(["Zeros", "FlashAttention", "Attention", "RMSNormalization", "Matmul"])


def misname_domain(mutant: Mutant, chance: Random) -> None:
    mutant.node(chance).domain = chance.choice(["custom", "ai.onnx.ml", "org.pytorch.aten"])


def lose_function(mutant: Mutant, chance: Random) -> None:
    del mutant.model.functions[chance.randrange(len(mutant.model.functions))]


def spoil_attributes(mutant: Mutant, chance: Random) -> None:
    node = mutant.node(chance, "Concat", "Cast")
    del node.attribute[:]
    if chance.random() < 0.5:
        node.attribute.append(helper.make_attribute("axes" if node.op_type == "Concat" else "type", 1))


def retype_input(mutant: Mutant, chance: Random) -> None:
    kinds = [TensorProto.DOUBLE, TensorProto.COMPLEX64, TensorProto.STRING, TensorProto.UINT64]
    chance.choice(mutant.graph.input).type.tensor_type.elem_type = chance.choice(kinds)


def drop_node(mutant: Mutant, chance: Random) -> None:
    mutant.graph.node.remove(mutant.node(chance))


def reverse_nodes(mutant: Mutant, chance: Random) -> None:
    nodes = list(mutant.graph.node)[::-1]
    del mutant.graph.node[:]
    mutant.graph.node.extend(nodes)


def repeat_node(mutant: Mutant, chance: Random) -> None:
    copy = onnx.NodeProto.FromString(mutant.node(chance).SerializeToString())
    mutant.graph.node.append(copy)


def repeat_input(mutant: Mutant, chance: Random) -> None:
    mutant.graph.input.append(chance.choice(mutant.graph.input))


def change_version(mutant: Mutant, chance: Random) -> None:
    if chance.random() < 0.3:
        mutant.model.ir_version = chance.choice([1, 2, 11, 99])
    elif chance.random() < 0.5:
        del mutant.model.opset_import[0]
    else:
        mutant.model.opset_import[0].version = chance.choice([7, 9, 10, 19, 22])


def spoil_constant(mutant: Mutant, chance: Random) -> None:
    """A float that a node adds to is beyond fp16, or none."""
    value = chance.choice([1e30, np.nan, np.inf, -1e5, 65600.0])
    node = mutant.node(chance, "Add", "Mul")
    made = f"spoilt{chance.randrange(100)}"
    mutant.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), made))
    node.input[1] = made


def spoil_weight(mutant: Mutant, chance: Random) -> None:
    """The same, of a weight in the other file: between weights there are bytes that nobody reads."""
    places = {entry.key: entry.value for entry in _external(mutant, chance).external_data}
    number = chance.randrange(int(places["length"]) // 4)
    numbers = np.frombuffer(mutant.weights, np.float32).copy()
    numbers[int(places["offset"]) // 4 + number] = chance.choice([1e30, np.nan, np.inf, -1e5])
    mutant.weights = numbers.tobytes()


def shrink_epsilon(mutant: Mutant, chance: Random) -> None:
    """What a norm adds before its root becomes nothing in fp16."""
    root = mutant.node(chance, "Sqrt")
    adding, _ = mutant.maker(root.input[0])
    value = numpy_helper.from_array(np.array(chance.choice([1e-8, 1e-12, 1e-20]), np.float32), "tiny")
    mutant.graph.initializer.append(value)
    adding.input[1] = "tiny"


def long_integers(mutant: Mutant, chance: Random) -> None:
    """An integer of more than 32 bits, or indices filled with INT32_MAX."""
    if chance.random() < 0.5:
        mutant.append("Constant", [], ["long"], value_int=chance.choice([LONG, -LONG]))
        mutant.append("Add", ["input_ids", "long"], ["longer"])
        return
    filling = numpy_helper.from_array(np.array([2**31 - 1], np.int64))
    mutant.append("Shape", ["input_ids"], ["sizes"])
    mutant.append("ConstantOfShape", ["sizes"], ["filled"], value=filling)


def depend_on_data(mutant: Mutant, chance: Random) -> None:
    mutant.append(chance.choice(["NonZero", "Unique"]), [chance.choice(mutant.graph.input).name], ["found"])


def write_einsum(mutant: Mutant, chance: Random) -> None:
    node = mutant.node(chance, "MatMul")
    node.op_type = "Einsum"
    node.attribute.append(helper.make_attribute("equation", "abc,cd->abd"))


def cast_bytes(mutant: Mutant, chance: Random) -> None:
    kind = chance.choice([TensorProto.UINT8, TensorProto.INT8])
    mutant.graph.input.append(helper.make_tensor_value_info("bytes", kind, [4]))
    mutant.append("Cast", ["bytes"], ["from_bytes"], to=chance.choice([TensorProto.FLOAT, TensorProto.INT32]))


def branch(mutant: Mutant, chance: Random) -> None:
    """By the value of a position."""
    kind = helper.make_tensor_value_info("", TensorProto.INT64, None)
    bodies = []
    for name, operator in (("yes", "Neg"), ("no", "Abs")):
        kind.name = name
        nodes = [helper.make_node(operator, ["position_ids"], [name])]
        bodies.append(helper.make_graph(nodes, name, [], [onnx.ValueInfoProto.FromString(kind.SerializeToString())]))
    mutant.append("ReduceMax", ["position_ids"], ["latest"], keepdims=0)
    mutant.append("Cast", ["latest"], ["condition"], to=TensorProto.BOOL)
    mutant.append("If", ["condition"], ["chosen"], then_branch=bodies[0], else_branch=bodies[1])


def loop(mutant: Mutant, chance: Random) -> None:
    """More rounds than are unrolled."""
    whole, truth = TensorProto.INT64, TensorProto.BOOL
    given = [("round", whole), ("go", truth), ("old", whole)]
    made = [("on", truth), ("new", whole)]
    nodes = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["old"], ["new"])]
    values = [[helper.make_tensor_value_info(name, kind, None) for name, kind in side] for side in (given, made)]
    body = helper.make_graph(nodes, "rounds", *values)
    mutant.append("Constant", [], ["limit"], value_int=chance.choice([21, 1000]))
    mutant.append("Loop", ["limit", "", "position_ids"], ["last"], body=body)


def make_sequence(mutant: Mutant, chance: Random) -> None:
    mutant.append("SequenceConstruct", [chance.choice(mutant.graph.input).name], ["sequence"])


def diagonal(mutant: Mutant, chance: Random) -> None:
    mutant.append("Constant", [], ["diagonals"], value_ints=[chance.choice([0, 1])])
    mutant.append("Trilu", [mutant.state(chance).name, "diagonals"], ["triangle"])


def empty_input(mutant: Mutant, chance: Random) -> None:
    shape = chance.choice([[EMPTY], [1, EMPTY], [EMPTY, 4]])
    mutant.graph.input.append(helper.make_tensor_value_info("empty", TensorProto.FLOAT, shape))


def misfit(mutant: Mutant, chance: Random) -> None:
    """A matrix is not turned, or a Reshape has an element too many."""
    if chance.random() < 0.5:
        node = mutant.node(chance, "MatMul")
        node.input[1] = node.input[0]
        return
    node = mutant.node(chance, "Reshape")
    mutant.graph.initializer.append(numpy_helper.from_array(np.array([7, 13], np.int64), "odd"))
    node.input[1] = "odd"


def _external(mutant: Mutant, chance: Random) -> onnx.TensorProto:
    return chance.choice([tensor for tensor in mutant.graph.initializer if tensor.external_data])


def lose_data(mutant: Mutant, chance: Random) -> None:
    entry = next(entry for entry in _external(mutant, chance).external_data if entry.key == "location")
    entry.value = chance.choice(["absent.bin", "../../../elsewhere.bin", "/weights.bin", "/tmp/weights.bin"])


def detour_data(mutant: Mutant, chance: Random) -> None:
    """To the same file, by a path that leaves a folder."""
    entry = next(entry for entry in _external(mutant, chance).external_data if entry.key == "location")
    entry.value = f"{chance.choice(['.', 'below'])}/../{entry.value}"


def repeat_constant(mutant: Mutant, chance: Random) -> None:
    mutant.graph.initializer.append(chance.choice(mutant.graph.initializer))


def spoil_folded(mutant: Mutant, chance: Random) -> None:
    """What constants become is beyond fp16, or no number, though each of them is one."""
    operator, left, right = chance.choice([("Mul", 300, 300), ("Add", 65000, 65000), ("Div", 0, 0), ("Div", 1, 0)])
    mutant.append("Constant", [], ["left"], value_float=float(left))
    mutant.append("Constant", [], ["right"], value_float=float(right))
    mutant.append(operator, ["left", "right"], ["folded"])
    mutant.append(chance.choice(["Add", "Mul", "Max"]), [mutant.state(chance).name, "folded"], ["unfit"])


def narrow_value(mutant: Mutant, chance: Random) -> None:
    """A value is bfloat16 on its way, which this card has no kernels for."""
    mutant.append("Cast", [mutant.state(chance).name], ["narrow"], to=TensorProto.BFLOAT16)
    mutant.append("Cast", ["narrow"], ["wide"], to=TensorProto.FLOAT)


def untrue_output(mutant: Mutant, chance: Random) -> None:
    """An output is said to have another last dimension, or another type, than it has."""
    kind = chance.choice(mutant.graph.output).type.tensor_type
    if chance.random() < 0.5:
        kind.shape.dim[-1].dim_value = 7
    else:
        kind.elem_type = TensorProto.FLOAT16


def no_outputs(mutant: Mutant, chance: Random) -> None:
    del mutant.graph.output[:]


def move_data(mutant: Mutant, chance: Random) -> None:
    """To where the file has no more bytes, or fewer."""
    key, value = chance.choice([("offset", len(mutant.weights)), ("length", 4), ("offset", -4), ("length", "many")])
    tensor = _external(mutant, chance)
    entries = [entry for entry in tensor.external_data if entry.key != key]
    del tensor.external_data[:]
    tensor.external_data.extend(entries)
    tensor.external_data.add(key=key, value=str(value))


def cut_weights(mutant: Mutant, chance: Random) -> None:
    mutant.weights = mutant.weights[: -chance.choice([1, 4, 1000, len(mutant.weights)])]


def cut_model(mutant: Mutant, chance: Random) -> None:
    mutant.model_bytes = chance.randrange(0, len(mutant.model.SerializeToString()) - 100)


GRAPH_MUTATIONS: tuple[Mutation, ...] = (
    rename_state,
    drop_state,
    spoil_state,
    double_state,
    freeze_batch,
    freeze_everything,
    open_dimension,
    feed_shape,
    compute_shape,
    misname_operator,
    misname_domain,
    lose_function,
    spoil_attributes,
    retype_input,
    drop_node,
    reverse_nodes,
    repeat_node,
    repeat_input,
    change_version,
    spoil_constant,
    spoil_weight,
    shrink_epsilon,
    long_integers,
    depend_on_data,
    write_einsum,
    cast_bytes,
    branch,
    loop,
    make_sequence,
    diagonal,
    empty_input,
    misfit,
    lose_data,
    detour_data,
    repeat_constant,
    spoil_folded,
    narrow_value,
    untrue_output,
    append_misfit,
    fold_beyond,
    contradict,
    no_outputs,
    move_data,
    cut_weights,
    cut_model,
)
