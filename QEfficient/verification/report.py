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
from typing import TYPE_CHECKING, Any, TypeVar

from QEfficient.artifacts import write_json
from QEfficient.devices import Accuracy
from QEfficient.errors import VerificationError
from QEfficient.program import place_name
from QEfficient.verification.comparison import Agreement, Comparison, percent

if TYPE_CHECKING:
    from rich.table import Table

SUFFIX = ".verify.json"
HUGGING_FACE = "Hugging Face eager, float32"
VERDICT = "verdict"
PROMPT_COLUMNS = ("prompt", "tokens", "largest error", "mean error", "of the spread", "typical", "KL", VERDICT)
CHECK_COLUMNS = ("check", "of the spread", VERDICT, "detail")


@dataclass(frozen=True)
class StageResult:
    """One prompt through one stage, compared with what is true for it."""

    stage: str
    prompt: int
    """Its number among the prompts."""
    prompt_length: int
    comparison: Comparison
    against: str = HUGGING_FACE
    allowed: Accuracy | None = Accuracy()
    """How near is near enough; None: the distance is told, not judged."""

    @property
    def passed(self) -> bool | None:
        return None if self.allowed is None else self.comparison.passed

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
    against: str = HUGGING_FACE
    allowed: Accuracy = Accuracy()

    def describe(self) -> str:
        return f"check '{self.name}': {self.detail}"


@dataclass(frozen=True)
class Section:
    """What was judged alike, in rows of text."""

    title: str
    """What was compared with what, and how near is near enough."""
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def drawn(self) -> Table:
        """For a console of rich."""
        from rich.table import Table

        table = Table(*self.columns, title=self.title, title_justify="left")
        for row in self.rows:
            table.add_row(*row)
        return table


@dataclass(frozen=True)
class Report:
    """All that was compared."""

    model: str
    device: str
    dtype: str
    geometry: Mapping[str, Any]
    tolerance: float
    """Of what is compared with Hugging Face."""
    results: Sequence[StageResult]
    checks: Sequence[Check]
    parting: str = ""
    """Stage and layer where the stages part; empty if they don't."""
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    simulated: bool = False
    """Whether stand-ins answered for the device."""
    narrow: Agreement | None = None
    """With the reference device in the precision that the device computes in, where that is not float32."""

    @property
    def place(self) -> str:
        return place_name(self.device, self.simulated)

    @property
    def failures(self) -> list[StageResult | Check]:
        """In the order of the stages."""
        found: list[StageResult | Check] = [*self.results, *self.checks]
        return [result for result in found if result.passed is False]

    @property
    def judged(self) -> int:
        """How many comparisons there were, trials that do not apply among them."""
        return sum(result.allowed is not None for result in self.results) + len(self.checks)

    @property
    def passed(self) -> bool:
        return not self.failures

    def raise_if_failed(self) -> None:
        """Raise `VerificationError`, which names the stage, the layer, and what was seen."""
        if self.passed:
            return
        first = self.failures[0]
        where = self.parting or f"{first.stage} parts from {first.against}"
        more = f" ({len(self.failures)} of {self.judged} comparisons failed)"
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

    def sections(self) -> list[Section]:
        """The prompts of each stage, then the checks of the cache."""
        prompts = [_prompt_section(title, rows) for title, rows in _grouped(self.results, f"{self.model}: ").items()]
        return [
            *prompts,
            *(_check_section(title, rows) for title, rows in _grouped(self.checks, "The cache: ").items()),
        ]

    def tables(self) -> list[Table]:
        """The same for a console of rich."""
        return [section.drawn() for section in self.sections()]

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
        """One sentence, which says how far a stage may be from what it is compared with, where that is not as usual."""
        beside = self.narrow.describe() if self.narrow else ""
        if not self.passed:
            failed = f"{len(self.failures)} of {self.judged} comparisons failed"
            return ". ".join(filter(None, (f"{self.model} on {self.place}: {failed}", beside, self.parting)))
        passed = f"{self.model} on {self.place}: all {self.judged} comparisons passed in {self.seconds:.1f} s"
        far = [r for r in self.results if r.allowed and r.allowed.largest > self.tolerance]
        clauses = dict.fromkeys(f"{r.stage} is as {r.against}, {_bounds(r.allowed)}" for r in far if r.allowed)
        return ": ".join(filter(None, (passed, "; ".join(filter(None, (*clauses, beside)))))) + "."


Row = TypeVar("Row", StageResult, Check)


def report_path(compiled: Path) -> Path:
    """Where the report of the compiled program in this folder lies."""
    return compiled.with_name(compiled.name + SUFFIX)


def _verdict(passed: bool | None) -> str:
    return {True: "passed", False: "FAILED", None: "not here"}[passed]


def _bounds(allowed: Accuracy) -> str:
    """`up to 10 % of the spread`; what is not exact has more to say."""
    usually = f", half of the steps up to {percent(allowed.typical)}" if allowed.typical < allowed.largest else ""
    outliers = f", {percent(allowed.outliers)} of them by more" if allowed.outliers else ""
    return f"up to {percent(allowed.largest)} of the spread{usually}{outliers}"


def _grouped(rows: Sequence[Row], prefix: str) -> dict[str, list[Row]]:
    """The rows that were judged alike, by a title that says how."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        judged = "for information" if row.allowed is None else _bounds(row.allowed)
        found.setdefault(f"{prefix}{row.stage} against {row.against}, {judged}", []).append(row)
    return found


def _prompt_section(title: str, results: Sequence[StageResult]) -> Section:
    rows = []
    for result in results:
        c = result.comparison
        tokens = _tokens(c) if c.tokens_equal else f"differ from {c.first_difference} on"
        numbers = (f"{c.largest_error:.1e}", f"{c.mean_error:.1e}", percent(c.relative_error), percent(c.typical_error))
        verdict = "" if result.passed is None else _verdict(result.passed)
        rows.append((f"{result.prompt_length} tokens", tokens, *numbers, f"{c.kl:.1e}", verdict))
    return Section(title, PROMPT_COLUMNS, rows)


def _tokens(c: Comparison) -> str:
    """How many are equal; others that may be are near ties, or steps that are off by more than is usual."""
    others = "".join(f", {n} {what}" for n, what in ((c.ties, "near ties"), (c.outliers, "outliers")) if n)
    return f"{c.steps - c.ties - c.outliers} equal{others}"


def _check_section(title: str, checks: Sequence[Check]) -> Section:
    errors = ["" if check.error is None else percent(check.error) for check in checks]
    told = zip(checks, errors, strict=True)
    return Section(title, CHECK_COLUMNS, [(c.name, error, _verdict(c.passed), c.detail) for c, error in told])
