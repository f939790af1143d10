"""What the stand-in compiler writes: a container like the real one, with the graph itself in a segment of its own."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import external_data_helper

from qaic_simulator.command_line.arguments import Arguments
from qaic_simulator.command_line.checking import Checked
from qaic_simulator.container import CONSTANTS, Image, image_pieces, image_size, write_container_to
from qaic_simulator.graph.checks import Imported, StaticShapes
from qaic_simulator.graph.file import external_place, tensors_of
from qaic_simulator.graph.interface import own_inputs
from qaic_simulator.graph.values import TYPE_NUMBERS
from qaic_simulator.network_descriptor import Binding, NetworkDescriptor, Shape, encode_descriptor
from qaic_simulator.profiles import Profile
from qaic_simulator.side_files.custom_io import STATE_SUFFIXES, input_of_state

PROGRAM = "programqpc.bin"
SHUFFLE_VARIABLE = "QAIC_SIM_SHUFFLE"
"""1: inputs, and outputs, are described in an order that is not the graph's."""
SLICE = "QAicGraph_slice{number:02d}"
MARK = b"qaic simulator: no device runs this"
FLOAT16 = 1
INVALID = 255
"""The buffer type of what the runtime has no type for."""
PRECISION_NUMBERS = {"float": 0, "float16": FLOAT16, "bfloat16": 11, "int8": 8, "mxint8": FLOAT16}
"""Buffer types by precision. What the real descriptor says of mxint8 is not known; hosts see such states as float16."""


def program_images(model: onnx.ModelProto, path: Path, checked: Checked, imported: Imported) -> dict[str, Image]:
    """The segments of a program but for its settings, which tell of them."""
    arguments = checked.arguments or Arguments("", {})
    files = external_files(model, path.parent)
    descriptor = network_descriptor(model, checked, imported, arguments)
    size = image_size(files)
    count = sum(1 for tensor in tensors_of(model) if external_data_helper.uses_external_data(tensor))
    described = json.dumps({"bytes": size, "tensors": count}, sort_keys=True).encode()
    return {
        "network.elf": empty_network(),
        "networkdesc.bin": encode_descriptor(descriptor),
        "constantsdesc.bin": described,
        CONSTANTS: files,
        "sim.onnx": _packed_model(model, path.parent, files),
    }


def write_program(folder: Path, images: Mapping[str, Image], checked: Checked, settings: Mapping[str, Any]) -> None:
    """Write the files of a program into a folder."""
    digests = {name: _digest(images[name]) for name in ("sim.onnx", CONSTANTS)}
    content = json.dumps({**settings, "sha256": digests}, indent=1, sort_keys=True).encode()
    with (folder / PROGRAM).open("wb") as file:
        write_container_to(file, {**images, "sim.json": content})
    devices = _devices(checked)
    for number in range(devices if devices > 1 else 0):
        (folder / SLICE.format(number=number)).touch()


def program_settings(checked: Checked, imported: Imported, profile: Profile) -> dict[str, Any]:
    """What the runtime's stand-in needs to know of the command."""
    arguments, precision = checked.arguments or Arguments("", {}), checked.node_precision
    return {
        "sdk": profile.sdk,
        "hardware": arguments.hardware.name,
        "cores": _cores(checked, arguments),
        "devices": _devices(checked),
        "convert_to_fp16": arguments.has("convert-to-fp16"),
        "mxfp6": arguments.has("mxfp6-matmul"),
        "retained_state": arguments.has("retained-state"),
        "specializations": [{"name": entry.name, "symbols": dict(entry.symbols)} for entry in checked.specializations],
        "custom_io": dict(checked.custom_io),
        "node_precision": {"fp16": list(precision.fp16), "fp32": list(precision.fp32)} if precision else {},
        "live_inputs": list(imported.live_inputs),
        "bytes_per_device": imported.bytes_per_device,
    }


def _devices(checked: Checked) -> int:
    return len(checked.partitions.devices) if checked.partitions else 1


def _cores(checked: Checked, arguments: Arguments) -> int:
    if checked.partitions:
        return max(device.cores for device in checked.partitions.devices)
    return arguments.integer("aic-num-cores", 1)


