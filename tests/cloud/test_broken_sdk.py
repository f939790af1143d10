"""An SDK that lacks a part, or has one that is broken: said at once, by name, and not by a traceback."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Cli, Result

from qaic_simulator.root import write_root
from QEfficient.cloud import doctor
from QEfficient.devices.cloud_ai_100 import sdk
from QEfficient.devices.cloud_ai_100.sdk import ROOT_VARIABLE, SIMULATOR_VARIABLE

RUNTIME = Path("dev", "lib", platform.machine(), "qaicrt.py")
SHAPE = ("--ctx-len", "32", "--prompt-len", "8", "--device", "cloud_ai_100")

Spoil = Callable[[Path], object]
RUNTIMES: dict[str, tuple[Spoil, str]] = {
    "absent": (lambda root: shutil.rmtree(root / "dev"), "needs the modules qaicrt and QAicApi_pb2 of Qualcomm's Apps"),
    "half absent": (lambda root: shutil.rmtree(root / "dev" / "python"), "but QAicApi_pb2 cannot be found, neither in"),
    "empty": (lambda root: (root / RUNTIME).write_text(""), "qaicrt.py, cannot be used: it has no Context, Queue, "),
    "broken": (lambda root: (root / RUNTIME).write_text("1 / 0"), "qaicrt.py, cannot be used: ZeroDivisionError: div"),
    "no code": (lambda root: (root / RUNTIME).write_text("("), "qaicrt.py, cannot be used: SyntaxError: "),
}


@pytest.fixture
def root(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An SDK that is whole, and of which others in this process know nothing."""
    monkeypatch.setenv(ROOT_VARIABLE, str(write_root(tmp_path / "sdk")))
    monkeypatch.setenv("QAIC_SIM_STATE", str(tmp_path / "cards.json"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (SIMULATOR_VARIABLE, "QEFF_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "sdk"


def fresh(*words: object) -> Result:
    """A command line in a process of its own, which has loaded no runtime yet."""
    command = [sys.executable, "-m", "QEfficient.cloud.main", *map(str, words)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=dict(os.environ))
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_runs_is_refused_before_the_export(root: Path, scratch: Path, model_folder: Path, runtime: str) -> None:
    spoil, message = RUNTIMES[runtime]
    spoil(root)
    result = fresh("infer", model_folder, *SHAPE, "--prompt", "x")
    assert (result.code, result.out) == (1, "") and message in result.error, result
    assert "device 'cloud_ai_100' can compile here, but not run: " in result.error
    assert ROOT_VARIABLE in result.error and str(root) in result.error
    assert not list(scratch.rglob("*.onnx"))


@pytest.mark.parametrize("command", ["chat", "verify", "models"])
def test_every_command_that_runs_is_refused(root: Path, scratch: Path, model_folder: Path, command: str) -> None:
    shutil.rmtree(root / "dev")
    words = ["--test", "llama", *SHAPE[-2:]] if command == "models" else [model_folder, *SHAPE]
    result = fresh(command, *words)
    assert result.code == 1 and "can compile here, but not run: running on the Cloud AI 100 needs" in result.error
    assert not list(scratch.rglob("*.onnx"))


def test_compiling_needs_no_runtime(root: Path, model_folder: Path) -> None:
    shutil.rmtree(root / "dev")
    done = fresh("compile", model_folder, *SHAPE)
    assert done.code == 0, done.err
    result = fresh("execute", "--qpc-path", done.out.strip(), "--prompt", "x")
    assert result.code == 1 and "running on the Cloud AI 100 needs the modules" in result.error


def test_doctor_tells_compiler_and_runtime_apart(root: Path) -> None:
    whole = fresh("doctor")
    assert whole.code == 0 and "devices\tcloud_ai_100\tusable\n" in whole.out
    (root / RUNTIME).write_text("1 / 0")
    result = fresh("doctor")
    found = "cloud_ai_100\tcompiles, but cannot run: the module qaicrt of Qualcomm's Apps SDK, "
    assert result.code == 1 and f"devices\t{found}" in result.out
    assert "problem: " + found.replace("\t", " ") in result.err
    assert "software\tcloud_ai_100\tApps SDK 1.22.0 in " in result.out


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("sleep 5", "compiles, but cannot run: {tool} did not answer within 0.2 s, so a card or its driver hangs."),
        ("printf '\\377\\376\\200'", doctor.USABLE),
        (None, doctor.USABLE),
    ],
    ids=["hangs", "garbage", "absent"],
)
def test_doctor_asks_the_cards(
    cli: Cli, root: Path, script: str | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdk, "QUERY_SECONDS", 0.2)
    tool = root / "tools" / "qaic-util"
    if script is None:
        tool.unlink()
    else:
        tool.write_text(f"#!/bin/sh\nexec {script}\n")
    result = cli("doctor", "--json")
    assert result.json["devices"]["cloud_ai_100"].startswith(state.format(tool=tool))
    assert result.code == len(result.json["problems"]) == (state != doctor.USABLE)


def spoil_the_compiler(root: Path, how: str) -> Path:
    compiler = root / "exec" / "qaic-compile"
    if how == "absent":
        shutil.rmtree(compiler.parent)
    else:
        compiler.write_bytes(b"")
    return compiler


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            "absent",
            "compiling for the Cloud AI 100 needs the compiler of Qualcomm's Apps SDK, but the folder {root} holds",
        ),
        ("empty", "the compiler {compiler} is an empty file. Install the Apps SDK again."),
    ],
)
def test_a_machine_that_was_set_up_without_a_compiler(
    cli: Cli, root: Path, scratch: Path, model_folder: Path, how: str, told: str
) -> None:
    """Asked for by name it is refused, and whoever leaves the choice to us hears that another device was taken."""
    told = told.format(root=root, compiler=spoil_the_compiler(root, how))
    found = cli("doctor", "--json")
    assert found.code == 1 and found.json["devices"]["cloud_ai_100"].startswith(told)
    assert found.json["problems"][0].startswith(f"device 'cloud_ai_100' was set up here, and cannot be used: {told}")
    assert told in cli("compile", model_folder, *SHAPE).error
    assert not list(scratch.rglob("*.onnx"))
    taken = cli("compile", model_folder, *SHAPE[:-2])
    assert taken.code == 0, taken.err
    assert f"'cloud_ai_100' was set up here, and cannot be used: {told}" in taken.err
    assert "'cpu' runs it instead; device='cpu' says so by name." in taken.err


