"""Simulated cards: what is taken is missing for all, and comes back in the end; what programs do with them and without.

The last part is what happens to a program when a card fails.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_execution import images_of, parsed, with_constants
from test_qaicrt import ERROR, INVALID, STATUS, SUCCESS, ZEROS, activated, adding_images, inputs, open_program, write

from qaic_simulator.runtime import cards, qaicrt

HOLD = """
import sys
from qaic_simulator.runtime import cards
try:
    taken = cards.reserve([0], cores=int(sys.argv[1]), dram_mb=int(sys.argv[2]))
except cards.CardShortage as error:
    sys.exit(error.resource)
print("held", flush=True)
sys.stdin.read()
cards.release(taken)
"""


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIC_SIM_STATE", str(tmp_path / "state" / "cards.json"))
    for name in ("QAIC_SIM_CARDS", "QAIC_SIM_FAULT", "QAIC_SIM_DELAY_MS"):
        monkeypatch.delenv(name, raising=False)


def start(cores: int, dram_mb: int) -> subprocess.Popen[str]:
    """Another process that takes some of device 0."""
    top = str(Path(cards.__file__).parent.parent)
    command = [sys.executable, "-c", HOLD, str(cores), str(dram_mb)]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": top}
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


@contextmanager
def holding(cores: int, dram_mb: int) -> Iterator[subprocess.Popen[str]]:
    with start(cores, dram_mb) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def free(qid: int = 0) -> tuple[int, int, int]:
    use = cards.look([qid])[0]
    return use.free_cores, use.free_dram_mb, use.networks


def test_there_is_one_board_of_four_at_first() -> None:
    found = [use.card for use in cards.look()]
    assert [card.qid for card in found] == [0, 1, 2, 3]
    assert len({card.board_serial for card in found}) == 1
    assert {(card.cores, card.dram_mb, card.status, card.sku) for card in found} == {(16, 32768, "Ready", "PCIe Ultra")}
    assert free() == (16, 32768, 0)


def test_cards_may_be_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = tmp_path / "cards.json"
    described.write_text(json.dumps([{"cores": 14}, {"qid": 7, "sku": "PCIe", "capabilities": []}]))
    monkeypatch.setenv("QAIC_SIM_CARDS", str(described))
    first, second = (use.card for use in cards.look())
    assert (first.qid, first.cores) == (0, 14)
    assert (second.qid, second.cores, second.sku, second.capabilities) == (7, 16, "PCIe", ())


def test_without_a_variable_the_state_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QAIC_SIM_STATE")
    assert str(os.getuid()) in str(cards.state_path())


def test_what_is_reserved_is_missing_until_it_is_released() -> None:
    taken = cards.reserve([0, 2], cores=10, dram_mb=1000)
    assert free(0) == free(2) == (6, 31768, 1) and free(1) == (16, 32768, 0)
    memory = cards.reserve([0], dram_mb=5)
    assert free(0) == (6, 31763, 1)
    for reservation in (taken, taken, memory):
        cards.release(reservation)
    assert free(0) == free(2) == (16, 32768, 0)


@pytest.mark.parametrize(("wanted", "resource"), [({"cores": 7}, "cores"), ({"dram_mb": 32768}, "DRAM")])
def test_a_shortage_on_one_device_takes_nothing_of_any(wanted: dict[str, int], resource: str) -> None:
    cards.reserve([1], cores=10, dram_mb=1)
    with pytest.raises(cards.CardShortage, match="Device 1") as caught:
        cards.reserve([0, 1], **wanted)
    assert caught.value.resource == resource and free(0) == (16, 32768, 0)


@pytest.mark.parametrize("ask", [cards.look, cards.reserve, lambda qids: cards.set_status(qids[0], "Error")])
def test_unknown_devices(ask: object) -> None:
    with pytest.raises(KeyError):
        ask([9])  # type: ignore[operator]


def test_a_status_stays_and_reservations_with_it() -> None:
    cards.reserve([1], cores=1)
    cards.set_status(1, cards.FAILED)
    assert [use.card.status for use in cards.look()] == ["Ready", "Error", "Ready", "Ready"]
    assert free(1)[0] == 15


def test_releasing_needs_no_file(tmp_path: Path) -> None:
    """Programs are collected when a process ends, and a test's folder may be gone by then."""
    taken = cards.reserve([0], cores=1)
    cards.state_path().unlink()
    cards.release(taken)
    assert not cards.state_path().exists()


