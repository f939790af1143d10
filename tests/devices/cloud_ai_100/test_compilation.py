"""From an exported program to a compiled one, by the stand-in of the compiler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.artifacts import ArtifactStore
from QEfficient.devices.cloud_ai_100 import CloudAI100
from QEfficient.devices.cloud_ai_100.compilation import installed_hardware
from QEfficient.devices.cloud_ai_100.container import read_description
from QEfficient.devices.cloud_ai_100.running import LAST_LINES, tell_warnings
from QEfficient.devices.cloud_ai_100.sdk import query_tool
from QEfficient.errors import CompilationError, DeviceError, OptionError, StorageError
from QEfficient.program import ExportedProgram, load_exported
from QEfficient.specs import CompileSpec
from QEfficient.transformers.models import stages
from QEfficient.verification.tiny_models import tiny_model

SPEC: dict[str, Any] = {"prefill_seq_len": 8, "ctx_len": 64}


def exported(model_type: str = "llama", **options: Any) -> ExportedProgram:
    return load_exported(Path(QEFFAutoModelForCausalLM(tiny_model(model_type), **options).export()).parent)


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    return exported(continuous_batching=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "compiled"
    folder.mkdir()
    return folder


def spec(**options: Any) -> CompileSpec:
    return CompileSpec(full_batch_size=4, **SPEC, device_options=options)


def test_the_program_and_its_files(sdk: str, program: ExportedProgram, folder: Path) -> None:
    report = CloudAI100().compile(program, spec(mxfp6_matmul=True, mxint8_kv_cache=False, num_cores=14), folder)
    assert (report["sdk"], report["simulated"], report["specializations"]) == (f"{sdk}.0", True, 2)
    names = {"specializations.json", "custom_io.yaml", "qconfig.json", "compiler.log", "qpc"}
    assert {path.name for path in folder.iterdir()} == names
    entries = json.loads((folder / "specializations.json").read_text())["specializations"]
    assert ("symbols" in entries[0]) == (sdk == "1.22")
    sizes = read_description(folder / "qpc" / "programqpc.bin").sizes()
    assert [entry["input_ids"] for entry in sizes] == [(1, 8), (4, 1)]
    assert sizes[0]["past_key.0"] == sizes[0]["past_key.0_RetainedState"] == (4, 2, 64, 16)
    assert "qaic simulator" in (folder / "compiler.log").read_text()
    whole = json.loads((folder / "qconfig.json").read_text())
    recorded = whole["qpc_config"]
    assert recorded["compiler_config"]["num_cores"] == 14
    assert whole["huggingface_config"]["model_type"] == "llama"
    assert recorded["aic_sdk_config"]["qaic_apps_version"].startswith(sdk)


def test_several_devices(new_sdk: str, program: ExportedProgram, folder: Path) -> None:
    report = CloudAI100().compile(program, spec(num_devices=4), folder)
    assert report["devices"] == 4 and (folder / "mdp_ts_4.json").is_file()


@pytest.mark.parametrize(("devices", "warns"), [(1, False), (2, False), (4, True)])
def test_the_user_sees_what_the_compiler_warns_about(
    new_sdk: str, program: ExportedProgram, folder: Path, devices: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    CloudAI100().compile(program, spec(num_devices=devices), folder)
    found = [record.getMessage() for record in caplog.records if "the compiler warns" in record.getMessage()]
    assert len(found) == warns
    told = "2 heads, which 4 devices cannot share evenly. [simulator rule: warned.uneven-heads (policy, ET)]"
    assert all(message.count("\n") == 1 and told in message and "compiler.log" in message for message in found)
    assert (told in (folder / "compiler.log").read_text()) == warns


def test_warnings_are_found_among_other_lines(caplog: pytest.LogCaptureFixture) -> None:
    said = """/opt/qti-aic/exec/qaic-compile -m=/tmp/warning:/model.onnx -aic-perf-warnings
