"""The model as a file: whether it can be read at all, and what it says of itself before any shape is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.text_format import ParseError
from onnx import TensorProto, external_data_helper

from qaic_simulator.graph.operators import CUSTOM_DOMAINS, CUSTOM_OPERATORS, OPERATORS
from qaic_simulator.profiles import Profile
from qaic_simulator.rules import GRAPH_RULES, Refusal

LARGEST_FILE = 2**31 - 1
IR_VERSIONS = range(3, 11)
"""Up to that of the exports that are known to compile."""
OPSETS = range(11, 19)
BLOCKS_OPSET = 21
"""The one that lets DequantizeLinear work in blocks; exports that do are known to compile."""
TEXT_SUFFIXES = (".onnxtxt", ".textproto")
"""Of models in protobuf's text form, as the importer's ancestor takes them."""
ONNX_DOMAINS = ("", "ai.onnx")
LARGEST_OPERAND = 4096
"""Bytes up to which external data may be an operand that decides about shapes."""


def read_model(path: Path, profile: Profile) -> onnx.ModelProto:
    """The model of a file, without its external data."""
    text = f"MODEL_LOADER_INVALID_PROTOBUF: Failed to parse ModelProto of {path.name}"
    if path.stat().st_size > LARGEST_FILE:
        profile.refuse("graph.size", text)
    try:
        model = _parsed(path)
    except (DecodeError, ParseError, UnicodeDecodeError, RecursionError):
        model = onnx.ModelProto()
    if not model.HasField("graph") or not _is_text(model):
        raise Refusal(GRAPH_RULES["graph.parse"], text)
    known = set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
    if not all(tensor.data_type in known for tensor in tensors_of(model)):
        raise Refusal(GRAPH_RULES["graph.parse"], f"{text}: a tensor has no type")
    return model


def _parsed(path: Path) -> onnx.ModelProto:
    if path.suffix in TEXT_SUFFIXES:
        model = onnx.ModelProto()
        text_format.Parse(path.read_text(encoding="utf-8"), model)
        return model
    return onnx.load(path, format="protobuf", load_external_data=False)


def _is_text(message: Message) -> bool:
    """Whether what should be text is: a reader in Python hands out bytes where it is not."""
    for field, value in message.ListFields():
        values = [value] if isinstance(value, (str, bytes, Message)) else value
        if field.type == FieldDescriptor.TYPE_STRING and not all(isinstance(text, str) for text in values):
            return False
        if field.type == FieldDescriptor.TYPE_MESSAGE and not all(_is_text(inner) for inner in values):
            return False
    return True


def nodes_within(nodes: object) -> Iterator[onnx.NodeProto]:
    """Nodes, each followed by those of its bodies."""
    for node in nodes:  # type: ignore[attr-defined]  # a repeated field, which has no public type
        yield node
        for body in bodies_of(node):
            yield from nodes_within(body.node)


def bodies_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node of control flow has for attributes."""
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


