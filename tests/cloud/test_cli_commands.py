"""The front door, and the commands that need no model of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli

import QEfficient
from QEfficient.cloud import doctor
from QEfficient.cloud.main import command_names
from QEfficient.errors import DeviceError, VerificationError
from QEfficient.verification.report import Section


def test_no_command_is_wrong_usage(cli: Cli) -> None:
    result = cli()
    assert (result.code, result.out) == (2, "") and "commands:" in result.err


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"qefficient {QEfficient.__version__}\n"


def test_an_unknown_command_is_refused_with_a_suggestion(cli: Cli) -> None:
    result = cli("exprot")
    assert result.code == 2 and "Did you mean 'export'?" in result.error


@pytest.mark.parametrize("command", command_names())
def test_modules_run_as_programs(command: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", f"QEfficient.cloud.{command}", "--simulat=3", "--jsonn"], capture_output=True, text=True
    )
    assert result.returncode == 2 and f"error: python -m QEfficient.cloud.{command} does not know" in result.stderr


def raising(error: BaseException) -> Callable[[object], int]:
    def run(arguments: object) -> int:
        raise error

    return run


def test_errors_become_a_line_and_a_code(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "run", raising(DeviceError("it is\n  broken")))
    result = cli("doctor", "--json")
    assert (result.code, result.out, result.err) == (1, "", "error: it is broken\n")


def test_an_interruption_has_its_own_code(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "run", raising(KeyboardInterrupt()))
    assert cli("doctor").code == 130


def test_a_bug_keeps_its_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "run", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli("doctor")


def test_a_reader_that_leaves_is_no_error(scratch: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "QEfficient.cloud.main", "doctor", "--json"]
    result = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


# doctor


def test_doctor(cli: Cli, scratch: Path) -> None:
    result = cli("doctor", "--json")
    assert result.code == 0 and result.json["problems"] == []
    assert result.json["versions"]["QEfficient"] == QEfficient.__version__
    assert result.json["devices"]["reference"] == "usable"
    assert result.json["store"]["root"] == str(scratch)
    assert result.json["hub"]["reachable"].startswith("switched off")
    assert f"store\troot\t{scratch}" in cli("doctor").out


def test_doctor_says_what_is_missing(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert cli("doctor", "--json").json["hub"]["reachable"] == "not asked (--online)"
    result = cli("doctor", "--online")
    assert result.code == 1
    assert "cannot be made" in result.err and "http://127.0.0.1:9 cannot be reached" in result.err


# models


def test_models_are_listed(cli: Cli) -> None:
    everything = cli("models", "--json").json["models"]
    assert {"type": "llama", "class": "LlamaForCausalLM"} in everything and len(everything) > 100
    assert cli("models", "gpt2").out.splitlines()[1:] == ["gpt2\tGPT2LMHeadModel"]


def test_options_of_the_device_go_with_a_test(cli: Cli, matrix: list[Any]) -> None:
    cli("models", "--test", "llama", "--device", "cpu", "--weight-format", "int4")
    assert matrix == [(["llama"], None, 2, "cpu", ("weight_format", "int4"))]
    assert "goes with --test" in cli("models", "--weight-format", "int4").error
    assert "int3" in cli("models", "--test", "llama", "--device", "cpu", "--weight-format", "int3").error


def test_an_unknown_type_is_refused(cli: Cli) -> None:
    result = cli("models", "--test", "lama")
    assert result.code == 1 and "Did you mean 'llama'?" in result.error


@dataclass(frozen=True)
class Outcome:
    model_type: str
    level: str
    seconds: float = 0.5
    reason: str = "because"
    narrow: None = None


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in for the matrix; holds what it was called with."""
    calls: list[Any] = []
    levels = {"gpt2": "close", "bloom": "crashed"}

    def run(
        types: list[str],
        output: Path | None,
        jobs: int,
        progress: Callable[[Outcome], None],
        device: str,
        options: dict[str, Any],
    ) -> list[Outcome]:
        calls.append((types, output, jobs, device, *options.items()))
        outcomes = [Outcome(name, levels.get(name, "exact")) for name in types]
        for outcome in outcomes:
            progress(outcome)
        return outcomes

    module = types.ModuleType("model_matrix")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "QEfficient.verification.model_matrix", module)
    monkeypatch.setattr("QEfficient.verification.model_matrix", module, raising=False)
    return calls