Compile started ...
Warning: one thing
[WARNING] another thing
tool (simulated): WARNING: a third
Warning: one thing
0 warnings: nothing
"""
    tell_warnings(said)
    (message,) = caplog.messages
    assert message.splitlines()[1:] == [
        "  Warning: one thing",
        "  [WARNING] another thing",
        "  tool (simulated): WARNING: a third",
    ]
    caplog.clear()
    tell_warnings("".join(f"Warning: number {number}\n" for number in range(LAST_LINES + 3)))
    assert caplog.messages[0].endswith(f"number {LAST_LINES - 1}\n  … and 3 more")
    caplog.clear()
    tell_warnings("Generated binary is present at qpc\n")
    assert not caplog.messages


@pytest.mark.parametrize("model_type", ["mixtral", "gemma2", "qwen3_next", "gpt2"])
def test_other_models(new_sdk: str, folder: Path, model_type: str) -> None:
    program = exported(model_type)
    assert CloudAI100().compile(program, CompileSpec(batch_size=2, **SPEC), folder)["simulated"]


def test_what_the_compiler_refuses(sdk: str, program: ExportedProgram, folder: Path) -> None:
    """Its own words, and the command."""
    message = r"exit code 1:\n.*Invalid option -new-option\.(.|\n)*command: .*qaic-compile -aic-hw .* -new-option"
    with pytest.raises(CompilationError, match=message):
        CloudAI100().compile(program, spec(extra_compiler_args=["-new-option"]), folder)
    assert "Invalid option" in (folder / "compiler.log").read_text()


def test_options_are_refused_before_anything_is_written(new_sdk: str, program: ExportedProgram, folder: Path) -> None:
    with pytest.raises(OptionError, match="'num_coers'"):
        CloudAI100().compile(program, spec(num_coers=4), folder)
    assert not list(folder.iterdir())


def test_bfloat16_is_for_newer_cards(new_sdk: str, tmp_path: Path, folder: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    wrapped = QEFFAutoModelForCausalLM.from_pretrained(str(tmp_path / "model"), dtype="bfloat16")
    program = load_exported(Path(wrapped.export()).parent)
    with pytest.raises(DeviceError, match="exported in bfloat16, which the ai100 does not compute in"):
        CloudAI100().compile(program, CompileSpec(**SPEC), folder)
    with pytest.raises(DeviceError, match="exported in bfloat16, which the ai100 does not compute in"):
        wrapped.compile(program.onnx_path(), device="cloud_ai_100", **SPEC)


def test_bfloat16_becomes_float32_before_the_export(
    new_sdk: str, program: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    asked: list[stages.ExportRequest] = []
    monkeypatch.setattr(stages, "export", lambda request, *_: asked.append(request) or program)
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "model")
    wrapped = QEFFAutoModelForCausalLM.from_pretrained(str(tmp_path / "model"), True, torch_dtype="auto")
    wrapped.export()
    for _ in range(2):
        wrapped.compile(device="cloud_ai_100", compile_dir=tmp_path, full_batch_size=4, **SPEC)
    assert [request.spec.dtype for request in asked] == ["bfloat16", "float32"]
    source = asked[-1].prepare()
    assert {parameter.dtype for parameter in source.module.parameters()} == {torch.float32}
    assert {state.tensor.dtype for state in source.graph.states} == {"float32"}
    said = "was asked for in bfloat16, in which device 'cloud_ai_100' does not compute"
    assert sum(said in message for message in caplog.messages) == 1


@pytest.mark.parametrize(
    ("dtype", "options", "exported_in"),
    [
        ("bfloat16", {}, "float32"),
        ("bfloat16", {"aic_hw_version": "ai100"}, "float32"),
        ("bfloat16", {"aic_hw_version": "ai200"}, "bfloat16"),
        ("bfloat16", {"enable_qnn": True}, "float32"),
        ("float16", {}, "float16"),
        ("float32", {"aic_hw_version": "ai200"}, "float32"),
    ],
)
def test_in_which_type_a_model_is_exported(new_sdk: str, dtype: str, options: dict[str, Any], exported_in: str) -> None:
    assert CloudAI100().export_dtype(dtype, options) == exported_in


def test_a_compiler_that_wrote_something_else(
    new_sdk: str, program: ExportedProgram, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended without an error, but not with what was asked for."""
    from QEfficient.devices.cloud_ai_100 import compilation

    monkeypatch.setattr(compilation, "_sizes", lambda graph, entry: {"input_ids": (7, 7)})
    with pytest.raises(CompilationError, match=r"input_ids should be \[7, 7\] and is \["):
        CloudAI100().compile(program, spec(), folder)


