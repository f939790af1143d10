"""Every case of the corpus gets the verdict that it stands for, and every rule has a case that breaks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qaic_simulator.command_line.checking import Checked, check_command
from qaic_simulator.profiles import SDKS, TOOLS
from qaic_simulator.rules import LENIENT_SEVERITIES, RULES, SEVERITIES

CASES = Path(__file__).parent.parent / "conformance" / "cases"
GROUPS = ("arguments", "specializations", "custom_io", "node_precision", "partitions")
KEYS = {"id", "tool", "sdk", "argv", "files", "verdict", "rule", "source"}


def read_cases() -> list[Any]:
    return [
        pytest.param(case, id=f"{group}-{case['id']}")
        for group in GROUPS
        for case in json.loads((CASES / f"{group}.json").read_text(encoding="utf-8"))
    ]


PARAMETERS = read_cases()
EVERYTHING: list[dict[str, Any]] = [parameter.values[0] for parameter in PARAMETERS]
REFUSED = [parameter for parameter in PARAMETERS if parameter.values[0]["verdict"] == "refuse"]


def lay_out(case: dict[str, Any], folder: Path) -> list[str]:
    """Write the files of a case, and say its command line."""
    for name, text in case["files"].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [argument.replace("{dir}", str(folder)) for argument in case["argv"]]


def check_case(case: dict[str, Any], folder: Path, strict: bool = True) -> Checked:
    argv = lay_out(case, folder)
    return check_command(argv, case["sdk"], case["tool"], strict, case.get("sku", "ultra"))


@pytest.mark.parametrize("case", PARAMETERS)
def test_verdict(case: dict[str, Any], tmp_path: Path) -> None:
    checked = check_case(case, tmp_path)
    assert (checked.verdict, checked.rule) == (case["verdict"], case["rule"]), checked.refusal
    assert not checked.refusal or checked.refusal.message and checked.refusal.exit_code


@pytest.mark.parametrize("case", REFUSED)
def test_lenient_verdict(case: dict[str, Any], tmp_path: Path) -> None:
    """What only a rule of ours or of Glow refuses passes; the rest is refused as before."""
    rule = RULES[case["rule"]]
    checked = check_case(case, tmp_path, strict=False)
    expected = ("refuse", rule.id) if rule.severity in LENIENT_SEVERITIES else ("accept", "")
    assert (checked.verdict, checked.rule) == expected, checked.refusal


def test_every_rule_has_a_case() -> None:
    assert {case["rule"] for case in EVERYTHING if case["verdict"] == "refuse"} == set(RULES)


def test_cases_are_complete() -> None:
    for case in EVERYTHING:
        assert set(case) - {"sku"} == KEYS
        assert case["tool"] in TOOLS and case["sdk"] in SDKS and case["source"]
        assert bool(case["rule"]) == (case["verdict"] == "refuse")


def test_no_case_stands_twice() -> None:
    told = [json.dumps([case.get(k) for k in ("tool", "sdk", "argv", "files", "sku")]) for case in EVERYTHING]
    ids = [parameter.id for parameter in PARAMETERS]
    assert len(set(told)) == len(told) and len(set(ids)) == len(ids)


def test_rules_are_well_formed() -> None:
    for rule in RULES.values():
        assert rule.severity in SEVERITIES and rule.source and rule.sentence.endswith(".")
