"""The functions `export`, `compile`, `cloud_ai_100_exec_kv` in the order of existing scripts, and what lies where."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import byte_tokenizer, simulated

import QEfficient
from QEfficient.demo import demo_folder
from QEfficient.devices.cloud_ai_100 import CloudAI100
from QEfficient.devices.cpu import CpuDevice
from QEfficient.devices.null import NullDevice
from QEfficient.errors import ArtifactError, DeviceError, OptionError
from QEfficient.generation.cloud_infer import QAICInferenceSession
from QEfficient.program import load_compiled
from QEfficient.verification.tiny_models import tiny_model

GEOMETRY: dict[str, Any] = {"prompt_len": 8, "ctx_len": 64, "num_cores": 16, "device": "cloud_ai_100"}


@pytest.fixture(scope="module", autouse=True)
def _sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with simulated(tmp_path_factory.mktemp("sdk")):
        yield


@pytest.fixture(scope="module")
def onnx_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "exported"
    return QEfficient.export("any name", model_kv=tiny_model("llama"), onnx_dir_path=str(folder))[1]


@pytest.mark.skipif(not (demo_folder() / "config.json").exists(), reason="the demo model is not in this checkout")
def test_an_old_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QEFF_QAIC_SIMULATOR", "1")
    monkeypatch.delenv("QEFF_DEVICE", raising=False)
    tok = AutoTokenizer.from_pretrained(demo_folder())
    onnx_dir, onnx_path = QEfficient.export(model_name="demo", tokenizer=tok)
    assert isinstance(onnx_dir, str)
    # As in Qualcomm's quick start, beside what was exported.
    qpc = QEfficient.compile(onnx_path=onnx_path, qpc_path=onnx_dir, num_cores=16, device_group=[0])
    assert qpc == f"{onnx_dir}/qpcs"
    info = QEfficient.cloud_ai_100_exec_kv(tokenizer=tok, qpc_path=qpc, prompt=["My name is"], device_id=[0])
    said = capsys.readouterr().out
    assert said.startswith(f"My name is{info.generated_texts[0][0]}\n") and "Decode is=" in said
    assert QEfficient.export(model_name="demo")[1] == onnx_path, "what was exported is whole"


def test_where_files_lie(onnx_path: str, tmp_path: Path) -> None:
    qpc = Path(QEfficient.compile(onnx_path, tmp_path / "q", device_group=[0, 1], mos=2, **GEOMETRY))
    assert qpc == tmp_path / "q" / "qpcs" and (qpc / "programqpc.bin").is_file()
    assert {path.name for path in qpc.parent.iterdir()} == {"qpcs", "specializations.json", "mdp_ts_config.json"}
    entries = json.loads((qpc.parent / "specializations.json").read_text())["specializations"]
    assert [entry["symbols"]["seq_len"] for entry in entries] == ["8", "1"]
    devices = json.loads((qpc.parent / "mdp_ts_config.json").read_text())["partitions"][0]["devices"]
    assert [device["numCores"] for device in devices] == [16, 16]
    command = [word.partition("=")[0] for word in load_compiled(qpc).report["command"]]
    assert command[1:3] == ["-m", "-aic-hw"] and command[-3:] == ["-mxfp6-matmul", "-mos", "-mdp-load-partition-config"]
    options: dict[str, Any] = {"prompt": "My name is", "generation_len": 3, "stream": False}
    both = QEfficient.cloud_ai_100_exec_kv(byte_tokenizer(), qpc, device_id=[0, 1], **options)
    assert both.generated_ids[0].shape == (1, 3)
    QAICInferenceSession(qpc, [0, 1]).deactivate()


@pytest.mark.parametrize("options", [{"num_cores": 0}, {"mos": 0}, {"mos": -7}], ids=str)
def test_numbers_that_cannot_be(onnx_path: str, tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(OptionError, match=f"must be a whole number from 1 to 16, not {next(iter(options.values()))}"):
        QEfficient.compile(onnx_path, tmp_path / "q", **{**GEOMETRY, **options})
    assert not (tmp_path / "q").exists()


def test_the_last_one_asked_for_stays(onnx_path: str, tmp_path: Path) -> None:
    def compiled(**options: Any) -> tuple[int, float]:
        qpc = Path(QEfficient.compile(onnx_path, tmp_path, **{**GEOMETRY, **options}))
        return load_compiled(qpc).spec.ctx_len, (qpc / "programqpc.bin").stat().st_mtime

    first = compiled()
    assert compiled() == first, "it is found again"
    assert compiled(ctx_len=128)[0] == 128
    assert "128" in (tmp_path / "specializations.json").read_text()
    with pytest.raises(DeviceError, match="ended with exit code"):
        compiled(ctx_len=96, extra_compiler_args=["-no-such-option"])
    assert load_compiled(tmp_path / "qpcs").spec.ctx_len == 128, "one that fails takes nothing away"
    assert not list(tmp_path.glob(".tmp*")) and not (tmp_path / ".new-qpcs").exists()


def test_what_was_not_made_here_is_not_replaced(onnx_path: str, tmp_path: Path) -> None:
    (tmp_path / "qpcs").mkdir()
    (tmp_path / "qpcs" / "programqpc.bin").write_text("somebody's")
    with pytest.raises(ArtifactError, match="was not made by QEfficient, so it is not replaced. Move or delete it"):
        QEfficient.compile(onnx_path, tmp_path, **GEOMETRY)
    assert (tmp_path / "qpcs" / "programqpc.bin").read_text() == "somebody's"


def test_not_into_another_program(onnx_path: str, tmp_path: Path) -> None:
    made = QEfficient.compile(onnx_path, tmp_path, **{**GEOMETRY, "device": "reference"})
    with pytest.raises(ArtifactError, match="has a specializations.json of its own. Choose another folder"):
        QEfficient.compile(onnx_path, made, **GEOMETRY)


def test_precisions_of_the_user(onnx_path: str, tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    states = [f"past_{kind}.{layer}" for layer in (0, 1) for kind in ("key", "value")]
    names = [name for state in states for name in (state, f"{state}_RetainedState")]
    own.write_text("".join(f" - IOName: {name}\n   Precision: float16\n\n" for name in names))
    qpc = Path(QEfficient.compile(onnx_path, tmp_path / "q", custom_io_file_path=str(own), **GEOMETRY))
    assert f"-custom-IO-list-file={own}" in load_compiled(qpc).report["command"]
    assert not (qpc / "custom_io.yaml").exists()
    before = load_compiled(qpc).fingerprint
    own.write_text(own.read_text() + "\n")
    QEfficient.compile(onnx_path, tmp_path / "q", custom_io_file_path=str(own), **GEOMETRY)
    assert load_compiled(qpc).fingerprint != before, "what the file says counts, not its name"
    with pytest.raises(OptionError, match=r"custom_io_file_path names the file .*none.yaml, which does not exist"):
        QEfficient.compile(onnx_path, tmp_path / "q", custom_io_file_path="none.yaml", **GEOMETRY)


def test_only_cards_have_old_names(caplog: pytest.LogCaptureFixture) -> None:
    assert NullDevice().for_scripts(None) is None and isinstance(CloudAI100().for_scripts(None), CloudAI100)
    assert [device.has_ids for device in (CloudAI100, NullDevice, CpuDevice)] == [True, False, False]


def test_other_devices_have_no_numbers(onnx_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from QEfficient.devices import _say_without_effect

    compiled = load_compiled(Path(QEfficient.compile(onnx_path, tmp_path, **{**GEOMETRY, "device": "null"})))
    _say_without_effect.cache_clear()
    with caplog.at_level(logging.INFO, "QEfficient.devices"):
        for ids in (None, [0], [1]):
            NullDevice().load(compiled, ids).close()
    assert [r.message for r in caplog.records if "no use for device ids" in r.message] == [
        "device 'null' has no use for device ids: there is one of it."
    ]
