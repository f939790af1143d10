"""The script for machines with the SDK, run on stand-ins for it: what it writes, and what does not stop it."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import replay
from case_files import read_cases

from qaic_simulator.root import write_root

SCRIPT = Path(__file__).with_name("run_on_real.sh")
SLICE = (
    "partitions/three-slices",
    "specializations/flat-for-1.22",
    "graphs/cast-from-uint8",
    "custom_io/cache-in-mxint8",
)
SLICE += ("arguments/help-needs", "programs/continuous-batching-named", "graphs/weights-beyond-a-standard-card")


def run(root: Path, output: Path, only: Sequence[str] = SLICE, **environment: str) -> tuple[dict[str, Any], str]:
    """The report, and what was printed."""
    options = [option for text in only for option in ("--only", text)]
    variables = {**os.environ, "PYTHON": sys.executable, **environment}
    command = ["bash", str(SCRIPT), str(root), str(output), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=True)
    return json.loads((output / "conformance.json").read_text(encoding="utf-8")), done.stdout


def fake_root(folder: Path, compiler: str) -> Path:
    """An SDK of which nothing is there but a compiler."""
    path = folder / "exec" / "qaic-compile"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{compiler}\n", encoding="utf-8")
    path.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A run of the slice: its root, its report, what was printed."""
    root = write_root(tmp_path_factory.mktemp("root"), "1.22")
    return root, *run(root, root.parent / "first")


def test_the_slice_has_cases_of_every_kind() -> None:
    chosen = [case for case in read_cases() if any(text in case["id"] for text in SLICE)]
    assert len(chosen) >= len(SLICE) and {case["verdict"] for case in chosen} == {"accept", "refuse"}


def test_all_verdicts_agree(first: tuple[Path, dict[str, Any], str]) -> None:
    _, report, said = first
    assert report["simulated"] and report["profile"] == "1.22" and report["has_onnx"]
    assert report["counts"]["not as expected"] == 0 and report["counts"]["as expected"] >= len(SLICE)
    for result in report["verdicts"]:
        assert result["agrees"] and result["named_rule"] == result["rule"] and not result["timed_out"]
        assert result["program"] == (result["verdict"] == "accept" and "help" not in result["id"])
    assert "nodes.cast-uint8" in said and said.splitlines()[-1].startswith("Send back ")


def test_what_the_tools_say_is_saved(first: tuple[Path, dict[str, Any], str]) -> None:
    tools = first[1]["tools"]
    assert "-aic-binary-dir" in tools["help"] and tools["help"].endswith("exit code 0\n")
    assert "MatMul" in tools["OnnxSupportedOperators"].splitlines() and "QID 0" in tools["devices"]
    assert "apps:1.22.0" in tools["versions"]


def test_programs_are_described(first: tuple[Path, dict[str, Any], str]) -> None:
    described = {result["id"]: result["descriptor"] for result in first[1]["verdicts"] if "descriptor" in result}
    assert set(described) == {"programs/continuous-batching-named"}
    for content in described.values():
        assert pickle.loads(base64.b64decode(content["pickle"])).find(b"past_key.0_RetainedState") > 0


def test_a_second_run_does_what_is_left(first: tuple[Path, dict[str, Any], str]) -> None:
    root, report, _ = first
    output = root.parent / "first"
    lines = (output / "progress.jsonl").read_text(encoding="utf-8").splitlines()
    left = json.loads(lines[-1])["id"]
    (output / "progress.jsonl").write_text("\n".join(lines[:-1]) + '\n{"id": "cut sh', encoding="utf-8")
    again, said = run(root, output)
    assert [line for line in said.splitlines() if line.startswith("[")] == [
        line for line in said.splitlines() if f" {left}: " in line
    ]
    assert again["counts"] == report["counts"] and not list((output / "scratch").iterdir())


def test_the_older_release_has_cases_of_its_own(tmp_path: Path) -> None:
    only = ("specializations/flat-for-1.22", "specializations/integers", "arguments/smallest")
    report, _ = run(write_root(tmp_path / "root", "1.21"), tmp_path / "output", only)
    assert report["profile"] == "1.21" and report["counts"]["not as expected"] == 0
    assert {result["why"] for result in report["verdicts"] if not result["ran"]} == {"for release 1.22"}


@pytest.mark.parametrize(
    ("compiler", "found"), [("exit 0", "refuse"), ("kill -9 $$", "refuse"), ("sleep 60", "refuse")]
)
def test_nothing_stops_it(tmp_path: Path, compiler: str, found: str) -> None:
    """Neither a compiler that writes nothing, nor one that dies, nor one that hangs; nor tools that are not there."""
    output = tmp_path / "output"
    command = ["bash", str(SCRIPT), str(fake_root(tmp_path / "root", compiler)), str(output), "--timeout", "0.5"]
    variables = {**os.environ, "PYTHON": sys.executable}
    asleep = compiler.startswith("sleep")
    if asleep:  # what the script asks the tools before is not what is tried here
        command = [sys.executable, str(SCRIPT.with_name("replay.py")), "--root", command[2], "--output", *command[3:]]
    only = ["--only", "partitions/t", "--only", "programs/two-clusters"]
    subprocess.run([*command, *only], capture_output=True, env=variables, check=True)
    report = json.loads((output / "conformance.json").read_text(encoding="utf-8"))
    ran = [result for result in report["verdicts"] if result["ran"]]
    assert len(ran) >= 4 and {result["verdict"] for result in ran} == {found}
    assert all(result["timed_out"] == asleep for result in ran)
    assert report["counts"]["not as expected"] >= 1 and report["sdk"] == "unknown"


def test_without_onnx_it_says_so_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "onnx.py").write_text("raise ImportError('none here')\n", encoding="utf-8")
    root = fake_root(tmp_path / "root", "echo used; exit 1")
    report, said = run(root, tmp_path / "output", ("graphs/empty-model", "graphs/einsum"), PYTHONPATH=str(tmp_path))
    told = {result["id"]: result.get("why", "") for result in report["verdicts"]}
    assert told == {"graphs/empty-model": "", "graphs/einsum": "onnx is missing"}
    assert "NOT replayed" in said and not report["has_onnx"]


def test_a_machine_is_not_filled_with_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fake_root(tmp_path / "root", "exit 1")
    (case,) = (case for case in read_cases() if case["id"] == "graphs/compressed-weights-beyond-one-device")
    monkeypatch.setattr(replay, "free_memory", lambda: 300 * 2**30)
    real = replay.Installation(root, "1.22.0", simulated=False)
    assert "156 GiB" in replay.reason_to_skip(case, real, with_onnx=True)
    assert not replay.reason_to_skip(case, replay.Installation(root, "1.22.0", simulated=True), with_onnx=True)


def test_cases_for_other_cards_are_left_out_on_a_machine(tmp_path: Path) -> None:
    root = fake_root(tmp_path / "root", "exit 1")
    report, _ = run(root, tmp_path / "output", ("arguments/sixteen-cores-of-a-standard-card",))
    assert [result["why"] for result in report["verdicts"]] == ["for a card of kind standard"]
