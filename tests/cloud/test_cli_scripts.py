"""The commands as scripts of Qualcomm's library call them, on the simulator of the card."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import Cli, Home

from QEfficient.cloud import compile as compile_command
from QEfficient.cloud import execute, export, infer
from QEfficient.errors import OptionError, PromptError

COMPILE = "--batch_size 1 --prompt_len 8 --ctx_len 32 --mxfp6 --num_cores 16 --device_group [0] --mos -1"
PROMPT = ("--prompt", "My name is", "--generation_len", "4")


@pytest.fixture
def qpcs(cli: Cli, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `compile` wrote where scripts look for it."""
    monkeypatch.setenv("QEFF_QAIC_SIMULATOR", "1")
    monkeypatch.setenv("QAIC_SIM_STATE", str(tmp_path / "cards.json"))
    onnx_path = next(home.exported.glob("*.onnx"))
    made = cli("compile", "--onnx_path", onnx_path, "--qpc-path", tmp_path / "q", *COMPILE.split())
    assert made.code == 0, made.err
    assert Path(made.out.strip()) == tmp_path / "q" / "qpcs"
    assert (tmp_path / "q" / "specializations.json").is_file()
    return tmp_path / "q" / "qpcs"


def test_compile_then_execute(cli: Cli, home: Home, qpcs: Path, tmp_path: Path) -> None:
    words = ("execute", "--model_name", home.model, "--qpc_path", qpcs, *PROMPT)
    done = cli(*words, "--device_group", "[0]")
    assert done.code == 0 and "Decode is=" in done.out, done.err
    refused = cli(*words, "--device_group", "[0,1]")
    assert refused.code == 1 and "2 device id(s) were given (0, 1), but the program was compiled for 1" in refused.error
    own = cli(*words, "--json").json
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(qpcs / "programqpc.bin", bare)
    words = ("execute", "--qpc_path", bare, *PROMPT, "--json")
    assert cli(*words, "--model_name", home.model, "--device_group", "[1]").json["outputs"] == own["outputs"]
    refused = cli(*words)
    assert refused.code == 1 and "Name a model that has it with --model-name" in refused.error


def test_infer_on_a_device(cli: Cli, home: Home, qpcs: Path) -> None:
    """Which is not there: so it got that far."""
    words = ("--device", "cloud_ai_100", "--ctx-len", 32, "--prompt-len", 8, *PROMPT)
    refused = cli("infer", home.model, *words, "--device-group", "[77]")
    assert refused.code == 1 and "77" in refused.error


def test_functions_of_the_commands(
    home: Home, qpcs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`main` takes keywords for flags; a prompt may have any letter, and errors are raised."""
    folder, shape = str(home.model), {"ctx_len": 32, "prompt_len": 8, "device": "cloud_ai_100"}
    execute.main(folder, str(qpcs), [0], prompt=["a|b", "c"], generation_len=2, full_batch_size=4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("\t")[0] for line in lines[:3]] == ["prompt", "a|b", "c"]
    export.main(folder, mxint8_kv_cache=True)
    onnx_path = capsys.readouterr().out.strip()
    made = compile_command.main(onnx_path, str(tmp_path / "r"), 16, device_group=[0], prompt_len=8, ctx_len=32)
    assert Path(made) == tmp_path / "r" / "qpcs" and (tmp_path / "r" / "qpcs" / "programqpc.bin").is_file()
    shutil.copytree(home.path, tmp_path / "home")
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "home"))  # the other is for all tests
    infer.main(folder, 16, [1], "My name is", mxfp6=True, io_encrypt=True, **shape)
    said = capsys.readouterr()
    assert (Path(said.out.strip()) / "programqpc.bin").is_file() and "so it is not run here" in said.err
    with pytest.raises(OptionError, match="does not know the option 'moss'|Did you mean --mos"):
        infer.main(folder, 16, prompt="x", moss=1, **shape)
    with pytest.raises(PromptError, match="there is no prompt"):
        infer.main(folder, 16, prompt=[], **shape)


def test_two_places(cli: Cli, home: Home) -> None:
    result = cli("compile", home.model, "--compile-dir", "a", "--qpc-path", "b")
    assert result.code == 2 and "--compile-dir and --qpc-path contradict each other" in result.error
