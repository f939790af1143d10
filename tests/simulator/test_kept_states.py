"""What of a program stays on the device between runs, and what a run does that a device would give up."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from test_execution import HALF, images_of, parsed
from test_qaicrt import ERROR, STATUS, SUCCESS, ZEROS, activated, adding_images, inputs, write

from qaic_simulator.network_descriptor import decode_descriptor
from qaic_simulator.runtime.execution import Network

VARIED = "g (float[N] x, float[N] past) => (float[N] y, float[N] past_RetainedState)"
SUMS = "{ past_RetainedState = Add(past, x) y = Neg(past_RetainedState) }"
TYPES = {"past": HALF, "past_RetainedState": HALF}


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIC_SIM_STATE", str(tmp_path / "cards.json"))
    for name in ("QAIC_SIM_CARDS", "QAIC_SIM_FAULT", "QAIC_SIM_DELAY_MS", "QAIC_SIM_PACE"):
        monkeypatch.delenv(name, raising=False)


def test_what_is_not_retained_is_an_input_like_others(tmp_path: Path) -> None:
    host = activated(write(tmp_path / "adding", adding_images(retained_state=False)))
    exec_obj = host.exec_obj()
    assert exec_obj.setData(*host.buffers(inputs())) is ERROR
    for _ in range(2):  # the second run starts from what is given, not from what the first made
        found = host.run(exec_obj, inputs(past=ZEROS, past_RetainedState=ZEROS))
        assert found["past_RetainedState"].tolist() == [1] * 4 and found["y"].tolist() == [4, 5, 6, 7]


def test_the_container_says_whether_states_are_retained() -> None:
    found = [Network(adding_images(retained_state=kept)).states for kept in (True, False)]
    assert found == [{"past": "past_RetainedState"}, {}]
    assert len(decode_descriptor(adding_images(retained_state=False)["networkdesc.bin"]).inputs) == 2


def test_a_state_of_another_size_fits_no_specialization(tmp_path: Path) -> None:
    """The compiler refuses such a program where it is strict; the device keeps one memory in any case."""
    images = images_of(parsed(f"{VARIED} {SUMS}"), ({"N": 4}, {"N": 2}), TYPES)
    host = activated(write(tmp_path / "varied", images))
    exec_obj = host.exec_obj()
    small = {"x": np.ones(2, np.float32), "y": np.ones(2, np.float32)}
    assert host.run(exec_obj, {**small, "past": np.ones(2, np.float16)})["y"].tolist() == [-2, -2]
    assert host.run(exec_obj, small)["y"].tolist() == [-3, -3]
    assert exec_obj.setData(*host.buffers({"x": np.ones(4, np.float32)})) is SUCCESS
    assert host.queue.enqueue(exec_obj) is SUCCESS
    assert exec_obj.waitForCompletion() is STATUS.QS_DEV_ERROR
    assert host.run(exec_obj, small)["y"].tolist() == [-4, -4]


def test_a_run_beyond_its_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = activated(write(tmp_path / "adding", adding_images()))
    exec_obj = host.exec_obj()
    host.run(exec_obj, inputs(past=ZEROS))
    monkeypatch.setenv("QAIC_SIM_DELAY_MS", "5000")
    assert exec_obj.setData(*host.buffers(inputs())) is SUCCESS
    begun = time.monotonic()
    assert host.queue.enqueue(exec_obj) is SUCCESS
    assert exec_obj.waitForCompletion() is STATUS.QS_TIMEDOUT
    assert 0.2 <= time.monotonic() - begun < 3 and exec_obj.getData() == (ERROR, [])
    monkeypatch.setenv("QAIC_SIM_DELAY_MS", "20")
    assert host.run(exec_obj, inputs())["y"].tolist() == [8, 9, 10, 11]


@pytest.mark.parametrize(
    "pair", [(0, [1, 2]), (0.0, np.zeros(4, np.float32)), ("0", np.zeros(4, np.float32)), (0, None)]
)
def test_what_is_no_pair_of_index_and_array(pair: tuple[object, object], tmp_path: Path) -> None:
    host = activated(write(tmp_path / "adding", adding_images()))
    exec_obj = host.exec_obj()
    assert exec_obj.setData([pair]) is ERROR  # type: ignore[list-item]
    assert exec_obj.setData([(np.int64(0), np.zeros(4, np.float32))]) is SUCCESS
