"""What a verification found: rows of a table, JSON, and one sentence if it failed.

The report of a compiled program lies beside its folder, as `qpc-<fingerprint>.verify.json`: an artifact is sealed, but
the folder of the exported program around it goes away together with both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from QEfficient.artifacts import write_json
from QEfficient.errors import VerificationError
from QEfficient.verification.comparison import Comparison, percent

if TYPE_CHECKING:
    from rich.table import Table

SUFFIX = ".verify.json"


@dataclass(frozen=True)
class StageResult:
    """One prompt through one stage, compared with Hugging Face."""

    stage: str
    prompt: int
    """Its number among the prompts."""
    prompt_length: int
    comparison: Comparison

    @property
    def passed(self) -> bool:
        return self.comparison.passed

    def describe(self) -> str:
        return f"prompt {self.prompt} ({self.prompt_length} tokens): {self.comparison.describe()}"


@dataclass(frozen=True)
class Check:
    """One trial of the cache."""

    stage: str
    name: str
    passed: bool | None
    """None: it does not apply here, `detail` says why."""
    error: float | None = None
    """Largest logit error, as a part of the spread of the logits."""
    detail: str = ""
    tokens: tuple[int, ...] = ()
    """The sequence that failed."""

    def describe(self) -> str:
        return f"check '{self.name}': {self.detail}"


@dataclass(frozen=True)
class Report:
    """All that was compared."""

    model: str
    device: str
    dtype: str
    geometry: Mapping[str, Any]
    tolerance: float
    results: Sequence[StageResult]
    checks: Sequence[Check]
    parting: str = ""
    """Stage and layer where the stages part; empty if they don't."""
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> list[StageResult | Check]:
        """In the order of the stages."""
        found: list[StageResult | Check] = [*self.results, *self.checks]
        return [result for result in found if result.passed is False]

    @property
    def passed(self) -> bool:
        return not self.failures

    def raise_if_failed(self) -> None:
        """Raise `VerificationError`, which names the stage, the layer, and what was seen."""
        if self.passed:
            return
        first = self.failures[0]
        where = self.parting or f"{first.stage} parts from Hugging Face"
        more = f" ({len(self.failures)} of {len(self.results) + len(self.checks)} comparisons failed)"
        raise VerificationError(f"{self.model}: {where}; {first.describe()}{more}.")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; what is no number is written as text."""
        record = {"passed": self.passed, **asdict(self)}
        plain = json.loads(json.dumps(record), parse_constant=str)
        assert isinstance(plain, dict)
        return plain

    def write(self, path: Path) -> Path:
        write_json(path, self.to_json())
        return path

    def tables(self) -> list[Table]:
        """For a console of rich: the prompts, then the checks of the cache."""
        return [_prompt_table(self), _check_table(self)]

    def to_text(self) -> str:
        """The tables and the verdict as plain text."""
        from rich.console import Console

        console = Console(file=StringIO(), width=120, color_system=None)
        for table in self.tables():
            console.print(table)
        console.print(self.verdict(), soft_wrap=True)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return text

    def verdict(self) -> str:
        """One sentence."""
        count = len(self.results) + len(self.checks)
        if self.passed:
            return f"{self.model} on {self.device}: all {count} comparisons passed in {self.seconds:.1f} s."
        return f"{self.model} on {self.device}: {len(self.failures)} of {count} comparisons failed. {self.parting}"


def report_path(compiled: Path) -> Path:
    """Where the report of the compiled program in this folder lies."""
    return compiled.with_name(compiled.name + SUFFIX)


def _verdict(passed: bool | None) -> str:
    return {True: "passed", False: "FAILED", None: "not here"}[passed]


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _prompt_table(report: Report) -> Table:
    columns = ("stage", "prompt", "tokens", "largest error", "mean error", "of the spread", "KL", "")
    table = _table(f"{report.model}: against Hugging Face eager, float32", columns)
    for row in report.results:
        c = row.comparison
        tokens = f"{c.steps} equal" if c.tokens_equal else f"differ from {c.first_difference} on"
        numbers = (f"{c.largest_error:.1e}", f"{c.mean_error:.1e}", percent(c.relative_error), f"{c.kl:.1e}")
        table.add_row(row.stage, f"{row.prompt_length} tokens", tokens, *numbers, _verdict(row.passed))
    return table


def _check_table(report: Report) -> Table:
    table = _table("The cache", ("stage", "check", "of the spread", "", "detail"))
    for check in report.checks:
        error = "" if check.error is None else percent(check.error)
        table.add_row(check.stage, check.name, error, _verdict(check.passed), check.detail)
    return table