def test_what_is_forgotten_while_the_file_is_open_is_given_back_behind_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage is collected at any moment, and this thread cannot wait for its own lock."""
    taken, forgotten = cards.reserve([0], cores=3), []
    write_file = cards._replace_file

    def collecting(path: Path, text: str) -> None:
        if not forgotten:
            forgotten.append(taken)
            cards.release(taken)
        write_file(path, text)

    monkeypatch.setattr(cards, "_replace_file", collecting)
    thread = threading.Thread(target=cards.reserve, args=([1],), kwargs={"cores": 2}, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for itself"
    assert [use.free_cores for use in cards.look([0, 1])] == [16, 14]


def test_a_forked_child_gives_nothing_back_that_its_parent_has() -> None:
    code = """
import os
from qaic_simulator.runtime import cards
taken = cards.reserve([0], cores=3)
if os.fork() == 0:
    cards.release(taken)
    os._exit(0)
os.wait()
print(cards.look([0])[0].free_cores)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(cards.__file__).parent.parent)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert found.stdout == "13\n"


def test_processes_share_the_cards() -> None:
    with holding(10, 1000) as process:
        assert free() == (6, 31768, 1)
        with pytest.raises(cards.CardShortage):
            cards.reserve([0], cores=7)
        with start(7, 0) as second:
            assert second.communicate(timeout=30)[1] == "cores\n"
        process.communicate(timeout=30)
        assert process.returncode == 0 and free() == (16, 32768, 0)


def test_a_killed_process_gives_its_cores_back() -> None:
    with holding(16, 32768) as process:
        assert free() == (0, 0, 1)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert free() == (16, 32768, 0)


def test_a_killed_process_that_nobody_waited_for_is_gone_too() -> None:
    with holding(16, 32768) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert free() == (16, 32768, 0)


def test_a_later_process_of_the_same_number_inherits_nothing() -> None:
    cards.reserve([0], cores=3)
    path = cards.state_path()
    content = json.loads(path.read_text())
    content["holdings"][0]["started"] += "0"
    path.write_text(json.dumps(content))
    assert free() == (16, 32768, 0)


