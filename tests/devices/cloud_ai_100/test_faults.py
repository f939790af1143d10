"""A card that fails, is full, is taken or does not answer: errors by name, cores given back, and on it goes."""

from __future__ import annotations

import gc
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qaic_simulator.root import write_root
from qaic_simulator.runtime import cards
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices import Batch, Row, Session, get_device
from QEfficient.devices.cloud_ai_100 import faults
from QEfficient.devices.cloud_ai_100.sdk import ROOT_VARIABLE
from QEfficient.errors import (
    CoresTakenError,
    DeviceBusyError,
    DeviceError,
    DeviceLostError,
    DeviceMemoryError,
    DeviceTimeoutError,
    EngineError,
)
from QEfficient.generation.cloud_infer import QAICInferenceSession
from QEfficient.generation.engine import Engine
from QEfficient.generation.request import Request
from QEfficient.program import CompiledProgram, load_compiled
from QEfficient.specs import SamplingParams
from QEfficient.verification.tiny_models import tiny_model

FAULT = "QAIC_SIM_FAULT"
TIMEOUT_MS = 200
CORES = 16
"""All of a card."""
BATCH = Batch((Row(0, (5, 6, 7), 0),))
HOLD = """
import sys
from QEfficient.generation.cloud_infer import QAICInferenceSession
session = QAICInferenceSession(sys.argv[1], [0])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompiledProgram:
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ROOT_VARIABLE, str(write_root(folder / "sdk")))
        wrapped = QEFFAutoModelForCausalLM(tiny_model("llama"), continuous_batching=True)
        geometry: dict[str, Any] = {"ctx_len": 32, "prefill_seq_len": 8, "full_batch_size": 2, "num_cores": CORES}
        made = wrapped.compile(device="cloud_ai_100", compile_dir=folder / "compiled", **geometry)
    return load_compiled(made)


@pytest.fixture(autouse=True)
def _sdk_and_patience(new_sdk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards of its own, nobody of an earlier test on them, and no minute of waiting for one that hangs."""
    gc.collect()
    monkeypatch.setattr(QAICInferenceSession.__init__, "__defaults__", (None, True, False, TIMEOUT_MS))


@pytest.fixture
def qpc(compiled: CompiledProgram) -> Path:
    return compiled.folder / "qpc"


def opened(compiled: CompiledProgram) -> Session:
    return get_device("cloud_ai_100").load(compiled)


def free_cores() -> int:
    return cards.look([0])[0].free_cores


def works(compiled: CompiledProgram) -> np.ndarray:
    with opened(compiled) as session:
        return session.run(BATCH).copy()


def in_a_new_process(qpc: Path) -> int:
    done = subprocess.run([sys.executable, "-c", HOLD, str(qpc)], input="", capture_output=True, text=True)
    return done.returncode


