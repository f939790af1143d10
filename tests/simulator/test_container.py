"""The container: byte for byte as laid out by hand, whole after a round trip, and refused when anything is off."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from qaic_simulator.container import DEFAULT_BASE, ContainerError, read_container, write_container

REQUIRED = {"network.elf": b"\x7fELF", "networkdesc.bin": b"\x08\x09", "constantsdesc.bin": b""}
WHOLE = {**REQUIRED, "constants.bin": bytes(range(13)), "simulator.onnx": b"\0" * 24}


def by_hand(base: int) -> bytes:
    """The container of `REQUIRED` and three bytes of constants, every number written out."""
    return b"".join(
        [
            struct.pack("<IBBHQQ", 0x00A1CD7C, 0, 1, 1, 264, base),
            struct.pack("<QQ", 4, base + 40),
            struct.pack("<QQQQ", 4, 0, base + 168, base + 240),
            struct.pack("<QQQQ", 2, 0, base + 184, base + 248),
            struct.pack("<QQQQ", 0, 0, base + 200, base + 256),
            struct.pack("<QQQQ", 3, 3, base + 224, base + 256),
            b"network.elf\0".ljust(16, b"\0"),
            b"networkdesc.bin\0",
            b"constantsdesc.bin\0".ljust(24, b"\0"),
            b"constants.bin\0".ljust(16, b"\0"),
            b"\x7fELF\0\0\0\0",
            b"\x08\x09\0\0\0\0\0\0",
            b"abc\0\0\0\0\0",
        ]
    )


@pytest.mark.parametrize("base", [0, 8, DEFAULT_BASE, 2**63])
def test_bytes_are_those_laid_out_by_hand(base: int) -> None:
    images = {**REQUIRED, "constants.bin": b"abc"}
    assert write_container(images, base) == by_hand(base)
    assert read_container(by_hand(base)) == images


@pytest.mark.parametrize("length", range(10))
def test_round_trip(length: int) -> None:
    images = {**WHOLE, "more": b"m" * length, "größe": b"x" * (length + 1)}
    raw = write_container(images)
    assert len(raw) % 8 == 0
    assert list(read_container(raw).items()) == list(images.items())
    assert write_container(read_container(raw)) == raw


def test_unpadded_files_are_read() -> None:
    """Writers that stream to a file do not pad names and data."""
    names = b"".join(name.encode() + b"\0" for name in REQUIRED)
    start = 40 + 3 * 32
    size = start + len(names) + 6
    raw = struct.pack("<IBBHQQQQ", 0x00A1CD7C, 0, 1, 1, size, 0, 3, 40)
    name_at, data_at = start, start + len(names)
    for name, data in REQUIRED.items():
        raw += struct.pack("<QQQQ", len(data), 0, name_at, data_at)
        name_at, data_at = name_at + len(name) + 1, data_at + len(data)
    raw += names + b"".join(REQUIRED.values())
    assert read_container(raw) == REQUIRED


def test_dynamic_constants_are_read_with_the_static_ones() -> None:
    raw = changed("<Q", 40 + 3 * 32 + 8, 5)
    assert read_container(raw)["constants.bin"] == bytes(range(13))


def changed(form: str, at: int, number: int) -> bytes:
    """The container of `WHOLE` with one number replaced."""
    raw = bytearray(write_container(WHOLE, base=0))
    struct.pack_into(form, raw, at, number)
    return bytes(raw)


SIZE = len(write_container(WHOLE))
FIRST, SECOND, FOURTH = 40, 72, 136
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the file has 0 bytes; the header of a container has 40"),
    "short": (lambda: write_container(WHOLE)[:39], "the file has 39 bytes"),
    "magic": (lambda: changed("<I", 0, 0x464C457F), "begins with 0x464c457f; a container begins with 0x00a1cd7c"),
    "size": (lambda: changed("<Q", 8, SIZE + 8), f"says that it has {SIZE + 8} bytes, but the file has {SIZE}"),
    "cut": (lambda: write_container(WHOLE)[:-1], f"says that it has {SIZE} bytes, but the file has {SIZE - 1}"),
    "longer": (lambda: write_container(WHOLE) + b"\0", f"but the file has {SIZE + 1}"),
    "compression": (lambda: changed("<H", 6, 0), "compression type 0; only type 1 is loaded"),
    "future": (lambda: changed("<H", 6, 2), "compression type 2"),
    "count": (lambda: changed("<Q", 24, 2**60), f"the table of {2**60} segments lies outside"),
    "table": (lambda: changed("<Q", 32, SIZE - 8), "the table of 5 segments lies outside"),
    "base": (lambda: changed("<Q", 16, 48), "the table of 5 segments lies outside"),
    "data": (lambda: changed("<Q", FIRST + 24, SIZE), "the segment network.elf lies outside"),
    "long data": (lambda: changed("<Q", FIRST, 2**64 - 1), "the segment network.elf lies outside"),
    "name": (lambda: changed("<Q", SECOND + 16, SIZE), "the name of segment 1 lies outside"),
    "strange name": (lambda: changed("<B", 200, 0xFF), "the name of segment 0 is no text"),
    "no name": (lambda: changed("<B", 200 + 16 + 16 + 24 + 16, 0), "a segment is called ''"),
    "twice": (lambda: changed("<Q", SECOND + 16, 200), "the segment network.elf stands in the container twice"),
    "static": (lambda: changed("<Q", FOURTH + 8, 14), "constants.bin of 13 bytes says that 14 of them"),
    "static network": (lambda: changed("<Q", FIRST + 8, 1), "network.elf of 4 bytes says that 1 of them"),
    "missing": (lambda: changed("<Q", 24, 2), "the container lacks constantsdesc.bin"),
    "nothing": (lambda: changed("<Q", 24, 0), "the container lacks network.elf, networkdesc.bin, constantsdesc.bin"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    make, reason = REFUSED[case]
    with pytest.raises(ContainerError, match=reason):
        read_container(make())


def test_a_name_without_an_end_is_refused() -> None:
    raw = bytearray(write_container({**REQUIRED, "last": b"12345678"}, base=0))
    struct.pack_into("<Q", raw, 40 + 3 * 32 + 16, len(raw) - 4)
    with pytest.raises(ContainerError, match="the name of segment 3 does not end"):
        read_container(bytes(raw))


def test_what_is_refused_is_not_written() -> None:
    with pytest.raises(ContainerError, match="lacks networkdesc.bin, constantsdesc.bin"):
        write_container({"network.elf": b""})
    for name in ("", "a\0b"):
        with pytest.raises(ContainerError, match="cannot be a name"):
            write_container({**REQUIRED, name: b""})
    for base in (-1, 2**64 - 8):
        with pytest.raises(ContainerError, match="leaves no room"):
            write_container(REQUIRED, base)


def test_changed_bytes_are_read_or_refused_but_never_worse() -> None:
    generator = np.random.default_rng(0)
    good = write_container(WHOLE)
    head = good.index(b"\x7fELF")
    refused = 0
    for _ in range(20_000):
        raw = bytearray(good)
        for at in generator.integers(0, head, generator.integers(1, 5)):
            raw[at] = generator.integers(0, 256)
        try:
            read_container(bytes(raw))
        except ContainerError:
            refused += 1
    assert 10_000 < refused < 20_000


def test_every_cut_is_refused() -> None:
    good = write_container(WHOLE)
    for length in range(len(good)):
        with pytest.raises(ContainerError):
            read_container(good[:length])