def _graphs_within(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies in it."""
    yield graph
    for node in nodes_within(graph.node):
        yield from bodies_of(node)


def names_from_outside(body: onnx.GraphProto) -> set[str]:
    """The names that a body uses of the graph that it is in."""
    made = {value.name for value in (*body.input, *body.initializer)}
    used: set[str] = set()
    for node in body.node:
        used |= names_used(node)
        made |= set(node.output)
    return (used | {value.name for value in body.output}) - made - {""}


def names_used(node: onnx.NodeProto) -> set[str]:
    """The names that a node uses, in its bodies too."""
    inside: Iterable[set[str]] = (names_from_outside(body) for body in bodies_of(node))
    return set(node.input).union(*inside) - {""}


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's operators; 0 if the model does not say."""
    return next((opset.version for opset in model.opset_import if opset.domain in ONNX_DOMAINS), 0)


def node_text(node: onnx.NodeProto, model: onnx.ModelProto, text: str) -> str:
    """A message of the importer about a node."""
    name = node.name or (node.output[0] if node.output else node.op_type)
    versions = f"opset_version-{opset_of(model)}, ir_version-{model.ir_version}"
    return f"[Operator-'{name}', {versions}] : {text}"


def check_file(model: onnx.ModelProto, path: Path, profile: Profile) -> None:
    """Refuse a version, external data or an operator that the importer does not know."""
    if model.ir_version not in IR_VERSIONS:
        text = f"IR version {model.ir_version} is none of {IR_VERSIONS[0]} to {IR_VERSIONS[-1]}."
        profile.refuse("graph.ir-version", text)
    opset = opset_of(model)
    if not opset:
        profile.refuse("graph.no-opset", "The model does not say which opset of ONNX it uses.")
    elif opset not in OPSETS and not (opset == BLOCKS_OPSET and _has_blocks(model)):
        blocks = f"and {BLOCKS_OPSET} is for weights that are dequantized in blocks"
        profile.refuse("graph.opset", f"Opset {opset} is none of {OPSETS[0]} to {OPSETS[-1]}, {blocks}.")
    for tensor in tensors_of(model):
        if external_data_helper.uses_external_data(tensor):
            _check_external(tensor, path.parent, profile)
        elif tensor.raw_data and len(tensor.raw_data) != byte_size(tensor):
            text = f"The data of {tensor.name} is {len(tensor.raw_data)} bytes, but {byte_size(tensor)} are needed."
            profile.refuse("graph.malformed", text)
    _check_dense(model, profile)
    _check_operators(model, profile)
    _check_order(model, profile)


def _has_blocks(model: onnx.ModelProto) -> bool:
    inside = [node for function in model.functions for node in function.node]
    nodes = (node for node in nodes_within([*model.graph.node, *inside]) if node.op_type == "DequantizeLinear")
    return any(given.name == "block_size" and given.i for node in nodes for given in node.attribute)


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All constants of a model: those of the graph, of its bodies, and of nodes that are constants."""
    yield from model.graph.initializer
    functions = [node for function in model.functions for node in function.node]
    for node in nodes_within([*model.graph.node, *functions]):
        for body in bodies_of(node):
            yield from body.initializer
        yield from (attribute.t for attribute in node.attribute if attribute.type == onnx.AttributeProto.TENSOR)


def external_place(tensor: onnx.TensorProto, folder: Path) -> tuple[Path, int, int]:
    """The file of a tensor's data, where in it the data begins, and how many bytes it has."""
    info = external_data_helper.ExternalDataInfo(tensor)
    return folder / info.location, int(info.offset or 0), int(info.length or byte_size(tensor))


def byte_size(tensor: onnx.TensorProto) -> int:
    """The bytes of a tensor's elements, two to a byte where they have four bits."""
    elements = 1
    for size in tensor.dims:
        elements *= size
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1):
        return -(-elements // 2)
    return elements * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _check_external(tensor: onnx.TensorProto, folder: Path, profile: Profile) -> None:
    try:
        path, offset, length = external_place(tensor, folder)
        location = Path(external_data_helper.ExternalDataInfo(tensor).location)
        is_plain = not location.is_absolute() and ".." not in location.parts
        is_inside = is_plain and path.resolve().is_relative_to(folder.resolve())
    except ValueError as error:
        raise Refusal(GRAPH_RULES["graph.external"], f"The data of {tensor.name} has no place: {error}.") from error
    if not is_inside:
        text = f"The data of {tensor.name} is not at a place below the model's folder: {location}."
        profile.refuse("graph.external-folder", text)
    if not path.is_file():
        raise Refusal(GRAPH_RULES["graph.external"], f"The data of {tensor.name} is absent: no file {path.name}.")
    there = path.stat().st_size
    if offset < 0 or offset + length > there or length != byte_size(tensor):
        text = f"The data of {tensor.name} is {length} bytes at {offset} of the {there} of {path.name}"
        raise Refusal(GRAPH_RULES["graph.external"], f"{text}, but {byte_size(tensor)} are needed.")


def _check_dense(model: onnx.ModelProto, profile: Profile) -> None:
    """Refuse constants of which only some elements are written down."""
    sparse = [tensor.values.name for graph in _graphs_within(model.graph) for tensor in graph.sparse_initializer]
    inside = [node for function in model.functions for node in function.node]
    for node in nodes_within([*model.graph.node, *inside]):
        kinds = {attribute.type for attribute in node.attribute}
        sparse += node.output[:1] if onnx.AttributeProto.SPARSE_TENSOR in kinds else []
    for name in sparse:
        profile.refuse("graph.sparse", f"Constant {name} is sparse, which is not supported.")


def _check_operators(model: onnx.ModelProto, profile: Profile) -> None:
    functions = {(function.domain, function.name) for function in model.functions}
    own = {domain for domain, _ in functions}
    inside = [node for function in model.functions for node in function.node]
    for node in nodes_within([*model.graph.node, *inside]):
        is_known = node.domain in ONNX_DOMAINS and node.op_type in OPERATORS
        if not is_known and ("Sequence" in node.op_type or node.op_type.startswith("Optional")):
            profile.refuse("graph.sequence", node_text(node, model, f"{node.op_type}: sequences are not supported."))
        if node.domain not in {*ONNX_DOMAINS, *CUSTOM_DOMAINS, *own}:
            profile.refuse("graph.domain", node_text(node, model, f"Domain '{node.domain}' is not supported."))
        if not is_known and (node.domain, node.op_type) not in functions | CUSTOM_OPERATORS:
            profile.refuse("graph.operator", node_text(node, model, f"Failed to load operator {node.op_type} ."))


def _check_order(model: onnx.ModelProto, profile: Profile) -> None:
    graph = model.graph
    known = {value.name for value in (*graph.input, *graph.initializer)}
    if "" in known:
        profile.refuse("graph.malformed", "An input or a constant has no name.")
    for constants in (within.initializer for within in _graphs_within(graph)):
        _check_twice([tensor.name for tensor in constants], set(), profile)
    _check_twice([value.name for value in graph.input], set(), profile)
    _check_twice([value.name for value in graph.output], set(), profile)
    outputs = [value.name for value in graph.output]
    _check_scope(graph.node, known, set(), outputs, model, profile)
    for function in model.functions:
        _check_twice(function.input, set(), profile)
        _check_scope(function.node, set(function.input), set(), function.output, model, profile)


def _check_scope(
    nodes: Iterable[onnx.NodeProto],
    own: set[str],
    outer: set[str],
    outputs: Iterable[str],
    model: onnx.ModelProto,
    profile: Profile,
) -> None:
    """Refuse nodes of a graph, a body or a function that make a name again, or use one before it is made.

    `own` are the inputs and constants there, `outer` what a body sees of the graph that it is in.
    """
    _check_twice([name for node in nodes for name in node.output if name], own, profile)
    known = own | outer
    for node in nodes:
        for name in sorted(names_used(node) - known):
            profile.refuse("graph.order", node_text(node, model, f"Nothing before it is called {name}."))
        for body in bodies_of(node):
            given = {value.name for value in (*body.input, *body.initializer)}
            _check_scope(body.node, given, known, [value.name for value in body.output], model, profile)
        known |= set(node.output)
    for name in outputs:
        if name not in known or not name:
            profile.refuse("graph.order", f"Nothing is called {name}, which is an output.")


def _check_twice(names: Iterable[str], known: set[str], profile: Profile) -> None:
    seen = set(known)
    for name in names:
        if name in seen:
            profile.refuse("graph.twice", f"Two values are called {name}.")
        seen.add(name)


def with_small_data(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The model with those external data in it that may decide about shapes."""
    filled = onnx.ModelProto()
    filled.CopyFrom(model)
    for tensor in filled.graph.initializer:
        if external_data_helper.uses_external_data(tensor) and byte_size(tensor) <= LARGEST_OPERAND:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    return filled