def test_a_process_that_dies_while_writing_leaves_the_old_state(monkeypatch: pytest.MonkeyPatch) -> None:
    cards.reserve([0], cores=3)

    def fail(self: Path, target: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            cards.reserve([0], cores=3)
    assert free()[0] == 13


# Programs on devices


@pytest.fixture
def adding(tmp_path: Path) -> str:
    return write(tmp_path / "adding", adding_images())


def test_what_a_program_takes_and_gives_back(adding: str) -> None:
    host = open_program(adding, qids=(2,))
    assert host.program.load() is SUCCESS
    use = cards.look([2])[0]
    assert (use.free_cores, use.free_dram_mb) == (16, 32767)
    assert host.program.activate() is SUCCESS
    assert qaicrt.Util().getResourceInfo(2)[1] == qaicrt.ResourceInfo(32768, 32767, 16, 12)
    assert host.program.deactivate() is SUCCESS
    assert cards.look([2])[0].free_cores == 16
    del host
    gc.collect()
    assert cards.look([2])[0].free_dram_mb == 32768


def test_too_few_cores_show_when_the_exec_obj_is_made(adding: str) -> None:
    taken = cards.reserve([0], cores=13)
    host = open_program(adding)
    assert (host.program.load(), host.program.activate()) == (SUCCESS, STATUS.QS_DEV_ERROR)
    with pytest.raises(RuntimeError, match="^QAIC_ERROR_NSP_ALLOC_FAILED: Failed to allocate NSP resources$"):
        host.exec_obj()
    cards.release(taken)
    assert host.program.activate() is SUCCESS
    assert host.run(host.exec_obj(), inputs(past=ZEROS))


@pytest.mark.parametrize("by_fault", [True, False])
def test_too_little_memory(
    by_fault: bool, adding: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if by_fault:
        monkeypatch.setenv("QAIC_SIM_FAULT", "memory")
    else:
        cards.reserve([0], dram_mb=32768)
    host = open_program(adding)
    assert (host.program.load(), host.program.activate()) == (STATUS.QS_NOMEM, STATUS.QS_DEV_ERROR)
    assert "Device 0 activate failed: Memory resource exhausted" in capfd.readouterr().err
    with pytest.raises(RuntimeError, match="^Failed to create ExecObj$"):
        host.exec_obj()


def test_two_programs_share_a_device_in_turns(tmp_path: Path) -> None:
    folder = write(tmp_path / "qpc", adding_images(cores=16))
    first, second = activated(folder), open_program(folder)
    assert (second.program.load(), second.program.activate()) == (SUCCESS, STATUS.QS_DEV_ERROR)
    assert (first.program.deactivate(), second.program.activate()) == (SUCCESS, SUCCESS)


def test_a_program_without_a_device_goes_where_there_is_room(adding: str) -> None:
    taken = cards.reserve([0, 1], cores=13)
    host = activated(adding, qids=None)
    assert [use.free_cores for use in cards.look()] == [3, 3, 12, 16]
    assert host.run(host.exec_obj(), inputs(past=ZEROS))
    cards.release(taken)


@pytest.mark.parametrize("qids", [[9], [], [0, 0]])
def test_contexts_of_no_devices(qids: list[int]) -> None:
    with pytest.raises(RuntimeError, match="Failed to create context"):
        qaicrt.Context(qaicrt.QIDList(qids))


def test_a_queue_on_a_device_of_another_context() -> None:
    with pytest.raises(RuntimeError, match="Failed to create queue"):
        qaicrt.Queue(qaicrt.Context(qaicrt.QIDList([1])), 0)


@pytest.mark.parametrize(
    ("devices", "qid", "mapping"),
    [(1, 3, ""), (1, None, "0:1"), (1, None, "3"), (2, None, ""), (2, 0, ""), (2, 0, "0:1"), (2, None, "0")]
    + [(2, None, mapping) for mapping in ("0:0", "0:3", "0:1:2", "0,1", "0:", "all")],
)
def test_devices_that_do_not_suit_the_program(devices: int, qid: int | None, mapping: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "qpc", adding_images(devices=devices))
    with pytest.raises(RuntimeError, match="Failed to create program"):
        open_program(folder, qids=(0, 1, 2), qid=qid, mapping=mapping)


def test_a_program_on_several_devices(tmp_path: Path) -> None:
    folder = write(tmp_path / "qpc", adding_images(devices=2))
    host = activated(folder, qids=(1, 0), mapping="1:0")
    assert [use.free_cores for use in cards.look()] == [12, 12, 16, 16]
    assert host.run(host.exec_obj(), inputs(past=ZEROS))["y"].tolist() == [4, 5, 6, 7]


def describe_cards(folder: Path, monkeypatch: pytest.MonkeyPatch, *records: dict[str, Any]) -> None:
    (folder / "described.json").write_text(json.dumps(records))
    monkeypatch.setenv("QAIC_SIM_CARDS", str(folder / "described.json"))


def test_devices_that_cannot_work_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe_cards(tmp_path, monkeypatch, {}, {"capabilities": ["HybridBoot+"]})
    folder = write(tmp_path / "qpc", adding_images(devices=2))
    with pytest.raises(RuntimeError, match="device 1 lacks MDP"):
        open_program(folder, qids=(0, 1), mapping="0:1")


def test_devices_on_different_boards_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    describe_cards(tmp_path, monkeypatch, {}, {"board_serial": "OTHER"})
    open_program(write(tmp_path / "qpc", adding_images(devices=2)), qids=(0, 1), mapping="0:1")
    assert "different boards" in capfd.readouterr().err


def test_questions_about_devices() -> None:
    util = qaicrt.Util()
    assert util.getDeviceIds() == (SUCCESS, [0, 1, 2, 3])
    status, info = util.getDeviceInfo(1)
    assert status is SUCCESS and info is not None and (info.qid, info.status) == (1, "Ready")
    assert util.getResourceInfo(9) == util.getDeviceInfo(9) == (STATUS.QS_NODEV, None)


def test_another_process_finds_the_cores_taken(tmp_path: Path) -> None:
    folder = write(tmp_path / "qpc", adding_images(cores=16))
    host = activated(folder)
    code = f"""
from qaic_simulator.runtime import qaicrt as q
context = q.Context(q.QIDList([0]))
program = q.Program(context, 0, q.Qpc({folder!r}), q.QAicProgramProperties())
print(int(program.load()), int(program.activate()))
q.ExecObj(context, program)
"""
    top = str(Path(qaicrt.__file__).parent.parent)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=top, check=False)
    assert found.stdout == "0 300\n" and "QAIC_ERROR_NSP_ALLOC_FAILED" in found.stderr
    assert host.program.deactivate() is SUCCESS
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=top, check=False)
    assert found.stdout == "0 0\n" and found.returncode == 0
    assert cards.look([0])[0].free_cores == 16


