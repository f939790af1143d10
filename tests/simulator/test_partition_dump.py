"""The nodes that a compiler is asked to write down."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "conformance"))

from case_files import lay_out, read_cases

from qaic_simulator.compiler import main

CASES = {case["id"]: case for case in read_cases()}


def dumped(folder: Path, case: str, *more: str) -> dict[str, Any]:
    assert main([*lay_out(CASES[f"programs/{case}"], folder), *more]) == 0
    found: dict[str, Any] = json.loads((folder / "dumped.json").read_text())
    return found


def test_all_nodes_that_run_on_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the graph's order, without those that are worked out before."""
    found = dumped(tmp_path, "nodes-are-dumped-named")
    assert f"MDP partition file generated: {tmp_path}/dumped.json" in capsys.readouterr().out
    (partition,) = found["partitions"]
    assert found["connections"] == [] and partition["devices"] == [{"deviceId": 0, "numCores": 4}]
    names = partition["nodeList"]
    assert names.index("query") < names.index("scores") < names.index("logits")
    assert not {"one", "slot_count", "slots"} & set(names)


def test_partitions_that_were_loaded(tmp_path: Path) -> None:
    option = f"-mdp-dump-partition-config={tmp_path}/dumped.json"
    found = dumped(tmp_path, "pipeline-of-two-devices-named", option)
    loaded = json.loads((tmp_path / "mdp.json").read_text())
    assert found == loaded


def test_a_refusal_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = lay_out(CASES["programs/nodes-are-dumped-named"], tmp_path)
    monkeypatch.setenv("QAIC_SIM_COMPILER_FAULT", "full")
    before = sorted(tmp_path.iterdir())
    assert main(argv) == 1
    assert sorted(tmp_path.iterdir()) == before
