"""The exported graph → the same model over one packed row of tokens from many sequences.

Everything but the nodes with state and the choice of the last tokens works token by token, so the graph's
`[batch, seq]` becomes `[1, tokens]`. What steers padded calls is not needed then: logits are those of the tokens that
are named, and attention in blocks reads what is there. Attention that OpenVINO's PagedAttention can express keeps its
keys and values in blocks. Any other node with state keeps its portable body: its tokens are laid out on a padded grid
for it, and its results packed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from QEfficient.devices.cpu.editing import Nodes, remove_unused, replace_output
from QEfficient.errors import DeviceError
from QEfficient.program import COMPUTE_CONTEXT, GraphSpec, StateSpec

DOMAIN = "qefficient"
ATTENTION = "CachedAttention"
LAST_TOKENS = ("LastToken", "LastTokens")
PAGED_ATTENTION = "PagedAttention"
LOGITS_INDEX = "logits_index"
SEQUENCES = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins", "max_context_len")
"""What PagedAttention is told about the sequences of a run, in the order of its inputs."""
GRID: Mapping[str, list[int | str]] = {
    "grid_index": ["grid_rows", "grid_length"],
    "grid_positions": ["grid_rows", "grid_length"],
    "grid_slots": ["grid_rows", 1],
    "packed_index": ["tokens"],
}
"""What lays packed tokens out for portable bodies, and packs them again: a token for each cell and its position (-1:
none), the slot of each row, and the cell of each token."""
UNPAGED_PARTS = {"Chunked": "attention within chunks of positions", "Capped": "a cap on its scores"}
"""Parts of the names of attention nodes that PagedAttention has no form for."""

OTHER_HEADS = "heads of other numbers or sizes than most layers have"
"""PagedAttention of OpenVINO 2026.4 shares its scratch memory between layers, sized for the first."""


@dataclass(frozen=True)
class PagedLayer:
    """One attention layer whose keys and values lie in blocks."""

    key_cache: str
    value_cache: str
    kv_heads: int
    key_size: int
    value_size: int
    given_size: int
    """Of the model's values, which may be padded."""


@dataclass(frozen=True)
class Lowered:
    """What became of a graph."""

    paged: tuple[PagedLayer, ...]
    slotted: Mapping[int, str]
    """Layers with a portable body, and why."""
    mixed: frozenset[int]
    """Those among them that have attention in blocks as well."""
    states: tuple[str, ...]
    """The states that are still inputs and outputs."""