def test_models_are_tested(cli: Cli, matrix: list[Any], tmp_path: Path) -> None:
    result = cli("models", "--test", "llama", "gpt2", "--jobs", 1, "--output", tmp_path / "table.md")
    assert matrix == [(["llama", "gpt2"], tmp_path / "table.md", 1, "reference")]
    assert result.code == 0 and result.out.splitlines()[1:] == ["gpt2\tclose\tbecause"]
    assert "2 types: 1 exact, 1 close" in result.err


def test_a_type_that_crashes_fails_the_test(cli: Cli, matrix: list[Any]) -> None:
    result = cli("models", "--test", "llama", "bloom", "--device", "cpu", "--json")
    assert matrix == [(["llama", "bloom"], None, 2, "cpu")]
    assert result.code == 1 and "1 of 2 types are wrong or crash: bloom" in result.error
    assert [model["level"] for model in result.json["models"]] == ["exact", "crashed"]


# verify


class Report:
    """Stands in for a report."""

    def __init__(self, sentence: str = "") -> None:
        self.sentence = sentence

    def to_json(self) -> dict[str, Any]:
        return {"passed": not self.sentence}

    def sections(self) -> list[Section]:
        found = [("a stage", ("prompt", "verdict")), ("another stage", ("prompt", "verdict")), ("cache", ("check",))]
        return [Section(title, columns, [("x\ty", "passed")[: len(columns)]]) for title, columns in found]

    def verdict(self) -> str:
        return "all is well."

    def raise_if_failed(self) -> None:
        if self.sentence:
            raise VerificationError(self.sentence)


@pytest.fixture
def ladder(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for the verification; holds what it was called with."""
    called: dict[str, Any] = {}

    def verify(target: str, **options: Any) -> Report:
        called.update(options, target=target)
        options["progress"]("open")
        return Report("they part in layer 3." if target == "bad" else "")

    module = types.ModuleType("ladder")
    module.verify = verify  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "QEfficient.verification.ladder", module)
    return called


def test_verify_hands_everything_on(cli: Cli, ladder: dict[str, Any]) -> None:
    words = ["--full-batch-size", 2, "--ctx-len", 64, "--num-threads", 1, "--dtype", "float16", "--prompt", "a|b"]
    result = cli("verify", "model", "--device", "reference", "--generation-len", 5, *words)
    rows = ["compared\tprompt\tverdict", "a stage\tx\\ty\tpassed", "another stage\tx\\ty\tpassed"]
    assert (result.code, result.out.splitlines()) == (0, [*rows, "compared\tcheck", "cache\tx\\ty"])
    assert "all is well." in result.err
    del ladder["progress"]
    assert ladder == {
        "target": "model",
        "device": "reference",
        "prompts": ["a", "b"],
        "ctx_len": 64,
        "new_tokens": 5,
        "continuous_batching": True,
        "options": {"full_batch_size": 2, "num_threads": 1, "dtype": "float16", "trust_remote_code": False},
    }


def test_verify_leaves_the_defaults_to_the_ladder(cli: Cli, ladder: dict[str, Any]) -> None:
    assert cli("verify", "model").code == 0
    assert ladder["prompts"] is ladder["ctx_len"] is ladder["continuous_batching"] is None
    assert ladder["options"] == {"trust_remote_code": False}


def test_a_failed_verification_reports_and_fails(cli: Cli, ladder: dict[str, Any]) -> None:
    result = cli("verify", "bad", "--json")
    assert result.code == 1 and result.error == "they part in layer 3."
    assert result.json["passed"] is False and list(result.json["stages"]) == ["load libraries", "open"]
