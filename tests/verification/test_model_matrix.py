from __future__ import annotations

from pathlib import Path

import pytest

from QEfficient.errors import UnsupportedModelError
from QEfficient.verification import model_matrix
from QEfficient.verification.model_matrix import Outcome, run, to_markdown


def test_two_types_are_exact_and_in_the_table(tmp_path: Path) -> None:
    seen: list[Outcome] = []
    outcomes = run(["llama", "mamba"], tmp_path / "models.md", jobs=0, progress=seen.append)
    assert seen == outcomes
    assert [(o.model_type, o.level, o.states) for o in outcomes] == [
        ("llama", "exact", "2 attention"),
        ("mamba", "exact", "2 recurrent"),
    ]
    text = (tmp_path / "models.md").read_text()
    assert "**2 types: 2 exact.**" in text
    assert "| llama | exact | 2 attention |" in text


def test_compressed_weights_are_as_near_as_the_device_states() -> None:
    (outcome,) = run(["llama"], None, jobs=0, device="cpu", options={"weight_format": "int4"})
    assert outcome.level == "stated"
    assert outcome.error is not None and 1e-3 < outcome.error < 0.2
    assert "of the spread, usually" in outcome.reason


@pytest.mark.parametrize(
    ("error", "level", "reason"),
    [
        (UnsupportedModelError("its state is\nunheard of."), "refused", "its state is unheard of."),
        (ValueError("what?"), "crashed", "ValueError at "),
    ],
)
def test_no_error_ends_the_matrix(monkeypatch: pytest.MonkeyPatch, error: Exception, level: str, reason: str) -> None:
    def fail(model_type: str) -> None:
        raise error

    monkeypatch.setattr(model_matrix, "tiny_model", fail)
    (outcome,) = run(["llama"], None, jobs=0)
    assert outcome.level == level and outcome.reason.startswith(reason)


def test_the_table_keeps_its_cells_apart() -> None:
    row = to_markdown([Outcome("x", "refused", reason="a|b")]).splitlines()[-1]
    assert row == r"| x | refused |  |  | 0.0 | a\|b |"
