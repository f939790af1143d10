"""Runs a compiled program with the numbers of the card: its float32 graph in float16, on onnxruntime.

What the card does otherwise than ONNX is written into the graph: float math is rounded to float16 after each operator,
with infinities beyond its range; constant matrices go through MXFP6; a scatter to an index out of range is dropped,
and a gather from one reads index 0.

A retained state in MXINT8 is rounded as a whole after each run, the rows that were there before along with the new
ones: rounding what was rounded changes nothing. The run that makes a row still reads it as it was before rounding.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import external_data_helper, helper, inliner, numpy_helper, parser, shape_inference

from qaic_simulator.container import CONSTANTS
from qaic_simulator.graph.folding import attribute
from qaic_simulator.microscaling import round_mxfp6, round_mxint8
from qaic_simulator.network_descriptor import NetworkDescriptor, decode_descriptor
from qaic_simulator.side_files.custom_io import input_of_state

MODEL, SETTINGS, DESCRIPTOR = "sim.onnx", "sim.json", "networkdesc.bin"
ROUNDING_VARIABLE = "QAIC_SIM_ROUNDING"
"""Which way MXFP6 and MXINT8 round: even, nearest or floor."""
MOVERS = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape"}
    | {"ScatterElements", "ScatterND", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that onnxruntime runs in float16 on a CPU; all others run in float32, and their results are rounded."""

_SINGLE, _HALF = int(onnx.TensorProto.FLOAT), int(onnx.TensorProto.FLOAT16)
_ROUNDED = -1
"""Asked of a tensor: float32 with values that float16 has."""
_DESCRIBED = {0: _SINGLE, 1: _HALF}
_DOMAIN = "qaic_simulator"
_IN_MEMORY = 1 << 30
"""Bytes of a model that is handed to onnxruntime as one message; those have a limit of 2 GiB."""

Pin = frozenset[str]


class ExecutionError(ValueError):
    """The container holds no program that can be run here."""


@dataclass(frozen=True)
class Settings:
    """What the compiler was told, as far as it shows in the numbers."""

    half: bool
    mxfp6: bool
    devices: int
    cores: int
    fp16: Pin
    fp32: Pin
    """First outputs of the nodes that keep a precision."""
    mxint8: Pin
    """Inputs and outputs that are stored in MXINT8."""


