"""Runs that are interrupted, and sessions that were lost: the next call works, and nothing stays on the card."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import Scripted, byte_tokenizer, scripted, simulated

from qaic_simulator.runtime import cards
from QEfficient import QEFFAutoModelForCausalLM, cloud_ai_100_exec_kv
from QEfficient.devices import Batch, Row, get_device
from QEfficient.devices.cloud_ai_100.opened import open_program
from QEfficient.errors import DeviceError, DeviceTimeoutError, SessionLostError
from QEfficient.generation.cloud_infer import QAICInferenceSession
from QEfficient.generation.text_generation_inference import TextGeneration
from QEfficient.verification.tiny_models import tiny_model

FAULT, DELAY = "QAIC_SIM_FAULT", "QAIC_SIM_DELAY_MS"
DELAY_MS, TIMEOUT_MS = 400, 200
BATCH = Batch((Row(0, (5, 6, 7), 0, 1),))
NEXT = Batch((Row(0, (8,), 3, 1),))


@pytest.fixture(scope="module", autouse=True)
def _sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with simulated(tmp_path_factory.mktemp("sdk")):
        yield


@pytest.fixture(scope="module")
def program(_sdk: None, tmp_path_factory: pytest.TempPathFactory) -> Scripted:
    return scripted(tmp_path_factory.mktemp("program"))


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    gc.collect()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> Iterator[None]:
    """Ctrl-C so long after the beginning, while each run takes longer than that."""
    monkeypatch.setenv(DELAY, str(DELAY_MS))
    timers = [threading.Timer(each, os.kill, (os.getpid(), signal.SIGINT)) for each in seconds]
    for timer in timers:
        timer.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    for timer in timers:
        timer.join()
    monkeypatch.delenv(DELAY)


def is_free() -> bool:
    use = cards.look([0])[0]
    return use.free_cores == use.card.cores and use.free_dram_mb == use.card.dram_mb


class TestAnInterrupt:
    def test_waits_for_the_run_that_it_came_in(self, program: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
        session = get_device("cloud_ai_100").load(open_program(program.qpc))
        session.run(BATCH)
        expected = session.run(NEXT).copy()
        session.run(BATCH)
        started = time.monotonic()
        with interrupted(monkeypatch, 0.1):
            session.run(NEXT)
        assert time.monotonic() - started > DELAY_MS / 1000
        assert session.lost is None
        assert np.array_equal(session.run(NEXT), expected), "what was kept is still there"
        session.close()
        assert is_free()

    def test_does_not_hinder_closing(self, program: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not even while it is on its way up, with all its frames."""
        with interrupted(monkeypatch, 0.1), get_device("cloud_ai_100").load(open_program(program.qpc)) as session:
            session.run(BATCH)
        assert is_free()

    def test_that_is_repeated_gives_the_session_up(self, program: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
        session = get_device("cloud_ai_100").load(open_program(program.qpc))
        with interrupted(monkeypatch, 0.1, 0.2):
            session.run(BATCH)
        assert isinstance(session.lost, SessionLostError) and is_free()
        with pytest.raises(SessionLostError, match="closed: open the program again.*was interrupted before its end"):
            session.run(BATCH)

    @pytest.mark.parametrize("times", [1, 2])
    def test_of_generate_leaves_the_model_usable(
        self, tmp_path: Path, times: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = QEFFAutoModelForCausalLM(tiny_model("llama"))
        model.compile(compile_dir=tmp_path, device="cloud_ai_100", ctx_len=64, prefill_seq_len=8)
        asked: dict[str, Any] = {"input_ids": [[5, 6, 7]], "generation_len": 4, "ignore_eos": True}
        wanted = model.generate(**asked).generated_ids
        for _ in range(2):
            with interrupted(monkeypatch, *(0.1 * (1 + number) for number in range(times))):
                model.generate(**asked)
            assert model.generate(**asked).generated_ids == wanted
        model._forget_session()
        assert is_free()

    def test_of_text_generation_too(self, program: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
        generation = TextGeneration(byte_tokenizer(), program.qpc)
        wanted = generation.generate("My name", 4, stream=False, automation=True).generated_texts
        for seconds in ((0.1,), (0.1, 0.2)):
            with interrupted(monkeypatch, *seconds):
                generation.generate("My name", 4, stream=False, automation=True)
            assert generation.generate("My name", 4, stream=False, automation=True).generated_texts == wanted
        generation.close()
        assert is_free()
        with pytest.raises(DeviceError, match="closed: make another TextGeneration"):
            generation.generate("My name", 4)

    def test_of_a_run_by_hand(self, program: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
        session = QAICInferenceSession(program.qpc, [0])
        session.skip_buffers(n for n in (*session.input_names, *session.output_names) if n.startswith("past_"))
        session.set_buffers({"logits": np.zeros((1, 1, 256), np.float32)})
        feeds = {"input_ids": np.array([[5]]), "position_ids": np.array([[0]])}
        expected = session.run(feeds)["logits"]
        with interrupted(monkeypatch, 0.1):
            session.run(feeds)
        assert session.active and np.array_equal(session.run(feeds)["logits"], expected)
        with interrupted(monkeypatch, 0.1, 0.2):
            session.run(feeds)
        assert not session.active and is_free()
        assert np.array_equal(session.run(feeds)["logits"], expected)
        session.unload()
        session.unload()
        assert is_free()


def test_closing_does_not_replace_the_error_before_it(program: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """The runtime gives nothing back while somebody holds one of its objects."""
    session: Any = get_device("cloud_ai_100").load(open_program(program.qpc))
    held = session._inference.execObj
    with caplog.at_level(logging.WARNING), pytest.raises(ZeroDivisionError), session:
        raise ZeroDivisionError
    assert "could not deactivate the program" in caplog.text and not is_free()
    del held
    assert is_free()


@pytest.mark.parametrize("fault", ["timeout", "lost"])
def test_what_is_lost_keeps_nothing_and_is_opened_again(
    program: Scripted, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QAICInferenceSession.__init__, "__defaults__", (None, True, False, TIMEOUT_MS))
    generation = TextGeneration(byte_tokenizer(), program.qpc)
    wanted = generation.generate("My name", 4, stream=False, automation=True).generated_texts
    monkeypatch.setenv(FAULT, fault)
    for _ in range(2):
        with pytest.raises(SessionLostError if fault == "timeout" else DeviceError) as caught:
            generation.generate("My name", 4, stream=False)
        assert isinstance(caught.value, DeviceTimeoutError) == (fault == "timeout")
        assert is_free(), "also while the error is looked at"
    monkeypatch.delenv(FAULT)
    cards.set_status(0, cards.READY)
    assert generation.generate("My name", 4, stream=False, automation=True).generated_texts == wanted
    outputs, *_ = generation._qaic_model.run_prefill("My name", 4)
    assert outputs["logits"].shape == (1, 1, 256)
    generation.close()
    assert is_free()


def test_devices_are_those_that_it_was_compiled_for(
    program: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As what lies beside a program says, ours or Qualcomm's; a bare one cannot say it."""
    two = scripted(tmp_path, num_devices=2, num_cores=8)
    asked: dict[str, Any] = {"prompt": "My name", "generation_len": 3, "stream": False, "automation": True}
    made = next((tmp_path / "compiled").rglob("programqpc.bin")).parent
    wanted = np.asarray(cloud_ai_100_exec_kv(byte_tokenizer(), program.qpc, **asked).generated_ids).tolist()
    assert np.asarray(cloud_ai_100_exec_kv(byte_tokenizer(), made, **asked).generated_ids).tolist() == wanted
    with pytest.raises(DeviceError, match=r"for 2 devices, not \[0\]"):
        cloud_ai_100_exec_kv(byte_tokenizer(), two.qpc, **asked)
    (two.qpc / "qpc").mkdir()
    (two.qpc / "programqpc.bin").rename(two.qpc / "qpc" / "programqpc.bin")
    (two.qpc / "mdp_ts_2.json").write_text((made.parent / "mdp_ts_2.json").read_text())
    found = cloud_ai_100_exec_kv(byte_tokenizer(), two.qpc / "qpc", **asked).generated_ids
    assert np.asarray(found).tolist() == wanted
    capsys.readouterr()


def test_a_prompt_that_does_not_fit_is_not_warned_about(program: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="prompt has 200 tokens"):
        cloud_ai_100_exec_kv(byte_tokenizer(), program.qpc, "a" * 200, generation_len=9)
    assert "holds" not in caplog.text
    with pytest.raises(ValueError, match="generation_len must be a positive whole number, not 0"):
        cloud_ai_100_exec_kv(byte_tokenizer(), program.qpc, "a", generation_len=0)
