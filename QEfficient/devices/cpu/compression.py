"""Weights into the form that was asked for: linear layers and embeddings in 4, 8 or 16 bits, the rest in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from QEfficient.devices.cpu.calibrated import Feedback
from QEfficient.devices.cpu.editing import Nodes, remove_unused, replace_output
from QEfficient.devices.cpu.experts import Experts
from QEfficient.devices.cpu.linear import Linear
from QEfficient.devices.cpu.lowering import DOMAIN
from QEfficient.devices.cpu.options import CpuOptions
from QEfficient.devices.cpu.packing import TILE, pack, pack_groups
from QEfficient.devices.cpu.quantization import Grid, Rounded, round_rows
from QEfficient.devices.weight_file import FILE, INLINE_LIMIT, WeightFile

COMPRESSED_LINEAR = "CompressedLinear"
EXPERT_LINEAR = "ExpertLinear"
BITS = {"int8": 8, "int4": 4}
STORED = {"f32": ir.DataType.FLOAT, "bf16": ir.DataType.BFLOAT16, "f16": ir.DataType.FLOAT16}
SLICE = 1 << 22
"""Weights that are in memory at once while a matrix is compressed."""


Activations = Callable[[str], np.ndarray]
"""Name of a weight → what its layer is fed with, `[tokens, in]`."""


class Compression:
    """Writes every large initializer, in the form that the options ask for."""

    def __init__(
        self, model: ir.Model, file: WeightFile, options: CpuOptions, activations: Activations | None = None
    ) -> None:
        self._graph, self._file, self._options = model.graph, file, options
        self._activations = activations
        self._done: dict[tuple[str, str], list[ir.Value]] = {}

    def run(self, linears: Sequence[Linear], experts: Sequence[Experts] = ()) -> None:
        for wanted, together in self._fed_alike(linears):
            if wanted in BITS:
                self._compress(together, wanted)
            elif wanted != "f32":
                for linear in together:
                    self._narrow(linear, wanted)
        for one in experts if self._options.expert_format != "f32" else ():
            replace_output(one.node, self._product(one, self._options.expert_format))
        remove_unused(self._graph)
        for name in list(self._graph.initializers):
            self._place(self._graph.initializers[name])
        remove_unused(self._graph)

    def _fed_alike(self, linears: Sequence[Linear]) -> list[tuple[str, list[Linear]]]:
        """The layers that share their activations and their format, and that format."""
        found: dict[tuple[str, int], list[Linear]] = {}
        for linear in linears:
            wanted = self._options.head_format if linear.is_head else self._options.weight_format
            found.setdefault((wanted, id(linear.activations)), []).append(linear)
        return [(wanted, together) for (wanted, _), together in found.items()]

    def _compress(self, together: list[Linear], wanted: str) -> None:
        """One node for all: activations are quantized once, and threads meet once."""
        first = together[0]
        grid = self._grid(wanted)
        weights = [value for linear in together for value in self._packed_once(linear, grid)]
        results = Nodes(self._graph, first.node).several(
            len(together),
            COMPRESSED_LINEAR,
            *(first.activations, *weights),
            domain=DOMAIN,
            bits=grid.bits,
            group=grid.group,
            in_features=first.shape[1],
            out_features=[linear.shape[0] for linear in together],
        )
        for linear, result in zip(together, results, strict=True):
            finish(linear, Nodes(self._graph, linear.node), result)

    def _product(self, experts: Experts, wanted: str) -> ir.Value:
        """The product with matrices of another format."""
        build = Nodes(self._graph, experts.node)
        if wanted not in BITS:
            return experts.product(build, self._narrow_stack(experts, wanted), is_narrow=True)
        grid, (count, outputs, inputs) = self._grid(wanted), experts.stack.shape
        given, choice = experts.activations, experts.choice
        if choice is None:
            choice = build.constant(np.arange(count))
        if experts.matrix_first:
            given = build("Unsqueeze", build("Squeeze", given, build.constant([-1])), build.constant([-2]))
        result = build(
            EXPERT_LINEAR,
            *(given, choice, *self._packed_once(experts, grid)),
            domain=DOMAIN,
            bits=grid.bits,
            group=grid.group,
            in_features=inputs,
            out_features=outputs,
            experts=count,
        )
        if experts.matrix_first:
            result = build("Unsqueeze", build("Squeeze", result, build.constant([-2])), build.constant([-1]))
        return result

    def _grid(self, wanted: str) -> Grid:
        return Grid(BITS[wanted], self._options.group_size, self._options.symmetric)

    def _packed_once(self, linear: Linear | Experts, grid: Grid) -> list[ir.Value]:
        key = (str(linear.weight.name), f"int{grid.bits}")
        if key not in self._done:  # a matrix may serve several layers
            self._done[key] = self._packed(linear, grid)
        return self._done[key]

    def _packed(self, linear: Linear | Experts, grid: Grid) -> list[ir.Value]:
        (outputs, inputs), name = linear.shape, str(linear.weight.name)
        scales: list[np.ndarray] = []
        zeros: list[np.ndarray] = []

        # What each expert of its own is fed with is not watched.
        watched = None if isinstance(linear, Experts) else self._activations
        round_part = round_rows if watched is None else Feedback(watched(name)).round_rows

        def parts() -> Iterator[np.ndarray]:
            step = max(SLICE // inputs // TILE, 1) * TILE
            for start in range(0, outputs, step):
                rounded = round_part(linear.rows(start, min(start + step, outputs)), grid)
                scales.append(pack_groups(rounded.scales))
                if rounded.zeros is not None:
                    zeros.append(pack_groups(rounded.zeros))
                yield _packed_values(rounded, grid)

        padded = -(-inputs // grid.group) * grid.group
        size = -(-outputs // TILE) * TILE * padded * grid.bits // 8
        values = [self._file.add(f"{name}.q{grid.bits}", ir.DataType.UINT8, (size,), parts())]
        shape = (-(-outputs // TILE), padded // grid.group, TILE)
        values.append(self._file.add(f"{name}.scale{grid.bits}", ir.DataType.FLOAT16, shape, scales))
        if zeros:
            values.append(self._file.add(f"{name}.zero{grid.bits}", ir.DataType.UINT8, shape, zeros))
        for value in values:
            self._graph.register_initializer(value)
        return values

    def _narrow(self, linear: Linear, wanted: str) -> None:
        """Keep the matrix in 16 bits."""
        key = (str(linear.weight.name), wanted)
        build = Nodes(self._graph, linear.node)
        if key not in self._done:
            dtype = STORED[wanted]
            outputs, inputs = linear.shape
            rows = max(SLICE // inputs, 1)
            parts = (linear.rows(i, min(i + rows, outputs)).astype(dtype.numpy()) for i in range(0, outputs, rows))
            value = self._file.add(f"{key[0]}.{wanted}", dtype, (outputs, inputs), parts)
            self._graph.register_initializer(value)
            self._done[key] = [value]
        wide = build("Cast", self._done[key][0], to=ir.DataType.FLOAT)
        turned = build("Transpose", wide, perm=[1, 0])
        finish(linear, build, build("MatMul", linear.activations, turned))

    def _narrow_stack(self, experts: Experts, wanted: str) -> ir.Value:
        """The matrices in 16 bits, as the product takes them."""
        key = (str(experts.weight.name), wanted)
        if key not in self._done:  # a stack may serve several layers
            dtype, stack = STORED[wanted], experts.in_order_of_use(experts.stack)
            parts = (np.ascontiguousarray(matrix[None], np.float32).astype(dtype.numpy()) for matrix in stack)
            value = self._file.add(".".join(key), dtype, stack.shape, parts)
            self._graph.register_initializer(value)
            self._done[key] = [value]
        return self._done[key][0]

    def _place(self, value: ir.Value) -> None:
        """Write what is not a linear layer: embeddings in the form that goes with the weights, the rest in float32."""
        tensor = value.const_value
        assert tensor is not None and value.name is not None
        if isinstance(tensor, ir.ExternalTensor) and tensor.location == FILE:
            return
        readers = list(value.consumers())
        is_table = bool(readers) and all(looks_up_rows(node, value) for node in readers)
        if is_table and len(tensor.shape) == 2 and tensor.nbytes >= INLINE_LIMIT and tensor.dtype.is_floating_point():
            self._place_table(value)
            return
        data = tensor.numpy()
        if tensor.dtype in (ir.DataType.BFLOAT16, ir.DataType.FLOAT16):
            data = data.astype(np.float32)
        if data.nbytes < INLINE_LIMIT:
            value.const_value = ir.tensor(np.array(data), name=value.name)
            value.type = ir.TensorType(value.const_value.dtype)
            return
        placed = self._file.add(value.name, ir.DataType.from_numpy(data.dtype), data.shape, [data])
        value.const_value, value.type = placed.const_value, placed.type

    def _place_table(self, value: ir.Value) -> None:
        """An embedding: rows are read one by one, so that 16 bits, or 8 with a scale for each row, cost no time."""
        wanted, tensor, name = self._options.weight_format, value.const_value, str(value.name)
        assert tensor is not None
        rows, width = (int(size) for size in tensor.shape.numpy())
        step = max(SLICE // width, 1)
        slices = [(start, min(start + step, rows)) for start in range(0, rows, step)]
        stored = tensor.numpy()
        if wanted not in BITS:
            dtype = STORED[wanted]
            parts = (np.asarray(stored[a:b]).astype(dtype.numpy()) for a, b in slices)
            placed = self._file.add(name, dtype, (rows, width), parts)
            self._read_table(value, placed, None)
            return
        scales: list[np.ndarray] = []

        def parts_of_table() -> Iterator[np.ndarray]:
            for start, stop in slices:
                part = np.asarray(stored[start:stop]).astype(np.float32)
                scale = np.maximum(np.abs(part).max(1, keepdims=True) / 127, np.float32(1e-12))
                scales.append(scale.astype(np.float32))
                yield np.rint(part / scale).astype(np.int8)

        placed = self._file.add(f"{name}.rows", ir.DataType.INT8, (rows, width), parts_of_table())
        self._read_table(value, placed, self._file.add(f"{name}.row_scale", ir.DataType.FLOAT, (rows, 1), scales))

    def _read_table(self, value: ir.Value, table: ir.Value, scale: ir.Value | None) -> None:
        """Let every reader look up the stored rows and widen what it found."""
        readers = list(value.consumers())
        del self._graph.initializers[str(value.name)]
        for stored in filter(None, (table, scale)):
            self._graph.register_initializer(stored)
        for node in readers:
            build = Nodes(self._graph, node)
            found = build("Gather", table, node.inputs[1], axis=0)
            if table.dtype != ir.DataType.FLOAT:
                found = build("Cast", found, to=ir.DataType.FLOAT)
            if scale is not None:
                found = build("Mul", found, build("Gather", scale, node.inputs[1], axis=0))
            replace_output(node, found)


def finish(linear: Linear, build: Nodes, product: ir.Value) -> None:
    """Let the product, and the bias if there is one, take the layer's place."""
    bias = linear.node.inputs[2] if len(linear.node.inputs) > 2 else None
    replace_output(linear.node, product if bias is None else build("Add", product, bias))


def looks_up_rows(node: ir.Node, table: ir.Value) -> bool:
    """Whether all that a node does with a matrix is to read some of its rows."""
    is_lookup = not node.domain and node.op_type == "Gather" and node.inputs[0] is table
    return is_lookup and ("axis" not in node.attributes or node.attributes["axis"].as_int() == 0)


def _packed_values(rounded: Rounded, grid: Grid) -> np.ndarray:
    return pack(rounded.values, grid.bits, grid.group, rounded.zeros)