def test_cards_that_hang_do_not_choose_the_hardware(
    cli: Cli, root: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdk, "QUERY_SECONDS", 0.2)
    tool = root / "tools" / "qaic-util"
    tool.write_text("#!/bin/sh\nexec sleep 5\n")
    done = cli("compile", model_folder, *SHAPE)
    assert done.code == 0 and f"{tool} did not answer within 0.2 s" in done.err
    assert "Compiling for ai100; aic_hw_version names another generation (ai100, ai200)." in done.err
    assert "did not answer" not in cli("compile", model_folder, *SHAPE, "--aic-hw-version", "ai100").err


@pytest.mark.parametrize("text", [None, "garbage"])
def test_a_version_that_cannot_be_read_is_told(cli: Cli, root: Path, model_folder: Path, text: str | None) -> None:
    """Once, and with what is assumed: the compiler's own words about specializations say nothing of it."""
    file = root / "versions" / "apps.xml"
    file.write_text(text) if text else file.unlink()
    result = cli("compile", model_folder, *SHAPE)
    told = f"the version of the SDK in {root} cannot be read: versions/apps.xml is missing, or holds none."
    assert result.err.count(told) == 1 and "taken for one before 1.22" in result.err
    assert result.code == 1 and "An entry has neither a name nor symbols" in result.error


def test_what_a_compiler_said_keeps_its_lines_apart(cli: Cli, root: Path, model_folder: Path) -> None:
    """In one line all the same, as every error."""
    compiler = root / "exec" / "qaic-compile"
    compiler.write_text("#!/bin/sh\necho 'first  line'\necho\necho 'second line'\nexit 1\n")
    said = f"qaic-compile ended with exit code 1: first line | second line | command: {compiler} "
    assert cli("compile", model_folder, *SHAPE).error.startswith(said)
