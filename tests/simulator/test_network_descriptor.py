"""The network descriptor: bytes written out by hand, the same bytes as protobuf's own, and damage refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qaic_simulator.network_descriptor import (
    Binding,
    DescriptorError,
    NetworkDescriptor,
    Shape,
    decode_descriptor,
    encode_descriptor,
)

SMALL = NetworkDescriptor("n", (Binding("a", Shape(7, (1, 300)), partial_allowed=True),), (), num_cores=16)
SMALL_BYTES = bytes.fromhex(
    "0809"  # major version 9; the minor one is 0 and left out
    "1a016e"  # name "n"
    "2217"  # an input of 23 bytes
    "0a0161"  # its name "a"
    "120708072203 01ac02"  # type 7, dims 1 and 300
    "1a0708072203 01ac02"  # the same after no transformation
    "2801"  # partial buffers allowed
    "3810"  # 16 cores
    "7001"  # batch size 1
)
IDS, MASK, LOGITS = Shape(7, (1, 1)), Shape(8, (2, 1, 70_000)), Shape(1, ())
LARGE = NetworkDescriptor(
    "größe",
    (Binding("input_ids", Shape(7, (1, 128)), True), Binding("mask", MASK)),
    (Binding("logits", LOGITS), Binding("", Shape(0, (0, -1, 5)))),
    num_cores=4,
    batch_size=0,
    allowed_shapes=((IDS, MASK, LOGITS, LOGITS), (Shape(11, ()), Shape(0, (0,)), LOGITS, IDS)),
    version=(10, 3),
)


def test_bytes_are_those_laid_out_by_hand() -> None:
    assert encode_descriptor(SMALL) == SMALL_BYTES
    assert decode_descriptor(SMALL_BYTES) == SMALL


@pytest.mark.parametrize("descriptor", [SMALL, LARGE, replace(LARGE, allowed_shapes=())])
def test_round_trip(descriptor: NetworkDescriptor) -> None:
    assert decode_descriptor(encode_descriptor(descriptor)) == descriptor


def test_nothing_is_a_message_of_defaults() -> None:
    assert decode_descriptor(b"") == NetworkDescriptor("", (), (), 0, 0, (), (0, 0))


def test_unknown_fields_are_skipped() -> None:
    extra = bytes.fromhex("9a06 03616263") + bytes.fromhex("9d06 00000000") + bytes.fromhex("9106") + b"\0" * 8
    assert decode_descriptor(extra + SMALL_BYTES + bytes.fromhex("9806 05")) == SMALL


def test_lists_may_be_unpacked_and_messages_apart() -> None:
    apart = bytes.fromhex("0809 1a016e 2210 0a0161 12022001 1205080720ac02 2801 3810 7001")
    assert decode_descriptor(apart) == SMALL


def protobuf_message() -> Any:
    """The class of the message, made from field numbers."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory

    messages = {
        "Tensor": [("type", 1, 5, 1), ("dims", 4, 5, 3)],
        "Shape": [("type", 1, 5, 1), ("dims", 2, 5, 3)],
        "Shapes": [("shapes", 1, "Shape", 3)],
        "Binding": [("name", 1, 9, 1), ("before", 2, "Tensor", 1), ("after", 3, "Tensor", 1), ("partial", 5, 8, 1)],
        "Network": [
            ("major", 1, 13, 1),
            ("minor", 2, 13, 1),
            ("name", 3, 9, 1),
            ("inputs", 4, "Binding", 3),
            ("outputs", 5, "Binding", 3),
            ("cores", 7, 13, 1),
            ("batch", 14, 5, 1),
            ("allowed", 18, "Shapes", 3),
        ],
    }
    file = descriptor_pb2.FileDescriptorProto(name="test_network.proto", package="t", syntax="proto3")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for own, number, kind, label in fields:
            made = message.field.add(name=own, number=number, label=label, type=11 if isinstance(kind, str) else kind)
            if isinstance(kind, str):
                made.type_name = f".t.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Network"))


@pytest.mark.parametrize("descriptor", [SMALL, LARGE])
def test_protobuf_writes_the_same(descriptor: NetworkDescriptor) -> None:
    message = protobuf_message()(
        major=descriptor.version[0], minor=descriptor.version[1], name=descriptor.name, cores=descriptor.num_cores
    )
    message.batch = descriptor.batch_size
    for ours, theirs in ((descriptor.inputs, message.inputs), (descriptor.outputs, message.outputs)):
        for binding in ours:
            tensor = {"type": binding.shape.type, "dims": binding.shape.dims}
            theirs.add(name=binding.name, before=tensor, after=tensor, partial=binding.partial_allowed)
    for shapes in descriptor.allowed_shapes:
        message.allowed.add(shapes=[{"type": shape.type, "dims": shape.dims} for shape in shapes])
    assert encode_descriptor(descriptor) == message.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("08", "the number at byte 1 of a descriptor's message does not end"),
        ("08" + "ff" * 11, "does not end"),
        ("1a05 6e", "field 3 of the descriptor has 5 bytes, but 1 are left"),
        ("9d06 0000", "field 99 of the descriptor has 4 bytes, but 2 are left"),
        ("1a01 ff", "field 3 of the descriptor should be text"),
        ("0009", "a field 0 of kind 0, which does not exist"),
        ("0b", "a field 1 of kind 3"),
        ("920102 0a00", "specialization 0 has 1 shapes for 0 inputs and outputs"),
        ("2204 12022201", "field 4 of the descriptor has 1 bytes, but 0 are left"),
    ],
)
def test_damage_is_refused(raw: str, reason: str) -> None:
    with pytest.raises(DescriptorError, match=reason):
        decode_descriptor(bytes.fromhex(raw))


def test_what_is_refused_is_not_written() -> None:
    with pytest.raises(DescriptorError, match="specialization 0 has 2 shapes for 1 inputs and outputs"):
        encode_descriptor(replace(SMALL, allowed_shapes=((IDS, IDS),)))
    with pytest.raises(DescriptorError, match="does not fit into the 32 bits"):
        encode_descriptor(replace(SMALL, num_cores=2**31))


def test_changed_bytes_are_read_or_refused_but_never_worse() -> None:
    generator = np.random.default_rng(0)
    good = encode_descriptor(LARGE)
    refused = 0
    for _ in range(10_000):
        raw = bytearray(good)
        for at in generator.integers(0, len(raw), generator.integers(1, 4)):
            raw[at] = generator.integers(0, 256)
        try:
            decode_descriptor(bytes(raw)[: generator.integers(0, len(raw) + 1)])
        except DescriptorError:
            refused += 1
    assert 1_000 < refused < 10_000
