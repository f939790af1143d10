"""The weights that an artifact holds, back in float32 in the exported graph: a program that the reference device runs.

Matrices are read from the bytes that the kernels read, and where the native kernel runs them, activations are rounded
as it rounds them. So what still differs is how this device computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from QEfficient.devices.cpu.compilation import ROLE, open_graph
from QEfficient.devices.cpu.compression import BITS, SLICE, Compression, finish, looks_up_rows
from QEfficient.devices.cpu.editing import Nodes, remove_unused, replace_output
from QEfficient.devices.cpu.experts import Experts, find_experts
from QEfficient.devices.cpu.linear import Linear, find_linears
from QEfficient.devices.cpu.opening import MODEL_FILE, runs_natively
from QEfficient.devices.cpu.options import CpuOptions, recorded_options
from QEfficient.devices.cpu.packing import TILE, unpack, unpack_groups
from QEfficient.devices.cpu.quantization import Grid, Rounded, restore
from QEfficient.devices.cpu.rounding import rounded
from QEfficient.devices.weight_file import WeightFile
from QEfficient.errors import ArtifactError
from QEfficient.program import CompiledProgram, ExportedProgram, Graph, GraphSpec, TensorSpec

FLOAT32 = CpuOptions(weight_format="f32", head_format="f32", expert_format="f32")
HALVES = ("float16", "bfloat16")


def restore_program(compiled: CompiledProgram, folder: Path) -> ExportedProgram | None:
    """Write the program with the stored weights into `folder`; None if these are the exported ones, in float32."""
    program, options = compiled.program, recorded_options(compiled.report)
    if set(options.formats) == {"f32"} and program.dtype == "float32":
        return None
    model = open_graph(program)
    _check_layers(model, compiled)
    with WeightFile(folder) as file:
        Restoration(model, ir.load(compiled.folder / MODEL_FILE), options, file).run()
    ir.save(model, folder / MODEL_FILE)
    graph = Graph(MODEL_FILE, _widened(program.graphs[ROLE].spec))
    return replace(program, folder=folder, graphs={ROLE: graph}, dtype="float32")


class Restoration:
    """Gives the layers and tables of `model` the weights of `artifact`; everything is written to `file`."""

    def __init__(self, model: ir.Model, artifact: ir.Model, options: CpuOptions, file: WeightFile) -> None:
        self._model, self._graph, self._options, self._file = model, model.graph, options, file
        self._stored = artifact.graph.initializers
        self._done: dict[tuple[str, str], ir.Value] = {}
        self._rounds = runs_natively(options)
        self._rounded: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        shapes = [value.shape for value in self._graph.outputs]
        for linear in find_linears(self._model):
            wanted = self._options.head_format if linear.is_head else self._options.weight_format
            if wanted != "f32":
                self._restore_linear(linear, wanted)
        for experts in find_experts(self._model) if self._options.expert_format != "f32" else ():
            self._restore_experts(experts, self._options.expert_format)
        remove_unused(self._graph)
        for value in list(self._graph.initializers.values()):
            self._restore_table(value)
        Compression(self._model, self._file, FLOAT32).run([])
        for value, shape in zip(self._graph.outputs, shapes, strict=True):
            value.shape = shape  # what replaced the head has sizes that nobody can infer

    def _restore_linear(self, linear: Linear, wanted: str) -> None:
        key = (str(linear.weight.name), wanted)
        if key not in self._done:  # a matrix may serve several layers
            parts = self._packed_rows(linear, wanted) if wanted in BITS else self._wide_rows(".".join(key))
            self._done[key] = self._add(f"{key[0]}.{wanted}", linear.shape, parts)
        build = Nodes(self._graph, linear.node)
        turned = build("Transpose", self._done[key], perm=[1, 0])
        finish(linear, build, build("MatMul", self._fed(build, linear, wanted), turned))

    def _restore_experts(self, experts: Experts, wanted: str) -> None:
        key, stack = (str(experts.weight.name), wanted), experts.in_order_of_use(experts.stack)
        if key not in self._done:
            parts = self._packed_matrices(experts, wanted) if wanted in BITS else self._wide_rows(".".join(key))
            self._done[key] = self._add(f"{key[0]}.{wanted}", stack.shape, parts)
        build = Nodes(self._graph, experts.node)
        given = replace(experts, activations=self._fed(build, experts, wanted))
        replace_output(experts.node, given.product(build, self._done[key]))

    def _fed(self, build: Nodes, linear: Linear | Experts, wanted: str) -> ir.Value:
        """What the layer takes: its activations, or these as the kernel rounds them."""
        value = linear.activations
        if not self._rounds or wanted not in BITS:
            return value
        if value not in self._rounded:
            is_column = isinstance(linear, Experts) and linear.matrix_first
            row = build("Squeeze", value, build.constant([-1])) if is_column else value
            row = rounded(build, row, linear.shape[1], self._options.group_size)
            self._rounded[value] = build("Unsqueeze", row, build.constant([-1])) if is_column else row
        return self._rounded[value]

    def _packed_matrices(self, experts: Experts, wanted: str) -> Iterator[np.ndarray]:
        """One by one, as the product takes them."""
        outputs = experts.stack.shape[1]
        for matrix in self._packed_rows(experts, wanted, outputs // TILE):
            yield np.ascontiguousarray(experts.in_order_of_use(matrix[None]))

    def _packed_rows(self, linear: Linear | Experts, wanted: str, tiles: int = 0) -> Iterator[np.ndarray]:
        """Rows in float32, those of so many tiles at a time."""
        (outputs, inputs), name = linear.shape, str(linear.weight.name)
        grid = Grid(BITS[wanted], self._options.group_size, self._options.symmetric)
        scales = self._read(f"{name}.scale{grid.bits}")
        zeros = None if grid.symmetric else self._read(f"{name}.zero{grid.bits}")
        packed = self._read(f"{name}.q{grid.bits}").reshape(len(scales), -1)
        step = tiles or max(SLICE // inputs // TILE, 1)
        for tile in range(0, len(scales), step):
            part, count = slice(tile, tile + step), min(step * TILE, outputs - tile * TILE)
            values = unpack(packed[part], grid.bits, grid.group, count, inputs)
            points = None if zeros is None else unpack_groups(zeros[part], count)
            yield restore(Rounded(values, unpack_groups(scales[part], count), points), grid)

    def _wide_rows(self, name: str, scale: str | None = None) -> Iterator[np.ndarray]:
        """Rows (or matrices) of 16 bits, or of 8 with a scale for each."""
        rows = self._read(name)
        scales = None if scale is None else self._read(scale)
        step = max(SLICE // rows[0].size, 1)
        for start in range(0, len(rows), step):
            part = np.asarray(rows[start : start + step]).astype(np.float32)
            yield part if scales is None else part * scales[start : start + step]

    def _restore_table(self, value: ir.Value) -> None:
        """An embedding, if the artifact holds it in less than 32 bits."""
        name = str(value.name)
        readers = [node for node in value.consumers() if looks_up_rows(node, value)]
        if not readers or f"{name}.rows" not in self._stored and not self._is_narrow(name):
            return
        in_bytes = f"{name}.rows" in self._stored
        parts = self._wide_rows(f"{name}.rows", f"{name}.row_scale") if in_bytes else self._wide_rows(name)
        table = self._add(f"{name}.table", tuple(int(size) for size in value.shape.numpy()), parts)  # type: ignore[union-attr]
        for node in readers:
            node.replace_input_with(0, table)

    def _is_narrow(self, name: str) -> bool:
        return name in self._stored and self._stored[name].dtype in (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)

    def _read(self, name: str) -> np.ndarray:
        """A tensor of the artifact, mapped."""
        found = self._stored.get(name)
        if found is None or found.const_value is None:
            raise ArtifactError(f"the compiled program holds no weights '{name}'. Compile it again.")
        array: np.ndarray = found.const_value.numpy()
        return array

    def _add(self, name: str, shape: tuple[int, ...], parts: Iterator[np.ndarray]) -> ir.Value:
        value = self._file.add(name, ir.DataType.FLOAT, shape, parts)
        self._graph.register_initializer(value)
        return value


def _check_layers(model: ir.Model, compiled: CompiledProgram) -> None:
    """Refuse a graph in which compilation found other layers: some would keep the exported weights."""
    for what, found in (("linear_layers", len(find_linears(model))), ("expert_layers", len(find_experts(model)))):
        wanted = compiled.report.get(what, 0)
        if found != wanted:
            raise ArtifactError(f"{compiled.folder} has {wanted} {what.replace('_', ' ')}, the program {found}.")


def _widened(graph: GraphSpec) -> GraphSpec:
    return replace(
        graph,
        inputs=tuple(map(_wide, graph.inputs)),
        outputs=tuple(map(_wide, graph.outputs)),
        states=tuple(replace(state, tensor=_wide(state.tensor)) for state in graph.states),
    )


def _wide(tensor: TensorSpec) -> TensorSpec:
    return replace(tensor, dtype="float32") if tensor.dtype in HALVES else tensor
