"""What QNN's converter reads: types and shapes of the inputs and outputs, which fit the network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from qaic_simulator.profiles import profile_of
from qaic_simulator.qnn.rules import refuse
from qaic_simulator.side_files.custom_io import input_of_state
from qaic_simulator.side_files.yaml_file import briefly, read_yaml

SECTIONS = ("Input Tensor Configuration", "Output Tensor Configuration")
PARAMETERS = "Desired Model Parameters"
TYPES = ("float32", "float16", "int64", "int32", "uint8", "bool")
ONNX_TYPES: Mapping[int, str] = {
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.BOOL: "bool",
}
"""Types of the network that no conversion changes."""
TUPLE = r"\([1-9][0-9]{0,8}(, [1-9][0-9]{0,8})*\)"
SHAPES = re.compile(f"{TUPLE}(, {TUPLE})*")
MOST_GRAPHS = 2

_READER = profile_of("1.22")


@dataclass(frozen=True)
class Tensor:
    """An input or an output of the graph; an output has no shapes of its own."""

    name: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...] = ()
    """One for each specialization."""


@dataclass(frozen=True)
class Conversion:
    """What the converter is asked for."""

    network: Path
    output: Path
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def graphs(self) -> int:
        """How many the converted file holds."""
        return len(self.inputs[0].shapes)

    @property
    def block_floats(self) -> set[str]:
        """Inputs and outputs that hold MXINT8, by the names that the converter gives them."""
        return {_converted(tensor.name) for tensor in (*self.inputs, *self.outputs) if tensor.dtype == "uint8"}

    @property
    def graph_names(self) -> list[str]:
        """What the converter calls the graphs."""
        stem = self.output.stem
        return [stem] if self.graphs == 1 else [f"{stem}_configuration_{n + 1}" for n in range(self.graphs)]


def _converted(name: str) -> str:
    return name.replace(".", "_")


def read_io(path: Path) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The inputs and the outputs that the YAML lists."""
    content = read_yaml(path, _READER)
    if not isinstance(content, dict) or set(content) != set(SECTIONS):
        refuse("qnn.io.sections", f"{path.name} has other sections than {' and '.join(SECTIONS)}.")
    for section in SECTIONS:
        if not isinstance(content[section], list) or not content[section]:
            refuse("qnn.io.sections", f"{section} is no list, or an empty one.")
    inputs = tuple(_read_tensor(item, ("DataType", "Shape")) for item in content[SECTIONS[0]])
    outputs = tuple(_read_tensor(item, ("DataType",)) for item in content[SECTIONS[1]])
    _check_names(inputs, outputs)
    _check_specializations(inputs)
    _check_states(inputs, outputs)
    return inputs, outputs


def _read_tensor(item: Any, keys: Sequence[str]) -> Tensor:
    if not isinstance(item, dict) or not isinstance(item.get("Name"), str) or not item["Name"]:
        refuse("qnn.io.item", f"An item has no Name: {briefly(item)}")
    name, desired = item["Name"], item.get(PARAMETERS)
    if not isinstance(desired, dict):
        refuse("qnn.io.item", f"{name} has no {PARAMETERS}.")
    if set(item) != {"Name", PARAMETERS} or set(desired) != set(keys):
        refuse("qnn.io.key", f"{name} has {', '.join((*item, *desired))}, where its parameters are {', '.join(keys)}.")
    if desired["DataType"] not in TYPES:
        refuse("qnn.io.type", f"{name} has DataType {briefly(desired['DataType'])}, not {', '.join(TYPES)}.")
    return Tensor(name, desired["DataType"], _read_shapes(name, desired["Shape"]) if "Shape" in keys else ())


def _read_shapes(name: str, text: Any) -> tuple[tuple[int, ...], ...]:
    if not isinstance(text, str) or not SHAPES.fullmatch(text):
        refuse("qnn.io.shape", f"{name} has the Shape {briefly(text)}, not '(1, 32), (1, 1)' or the like.")
    shapes = tuple(tuple(int(size) for size in part.split(", ")) for part in re.findall(r"\(([^)]*)\)", text))
    if len({len(shape) for shape in shapes}) > 1:
        refuse("qnn.io.shape", f"{name} has shapes of different rank: {text}.")
    return shapes