def test_a_compiler_that_wrote_nothing(
    new_sdk: str, program: ExportedProgram, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it said is all that is left of it."""
    from QEfficient.devices.cloud_ai_100 import compilation

    monkeypatch.setattr(compilation, "command", lambda asked: ["/bin/echo", "all is well"])
    with pytest.raises(
        CompilationError, match=r"^echo wrote no programqpc\.bin\. It ended .*said:\nall is well\ncommand"
    ):
        CloudAI100().compile(program, spec(), folder)


@pytest.fixture
def compiler(new_sdk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is run in place of the compiler."""
    from QEfficient.devices.cloud_ai_100 import compilation

    path = tmp_path / "own-compiler"
    path.touch(mode=0o755)
    monkeypatch.setattr(compilation, "command", lambda asked: [str(path), str(asked.files.binary)])
    return path


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 1", r"exit code 1, and said nothing\ncommand: .*own-compiler"),
        ("echo one; echo two >&2; exit 3", r"exit code 3:\ntwo\ncommand: "),
        (r"printf '\377\376\n' >&2; exit 3", "exit code 3:\n\N{REPLACEMENT CHARACTER}{2}\n"),
        ("kill -SEGV $$", r"the signal SIGSEGV, and said nothing\n"),
        ("exit 139", r"exit code 139, which is a shell's for the signal SIGSEGV, and"),
        ("kill -KILL $$", r"the signal SIGKILL, as where memory has run out, and"),
        ("exit 255", r"exit code 255, and"),
    ],
)
def test_how_a_compiler_ended(
    compiler: Path, program: ExportedProgram, folder: Path, script: str, message: str
) -> None:
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(CompilationError, match=f"^own-compiler ended with {message}"):
        CloudAI100().compile(program, spec(), folder)


def test_a_compiler_that_wrote_no_program(compiler: Path, program: ExportedProgram, folder: Path) -> None:
    compiler.write_text('#!/bin/sh\nmkdir -p "$1"\necho junk >"$1/programqpc.bin"\necho all is well\n')
    with pytest.raises(
        CompilationError, match=r"^what own-compiler wrote is no program: .*said:\nall is well\ncommand"
    ):
        CloudAI100().compile(program, spec(), folder)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'cannot write: No space left on device' >&2; exit 1", r"the disk is full \(.* free without the unfin"),
        ("kill -XFSZ $$", "a file grew beyond the size that is allowed here"),
    ],
)
def test_a_compiler_without_space(
    compiler: Path, program: ExportedProgram, tmp_path: Path, script: str, message: str
) -> None:
    """Said as where the disk is full at an export, not by the compiler's words and its whole command."""
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(StorageError, match=rf"{message}.* [Ss]et QEFF_HOME to another folder") as caught:
        ArtifactStore(tmp_path).publish(
            tmp_path / "compiled", lambda where: CloudAI100().compile(program, spec(), where) and None
        )
    assert "command: " not in str(caught.value) and not (tmp_path / "compiled").exists()


def test_a_full_disk_of_the_simulator(
    new_sdk: str, program: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QAIC_SIM_COMPILER_FAULT", "full")
    with pytest.raises(StorageError, match="the disk is full"):
        ArtifactStore(tmp_path).publish(
            tmp_path / "compiled", lambda where: CloudAI100().compile(program, spec(), where) and None
        )


def test_what_the_tools_print_need_not_be_text(new_sdk: str) -> None:
    query_tool().write_text(r"#!/bin/sh" "\n" r"printf '\377\376\200 IMAGE_VARIANT:AIC200\n'" "\n")
    assert installed_hardware() == "ai200"


def test_without_an_sdk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QEFF_QAIC_ROOT", str(tmp_path / "nothing"))
    reason = CloudAI100.availability()
    assert reason is not None and "Install the Apps SDK" in reason
