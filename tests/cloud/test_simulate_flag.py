"""`--simulate`: stand-ins for the SDK, in every process of a command and never without a word."""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli, Home

from QEfficient.cloud import doctor
from QEfficient.devices.cloud_ai_100.sdk import SIMULATOR_VARIABLE
from QEfficient.generation.metrics import CloudAI100ExecInfo, PerfMetrics
from QEfficient.verification.model_matrix import Outcome, to_markdown
from QEfficient.verification.report import Report
from QEfficient.verification.workers import run_each

SHAPE = ("--ctx-len", 32, "--prompt-len", 8, "--num-cores", 4)
GENERATE = ("--prompt", "Hello", "--generation-len", 3)
METRICS = ("Average Prefill time a.k.a TTFT is= ", "Decode is= ", "Total is= ", "Total (E2E) inference time is= ")
pytestmark = pytest.mark.usefixtures("without_sdk")


def variable(_: str = "") -> str:
    return os.environ.get(SIMULATOR_VARIABLE, "")


# What it takes and what it refuses


def test_without_a_version_it_is_the_latest(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(doctor, "run", lambda _: seen.append(variable()) or 0)
    cli("doctor", "--simulate")
    assert seen == ["1"]


def test_this_process_and_its_workers_have_it_as_long_as_the_command_runs(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, taken = ("--simulate", "1.21"), "1.21"
    seen: list[Any] = []

    def run(_: argparse.Namespace) -> int:
        seen.extend([variable(), *run_each(variable, ["worker"], jobs=1, timeout=60.0)])
        return 0

    monkeypatch.setattr(doctor, "run", run)
    monkeypatch.setenv(SIMULATOR_VARIABLE, "0")
    assert cli("doctor", *words).code == 0
    assert seen == [taken, ("worker", taken)] and variable() == "0"
    monkeypatch.delenv(SIMULATOR_VARIABLE)
    monkeypatch.setattr(doctor, "run", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli("doctor", *words)
    assert SIMULATOR_VARIABLE not in os.environ


@pytest.mark.parametrize(
    "words", [["infer"], ["compile"], ["chat"], ["verify"], ["models", "--test", "llama"]], ids=lambda words: words[0]
)
def test_another_device_is_refused(words: list[str], cli: Cli, scratch: Path) -> None:
    result = cli(*words, "--simulate", "--device", "cpu")
    assert result.code == 2
    assert result.error == (
        "--simulate is for the device cloud_ai_100, but --device cpu was given. Leave one of them out."
    )


def test_a_program_for_another_device_is_refused(cli: Cli, home: Home) -> None:
    result = cli("execute", "--qpc-path", home.compiled, "--prompt", "a", "--simulate")
    assert result.code == 2 and f"the program in {home.compiled} is for reference" in result.error


def test_models_need_a_test_for_it(cli: Cli) -> None:
    assert cli("models", "--simulate").error == "--simulate goes with --test."


@pytest.mark.parametrize(
    ("word", "says"), [("demo", "the version of an SDK"), ("9.99", "not '9.99'"), ("2", "not '2'")]
)
def test_what_is_no_version(word: str, says: str, cli: Cli, scratch: Path) -> None:
    assert says in cli("infer", "--simulate", word).error


# What says so


def test_infer_and_execute_say_so(cli: Cli, scratch: Path, model_folder: Path) -> None:
    result = cli("infer", model_folder, *SHAPE, *GENERATE, "--simulate")
    assert result.code == 0, result.err
    *_, blank, ttft, decode, total, seconds, simulated = result.out.splitlines()
    figures = (ttft, decode, total, seconds)
    assert not blank and all(line.startswith(start) for line, start in zip(figures, METRICS, strict=True))
    assert simulated.startswith("Simulated: nothing ran on a card")
    assert "is simulated" in result.err and "nothing runs on a card" in result.err
    record = cli("infer", model_folder, *SHAPE, *GENERATE, "--simulate", "--json").json
    qpc = Path(record["qpc_path"])
    assert record["simulated"] is True and record["device"] == "cloud_ai_100"
    assert qpc.name == "qpc" and (qpc / "programqpc.bin").is_file()
    for folder in (qpc, qpc.parent):
        executed = cli("execute", "--qpc-path", folder, *GENERATE, "--simulate", "--json").json
        assert executed["simulated"] is True and executed["outputs"] == record["outputs"]
        assert executed["qpc_path"] == str(qpc)
    refused = cli("execute", "--qpc-path", qpc, *GENERATE)
    assert refused.code == 1 and "--simulate with a command" in refused.error


def test_versions_do_not_answer_for_one_another(cli: Cli, scratch: Path, model_folder: Path) -> None:
    made = [cli("compile", model_folder, *SHAPE, "--simulate", version) for version in ("1.21", "1.22", "1.21")]
    first, second, again = (result.out.strip() for result in made)
    assert first != second and again == first, made[0].err
    record = cli("compile", model_folder, *SHAPE, "--simulate", "--json").json
    assert record["simulated"] is True and record["qpc_path"] == second == f"{record['folder']}/qpc"
    assert "compiled" in cli("cache", "info", second).out


def test_what_runs_here_says_nothing_of_it(cli: Cli, home: Home) -> None:
    words = ("--qpc-path", home.compiled, *GENERATE)
    assert "imulated" not in cli("execute", *words).out and cli("execute", *words, "--json").json["simulated"] is False


def test_chat_says_so(cli: Cli, scratch: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    result = cli("chat", model_folder, *SHAPE, "--generation-len", 2, "--simulate", "--json")
    assert result.code == 0 and result.json["simulated"] is True and len(result.json["answers"]) == 1


def test_doctor_says_which_sdk_and_that_it_is_none(cli: Cli, scratch: Path) -> None:
    assert cli("doctor", "--json").json["simulated"] is False
    result = cli("doctor", "--simulate", "1.21")
    assert "software\tcloud_ai_100\tApps SDK 1.21.0 in " in result.out and "simulated" in result.out
    record = cli("doctor", "--simulate", "1.21", "--json").json
    assert record["simulated"] is True and record["devices"]["cloud_ai_100"] == "usable"


def test_verify_says_so(cli: Cli, scratch: Path, model_folder: Path) -> None:
    words = (model_folder, "--generation-len", 2, "--ctx-len", 32, "--prompt", "Hello", "--num-cores", 4)
    record = cli("verify", *words, "--simulate", "--json").json
    assert record["simulated"] is True and record["device"] == "cloud_ai_100" and record["passed"] is True
    (kept,) = scratch.glob("*/*/qpc-*.verify.json")
    assert '"simulated": true' in kept.read_text()


@pytest.mark.parametrize("simulated", [True, False])
def test_sentences(simulated: bool, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIMULATOR_VARIABLE, str(int(simulated)))
    where = "cloud_ai_100 (simulated)" if simulated else "cloud_ai_100"
    report = Report("m", "cloud_ai_100", "float32", {}, 0.1, [], [], simulated=simulated)
    assert report.verdict().startswith(f"m on {where}: all 0 comparisons passed")
    assert f"\n{where} device, and is compared" in to_markdown([Outcome("llama", "exact")], "cloud_ai_100")
    printed = repr(CloudAI100ExecInfo(1, [], [], PerfMetrics(1.0, 2.0, 3.0, 4.0), simulated=simulated))
    assert len(printed.splitlines()) == len(METRICS) + simulated


# The command of Qualcomm's scripts, where neither SDK nor simulator is there

COMMAND = (
    "-m QEfficient.cloud.infer --model_name demo --batch_size 1 --prompt_len 32 --ctx_len 128 --mxfp6 --num_cores 16"
    " --device_group [0] --mos 1 --aic_enable_depth_first --generation_len 4 --prompt"
)
WITHOUT_SIMULATOR = """
import sys

class Without:
    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.startswith("qaic_simulator") else self._finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def run_script(folder: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(WITHOUT_SIMULATOR)
    own = {"PYTHONPATH": str(folder), "QEFF_HOME": str(folder / "home"), **environment}
    command = [sys.executable, *COMMAND.split(), "My name is", *more]
    return subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, cwd=folder)


def test_a_card_without_sdk_and_simulator(tmp_path: Path) -> None:
    done = run_script(tmp_path, QEFF_DEVICE="cloud_ai_100")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for part in ("there is no folder", "Install the Apps SDK", "--simulate", "pip install 'qefficient[simulator]'"):
        assert part in done.stderr


def test_the_simulator_without_the_simulator(tmp_path: Path) -> None:
    done = run_script(tmp_path, "--simulate")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "qaic_simulator is not installed: pip install 'qefficient[simulator]'" in done.stderr


def test_a_script_for_a_card_learns_that_it_runs_elsewhere(cli: Cli, scratch: Path, model_folder: Path) -> None:
    words = ("infer", model_folder, "--ctx-len", 32, "--prompt-len", 8, *GENERATE)
    result = cli(*words, "--num_cores", 16, "--device_group", "[0]")
    assert result.code == 0
    assert "which has no use for --device-group, --num-cores: " in result.err and "Install the Apps SDK" in result.err
    assert "no use for" not in cli(*words).err
