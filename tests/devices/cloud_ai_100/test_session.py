"""From a compiled program to tokens, by the stand-in of the runtime; the reference device is the judge."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices import Batch, Row, get_device
from QEfficient.errors import DeviceError
from QEfficient.generation.cloud_infer import QAICInferenceSession
from QEfficient.program import CompiledProgram, load_compiled
from QEfficient.verification.tiny_models import prompts, tiny_model

GEOMETRY: dict[str, Any] = {"ctx_len": 64, "prefill_seq_len": 8}
SLOTS, ROWS = {"full_batch_size": 4, "batch_size": 1}, {"batch_size": 3}


def tokens(model: Any, ids: list[list[int]]) -> list[list[int]]:
    return [list(found) for found in model.generate(input_ids=ids, generation_len=10, ignore_eos=True).generated_ids]


@pytest.mark.parametrize("geometry", [ROWS, SLOTS], ids=["rows", "slots"])
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gemma2", "gpt2", "falcon"])
def test_the_tokens_of_the_reference_device(
    new_sdk: str, tmp_path: Path, model_type: str, geometry: dict[str, int]
) -> None:
    model = tiny_model(model_type)
    wrapped = QEFFAutoModelForCausalLM(model, continuous_batching="full_batch_size" in geometry)
    found = {}
    for device in ("reference", "cloud_ai_100"):
        wrapped.compile(device=device, compile_dir=tmp_path / device, **GEOMETRY, **geometry)
        found[device] = tokens(wrapped, prompts(model))
    assert found["cloud_ai_100"] == found["reference"]


def compiled_llama(folder: Path, **options: Any) -> CompiledProgram:
    wrapped = QEFFAutoModelForCausalLM(tiny_model("llama"), continuous_batching=True)
    options = {"device": "cloud_ai_100", "compile_dir": folder / "compiled", **GEOMETRY, **SLOTS, **options}
    return load_compiled(wrapped.compile(**options))


def test_sixteen_prompts_in_four_slots(sdk: str, tmp_path: Path) -> None:
    """Slots that were used, and lines that are idle, leave no trace."""
    model = tiny_model("llama")
    wrapped = QEFFAutoModelForCausalLM(model, continuous_batching=True)
    ids = [[number + 1, 2 * number + 3, 7, 100 - number][: 1 + number % 4] for number in range(16)]
    wrapped.compile(device="cloud_ai_100", compile_dir=tmp_path / "compiled", **GEOMETRY, **SLOTS)
    together = tokens(wrapped, ids)
    assert together == [tokens(wrapped, [one])[0] for one in ids]


def test_four_devices_share_a_program(new_sdk: str, tmp_path: Path) -> None:
    row = Batch((Row(0, (5, 6, 7), 0),))
    alone, shared = (compiled_llama(tmp_path / str(devices), num_devices=devices) for devices in (1, 4))
    found = []
    for compiled in (alone, shared):
        with get_device("cloud_ai_100").load(compiled) as session:
            found.append(session.run(row).copy())
    assert np.array_equal(*found)


def test_a_closed_session_gives_its_cores_back(new_sdk: str, tmp_path: Path) -> None:
    compiled, device = compiled_llama(tmp_path, num_cores=16), get_device("cloud_ai_100")
    for _ in range(3):  # a card has 16
        session = device.load(compiled)
        session.run(Batch((Row(0, (5,), 0),)))
        session.close()
        session.close()
    with pytest.raises(DeviceError, match="closed"):
        session.run(Batch((Row(0, (5,), 0),)))


def test_a_card_whose_cores_are_taken(new_sdk: str, tmp_path: Path) -> None:
    """On one device: the error names what is short, and the next one works."""
    folder = compiled_llama(tmp_path, num_cores=16).folder / "qpc"
    first = QAICInferenceSession(folder, [0])
    with pytest.raises(RuntimeError, match=r"needs 16 cores.*0 of 16 free"):
        QAICInferenceSession(folder, [0])
    first.deactivate()
    QAICInferenceSession(folder, [0]).deactivate()


def test_shapes_that_were_not_compiled_are_named(new_sdk: str, tmp_path: Path) -> None:
    """The runtime says 300 only."""
    session = QAICInferenceSession(compiled_llama(tmp_path).folder / "qpc")
    states = [name for name in (*session.input_names, *session.output_names) if name.startswith("past_")]
    session.skip_buffers(states)
    session.set_buffers({"logits": np.zeros((1, 1, 256), np.float32)})
    ids = np.zeros((1, 5), np.int64)
    with pytest.raises(
        ValueError, match=r"passed: \{'input_ids': \[1, 5\](.|\n)*allowed \(0\): \{'input_ids': \[1, 8\]"
    ):
        session.run({"input_ids": ids, "position_ids": ids, "batch_index": np.zeros((1, 1), np.int64)})
    session.deactivate()


def test_unknown_buffers_are_left_out_with_a_warning(new_sdk: str, tmp_path: Path) -> None:
    session = QAICInferenceSession(compiled_llama(tmp_path).folder / "qpc", activate=False)
    with pytest.warns(UserWarning, match="no buffer 'nonsense'"):
        session.set_buffers({"nonsense": np.zeros(1)})


def test_numbers_of_another_type_are_refused_by_name(new_sdk: str, tmp_path: Path) -> None:
    """The runtime takes bytes. Eight of numpy's usual float would be read as a token."""
    session = QAICInferenceSession(compiled_llama(tmp_path).folder / "qpc")
    session.skip_buffers([name for name in (*session.input_names, *session.output_names) if name.startswith("past_")])
    session.set_buffers({"logits": np.zeros((1, 1, 256), np.float32)})
    ids, slot = np.arange(8)[None], np.zeros((1, 1), np.int64)
    taken = session.run({"input_ids": ids, "position_ids": ids, "batch_index": slot})["logits"]
    for wrong in (np.float64, np.int32, np.float32, ">i8"):
        found = np.dtype(wrong).name if wrong != ">i8" else ">i8"
        said = rf"the input 'input_ids' was given as {found}, but it is int64 in the program.*astype\(np.int64\)"
        with pytest.raises(MemoryError, match=said):
            session.run({"input_ids": ids.astype(wrong), "position_ids": ids, "batch_index": slot})
    with pytest.raises(MemoryError, match="the input 'past_key.0' was given as float32, but it is float16 in the prog"):
        session.set_buffers({"past_key.0": np.zeros((4, 2, 64, 16), np.float32)})
    with pytest.raises(MemoryError, match="the output 'logits' was given as float64, but it is float32"):
        session.set_buffers({"logits": np.zeros((1, 1, 256))})
    assert np.array_equal(
        session.run({"input_ids": ids.astype(np.uint64), "position_ids": ids, "batch_index": slot})["logits"], taken
    )
    session.deactivate()


