from __future__ import annotations

from pathlib import Path

import pytest

from QEfficient.errors import UnsupportedModelError
from QEfficient.verification import model_matrix
from QEfficient.verification.comparison import Agreement
from QEfficient.verification.model_matrix import Outcome, run, to_markdown
from QEfficient.verification.narrow_reference import reference_in


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


def test_the_table_says_how_far_tokens_are_those_of_the_devices_own_precision() -> None:
    against = reference_in("float16")
    good = Agreement(against, prompts=6, same=5, steps=144, ties=1, error=0.0123)
    none = Agreement(against, reason="it cannot be run")
    text = to_markdown([Outcome("a", "stated", narrow=good), Outcome("b", "wrong", narrow=none)], "cloud_ai_100")
    assert f"| seconds | as {against} | reason |" in text
    assert "5 of 6 prompts are continued alike,\nall of 0 of 1 types; of 144 steps 1 are ties, 0 outliers." in text
    assert "| 5 of 6, 1 of 144 steps are ties; 1.2 % |" in text and "| it cannot be run |" in text
    assert against not in to_markdown([Outcome("a", "exact")])
