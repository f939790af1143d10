"""What goes in and out of a graph, and the names that the side files say of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import onnx
from onnx.inliner import inline_selected_functions

from qaic_simulator.graph.binding import Program
from qaic_simulator.graph.file import names_used, nodes_within
from qaic_simulator.profiles import Profile
from qaic_simulator.side_files.custom_io import PRECISIONS, STATE_SUFFIXES, input_of_state
from qaic_simulator.side_files.node_precision import NodePrecision
from qaic_simulator.side_files.partitions import PartitionConfig
from qaic_simulator.side_files.specializations import Specialization

_TYPES = onnx.TensorProto
MICROSCALING_BLOCK = 32
FEWEST_OF_FUNCTION = 100
"""Nodes of a function that stays one when the importer names nodes; smaller ones are inlined."""
PRECISIONS_OF: Mapping[int, Collection[str]] = MappingProxyType(
    {
        **dict.fromkeys((_TYPES.FLOAT, _TYPES.FLOAT16, _TYPES.BFLOAT16), PRECISIONS),
        **dict.fromkeys((_TYPES.INT8, _TYPES.UINT8), ("int8",)),
    }
)
"""By the type in the graph: floats are converted, numbers without a fraction stay what they are."""
NEVER_INLINED = (("com.qti.aisw.onnx", "CustomRMSNorm"), ("com.qti.aisw.onnx", "CastToUInt4"))
ALWAYS_WRITTEN = frozenset(
    {
        "batch_size",
        "seq_len",
        "ctx_len",
        "comp_ctx_lengths",
        "full_batch_size",
        "full_batch_exec_size",
        "num_logits_to_keep",
        "model_type",
    }
)
"""Symbols that QEfficient gives values to whether or not a graph has them, which compiles."""


def sizes_of(value: onnx.ValueInfoProto) -> tuple[str | int, ...]:
    """The dimensions that the graph gives an input: numbers, symbols, or an empty text for none of these."""
    dimensions = value.type.tensor_type.shape.dim
    return tuple(int(d.dim_value) if d.HasField("dim_value") else str(d.dim_param) for d in dimensions)


def own_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a host feeds: old graphs list their weights among the inputs too."""
    constants = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constants]


def check_symbols(graph: onnx.GraphProto, entries: Sequence[Specialization], profile: Profile) -> None:
    """Refuse an entry that leaves a symbol of an input open, or has one that nobody knows."""
    for value in own_inputs(graph):
        for entry in entries:
            missing = [size for size in sizes_of(value) if isinstance(size, str) and size not in entry.symbols]
            if missing and missing[0]:
                text = f"Symbol {missing[0]} of input {value.name} has no value in specialization {entry.name}"
                profile.refuse("graph.unbound", text.rstrip())
    known = ALWAYS_WRITTEN.union(*(sizes_of(value) for value in (*graph.input, *graph.output, *graph.value_info)))
    for entry in entries:
        for name in sorted(set(entry.symbols) - known):
            text = f"Symbol {name} of specialization {entry.name} is no dimension of the graph."
            profile.refuse("graph.unknown-symbol", text)


def live_inputs(program: Program) -> tuple[str, ...]:
    """The inputs that some output depends on, be it by their shape only, in the order of the graph."""
    graph = program.bound.model.graph
    needed = {value.name for value in graph.output}
    for node in reversed(program.nodes):
        if needed & set(node.output):
            needed |= names_used(node)
    return tuple(value.name for value in own_inputs(graph) if value.name in needed)


def check_states(program: Program) -> None:
    """Refuse a retained state whose output does not belong to an input, or is that input."""
    graph = program.bound.model.graph
    inputs = {value.name for value in own_inputs(graph)}
    seen: set[str] = set()
    for output in (value.name for value in graph.output):
        name = input_of_state(output)
        if not name:
            continue
        if name not in inputs:
            program.refuse("states.partner", f"{output} has no input {name}.")
            continue
        if name in seen:
            program.refuse("states.twice", f"{name} has two outputs.")
        seen.add(name)
        _check_pair(program, name, output)