def is_attention(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type.startswith(ATTENTION)


def is_selection(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type in LAST_TOKENS


def is_recurrent(function: ir.Function) -> bool:
    """Whether this is the body of a mixer's node (layers as functions have other inputs)."""
    return function.domain == DOMAIN and {"position_ids", "state_0"} <= {value.name for value in function.inputs}


def unpackable(model: ir.Model, graph: GraphSpec) -> str | None:
    """Why this graph cannot run over packed tokens; None if it can."""
    bodies = {(f.domain, f.name) for f in model.functions.values() if is_recurrent(f)}
    states = {state.input.name for state in graph.states}
    for value in model.graph.inputs:
        for node in value.consumers() if value.name in states else ():
            if not (is_attention(node) or (node.domain, node.op_type) in bodies or node.op_type == "Shape"):
                return f"its attention is not one node with its state ({value.name} is read by {node.op_type})"
    return None if states else "it keeps no state"


class Lowering:
    """One pass over a graph. The model is changed in place."""

    def __init__(self, model: ir.Model, graph: GraphSpec, ctx_len: int, widen_values: bool = False) -> None:
        """`widen_values`: pad values that are smaller than their keys. An 8-bit cache of OpenVINO 2026.4 mixes them
        up."""
        self._widens = widen_values
        self._graph = model.graph
        self._spec = graph
        self._bodies = {(f.domain, f.name): f for f in model.functions.values() if is_recurrent(f)}
        whole = {"batch_size": 1, "full_batch_size": 1, "ctx_len": ctx_len}
        self._symbols = {**whole, **dict.fromkeys(graph.windows, ctx_len)}
        self._inputs = {str(value.name): value for value in self._graph.inputs}
        self._states = {state.input.name: state for state in graph.states}
        self._layers: dict[str, PagedLayer] = {}
        self._slotted: dict[int, str] = {}
        self._kept: set[str] = set()
        self._usual = self._usual_heads()

    def run(self) -> Lowered:
        self._read_everything()
        self._add_inputs()
        for node in list(self._graph):
            if is_attention(node):
                self._lower_attention(node)
            elif (node.domain, node.op_type) in self._bodies:
                self._lay_out_mixer(node, self._bodies[node.domain, node.op_type])
            elif is_selection(node):
                build = Nodes(self._graph, node)
                replace_output(node, build("Gather", node.inputs[0], self._inputs[LOGITS_INDEX], axis=1))
            elif node.op_type == "Shape" and node.inputs[0] is not None and node.inputs[0].name in self._states:
                self._fix_shape(node)
        self._drop_unused()
        kept = tuple(name for name in self._states if name in self._kept)
        mixed = frozenset(self._slotted) & {self._states[name].layer for name in self._layers}
        return Lowered(tuple(self._layers.values()), self._slotted, mixed, kept)

    def _read_everything(self) -> None:
        """Portable bodies read all slots, as does whatever else asks how many are read."""
        reads = self._inputs.get(COMPUTE_CONTEXT)
        if reads is not None and reads.uses():
            build = Nodes(self._graph, next(iter(self._graph)))
            everything = build.constant([0] * self._symbols["ctx_len"])
            everything.type = reads.type
            ir.convenience.replace_all_uses_with(reads, everything)

    def _add_inputs(self) -> None:
        for name in SEQUENCES:
            self._input(name, ir.DataType.INT32, [] if name == SEQUENCES[-1] else [f"{name}_length"])
        self._input(LOGITS_INDEX, ir.DataType.INT64, ["logits_count"])
        for name, shape in GRID.items():
            self._input(name, ir.DataType.INT64, shape)

    def _input(self, name: str, dtype: ir.DataType, shape: Iterable[int | str]) -> None:
        self._inputs[name] = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(list(shape)))

    def _lower_attention(self, node: ir.Node) -> None:
        reasons = [reason for part, reason in UNPAGED_PARTS.items() if part in node.op_type]
        if not reasons and self._heads(node) != self._usual:
            reasons = [OTHER_HEADS]
        if reasons:
            self._lay_out_attention(node, reasons[0])
        else:
            self._page(node)

    def _heads(self, node: ir.Node) -> tuple[object, ...]:
        """Numbers and sizes of heads of an attention node: queries, keys, values."""
        query, _, _, past_key, past_value = _given(node)[:5]
        states = (self._states[str(past.name)].input.shape for past in (past_key, past_value))
        return (query.shape[1] if query.shape is not None else None, *((s[1], s[3]) for s in states))

    def _usual_heads(self) -> tuple[object, ...] | None:
        nodes = (node for node in self._graph if is_attention(node))
        pageable = [node for node in nodes if not any(part in node.op_type for part in UNPAGED_PARTS)]
        counts = Counter(map(self._heads, pageable))
        return counts.most_common(1)[0][0] if counts else None

    def _page(self, node: ir.Node) -> None:
        """`CachedAttention` over `[1, heads, tokens, size]` → `PagedAttention` over `[tokens, heads * size]`."""
        query, key, value, past_key, past_value = _given(node)[:5]
        layer = self._layer(self._states[str(past_key.name)], self._states[str(past_value.name)])
        caches = [self._inputs[layer.key_cache], self._inputs[layer.value_cache]]
        sequences = [self._inputs[name] for name in SEQUENCES]
        sinks = [node.inputs[-2 if "Bounded" in node.op_type else -1]] if "Sinks" in node.op_type else []
        build = Nodes(self._graph, node)
        if layer.value_size > layer.given_size:
            value = build(
                "Pad", value, build.constant([0, layer.value_size - layer.given_size]), None, build.constant([-1])
            )
        flat = [build.merge_heads(x) for x in (query, key, value)]
        attributes = {
            "scale": node.attributes["scale"].as_float(),
            "window": node.attributes["window"].as_int() if "Windowed" in node.op_type else 0,
            "kv_heads": layer.kv_heads,
            "key_size": layer.key_size,
            "value_size": layer.value_size,
        }
        mixed = build(PAGED_ATTENTION, *flat, *caches, *sequences, *sinks, domain=DOMAIN, **attributes)
        split = build.split_heads(mixed, layer.value_size)
        if layer.value_size > layer.given_size:
            split = build("Slice", split, *(build.constant([number]) for number in (0, layer.given_size, -1)))
        replace_output(node, split)

    def _layer(self, key: StateSpec, value: StateSpec) -> PagedLayer:
        name = key.input.name
        if name in self._layers:  # layers that share their keys and values write the same ones again
            return self._layers[name]
        _, heads, _, key_size = key.input.resolve(self._symbols)
        given_size = value.input.resolve(self._symbols)[-1]
        value_size = max(given_size, key_size) if self._widens else given_size
        number = len(self._layers)
        layer = PagedLayer(f"key_cache.{number}", f"value_cache.{number}", heads, key_size, value_size, given_size)
        for cache in (layer.key_cache, layer.value_cache):
            self._input(cache, ir.DataType.FLOAT, [f"{cache}_{axis}" for axis in range(4)])
        self._layers[name] = layer
        return layer

    def _lay_out_attention(self, node: ir.Node, reason: str) -> None:
        given = _given(node)
        build = Nodes(self._graph, node)
        laid_out = [build.lay_out_heads(value, self._inputs["grid_index"]) for value in given[:3]]
        output = self._on_grid(node, build, laid_out, given[3:5], reason)
        replace_output(node, build.pack_heads(output[0], self._inputs["packed_index"]))

    def _lay_out_mixer(self, node: ir.Node, body: ir.Function) -> None:
        given = dict(zip((str(value.name) for value in body.inputs), _given(node), strict=True))
        sequences = [value for name, value in given.items() if name.startswith("sequence_")]
        states = [value for name, value in given.items() if name.startswith("state_")]
        build = Nodes(self._graph, node)
        laid_out = [build.lay_out(value, self._inputs["grid_index"]) for value in sequences]
        results = self._on_grid(node, build, laid_out, states, "its state is recurrent")
        for old, new in zip(node.outputs, results, strict=False):
            packed = build.pack(new, self._inputs["packed_index"])
            packed.type = old.type
            ir.convenience.replace_all_uses_with(old, packed)

    def _on_grid(
        self, node: ir.Node, build: Nodes, laid_out: Sequence[ir.Value], states: Sequence[ir.Value], reason: str
    ) -> Sequence[ir.Value]:
        """The node over a grid; returns its results without the states, which become the graph's."""
        self._slotted |= {self._states[str(state.name)].layer: reason for state in states}
        self._kept |= {str(state.name) for state in states}
        slots, has_slots = self._inputs["grid_slots"], "batch_index" in self._inputs
        rows = states if has_slots else [build("Gather", state, build.column(slots), axis=0) for state in states]
        instead = dict(zip(map(id, states), rows, strict=True))
        instead |= {id(self._inputs["position_ids"]): self._inputs["grid_positions"]}
        instead |= {id(self._inputs["batch_index"]): slots} if has_slots else {}
        given = [*laid_out, *(instead.get(id(value), value) for value in node.inputs[len(laid_out) :])]
        outputs = build.copy(node, given)
        results, next_states = outputs[: len(outputs) - len(states)], outputs[len(outputs) - len(states) :]
        for old, state, new in zip(node.outputs[len(results) :], states, next_states, strict=True):
            whole = new if has_slots else build("ScatterND", state, slots, new)
            whole.type, whole.shape = state.type, state.shape
            whole.name, old.name = old.name, f"{old.name}.replaced"
            ir.convenience.replace_all_uses_with(old, whole, replace_graph_outputs=True)
        return results

    def _fix_shape(self, node: ir.Node) -> None:
        """A size that the tracer took from a state: its number, for the state is no longer there, or has slots."""
        state = self._states[str(_given(node)[0].name)]
        sizes = state.input.resolve(self._symbols)
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        end = node.attributes["end"].as_int() if "end" in node.attributes else len(sizes)
        replace_output(node, Nodes(self._graph, node).constant(sizes[start:end]))

    def _drop_unused(self) -> None:
        graph = self._graph
        dropped = {state.output.name for name, state in self._states.items() if name not in self._kept}
        outputs = [value for value in graph.outputs if value.name not in dropped]
        graph.outputs.clear()
        graph.outputs.extend(outputs)
        remove_unused(graph)
        kept = [value for value in self._inputs.values() if value.uses()]
        left = [value.name for value in kept if value.name == "batch_index" or value.name in self._states]
        if set(left) - self._kept:
            raise DeviceError(f"the graph still needs '{left[0]}' after its layers were lowered.")
        graph.inputs.clear()
        graph.inputs.extend(kept)


def _given(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node that has no optional ones in between."""
    values = [value for value in node.inputs if value is not None]
    assert len(values) == len(node.inputs)
    return values
