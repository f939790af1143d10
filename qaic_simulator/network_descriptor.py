"""`networkdesc.bin`: what goes in and out of a network, as the protobuf message that the runtime reads.

Written and read here are the fields that a host needs; others are skipped. The numbers of the fields are facts of the
format (`aicnwdesc.networkDescriptor`), the wire format is protobuf's: a key (field number and kind) and a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

VERSION = (9, 0)

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_FIXED_SIZES = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}
_LONGEST_VARINT = 10


class DescriptorError(ValueError):
    """The bytes are no network descriptor, or the record cannot be one."""


@dataclass(frozen=True)
class Shape:
    """One tensor of a specialization."""

    type: int
    """The number of a buffer data type of the runtime: 0 float32, 1 float16, 6 int32, 7 int64 ..."""
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Binding:
    """An input or output."""

    name: str
    shape: Shape
    partial_allowed: bool = False
    """Whether a buffer may be smaller than the shape."""


@dataclass(frozen=True)
class NetworkDescriptor:
    """The record behind `networkdesc.bin`."""

    name: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    num_cores: int = 1
    batch_size: int = 1
    allowed_shapes: tuple[tuple[Shape, ...], ...] = field(default=())
    """For each specialization the shapes of all inputs, then all outputs; empty: only those of the bindings."""
    version: tuple[int, int] = VERSION


def encode_descriptor(descriptor: NetworkDescriptor) -> bytes:
    """The bytes of the message; the same ones for the same record, and the ones that protobuf writes."""
    _check_specializations(descriptor)
    return b"".join(
        [
            _number(1, descriptor.version[0]),
            _number(2, descriptor.version[1]),
            _text(3, descriptor.name),
            *(_message(4, _encode_binding(binding)) for binding in descriptor.inputs),
            *(_message(5, _encode_binding(binding)) for binding in descriptor.outputs),
            _number(7, descriptor.num_cores),
            _number(14, descriptor.batch_size),
            *(_message(18, _encode_specialization(shapes)) for shapes in descriptor.allowed_shapes),
        ]
    )


def decode_descriptor(raw: bytes) -> NetworkDescriptor:
    """The record of a message."""
    fields = _Fields(raw)
    descriptor = NetworkDescriptor(
        name=fields.text(3),
        inputs=tuple(_decode_binding(payload) for payload in fields.payloads(4)),
        outputs=tuple(_decode_binding(payload) for payload in fields.payloads(5)),
        num_cores=fields.number(7),
        batch_size=fields.number(14),
        allowed_shapes=tuple(_decode_specialization(payload) for payload in fields.payloads(18)),
        version=(fields.number(1), fields.number(2)),
    )
    _check_specializations(descriptor)
    return descriptor


def _check_specializations(descriptor: NetworkDescriptor) -> None:
    tensors = len(descriptor.inputs) + len(descriptor.outputs)
    for index, shapes in enumerate(descriptor.allowed_shapes):
        if len(shapes) != tensors:
            raise DescriptorError(f"specialization {index} has {len(shapes)} shapes for {tensors} inputs and outputs.")


def _encode_binding(binding: Binding) -> bytes:
    # The tensor before and after the host's transformations, of which there are none.
    tensor = _number(1, binding.shape.type) + _numbers(4, binding.shape.dims)
    partial = _number(5, int(binding.partial_allowed))
    return _text(1, binding.name) + _message(2, tensor) + _message(3, tensor) + partial


def _decode_binding(raw: bytes) -> Binding:
    fields = _Fields(raw)
    tensor = _Fields(fields.message(2))
    return Binding(fields.text(1), Shape(tensor.number(1), tensor.numbers(4)), bool(fields.number(5)))


def _encode_specialization(shapes: tuple[Shape, ...]) -> bytes:
    return b"".join(_message(1, _number(1, shape.type) + _numbers(2, shape.dims)) for shape in shapes)


def _decode_specialization(raw: bytes) -> tuple[Shape, ...]:
    tensors = [_Fields(payload) for payload in _Fields(raw).payloads(1)]
    return tuple(Shape(tensor.number(1), tensor.numbers(2)) for tensor in tensors)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; negative numbers as 64 bits."""
    number &= 2**64 - 1
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def _message(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(payload)) + payload


def _text(number: int, text: str) -> bytes:
    return _message(number, text.encode()) if text else b""


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _checked(value) if value else b""


def _numbers(number: int, values: Iterable[int]) -> bytes:
    packed = b"".join(_checked(value) for value in values)
    return _message(number, packed) if packed else b""


def _checked(value: int) -> bytes:
    if not -(2**31) <= value < 2**31:
        raise DescriptorError(f"{value} does not fit into the 32 bits that a descriptor has for a number.")
    return _varint(value)


class _Fields:
    """The fields of a message; a kind that does not belong to a field is skipped, as protobuf does."""

    def __init__(self, raw: bytes) -> None:
        self._all = list(_read_fields(raw))

    def payloads(self, number: int) -> list[bytes]:
        return [raw for found, kind, _, raw in self._all if found == number and kind == _LENGTH]

    def message(self, number: int) -> bytes:
        """Parts of one message may come apart: they are merged by reading them in a row."""
        return b"".join(self.payloads(number))

    def text(self, number: int) -> str:
        try:
            return (self.payloads(number) or [b""])[-1].decode()
        except UnicodeDecodeError as error:
            raise DescriptorError(f"field {number} of the descriptor should be text and is not.") from error

    def number(self, number: int) -> int:
        return next((value for found, kind, value, _ in reversed(self._all) if (found, kind) == (number, _VARINT)), 0)

    def numbers(self, number: int) -> tuple[int, ...]:
        """A list, each with a key of its own or packed."""
        values: list[int] = []
        for found, kind, value, raw in self._all:
            if found == number and kind == _VARINT:
                values.append(value)
            elif found == number and kind == _LENGTH:
                values += _read_packed(raw)
        return tuple(values)


def _read_fields(raw: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Number, kind, and the value as a number or as bytes."""
    at = 0
    while at < len(raw):
        key, at = _read_varint(raw, at)
        number, kind = key >> 3, key & 7
        if number == 0 or kind not in (_VARINT, _LENGTH, *_FIXED_SIZES):
            raise DescriptorError(f"the descriptor has a field {number} of kind {kind}, which does not exist.")
        if kind == _VARINT:
            value, at = _read_varint(raw, at)
            yield number, kind, _signed(value), b""
            continue
        size, at = _read_varint(raw, at) if kind == _LENGTH else (_FIXED_SIZES[kind], at)
        if at + size > len(raw):
            raise DescriptorError(f"field {number} of the descriptor has {size} bytes, but {len(raw) - at} are left.")
        yield number, kind, 0, raw[at : at + size]
        at += size


def _read_packed(raw: bytes) -> Iterator[int]:
    at = 0
    while at < len(raw):
        value, at = _read_varint(raw, at)
        yield _signed(value)


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    value = 0
    for index, byte in enumerate(raw[at : at + _LONGEST_VARINT]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, at + index + 1
    raise DescriptorError(f"the number at byte {at} of a descriptor's message does not end.")


def _signed(value: int) -> int:
    """The lower 32 bits as a signed number, which is how protobuf reads them."""
    return (value + 2**31) % 2**32 - 2**31