def _check_names(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    names = [_converted(tensor.name) for tensor in (*inputs, *outputs)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        refuse("qnn.io.twice", f"{twice[0]} is listed twice.")


def _check_specializations(inputs: Sequence[Tensor]) -> None:
    count = len(inputs[0].shapes)
    for tensor in inputs:
        if len(tensor.shapes) != count:
            refuse("qnn.io.specializations", f"{tensor.name} has {len(tensor.shapes)} shapes, others have {count}.")
    if count > MOST_GRAPHS:
        refuse("qnn.io.specializations", f"There are {count} specializations, but at most {MOST_GRAPHS} are used.")
    if count > 1 and all(len(set(tensor.shapes)) == 1 for tensor in inputs):
        refuse("qnn.io.indistinguishable", "No input has another shape in the one specialization than in the other.")


def _check_states(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    types = {tensor.name: tensor.dtype for tensor in inputs}
    states = {tensor.name: input_of_state(tensor.name) for tensor in outputs if input_of_state(tensor.name)}
    for tensor in outputs:
        entry = states.get(tensor.name)
        if entry and types.get(entry) != tensor.dtype:
            refuse("qnn.io.pair", f"{tensor.name} is {tensor.dtype}, but {entry} is {types.get(entry, 'not listed')}.")
    paired = {*states, *states.values()}
    for tensor in (*inputs, *outputs):
        if tensor.dtype == "uint8" and tensor.name not in paired:
            refuse("qnn.io.uint8", f"{tensor.name} is uint8, but is no side of a retained state.")


def check_against_network(conversion: Conversion) -> None:
    """Refuse what does not fit the network."""
    try:
        graph = onnx.load(conversion.network, load_external_data=False).graph
    except (DecodeError, ValueError) as error:
        refuse("qnn.network", f"{conversion.network.name} is no ONNX file: {error}")
    if not graph.output:
        refuse("qnn.network", f"{conversion.network.name} holds no graph.")
    weights = {weight.name for weight in graph.initializer}
    entries = {value.name: value for value in graph.input if value.name not in weights}
    for listed, found in ((conversion.inputs, entries), (conversion.outputs, {v.name: v for v in graph.output})):
        odd = {tensor.name for tensor in listed} ^ set(found)
        if odd:
            refuse("qnn.graph.names", f"{sorted(odd)[0]} is in the network or in the YAML, but not in both.")
        for tensor in listed:
            _check_type(tensor, found[tensor.name])
    for index in range(conversion.graphs):
        bound_symbols(conversion.inputs, entries, index)


def _check_type(tensor: Tensor, value: onnx.ValueInfoProto) -> None:
    found = ONNX_TYPES.get(value.type.tensor_type.elem_type)
    whole = tensor.dtype in ONNX_TYPES.values()
    if (found or whole) and found != tensor.dtype:
        refuse("qnn.graph.type", f"{tensor.name} is {found or 'a float'} in the network, but {tensor.dtype} here.")


def bound_symbols(inputs: Sequence[Tensor], entries: Mapping[str, onnx.ValueInfoProto], index: int) -> dict[str, int]:
    """The size of every symbol in one specialization; refuses shapes that are not those of the network's inputs."""
    sizes: dict[str, int] = {}
    for tensor in inputs:
        dimensions = entries[tensor.name].type.tensor_type.shape.dim
        shape = tensor.shapes[index]
        if len(dimensions) != len(shape):
            refuse("qnn.graph.shape", f"{tensor.name} has rank {len(dimensions)} in the network, {len(shape)} here.")
        for dimension, size in zip(dimensions, shape, strict=True):
            expected = dimension.dim_value or sizes.setdefault(dimension.dim_param, size)
            if size != expected and (dimension.dim_value or dimension.dim_param):
                said = dimension.dim_param or "a dimension"
                refuse("qnn.graph.shape", f"{tensor.name}: {said} is {size} here, but {expected} elsewhere.")
    return {symbol: size for symbol, size in sizes.items() if symbol}
