"""The file that the compiler writes and the runtime loads (QPC): named segments behind a table.

A header of 24 bytes, the number of segments and a pointer to their table, the table, the names, the data. All numbers
are little-endian, all items padded to 8 bytes. Pointers are addresses in the memory of whoever wrote the file, which
had it at `base`: readers subtract that.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

MAGIC = 0x00A1CD7C
VERSION = (0, 1)
COMPRESSION = 1
"""0 would mean a copy in memory whose pointers point elsewhere; loaders refuse it."""
REQUIRED = ("network.elf", "networkdesc.bin", "constantsdesc.bin")
CONSTANTS = "constants.bin"
DEFAULT_BASE = 0x7F00_0000_0000
"""Like an address, so that a reader that forgets to subtract it fails."""

_HEADER = struct.Struct("<IBBHQQQQ")
"""Magic, version (two numbers), compression, size, base; number of segments, pointer to the table."""
_ENTRY = struct.Struct("<QQQQ")
"""Size, bytes of it that are static (constants only), pointer to the name, pointer to the data."""
_ALIGNMENT = 8
_PIECE = 1 << 24
"""Bytes that are copied at a time."""

Image = bytes | Sequence[Path]
"""What is in a segment: bytes, or files one behind the other."""


class ContainerError(ValueError):
    """The file is no container that the runtime would load."""


def write_container(images: Mapping[str, Image], base: int = DEFAULT_BASE) -> bytes:
    """The file with these segments, in their order; the same bytes for the same segments. All constants are static."""
    file = io.BytesIO()
    write_container_to(file, images, base)
    return file.getvalue()


def write_container_to(file: BinaryIO, images: Mapping[str, Image], base: int = DEFAULT_BASE) -> None:
    """Write the same into a file, whose segments may be files themselves and larger than memory."""
    _check_names(images)
    names = [name.encode() + b"\0" for name in images]
    table = _HEADER.size
    sizes = [image_size(image) for image in images.values()]
    places = _places(table + len(images) * _ENTRY.size, [*map(len, names), *sizes])
    size = places.pop()
    if not 0 <= base < 2**64 - size:
        raise ContainerError(f"the base {base:#x} leaves no room for {size} bytes in 64 bits of address.")
    file.write(_HEADER.pack(MAGIC, *VERSION, COMPRESSION, size, base, len(images), base + table))
    for index, (name, length) in enumerate(zip(images, sizes, strict=True)):
        name_at, data_at = places[index], places[len(images) + index]
        static = length if name == CONSTANTS else 0
        file.write(_ENTRY.pack(length, static, base + name_at, base + data_at))
    for item in (*names, *images.values()):
        for piece in image_pieces(item):
            file.write(piece)
        file.write(bytes(-image_size(item) % _ALIGNMENT))


def image_size(image: Image) -> int:
    """The bytes of a segment."""
    return len(image) if isinstance(image, bytes) else sum(path.stat().st_size for path in image)


def image_pieces(image: Image) -> Iterator[bytes]:
    """The bytes of a segment, piece by piece."""
    if isinstance(image, bytes):
        yield image
        return
    for path in image:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece


def read_container(raw: bytes) -> dict[str, bytes]:
    """The segments of a file by name, in the order of its table."""
    base, count, table = _read_header(raw)
    _check_inside(raw, table, count * _ENTRY.size, f"the table of {count} segments")
    images: dict[str, bytes] = {}
    for index in range(count):
        size, static, name_pointer, data_pointer = _ENTRY.unpack_from(raw, table + index * _ENTRY.size)
        name = _read_name(raw, name_pointer - base, index)
        if name in images:
            raise ContainerError(f"the segment {name} stands in the container twice.")
        _check_inside(raw, data_pointer - base, size, f"the segment {name}")
        if static > (size if name == CONSTANTS else 0):
            raise ContainerError(f"the segment {name} of {size} bytes says that {static} of them are static constants.")
        images[name] = raw[data_pointer - base : data_pointer - base + size]
    _check_names(images)
    return images


def _read_header(raw: bytes) -> tuple[int, int, int]:
    """The base, the number of segments, and where in the file their table is."""
    if len(raw) < _HEADER.size:
        raise ContainerError(f"the file has {len(raw)} bytes; the header of a container has {_HEADER.size}.")
    magic, _, _, compression, size, base, count, pointer = _HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise ContainerError(f"the file begins with {magic:#010x}; a container begins with {MAGIC:#010x}.")
    if size != len(raw):
        raise ContainerError(f"the container says that it has {size} bytes, but the file has {len(raw)}.")
    if compression != COMPRESSION:
        raise ContainerError(f"the container has compression type {compression}; only type {COMPRESSION} is loaded.")
    return base, count, pointer - base


def _read_name(raw: bytes, start: int, index: int) -> str:
    _check_inside(raw, start, 1, f"the name of segment {index}")
    end = raw.find(b"\0", start)
    if end < 0:
        raise ContainerError(f"the name of segment {index} does not end.")
    try:
        return raw[start:end].decode()
    except UnicodeDecodeError as error:
        raise ContainerError(f"the name of segment {index} is no text: {raw[start:end]!r}.") from error


def _check_inside(raw: bytes, start: int, size: int, what: str) -> None:
    if not 0 <= start <= start + size <= len(raw):
        raise ContainerError(f"{what} lies outside the container: {size} bytes at {start} of {len(raw)}.")


def _check_names(names: Iterable[str]) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise ContainerError(f"the container lacks {', '.join(missing)}; it must have {', '.join(REQUIRED)}.")
    strange = [name for name in names if not name or "\0" in name]
    if strange:
        raise ContainerError(f"a segment is called {strange[0]!r}, which cannot be a name.")


def _places(start: int, sizes: Iterable[int]) -> list[int]:
    """Where each of the items begins if each is padded, and where the last one ends."""
    places = [start]
    for size in sizes:
        end = places[-1] + size
        places.append(end + -end % _ALIGNMENT)
    return places
