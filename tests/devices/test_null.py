"""The null device enforces what real devices cannot check, so its own strictness is tested here."""

from __future__ import annotations

import numpy as np
import pytest

from QEfficient.devices import Batch, Limits, Paging, Row, Session, device_class, device_names
from QEfficient.devices.null import NullDevice, NullSession, PagedNullSession, null_next_token
from QEfficient.errors import DeviceError, OptionError
from QEfficient.specs import CompileSpec

VOCAB = 100
SPEC = CompileSpec(full_batch_size=3, prefill_seq_len=4, ctx_len=10)


def run(session: Session, *rows: Row) -> np.ndarray:
    return session.run(Batch(rows))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "needs rows"),
        ([Row(0, [1], 0), Row(0, [2], 0)], "another slot"),
        ([Row(3, [1], 0)], "slot 3 .* there are 3"),
        ([Row(-1, [1], 0)], "slot -1"),
        ([Row(0, [], 0)], "has 0 tokens"),
        ([Row(0, [1] * 5, 0)], "has 5 tokens, .* 1 to 4"),
        ([Row(0, [1, 2], 9)], "positions 9 to 10, .* ctx_len 10"),
        ([Row(0, [1], -1)], "positions -1"),
        ([Row(0, [1, 2], 0), Row(1, [1, 2], 0)], "2 rows of several .* takes 1"),
        ([Row(1, [1], 3)], "slot 1 has seen 0 tokens, .* position 3"),
    ],
)
def test_refuses_what_does_not_fit(rows: list[Row], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        run(NullSession(SPEC, VOCAB), *rows)


def test_refuses_too_many_one_token_rows() -> None:
    spec = CompileSpec(full_batch_size=2, kv_cache_batch_size=4, prefill_seq_len=4, ctx_len=10)
    with pytest.raises(DeviceError, match="3 rows of one .* takes 2"):
        run(NullSession(spec, VOCAB), Row(0, [1], 0), Row(1, [1], 0), Row(2, [1], 0))


def test_refused_batch_changes_nothing() -> None:
    session = NullSession(SPEC, VOCAB)
    with pytest.raises(DeviceError):
        run(session, Row(0, [1], 0), Row(1, [1], 5))
    run(session, Row(0, [1, 2, 3], 0))  # slot 0 is still fresh


def test_next_token_depends_on_all_of_the_history() -> None:
    session = NullSession(SPEC, VOCAB)
    run(session, Row(0, [5, 6, 7], 0, logits=0))
    logits = run(session, Row(0, [8, 9], 3), Row(1, [9], 0))
    assert logits.dtype == np.float32 and logits.shape == (2, VOCAB)
    assert logits.argmax(-1).tolist() == [null_next_token([5, 6, 7, 8, 9], VOCAB), null_next_token([9], VOCAB)]


def test_start_zero_reuses_a_slot() -> None:
    session = NullSession(SPEC, VOCAB)
    run(session, Row(0, [5, 6, 7], 0))
    assert run(session, Row(0, [4], 0)).argmax() == null_next_token([4], VOCAB)


def test_no_logits_wanted() -> None:
    assert run(NullSession(SPEC, VOCAB), Row(0, [1, 2], 0, logits=0)).shape == (0, VOCAB)


def test_shared_modules_are_no_devices() -> None:
    assert {"null", "reference"} <= set(device_names())
    assert "slotted" not in device_names()
    assert device_class("null") is NullDevice


def test_options_of_a_device() -> None:
    device = device_class("reference")()
    assert device.own_options({"num_threads": 2, "num_cores": 16}) == {"num_threads": 2}
    with pytest.raises(OptionError, match="Did you mean 'num_threads'"):
        device.own_options({"num_thread": 2})
    with pytest.raises(OptionError, match="must be int, not '2'"):
        device.own_options({"num_threads": "2"})


PAGED = Limits(slots=4, chunk=8, ctx_len=32, decode_rows=4, prefill_rows=4, tokens=16, logits=8, paging=Paging(4, 6))


def test_blocks_hold_the_sequence_wherever_they_lie() -> None:
    session = PagedNullSession(PAGED, VOCAB)
    run(session, Row(0, [5, 6, 7, 8, 9], 0, logits=0, blocks=(3, 1)))
    run(session, Row(1, [1, 1, 1, 1, 1], 0, logits=0, blocks=(0, 2)))
    logits = run(session, Row(0, [4, 3], 5, logits=2, blocks=(3, 1)))
    expected = [null_next_token(ids, VOCAB) for ids in ([5, 6, 7, 8, 9, 4], [5, 6, 7, 8, 9, 4, 3])]
    assert logits.argmax(-1).tolist() == expected


def test_a_copied_block_can_go_another_way() -> None:
    session = PagedNullSession(PAGED, VOCAB)
    run(session, Row(0, [5, 6, 7], 0, blocks=(0,)))
    session.copy_block(0, 4)
    first = run(session, Row(0, [1], 3, blocks=(0,)), Row(1, [2], 3, blocks=(4,)))
    assert first.argmax(-1).tolist() == [null_next_token([5, 6, 7, last], VOCAB) for last in (1, 2)]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([Row(0, [1], 4, blocks=(0, 1))], "nobody wrote"),
        ([Row(0, [1], 4, blocks=(0,))], "needs 2 blocks"),
        ([Row(0, [1], 0, blocks=(6,))], "6 different ones"),
        ([Row(0, [1], 0, blocks=(0,)), Row(1, [1], 0, blocks=(0,))], "others use too"),
        ([Row(i, [1] * 5, 0, blocks=(i,)) for i in range(4)], "needs 2 blocks"),
        (
            [Row(0, [1] * 8, 0, blocks=(0, 1)), Row(1, [1] * 8, 0, blocks=(2, 3)), Row(2, [1], 0, blocks=(4,))],
            "17 tokens",
        ),
        ([Row(0, [1, 2], 0, logits=3, blocks=(0,))], "0 to 2"),
    ],
)
def test_blocks_are_checked(rows: list[Row], sentence: str) -> None:
    with pytest.raises(DeviceError, match=sentence):
        PagedNullSession(PAGED, VOCAB).run(Batch(tuple(rows)))