def test_buffers_that_the_runtime_refuses_are_shown(new_sdk: str, tmp_path: Path) -> None:
    session = QAICInferenceSession(compiled_llama(tmp_path).folder / "qpc")
    ids = np.zeros((1, 9), np.int64)
    with pytest.raises(MemoryError, match=r"setData(.|\n)*passed: \{'input_ids': \[1, 9\](.|\n)*allowed \(0\): "):
        session.run({"input_ids": ids, "position_ids": ids, "batch_index": np.zeros((1, 1), np.int64)})
    session.deactivate()


COMMAND = (
    "-m QEfficient.cloud.infer --model_name demo --batch_size 1 --prompt_len 32 --ctx_len 128 --mxfp6 --num_cores 16"
    " --device_group [0] --mos 1 --aic_enable_depth_first --generation_len 8 --prompt"
)


@pytest.mark.parametrize("version", ["0", "1", "1.21"])
def test_the_command_of_existing_scripts(version: str, tmp_path: Path) -> None:
    environment = {**os.environ, "QEFF_HOME": str(tmp_path / "home"), "QEFF_QAIC_SIMULATOR": version}
    environment |= {"QEFF_QAIC_ROOT": str(tmp_path / "none"), "QEFF_DEVICE": "cloud_ai_100"}
    command = [sys.executable, *COMMAND.split(), "My name is"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    if version == "0":
        assert done.returncode == 1 and "Install the Apps SDK" in done.stderr and "QEFF_QAIC_SIMULATOR=1" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("My name is ") and "Decode is=" in done.stdout + done.stderr
    assert "nothing runs on a card" in done.stderr