# Faults


def test_a_timeout(adding: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    host = activated(adding)
    exec_obj = host.exec_obj()
    exec_obj.setData(*host.buffers(inputs(past=ZEROS)))
    monkeypatch.setenv("QAIC_SIM_FAULT", "timeout")
    start = time.monotonic()
    assert (host.queue.enqueue(exec_obj), exec_obj.waitForCompletion()) == (SUCCESS, STATUS.QS_TIMEDOUT)
    assert 0.2 <= time.monotonic() - start < 2 and "Connection timed out" in capfd.readouterr().err
    monkeypatch.delenv("QAIC_SIM_FAULT")
    assert host.run(exec_obj, inputs(past=ZEROS))


def test_a_device_that_is_lost_is_lost_until_it_is_reset(adding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = activated(adding)
    exec_obj = host.exec_obj()
    monkeypatch.setenv("QAIC_SIM_FAULT", "lost")
    buffers, dims = host.buffers(inputs(past=ZEROS))
    assert exec_obj.run(buffers, dims) is STATUS.QS_DEV_ERROR
    monkeypatch.delenv("QAIC_SIM_FAULT")
    assert cards.look([0])[0].card.status == "Error"
    assert exec_obj.run(buffers, dims) is STATUS.QS_DEV_ERROR
    assert open_program(adding).program.load() is STATUS.QS_DEV_ERROR
    del exec_obj
    assert (host.program.deactivate(), host.program.activate()) == (SUCCESS, STATUS.QS_DEV_ERROR)
    cards.set_status(0, cards.READY)
    assert host.program.activate() is SUCCESS
    assert host.run(host.exec_obj(), inputs(past=ZEROS))


def test_every_third_enqueue_is_to_be_tried_again(adding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIC_SIM_FAULT", "again:3")
    host = activated(adding)
    exec_obj = host.exec_obj()
    exec_obj.setData(*host.buffers(inputs(past=ZEROS)))
    found = []
    for _ in range(6):
        found.append(host.queue.enqueue(exec_obj))
        exec_obj.waitForCompletion()
    assert found == [SUCCESS, SUCCESS, STATUS.QS_AGAIN] * 2


@pytest.mark.parametrize("asked", ["time-out", "again", "again:0", "again:x"])
def test_faults_that_do_not_exist(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIC_SIM_FAULT", asked)
    with pytest.raises(RuntimeError, match="QAIC_SIM_FAULT"):
        qaicrt.Context()


def test_a_graph_that_cannot_run_is_not_loaded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = images_of(parsed("g (float[2] x) => (float[2] y) { y = own.Unknown(x) }"))
    host = open_program(write(tmp_path / "qpc", images))
    assert (host.program.load(), host.program.activate()) == (ERROR, INVALID)
    assert "Failed to load program" in capfd.readouterr().err and cards.look([0])[0].free_dram_mb == 32768


def test_a_graph_that_fails_gives_a_status(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = parsed("g (int64[2] x) => (float[2] y) { y = Gather(w, x) }")
    host = activated(write(tmp_path / "qpc", images_of(with_constants(model, w=np.ones(3, np.float32)))))
    exec_obj = host.exec_obj()
    status = exec_obj.run(*host.buffers({"x": np.array([0, 7]), "y": np.zeros(2, np.float32)}))
    assert status is STATUS.QS_DEV_ERROR and "Device 0" in capfd.readouterr().err


def test_a_run_that_fails_is_told_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What computes for the card has a log of its own, which would say the same again."""
    model = parsed("g (float[N] x, float[4] z) => (float[4] y) { y = Add(x, z) }")
    host = activated(write(tmp_path / "failing", images_of(model, ({"N": 4}, {"N": 3}))))
    exec_obj = host.exec_obj()
    arrays = {"x": np.zeros(3, np.float32), "z": np.zeros(4, np.float32), "y": np.zeros(4, np.float32)}
    assert (exec_obj.setData(*host.buffers(arrays)), host.queue.enqueue(exec_obj)) == (SUCCESS, SUCCESS)
    assert exec_obj.waitForCompletion() is STATUS.QS_DEV_ERROR
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("[ERROR] Device 0: ") and "\x1b" not in line