def inputs(session: QAICInferenceSession) -> dict[str, np.ndarray]:
    """A call of a compiled shape, with the states left where they are."""
    session.skip_buffers(n for n in (*session.input_names, *session.output_names) if n.startswith("past_"))
    session.set_buffers({"logits": np.zeros((2, 1, 256), np.float32)})
    positions = np.zeros((2, 1), np.int64)
    return {"input_ids": positions, "position_ids": positions, "batch_index": np.array([[0], [1]])}


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("timeout", DeviceTimeoutError, r"did not end within 0\.2 s on device 0\..*open the program again"),
        ("lost", DeviceLostError, r"device 0, .* status is Error\..*qaic-util -s -d 0`, then open the program again"),
    ],
)
class TestARunThatFails:
    def recover(self, error: DeviceError, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the message says is to be done."""
        monkeypatch.delenv(FAULT)
        if isinstance(error, DeviceLostError):
            command = str(error).split("`")[1]
            subprocess.run(shlex.split(command), check=True, capture_output=True)

    def test_the_session_closes_itself(
        self, compiled: CompiledProgram, qpc: Path, fault: str, kind: Any, says: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = opened(compiled)
        assert free_cores() == 0
        monkeypatch.setenv(FAULT, fault)
        with pytest.raises(kind, match=says) as caught:
            session.run(BATCH)
        assert free_cores() == CORES
        with pytest.raises(DeviceError, match="closed: open the program again"):
            session.run(BATCH)
        session.close()
        self.recover(caught.value, monkeypatch)
        assert np.isfinite(works(compiled)).all()
        assert in_a_new_process(qpc) == 0

    def test_scripts_get_the_error_that_they_know(
        self, qpc: Path, fault: str, kind: Any, says: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = QAICInferenceSession(qpc, [0])
        feeds = inputs(session)
        monkeypatch.setenv(FAULT, fault)
        with pytest.raises(ValueError, match=says) as caught:
            session.run(feeds)
        cause = caught.value.__cause__
        assert type(cause) is kind and free_cores() == CORES
        self.recover(cause, monkeypatch)
        assert session.run(feeds)["logits"].shape == (2, 1, 256)
        session.deactivate()

    def test_an_engine_says_that_it_is_over(
        self, compiled: CompiledProgram, fault: str, kind: Any, says: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = Engine(opened(compiled))
        engine.submit(Request((5, 6), SamplingParams(max_new_tokens=9)))
        engine.step()
        monkeypatch.setenv(FAULT, fault)
        with pytest.raises(kind, match=says):
            engine.run()
        with pytest.raises(EngineError, match="open the program again"):
            engine.submit(Request((5, 6)))

    def test_generate_raises_it_and_works_again(
        self,
        compiled: CompiledProgram,
        fault: str,
        kind: Any,
        says: str,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        wrapped = QEFFAutoModelForCausalLM(tiny_model("llama"), continuous_batching=True)
        made = wrapped.compile(
            str(compiled.program.onnx_path()), tmp_path, device="cloud_ai_100", ctx_len=32, full_batch_size=2
        )
        assert made.name == "qpc" and (made / "programqpc.bin").is_file() and wrapped.qpc_path == str(made)
        assert load_compiled(made) == load_compiled(made.parent) == wrapped.compiled
        info = wrapped.generate(input_ids=[[5, 6]], generation_len=4)
        first = info.generated_ids
        assert info.simulated and repr(info).endswith("say nothing about one")
        monkeypatch.setenv(FAULT, fault)
        for _ in range(2):  # the second time while it is opened, or in its first run
            with pytest.raises(DeviceError, match=r"device 0") as caught:
                wrapped.generate(input_ids=[[5, 6]], generation_len=4)
            assert isinstance(caught.value, kind) and free_cores() == CORES
        self.recover(caught.value, monkeypatch)
        assert wrapped.generate(input_ids=[[5, 6]], generation_len=4).generated_ids == first


def test_a_lost_card_cannot_be_opened(compiled: CompiledProgram) -> None:
    cards.set_status(0, cards.FAILED)
    with pytest.raises(DeviceLostError, match="its status is Error"):
        opened(compiled)


def test_a_process_that_holds_the_cores(compiled: CompiledProgram, qpc: Path) -> None:
    """The error says how many are free; when that process is killed, its cores are free."""
    command = [sys.executable, "-c", HOLD, str(qpc)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(CoresTakenError, match=r"needs 16 cores, but device 0 .*\(device 0: 0 of 16 free\)"):
            opened(compiled)
        with pytest.raises(RuntimeError, match=r"0 of 16 free\)\. Other programs hold the rest") as caught:
            QAICInferenceSession(qpc, [0])
        assert isinstance(caught.value.__cause__, CoresTakenError)
        other.send_signal(signal.SIGKILL)
        other.wait(timeout=30)
    assert np.isfinite(works(compiled)).all() and free_cores() == CORES


@pytest.mark.parametrize("by_fault", [True, False])
def test_full_memory(compiled: CompiledProgram, by_fault: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = None if by_fault else cards.reserve([0], dram_mb=32768)
    if by_fault:
        monkeypatch.setenv(FAULT, "memory")
    left = "32768" if by_fault else "0"
    with pytest.raises(DeviceMemoryError, match=rf"memory of device 0 \(device 0: {left} MB of 32768 MB free\)"):
        opened(compiled)
    assert free_cores() == CORES
    monkeypatch.delenv(FAULT, raising=False)
    if taken is not None:
        cards.release(taken)
    assert np.isfinite(works(compiled)).all()


def test_a_submission_is_tried_again(compiled: CompiledProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = works(compiled)
    monkeypatch.setenv(FAULT, "again:2")
    with opened(compiled) as session:
        session.run(BATCH)  # the next submission is refused once
        assert np.array_equal(session.run(BATCH), expected)


def test_it_is_not_tried_for_ever(compiled: CompiledProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the session is still there for whoever tries again later."""
    with opened(compiled) as session:
        monkeypatch.setenv(FAULT, "again:1")
        with pytest.raises(DeviceBusyError, match=r"took no run in 6 attempts"):
            session.run(BATCH)
        monkeypatch.delenv(FAULT)
        assert np.isfinite(session.run(BATCH)).all()


def test_shapes_that_were_not_compiled_are_no_fault_of_the_card(qpc: Path) -> None:
    session = QAICInferenceSession(qpc, [0])
    wrong = {name: array[:1] for name, array in inputs(session).items()}
    with pytest.raises(ValueError, match="allowed") as caught:
        session.run(wrong)
    assert caught.value.__cause__ is None and free_cores() == 0
    session.deactivate()


# What numbers and words mean


@pytest.fixture
def placement(qpc: Path) -> faults.Placement:
    return faults.Placement(qpc, (0, 1), 60_000)


def tool(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that says this of each device."""
    path = folder / "root" / "tools" / "qaic-util"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    path.chmod(0o755)
    monkeypatch.setenv(ROOT_VARIABLE, str(folder / "root"))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (2, DeviceBusyError),
        (4, DeviceBusyError),
        (3, DeviceMemoryError),
        (7, DeviceMemoryError),
        (5, DeviceLostError),
        (8, DeviceLostError),
        (9, DeviceTimeoutError),
        (300, type(None)),
        (500, type(None)),
        (6, type(None)),
    ],
)
def test_numbers(status: int, kind: type, placement: faults.Placement, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no tool can be asked, only they count."""
    monkeypatch.setenv(ROOT_VARIABLE, "/nowhere")
    found = faults.run_fault(status, placement)
    assert type(found) is kind and (found is None or "device" in str(found))


@pytest.mark.parametrize("state", ["Error", "Initializing"])
def test_a_card_that_is_not_ready_explains_a_number(
    state: str, placement: faults.Placement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, f"QID 0\n\tStatus:{state}", monkeypatch)
    found = faults.run_fault(300, placement)
    assert isinstance(found, DeviceLostError) and f"its status is {state}" in str(found)


def test_the_words_of_a_shortage_are_enough(placement: faults.Placement, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, "/nowhere")
    said = "QAIC_ERROR_NSP_ALLOC_FAILED: Failed to allocate NSP resources"
    found = faults.opening_fault(300, said, placement)
    assert isinstance(found, CoresTakenError) and "needs 16 cores, but devices 0, 1 " in str(found)
    assert faults.opening_fault(300, "Failed to create ExecObj", placement) is None


def test_free_cores_are_enough_too(
    placement: faults.Placement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, "QID 0\n\tStatus:Ready\n\tNsp Total:16\n\tNsp Free:3", monkeypatch)
    found = faults.opening_fault(300, "Failed to create ExecObj", placement)
    assert isinstance(found, CoresTakenError) and "device 1: 3 of 16 free" in str(found)


def test_an_error_without_a_name_keeps_its_text() -> None:
    raised = ValueError("the run failed with status 6.")
    found = faults.named(raised, "the card could not run the program")
    assert str(found) == f"the card could not run the program: {raised}" and found.__cause__ is raised
