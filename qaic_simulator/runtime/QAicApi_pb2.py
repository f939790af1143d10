"""The description of a program's inputs and outputs as a host reads it, under the names of the SDK's module.

Only what hosts read is here. The numbers of the fields are facts of the format (`aicapi.IoDesc`). The messages are in
a pool of their own, so that they do not clash with the SDK's where both are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "aicapi"
_DIRECTIONS = {"BUFFER_IO_TYPE_INPUT": 0, "BUFFER_IO_TYPE_OUTPUT": 1}
_TYPES = {
    "FLOAT_TYPE": 0,
    "FLOAT_16_TYPE": 1,
    "INT8_Q_TYPE": 2,
    "UINT8_Q_TYPE": 3,
    "INT16_Q_TYPE": 4,
    "INT32_Q_TYPE": 5,
    "INT32_I_TYPE": 6,
    "INT64_I_TYPE": 7,
    "INT8_TYPE": 8,
    "TYPE_INVALID": 0xFF,
}
_ENUMS: Mapping[str, Mapping[str, int]] = {"bufferIoDirectionEnum": _DIRECTIONS, "bufferIoDataTypeEnum": _TYPES}
_FIELDS: Mapping[str, Sequence[tuple[int, str, str]]] = {
    "TensorShape": [(1, "type", "bufferIoDataTypeEnum"), (2, "dims", "int32*")],
    "IoShapes": [(1, "shapes", "TensorShape*")],
    "IoBinding": [
        (1, "name", "string"),
        (2, "index", "uint32"),
        (3, "type", "bufferIoDataTypeEnum"),
        (4, "dir", "bufferIoDirectionEnum"),
        (7, "dims", "int32*"),
        (8, "size", "uint32"),
        (10, "is_partial_buf_allowed", "bool"),
        (20, "is_valid", "bool"),
    ],
    "IoSet": [(1, "name", "string"), (2, "bindings", "IoBinding*")],
    "IoDesc": [
        (1, "io_sets", "IoSet*"),
        (2, "selected_set", "IoSet"),
        (3, "program_name", "string"),
        (8, "allowed_shapes", "IoShapes*"),
    ],
}
"""Number, name and type of each field; a star: any number of them."""


def _build_messages() -> dict[str, Any]:
    """The classes of the messages by name."""
    file = descriptor_pb2.FileDescriptorProto(name="QAicApi.proto", package=_PACKAGE, syntax="proto3")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value_name, number in values.items():
            enum.value.add(name=value_name, number=number)
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for number, field_name, kind in fields:
            _describe_field(message.field.add(name=field_name, number=number), kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = {name: pool.FindMessageTypeByName(f"{_PACKAGE}.{name}") for name in _FIELDS}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}


def _describe_field(field: Any, kind: str) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    field.label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
    name = kind.removesuffix("*")
    if name in _ENUMS or name in _FIELDS:
        field.type = kinds.TYPE_ENUM if name in _ENUMS else kinds.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{name}"
    else:
        field.type = kinds.Type.Value(f"TYPE_{name.upper()}")


_MESSAGES = _build_messages()
TensorShape, IoShapes, IoBinding = _MESSAGES["TensorShape"], _MESSAGES["IoShapes"], _MESSAGES["IoBinding"]
IoSet, IoDesc = _MESSAGES["IoSet"], _MESSAGES["IoDesc"]

BUFFER_IO_TYPE_INPUT, BUFFER_IO_TYPE_OUTPUT = _DIRECTIONS.values()
FLOAT_TYPE, FLOAT_16_TYPE, INT8_Q_TYPE, UINT8_Q_TYPE, INT16_Q_TYPE = list(_TYPES.values())[:5]
INT32_Q_TYPE, INT32_I_TYPE, INT64_I_TYPE, INT8_TYPE, TYPE_INVALID = list(_TYPES.values())[5:]
