"""What goes in and out of a graph, and the names that the side files say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import onnx
from onnx.inliner import inline_selected_functions

from qaic_simulator.graph.binding import Program
from qaic_simulator.graph.file import names_used, nodes_within
from qaic_simulator.profiles import Profile
from qaic_simulator.side_files.custom_io import PRECISIONS, STATE_SUFFIXES, input_of_state
from qaic_simulator.side_files.node_precision import NodePrecision
from qaic_simulator.side_files.partitions import Partition, PartitionConfig
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


def check_kept(programs: Sequence[Program]) -> None:
    """Refuse a retained state that is not as large in one specialization as in another: all of them use the same."""
    first = programs[0]
    names = [input_of_state(value.name) for value in first.bound.model.graph.output]
    for name in filter(None, names):
        shapes = {program.bound.shapes.get(name) for program in programs}
        if len(shapes) > 1:
            found = " and ".join(map(str, dict.fromkeys(program.bound.shapes.get(name) for program in programs)))
            first.refuse("states.sizes", f"{name} has shapes {found}, but one memory for all specializations.")


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
    """Refuse a partition none of whose nodes exist, names of several nodes, and an order that is not the graph's.

    Names of no node are ignored: lists that are meant for several releases of the compiler have some. That nodes stand
    in no list is taken too: nothing public says otherwise, and lists that were cut to an earlier dump leave some out.
    """
    listed = [name for partition in config.partitions for name in partition.nodes]
    imported, *others = _namings(program, model)
    for partition in config.partitions:
        if partition.nodes and not any(node.name in partition.nodes for nodes in (imported, *others) for node in nodes):
            program.refuse("partitions.node-name", f"No node is called as {partition.name} lists it.")
    times = Counter(node.name for node in imported)
    for name in (name for name in listed if times[name] > 1):
        program.refuse("graph.twice", f"{times[name]} nodes are called {name}, which a partition lists.")
    _check_order(listed, [_places(nodes) for nodes in (imported, *others)], program)


def _check_order(listed: Sequence[str], orders: Sequence[Mapping[str, int]], program: Program) -> None:
    """By the naming that knows most of the names; where several do, one of them."""
    known = [[order[name] for name in listed if name in order] for order in orders]
    most = max(map(len, known))
    if not any(places == sorted(set(places)) for places in known if len(places) == most):
        program.refuse("partitions.order", "The nodes of the partitions are not in the order of the graph.")


def values_of_partitions(program: Program, model: onnx.ModelProto, partitions: Sequence[Partition]) -> list[set[str]]:
    """What the nodes of each partition read and make."""
    nodes: dict[str, onnx.NodeProto] = {}
    for naming in _namings(program, model):
        nodes = {node.name: node for node in naming if node.name} | nodes
    found = [[nodes[name] for name in partition.nodes if name in nodes] for partition in partitions]
    return [{name for node in own for name in (*names_used(node), *node.output)} for own in found]


def _namings(program: Program, model: onnx.ModelProto) -> list[Sequence[onnx.NodeProto]]:
    """The nodes as the importer names them, as the file does, and as they are without any function."""
    return [tuple(_as_imported(model).graph.node), tuple(model.graph.node), program.nodes]


def kept_nodes(programs: Sequence[Program], model: onnx.ModelProto) -> tuple[str, ...]:
    """The names of the nodes, as the importer has them, that are not worked out before the program runs."""
    constants = set().union(*(program.bound.constants for program in programs))
    nodes = _as_imported(model).graph.node
    return tuple(node.name for node in nodes if node.name and constants.isdisjoint(filter(None, node.output)))


def _as_imported(model: onnx.ModelProto) -> onnx.ModelProto:
    """With its small functions inlined: what a large one holds is not counted in the names of what follows."""
    large = [(f.domain, f.name) for f in model.functions if len(f.node) >= FEWEST_OF_FUNCTION]
    return inline_selected_functions(model, [*large, *NEVER_INLINED], exclude=True)


def _places(nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
    return {node.name: place for place, node in enumerate(nodes) if node.name}
