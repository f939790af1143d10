"""programqpc.bin: what the compiler wrote, read without the SDK, to see whether it is what was asked for.

Only the table and the description of inputs and outputs are read: the file may have tens of gigabytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from QEfficient.errors import ArtifactError

FILE = "programqpc.bin"
BINARY = "qpc"
"""The folder that the compiler writes it into."""
DESCRIPTION = "networkdesc.bin"
MAGIC = 0x00A1CD7C
LARGEST_TABLE, LONGEST_NAME, LARGEST_DESCRIPTION = 1_000, 4_096, 1 << 28

_HEADER = struct.Struct("<IBBHQQQQ")
"""Magic, version, compression, size, base of its pointers; how many parts, pointer to their table."""
_PART = struct.Struct("<QQQQ")
"""Size, static size, pointer to the name, pointer to the data."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a compiled program."""

    name: str
    kind: int
    """The number of its type in the runtime."""
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """What a compiled program takes and gives."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    cores: int
    allowed: tuple[tuple[tuple[int, ...], ...], ...]
    """For each specialization the sizes of all inputs, then of all outputs; empty where there is only one."""

    def sizes(self) -> list[dict[str, tuple[int, ...]]]:
        """For each specialization the sizes of every tensor, by name."""
        tensors = (*self.inputs, *self.outputs)
        allowed = self.allowed or (tuple(tensor.dims for tensor in tensors),)
        return [dict(zip((t.name for t in tensors), dims, strict=True)) for dims in allowed]


def read_description(path: Path) -> Description:
    """The description in a container. Raises `ArtifactError` for what the runtime would not load."""
    try:
        with open(path, "rb") as file:
            return _description(_part(file, path, DESCRIPTION))
    except (OSError, ValueError, struct.error) as error:
        raise ArtifactError(f"{path} is no compiled program that can be read: {error}. Compile it again.") from error


def _part(file: BinaryIO, path: Path, wanted: str) -> bytes:
    magic, _, _, compression, size, base, count, table = _HEADER.unpack(file.read(_HEADER.size))
    if magic != MAGIC or compression != 1:
        raise ValueError(f"it begins with {magic:#x} and compression {compression}, not with {MAGIC:#x} and 1")
    if size != path.stat().st_size:
        raise ValueError(f"it has {path.stat().st_size:,} bytes and says {size:,}")
    if count > LARGEST_TABLE:
        raise ValueError(f"it says that it has {count} parts")
    for number in range(count):
        file.seek(table - base + number * _PART.size)
        length, _, name, data = _PART.unpack(file.read(_PART.size))
        file.seek(name - base)
        if file.read(LONGEST_NAME).partition(b"\0")[0].decode() == wanted:
            file.seek(data - base)
            return file.read(min(length, LARGEST_DESCRIPTION))
    raise ValueError(f"it holds no {wanted}")


def _description(raw: bytes) -> Description:
    fields = list(_fields(raw))
    inputs, outputs = (tuple(_tensor(value) for number, value in fields if number == n) for n in (4, 5))
    allowed = tuple(_allowed(value) for number, value in fields if number == 18)
    cores = next((value for number, value in fields if number == 7), 0)
    return Description(inputs, outputs, int(cores) if isinstance(cores, int) else 0, allowed)


def _tensor(value: int | bytes) -> Tensor:
    fields = dict(_fields(_bytes(value)))
    kind, dims = _type_and_dims(_bytes(fields.get(2, b"")), 4)
    return Tensor(_bytes(fields.get(1, b"")).decode(), kind, dims)


def _allowed(value: int | bytes) -> tuple[tuple[int, ...], ...]:
    return tuple(_type_and_dims(_bytes(v), 2)[1] for number, v in _fields(_bytes(value)) if number == 1)


def _type_and_dims(raw: bytes, dims_field: int) -> tuple[int, tuple[int, ...]]:
    kind, dims = 0, []
    for number, value in _fields(raw):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == dims_field:  # packed or one by one
            dims += [value] if isinstance(value, int) else list(_varints(value))
    return kind, tuple(dims)


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("its description has a number where a message is due")
    return value


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protobuf message."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(raw, at)
            yield key >> 3, value
            continue
        size, at = _varint(raw, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, len(raw) + 1), at)
        if at + size > len(raw):
            raise ValueError("its description is cut off")
        yield key >> 3, raw[at : at + size]
        at += size


def _varints(raw: bytes) -> Iterator[int]:
    at = 0
    while at < len(raw):
        value, at = _varint(raw, at)
        yield value


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at >= len(raw):
            break
        value |= (raw[at] & 0x7F) << 7 * place
        at += 1
        if raw[at - 1] < 0x80:
            return value, at
    raise ValueError("its description is cut off")
