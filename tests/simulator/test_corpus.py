"""Every case of the corpus gets the verdict that it stands for, and every rule has a case that breaks it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "conformance"))

from case_files import Case, lay_out, read_cases

from qaic_simulator.command_line.checking import check_command
from qaic_simulator.compiler import main
from qaic_simulator.profiles import SDKS, TOOLS
from qaic_simulator.program_file import PROGRAM
from qaic_simulator.rules import GRAPH_RULES, LENIENT_SEVERITIES, RULES, SEVERITIES, WARNINGS

KEYS = {"id", "tool", "sdk", "argv", "files", "verdict", "rule", "source"}
OPTIONAL = {"sku", "note", "only", "warns", "writes"}
FEWEST_REFUSED, FEWEST_ACCEPTED = 200, 90
ALL_RULES = {**RULES, **GRAPH_RULES}
CASES = read_cases()


def parameters(verdicts: tuple[str, ...] = ("accept", "refuse")) -> Iterator[Any]:
    for case in CASES:
        if case["verdict"] in verdicts:
            yield from (pytest.param(case, sdk, id=f"{case['id']}-{sdk}") for sdk in case["sdk"])


@dataclass(frozen=True)
class Verdict:
    """What became of a case."""

    code: int
    rule: str
    written: bool
    text: str
    warns: tuple[str, ...] = ()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("QAIC_SIM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@dataclass(frozen=True)
class Tool:
    """The compiler, for one case after the other."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    output: pytest.CaptureFixture[str]

    def run(self, case: Case, sdk: str, strict: bool = True) -> Verdict:
        argv = lay_out(case, self.folder)
        settings = {"SDK": sdk, "SKU": case.get("sku", "ultra"), "LENIENT": "0" if strict else "1"}
        for name, value in settings.items():
            self.monkeypatch.setenv(f"QAIC_SIM_{name}", value)
        if case.get("only") == "arguments":
            checked = check_command(argv, sdk, case["tool"], strict, settings["SKU"])
            said = tuple(each.rule.id for each in checked.arguments.warnings) if checked.arguments else ()
            return Verdict(checked.refusal.exit_code if checked.refusal else 0, checked.rule, False, "", said)
        code = main(argv, case["tool"])
        errors = self.output.readouterr().err
        found = re.search(r"^simulator rule: (\S+) ", errors, re.MULTILINE)
        warns = re.findall(r"^Warning: .*\[simulator rule: (\S+) ", errors, re.MULTILINE)
        return Verdict(code, found[1] if found else "", self._is_written(argv), errors, tuple(warns))

    def _is_written(self, argv: list[str]) -> bool:
        folders = [Path(argument.partition("=")[2]) for argument in argv if argument.startswith("-aic-binary-dir=")]
        return any((folder / PROGRAM).is_file() and (folder / PROGRAM).stat().st_size > 1 for folder in folders)


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    return Tool(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(("case", "sdk"), parameters())
def test_verdict(case: Case, sdk: str, tool: Tool) -> None:
    found = tool.run(case, sdk)
    assert ("accept" if found.code == 0 else "refuse", found.rule) == (case["verdict"], case["rule"]), found.text
    assert case["verdict"] == "refuse" or list(found.warns) == case.get("warns", []), found.text
    compiles = "-aic-hw" in case["argv"] and case.get("only") != "arguments"
    assert found.written == (found.code == 0 and compiles)
    assert all((tool.folder / name).is_file() for name in case.get("writes", ()))


@pytest.mark.parametrize(("case", "sdk"), parameters(("refuse",)))
def test_lenient_verdict(case: Case, sdk: str, tool: Tool) -> None:
    """What was seen or documented is refused as before; a rule of ours or of Glow refuses nothing."""
    rule = ALL_RULES[case["rule"]]
    if rule.severity in LENIENT_SEVERITIES:
        assert tool.run(case, sdk, strict=False).rule == rule.id
    elif rule.id in RULES:  # the graph may then break another
        assert check_command(lay_out(case, tool.folder), sdk, case["tool"], False, case.get("sku", "ultra")).rule == ""
    elif rule.id == "graph.memory":
        pytest.skip("Tens of GiB would be read and written.")
    else:
        assert tool.run(case, sdk, strict=False).rule != rule.id


def test_every_rule_has_a_case() -> None:
    assert {case["rule"] for case in CASES if case["verdict"] == "refuse"} == set(ALL_RULES)


def test_every_warning_has_a_case_that_is_accepted() -> None:
    assert {rule for case in CASES for rule in case.get("warns", ())} == set(WARNINGS)
    assert all(case["verdict"] == "accept" for case in CASES if "warns" in case)


def test_the_corpus_is_large_and_for_both_releases() -> None:
    for verdict, fewest in (("refuse", FEWEST_REFUSED), ("accept", FEWEST_ACCEPTED)):
        assert len([case for case in CASES if case["verdict"] == verdict]) >= fewest
        for sdk in SDKS:
            assert len([case for case in CASES if case["verdict"] == verdict and sdk in case["sdk"]]) >= fewest


def test_cases_are_complete() -> None:
    for case in CASES:
        assert KEYS <= set(case) <= KEYS | OPTIONAL
        assert case["tool"] in TOOLS and case["sdk"] and set(case["sdk"]) <= set(SDKS) and case["source"]
        assert bool(case["rule"]) == (case["verdict"] == "refuse")


def test_no_case_stands_twice() -> None:
    told = [
        json.dumps([case["tool"], sdk, case["argv"], case["files"], case.get("sku")])
        for case in CASES
        for sdk in case["sdk"]
    ]
    assert len(set(told)) == len(told) and len({case["id"] for case in CASES}) == len(CASES)


def test_rules_are_well_formed() -> None:
    for rule in (*ALL_RULES.values(), *WARNINGS.values()):
        assert rule.severity in SEVERITIES and rule.source and rule.sentence.endswith(".")