def read_settings(raw: bytes) -> Settings:
    """The settings in a container."""
    try:
        content = json.loads(raw)
        pinned = content.get("node_precision") or {}
        rounded = (name for name, precision in (content.get("custom_io") or {}).items() if precision == "mxint8")
        return Settings(
            half=bool(content["convert_to_fp16"]),
            mxfp6=bool(content["mxfp6"]),
            devices=int(content["devices"]),
            cores=int(content["cores"]),
            fp16=frozenset(pinned.get("fp16", ())),
            fp32=frozenset(pinned.get("fp32", ())),
            mxint8=frozenset(rounded),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExecutionError(f"{SETTINGS} is not what the stand-in compiler writes: {error!r}.") from error


class Network:
    """A program that is ready to run; it keeps no state between runs."""

    def __init__(self, images: Mapping[str, bytes]) -> None:
        missing = [name for name in (MODEL, SETTINGS) if name not in images]
        if missing:
            raise ExecutionError(f"the container has no {missing[0]}: the stand-in compiler did not make it.")
        self.descriptor = decode_descriptor(images[DESCRIPTOR])
        self.settings = read_settings(images[SETTINGS])
        self.states = _pair_states(self.descriptor)
        model = card_model(images, self.descriptor, self.settings)
        self._session = _open_session(model)
        self._types = {value.name: _numpy_type(value.type) for value in self._session.get_inputs()}
        unknown = self._types.keys() - {binding.name for binding in self.descriptor.inputs}
        if unknown:
            raise ExecutionError(f"the descriptor lacks the input {min(unknown)} of the graph.")

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs, in the precision that the graph has; states in MXINT8 are rounded."""
        feeds = {name: inputs[name].astype(kind, copy=False) for name, kind in self._types.items()}
        names = [binding.name for binding in self.descriptor.outputs]
        return {
            name: self.rounded(name, np.asarray(value))
            for name, value in zip(names, self._session.run(names, feeds), strict=True)
        }

    def rounded(self, name: str, values: np.ndarray) -> np.ndarray:
        """What is left of the values of an input or output when the card has stored it."""
        if (input_of_state(name) or name) not in self.settings.mxint8:
            return values
        return round_mxint8(values, -1, _rounding()).astype(values.dtype)

    def garbage(self, name: str) -> np.ndarray:
        """What memory holds before anybody wrote to it: NaN as float16, large as any other type."""
        shape = next(binding.shape for binding in self.descriptor.inputs if binding.name == name)
        kind = np.dtype(self._types[name])
        size = int(np.prod(shape.dims, dtype=np.int64)) * kind.itemsize
        return np.full(size, 0x7F, np.uint8).view(kind).reshape(shape.dims)


def card_model(images: Mapping[str, bytes], descriptor: NetworkDescriptor, settings: Settings) -> onnx.ModelProto:
    """The graph as the card runs it."""
    try:
        model = onnx.ModelProto.FromString(images[MODEL])
    except DecodeError as error:
        raise ExecutionError(f"{MODEL} is no model.") from error
    model, pinned = _inline(model, [settings.fp16, settings.fp32])
    model = _with_card_indices(model)
    types = _infer_types(model)
    constants = _take_constants(model, images.get(CONSTANTS, b""))
    if settings.mxfp6:
        types |= dict.fromkeys(_round_matrices(model.graph, constants), _SINGLE)
    if not settings.half and not settings.fp16:
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    else:
        _Halving(model.graph, types, constants, _node_rule(settings.half, *pinned)).apply(descriptor)
    return model


def _node_rule(half: bool, fp16: Pin, fp32: Pin) -> Callable[[onnx.NodeProto], bool]:
    """Whether a node computes in float16."""
    return lambda node: node.output[0] in fp16 or (half and node.output[0] not in fp32)


def _inline(model: onnx.ModelProto, pinned: Sequence[Pin]) -> tuple[onnx.ModelProto, list[Pin]]:
    """The model without functions; a call whose precision is pinned pins all nodes of the function's body."""
    found = []
    for names in pinned:
        kept = set(names)
        while call := _pinned_call(model, kept):
            before = {node.output[0] for node in model.graph.node}
            model = inliner.inline_selected_functions(model, [_own_function(model, call)])
            kept |= {node.output[0] for node in model.graph.node} - before
        found.append(frozenset(kept))
    return inliner.inline_local_functions(model), found


def _pinned_call(model: onnx.ModelProto, kept: set[str]) -> onnx.NodeProto | None:
    functions = {(function.domain, function.name) for function in model.functions}
    nodes = (node for node in model.graph.node if (node.domain, node.op_type) in functions)
    return next((node for node in nodes if node.output[0] in kept), None)


def _own_function(model: onnx.ModelProto, call: onnx.NodeProto) -> tuple[str, str]:
    """Give one call a copy of its function, under a name of its own."""
    key = (call.domain, call.op_type)
    source = next(function for function in model.functions if (function.domain, function.name) == key)
    own = copy.deepcopy(source)
    own.name = call.op_type = f"{call.op_type}_of_{call.output[0]}"
    model.functions.append(own)
    return own.domain, own.name


# Both need nothing beyond opset 11. A negative index counts from the end, as in ONNX.
_BOUNDS = """
    nothing = Constant<value = int64 {{0}}>()
    zero = Constant<value = int64[1] {{0}}>()
    one = Constant<value = int64[1] {{1}}>()
    first_axis = Constant<value = int64[1] {{{skipped}}}>()
    index_shape = Shape(indices)
    last = Constant<value = int64[1] {{-1}}>()
    depth = Gather<axis = 0>(index_shape, last)
    end = Add(first_axis, depth)
    shape = Shape(data)
    limits = Slice(shape, first_axis, end)
    is_negative = Less(indices, nothing)
    from_end = Add(indices, limits)
    counted = Where(is_negative, from_end, indices)
    is_below = Less(counted, nothing)
    is_inside = Less(counted, limits)
    is_beyond = Not(is_inside)
    is_outside = Or(is_below, is_beyond)
"""
_GATHER = """CardGatherND (data, indices) => (output) {{{bounds}
    safe = Where(is_outside, nothing, counted)
    output = GatherND{attributes}(data, safe)
}}"""
# A spare slice behind the last one takes what is dropped.
_SCATTER = """CardScatterND (data, indices, updates) => (output) {{{bounds}
    outside = Cast<to = 6>(is_outside)
    any_outside = {any_outside}
    is_dropped = Cast<to = 9>(any_outside)
    first = Slice(limits, zero, one)
    others = Sub(depth, one)
    zeros = ConstantOfShape<value = int64[1] {{0}}>(others)
    spare = Concat<axis = 0>(first, zeros)
    targets = Where(is_dropped, spare, counted)
    slice = Slice(data, zero, one)
    padded = Concat<axis = 0>(data, slice)
    written = ScatterND{attributes}(padded, targets, updates)
    output = Slice(written, zero, first)
}}"""


def _with_card_indices(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the card's rules for indices out of range."""
    opset = next((imported.version for imported in model.opset_import if not imported.domain), 0)
    texts: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in ("GatherND", "ScatterND") and not node.domain:
            text = _function_text(node, opset)
            name = texts.setdefault(text, f"Card{node.op_type}{len(texts)}")
            del node.attribute[:]
            node.domain, node.op_type = _DOMAIN, name
    for text, name in texts.items():
        imports = f'<domain: "{_DOMAIN}", opset_import: ["" : {opset}]>'
        function = parser.parse_function(f"{imports}\n{text}")
        function.name = name
        model.functions.append(function)
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return inliner.inline_local_functions(model)


def _function_text(node: onnx.NodeProto, opset: int) -> str:
    if node.op_type == "GatherND":
        skipped = attribute(node, "batch_dims", 0)
        attributes = f"<batch_dims = {skipped}>" if skipped else ""
        return _GATHER.format(bounds=_BOUNDS.format(skipped=skipped), attributes=attributes)
    reduction = attribute(node, "reduction", b"none").decode()
    attributes = "" if reduction == "none" else f'<reduction = "{reduction}">'
    any_outside = "ReduceMax(outside, last)" if opset >= 18 else "ReduceMax<axes = [-1]>(outside)"
    return _SCATTER.format(bounds=_BOUNDS.format(skipped=0), any_outside=any_outside, attributes=attributes)


def _infer_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor."""
    graph = shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    types |= {tensor.name: int(tensor.data_type) for tensor in graph.initializer}
    for node in model.graph.node:
        for output in node.output:
            # Nothing is known of what operators outside ONNX make; they work on floats of one type.
            types.setdefault(output, types.get(node.input[0], 0) if node.input else 0)
    return types


def _take_constants(model: onnx.ModelProto, raw: bytes) -> dict[str, np.ndarray]:
    """Take float32 constants out of the graph; the others stay, with their data."""
    constants: dict[str, np.ndarray] = {}
    rest = []
    for tensor in model.graph.initializer:
        _fill(tensor, raw)
        if tensor.data_type == _SINGLE:
            constants[tensor.name] = numpy_helper.to_array(tensor)
        else:
            rest.append(tensor)
    _replace(model.graph.initializer, rest)
    nodes = []
    for node in model.graph.node:
        value = _constant_of(node, raw)
        if value is None:
            nodes.append(node)
        else:
            constants[node.output[0]] = value
    _replace(model.graph.node, nodes)
    return constants


def _constant_of(node: onnx.NodeProto, raw: bytes) -> np.ndarray | None:
    """The value of a node that is a float32 constant."""
    for given in node.attribute:
        if node.op_type == "Constant" and given.name in ("value_float", "value_floats"):
            return np.asarray(helper.get_attribute_value(given), np.float32)
        if given.type == onnx.AttributeProto.TENSOR:
            _fill(given.t, raw)
            if node.op_type == "Constant" and given.t.data_type == _SINGLE:
                return numpy_helper.to_array(given.t)
    return None


def _fill(tensor: onnx.TensorProto, raw: bytes) -> None:
    """Put a tensor's data, which the container keeps apart, into it."""
    if not external_data_helper.uses_external_data(tensor):
        return
    info = external_data_helper.ExternalDataInfo(tensor)
    start = int(info.offset or 0)
    end = start + int(info.length) if info.length else len(raw)
    if info.location != CONSTANTS or end > len(raw):
        raise ExecutionError(f"the data of {tensor.name} are not among the {len(raw)} bytes of {CONSTANTS}.")
    tensor.raw_data = raw[start:end]
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


def _round_matrices(graph: onnx.GraphProto, constants: dict[str, np.ndarray]) -> list[str]:
    """Give every product of matrices constants in MXFP6 that no other node reads; the names of new tensors."""
    producers = {output: node for node in graph.node for output in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for place, axis in enumerate(_reduced_axes(node)):
            found = _find_matrix(node.input[place], axis, producers, constants)
            if found is not None:
                source, source_axis, path = found
                rounded = f"{source}.mxfp6.{source_axis}"
                if rounded not in constants:
                    constants[rounded] = round_mxfp6(constants[source], source_axis, _rounding())
                nodes += _copied_path(path, rounded, f".mxfp6.{place}.{node.output[0]}")
                node.input[place] = nodes[-1].output[0] if path else rounded
        nodes.append(node)
    _replace(graph.node, nodes)
    return [output for node in graph.node for output in node.output if output not in producers]


def _reduced_axes(node: onnx.NodeProto) -> tuple[int, ...]:
    """The axis that each of the two factors is summed along, counted from the end."""
    if node.op_type == "MatMul":
        return -1, -2
    if node.op_type == "Gemm":
        return -2 if attribute(node, "transA") else -1, -1 if attribute(node, "transB") else -2
    return ()


def _find_matrix(
    name: str, axis: int, producers: Mapping[str, onnx.NodeProto], constants: Mapping[str, np.ndarray]
) -> tuple[str, int, list[onnx.NodeProto]] | None:
    """The constant behind a factor, its axis, and the nodes between: transpositions, and choices from a bank."""
    path: list[onnx.NodeProto] = []
    while name not in constants:
        node = producers.get(name)
        if node is None or node.op_type not in ("Transpose", "Gather", "Identity"):
            return None
        if node.op_type == "Gather" and attribute(node, "axis", 0) != 0:
            return None
        if node.op_type == "Transpose":
            order = attribute(node, "perm", (1, 0))
            axis = order[axis] - len(order)
        path.insert(0, node)
        name = node.input[0]
    # What a bank chooses along is its first axis, which no product sums along.
    from_bank = any(node.op_type == "Gather" for node in path)
    enough = max(3, 1 - axis) if from_bank else max(2, -axis)
    return (name, axis, path) if constants[name].ndim >= enough else None


def _copied_path(path: list[onnx.NodeProto], source: str, suffix: str) -> Iterator[onnx.NodeProto]:
    for node in path:
        own = copy.deepcopy(node)
        own.input[0], own.output[0] = source, node.output[0] + suffix
        own.name = ""
        source = own.output[0]
        yield own


class _Halving:
    """Rewrites a graph node by node; each float tensor keeps its name and has one stored type, others are casts."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        types: Mapping[str, int],
        constants: Mapping[str, np.ndarray],
        is_half: Callable[[onnx.NodeProto], bool],
    ) -> None:
        self._graph, self._types, self._constants, self._is_half = graph, types, constants, is_half
        self._stored: dict[str, int] = {}
        self._made: dict[tuple[str, int], str] = {}
        self._nodes: list[onnx.NodeProto] = []

    def apply(self, descriptor: NetworkDescriptor) -> None:
        """Change the graph; inputs have the type that the descriptor gives them."""
        described = {binding.name: _DESCRIBED.get(binding.shape.type) for binding in descriptor.inputs}
        for value in self._graph.input:
            if value.type.tensor_type.elem_type == _SINGLE:
                stored = described.get(value.name)
                if stored is None:
                    raise ExecutionError(f"{value.name} is no float for the host, but one for the graph.")
                self._stored[value.name] = value.type.tensor_type.elem_type = stored
        for node in self._graph.node:
            self._convert(node)
        _replace(self._graph.node, self._nodes)
        del self._graph.value_info[:]
        for value in self._graph.output:
            if value.name in self._stored:
                value.type.tensor_type.elem_type = self._stored[value.name]

    def _convert(self, node: onnx.NodeProto) -> None:
        if any(given.type == onnx.AttributeProto.GRAPH for given in node.attribute):
            raise ExecutionError(f"{node.op_type} {node.output[0]} has a body, which is not converted to float16.")
        if node.op_type == "CastLike":
            node.CopyFrom(helper.make_node("Cast", node.input[:1], node.output, to=self._types[node.input[1]]))
        half = self._is_half(node)
        # Sums at the places that are scattered to have no float16 kernels.
        moves = half and node.op_type in MOVERS and not node.domain and not attribute(node, "reduction")
        wanted = _HALF if moves else _ROUNDED if half else _SINGLE
        for place, name in enumerate(node.input):
            # The scales of Resize are float32 whatever its data are.
            is_scale = node.op_type == "Resize" and place == 2
            node.input[place] = self._as(name, _SINGLE if is_scale else wanted)
        outputs = [(place, name) for place, name in enumerate(node.output) if self._types.get(name) == _SINGLE]
        self._stored |= {name: _HALF if half else _SINGLE for _, name in outputs}
        for given in node.attribute:
            if moves and node.op_type == "Cast" and given.name == "to" and given.i == _SINGLE:
                given.i = _HALF
        self._nodes.append(node)
        if half and not moves:
            for place, name in outputs:
                node.output[place] = f"{name}.unrounded"
                self._nodes.append(helper.make_node("Cast", [node.output[place]], [name], to=_HALF))

    def _as(self, name: str, wanted: int) -> str:
        """The name of a tensor in the wanted type."""
        if name in self._constants:
            return self._constant(name, wanted)
        stored = self._stored.get(name)
        if stored is None or stored == wanted:
            return name
        if wanted == _ROUNDED and stored == _SINGLE:
            return self._cast(self._cast(name, _HALF), _SINGLE)
        return self._cast(name, _HALF if wanted == _HALF else _SINGLE)

    def _cast(self, name: str, wanted: int) -> str:
        if (name, wanted) not in self._made:
            made = self._made[name, wanted] = f"{name}.{'half' if wanted == _HALF else 'single'}"
            self._nodes.append(helper.make_node("Cast", [name], [made], to=wanted))
        return self._made[name, wanted]

    def _constant(self, name: str, wanted: int) -> str:
        if (name, wanted) not in self._made:
            value = self._constants[name]
            if wanted != _SINGLE:
                with np.errstate(over="ignore"):
                    value = value.astype(np.float16)
            value = value if wanted == _HALF else value.astype(np.float32)
            made = self._made[name, wanted] = f"{name}.{'half' if wanted == _HALF else 'single'}.{wanted}"
            self._graph.initializer.append(numpy_helper.from_array(value, made))
        return self._made[name, wanted]


def _pair_states(descriptor: NetworkDescriptor) -> dict[str, str]:
    """The output of each retained state by its input."""
    inputs = {binding.name for binding in descriptor.inputs}
    pairs = {input_of_state(binding.name): binding.name for binding in descriptor.outputs}
    return {entry: output for entry, output in pairs.items() if entry in inputs}


def _open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # Fused operators would round less often.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if model.ByteSize() < _IN_MEMORY:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        onnx.save_model(model, path, save_as_external_data=True, location=CONSTANTS)
        return onnxruntime.InferenceSession(path, options, providers=providers)


def _numpy_type(text: str) -> np.dtype:
    """The type of an input as onnxruntime spells it: `tensor(float16)`."""
    name = text.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


def _rounding() -> str:
    return os.environ.get(ROUNDING_VARIABLE, "even")


def _replace(field: object, items: list[onnx.NodeProto] | list[onnx.TensorProto]) -> None:
    """Give a repeated field other items."""
    kept = copy.deepcopy(items)
    del field[:]  # type: ignore[attr-defined]
    field.extend(kept)  # type: ignore[attr-defined]