def _check_pair(program: Program, name: str, output: str) -> None:
    kinds = [program.element_type(side) for side in (name, output)]
    if kinds[0] != kinds[1]:
        texts = [onnx.TensorProto.DataType.Name(kind) for kind in kinds]
        program.refuse("states.type", f"{name} is {texts[0]}, but {output} is {texts[1]}.")
    shapes = [program.bound.shapes.get(side) for side in (name, output)]
    if shapes[0] != shapes[1]:
        program.refuse("states.shape", f"{name} has shape {shapes[0]}, but {output} has {shapes[1]}.")
    makers = {made: node for node in program.nodes for made in node.output}
    source = output
    while source in makers and makers[source].op_type == "Identity":
        source = makers[source].input[0]
    if source not in makers or source in program.bound.constants:
        program.refuse("states.copied", f"{output} is a copy of {source}.")


def check_custom_io(program: Program, precisions: Mapping[str, str]) -> None:
    """Refuse precisions of what is no input or output, of half a state, and mxint8 states that are no whole blocks."""
    graph = program.bound.model.graph
    names = {value.name for value in (*own_inputs(graph), *graph.output)}
    _check_halves([value.name for value in graph.output], precisions, program)
    for name, precision in precisions.items():
        inner = input_of_state(name) + STATE_SUFFIXES[0]
        found = name if name in names else inner if input_of_state(name) and inner in names else ""
        if not found:
            program.refuse("custom-io.name", f"{name} is no input or output of the model.")
            continue
        kind = program.element_type(found)
        if kind and precision not in PRECISIONS_OF.get(kind, ()):
            text = f"{name} is {onnx.TensorProto.DataType.Name(kind)}, for which there is no precision '{precision}'."
            program.refuse("custom-io.type", text)
        if precision == "mxint8" and program.bound.is_static(found):
            shape = program.shape(found)
            if not shape or shape[-1] % MICROSCALING_BLOCK:
                text = f"{name} of shape {shape} does not end in whole blocks of {MICROSCALING_BLOCK}."
                program.refuse("custom-io.blocks", text)


def _check_halves(outputs: Sequence[str], precisions: Mapping[str, str], program: Program) -> None:
    """Refuse a precision for the input of a state whose output has none: the file alone does not show the graph's."""
    for name in filter(None, map(input_of_state, outputs)):
        if name in precisions and not any(name + suffix in precisions for suffix in STATE_SUFFIXES):
            program.refuse("custom-io.pair", f"{name} is {precisions[name]}, but the state's output is not listed.")


def check_node_precision(program: Program, model: onnx.ModelProto, precision: NodePrecision) -> None:
    """Refuse names that are no node's first output, in the graph or in what its functions become."""
    nodes = [*nodes_within(model.graph.node), *nodes_within(program.nodes)]
    firsts = {node.output[0] for node in nodes if node.output}
    for name in (*precision.fp16, *precision.fp32):
        if name not in firsts:
            program.refuse("node-precision.name", f"{name} is no node's first output.")


def check_partitions(program: Program, model: onnx.ModelProto, config: PartitionConfig) -> None:
    """Refuse nodes that do not exist, and an order that is not the graph's."""
    listed = [name for partition in config.partitions for name in partition.nodes]
    if _in_order(listed, _places(_as_imported(model).graph.node)):
        return
    orders = [_places(model.graph.node), _places(program.nodes)]
    for name in listed:
        if not any(name in order for order in orders):
            program.refuse("partitions.node-name", f"No node is called {name}.")
    for order in orders:
        places = [order[name] for name in listed if name in order]
        if places != sorted(set(places)):
            program.refuse("partitions.order", "The nodes of the partitions are not in the order of the graph.")


def _as_imported(model: onnx.ModelProto) -> onnx.ModelProto:
    """With its small functions inlined: what a large one holds is not counted in the names of what follows."""
    large = [(f.domain, f.name) for f in model.functions if len(f.node) >= FEWEST_OF_FUNCTION]
    return inline_selected_functions(model, [*large, *NEVER_INLINED], exclude=True)


def _in_order(listed: Sequence[str], order: Mapping[str, int]) -> bool:
    places = [order.get(name, -1) for name in listed]
    return -1 not in places and places == sorted(set(places))


def _places(nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
    return {node.name: place for place, node in enumerate(nodes) if node.name}