def network_descriptor(
    model: onnx.ModelProto, checked: Checked, imported: Imported, arguments: Arguments
) -> NetworkDescriptor:
    """Inputs and outputs with the types and all the shapes that the device has for them: where there is a choice, they
    are listed."""
    half = arguments.has("convert-to-fp16")
    inputs, outputs = _in_binding_order(own_inputs(model.graph)), _in_binding_order(model.graph.output)
    keeps = arguments.has("retained-state")
    states = {value.name for value in outputs if keeps and input_of_state(value.name)}
    states |= {input_of_state(name) for name in states}
    types = {v.name: _type_number(v, half and v.name in states, checked.custom_io) for v in (*inputs, *outputs)}
    shapes = [{**entry.inputs, **entry.outputs} for entry in imported.specializations]
    return NetworkDescriptor(
        name=arguments.text("m").rpartition("/")[2].rpartition(".")[0],
        inputs=tuple(_binding(value.name, types, imported.specializations, True) for value in inputs),
        outputs=tuple(_binding(value.name, types, imported.specializations, False) for value in outputs),
        num_cores=_cores(checked, arguments),
        allowed_shapes=tuple(
            tuple(Shape(types[name], entry[name]) for name in types) for entry in shapes if len(shapes) > 1
        ),
    )


def _in_binding_order(values: Iterable[onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
    """The order of the graph, or another one where that is asked for: hosts have to go by the descriptor."""
    listed = list(values)
    return listed[::-1] if os.environ.get(SHUFFLE_VARIABLE) == "1" else listed


def _type_number(value: onnx.ValueInfoProto, is_halved: bool, precisions: Mapping[str, str]) -> int:
    name = value.name
    public = input_of_state(name) + STATE_SUFFIXES[-1] if input_of_state(name) else name
    for known in (name, public):
        if known in precisions:
            return PRECISION_NUMBERS[precisions[known]]
    kind = int(value.type.tensor_type.elem_type)
    return FLOAT16 if is_halved and kind == onnx.TensorProto.FLOAT else TYPE_NUMBERS.get(kind, INVALID)


def _binding(name: str, types: Mapping[str, int], entries: tuple[StaticShapes, ...], is_input: bool) -> Binding:
    """One with its largest shape; where shapes differ, an input may be smaller."""
    shapes = [(entry.inputs if is_input else entry.outputs)[name] for entry in entries]
    largest = max(shapes, key=lambda shape: (_elements(shape), shape))
    return Binding(name, Shape(types[name], largest), is_input and len(set(shapes)) > 1)


def _elements(shape: tuple[int, ...]) -> int:
    elements = 1
    for size in shape:
        elements *= size
    return elements


def external_files(model: onnx.ModelProto, folder: Path) -> list[Path]:
    """The files of external data, in the order in which they are first named."""
    external = (tensor for tensor in tensors_of(model) if external_data_helper.uses_external_data(tensor))
    return list(dict.fromkeys(external_place(tensor, folder)[0] for tensor in external))


def _packed_model(model: onnx.ModelProto, folder: Path, files: list[Path]) -> bytes:
    """The model, its external data in the one segment that holds all these files."""
    packed = onnx.ModelProto()
    packed.CopyFrom(model)
    starts, start = {}, 0
    for path in files:
        starts[path] = start
        start += path.stat().st_size
    for tensor in tensors_of(packed):
        if external_data_helper.uses_external_data(tensor):
            path, offset, length = external_place(tensor, folder)
            del tensor.external_data[:]
            place = {"location": CONSTANTS, "offset": str(starts[path] + offset), "length": str(length)}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
    return bytes(packed.SerializeToString(deterministic=True))


def _digest(image: Image) -> str:
    digest = hashlib.sha256()
    for piece in image_pieces(image):
        digest.update(piece)
    return digest.hexdigest()


def empty_network() -> bytes:
    """An ELF file without a program, whose only section says what it is: a real device refuses it at once."""
    names = b"\0.qaic_simulator\0.shstrtab\0"
    head, entry = 64, 64
    marked_at = head
    names_at = marked_at + len(MARK)
    table_at = names_at + len(names) + -(names_at + len(names)) % 8
    kinds = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = kinds + struct.pack("<HHIQQQIHHHHHH", 1, 0, 1, 0, 0, table_at, 0, head, 0, 0, entry, 3, 2)
    section = struct.Struct("<IIQQQQIIQQ")
    marked = section.pack(1, 1, 0, 0, marked_at, len(MARK), 0, 0, 1, 0)
    named = section.pack(names.index(b".shstrtab"), 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    body = header + MARK + names
    return body.ljust(table_at, b"\0") + bytes(entry) + marked + named
