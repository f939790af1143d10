"""Our reader of compiled programs, on files that the stand-in compiler's writer made."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from qaic_simulator.container import write_container
from qaic_simulator.network_descriptor import Binding, NetworkDescriptor, Shape, encode_descriptor
from QEfficient.devices.cloud_ai_100.container import Description, Tensor, read_description
from QEfficient.errors import ArtifactError

INPUTS = (Binding("input_ids", Shape(7, (4, 8))), Binding("past_key.0", Shape(1, (4, 2, 64, 16))))
OUTPUTS = (Binding("logits", Shape(0, (4, 1, 300))),)
ALLOWED = (
    (Shape(7, (4, 8)), Shape(1, (4, 2, 64, 16)), Shape(0, (4, 1, 300))),
    (Shape(7, (4, 1)), Shape(1, (4, 2, 64, 16)), Shape(0, (4, 1, 300))),
)


def container(description: bytes) -> bytes:
    images = {"network.elf": b"elf", "networkdesc.bin": description, "constantsdesc.bin": b"c"}
    return write_container({**images, "constants.bin": bytes(100)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "programqpc.bin"
    path.write_bytes(container(encode_descriptor(NetworkDescriptor("n", INPUTS, OUTPUTS, 14, 1, ALLOWED))))
    return path


def test_reads_what_was_written(path: Path) -> None:
    found = read_description(path)
    assert found == Description(
        (Tensor("input_ids", 7, (4, 8)), Tensor("past_key.0", 1, (4, 2, 64, 16))),
        (Tensor("logits", 0, (4, 1, 300)),),
        14,
        (((4, 8), (4, 2, 64, 16), (4, 1, 300)), ((4, 1), (4, 2, 64, 16), (4, 1, 300))),
    )
    assert [sizes["input_ids"] for sizes in found.sizes()] == [(4, 8), (4, 1)]


def test_one_specialization_is_that_of_the_tensors(path: Path) -> None:
    path.write_bytes(container(encode_descriptor(NetworkDescriptor("n", INPUTS, OUTPUTS))))
    assert [sizes["logits"] for sizes in read_description(path).sizes()] == [(4, 1, 300)]


@pytest.mark.parametrize("count", [0, 10, 30, 60, 200, -1])
def test_files_that_are_cut_off(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:count])
    with pytest.raises(ArtifactError, match=r"Compile it again\."):
        read_description(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no compiled program that can be read"):
        read_description(tmp_path / "programqpc.bin")


def test_any_other_bytes_are_refused_or_read(path: Path) -> None:
    """Never another error, nor a long wait."""
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(2_000):
        raw = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        path.write_bytes(raw)
        with contextlib.suppress(ArtifactError):
            read_description(path)
