from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from QEfficient.errors import ArtifactError, OptionError, PromptError, VerificationError
from QEfficient.verification.comparison import compare
from QEfficient.verification.ladder import verify
from QEfficient.verification.report import Report, StageResult, report_path
from QEfficient.verification.tiny_models import prompts, tiny_model
from QEfficient.verification.torture import TRIALS

STAGES = ["the transformed module", "program on reference"]
AHEAD = "tokens tried ahead"


@pytest.mark.parametrize(
    ("model_type", "continuous_batching", "inapplicable"),
    [
        ("llama", True, {"window wrap", AHEAD}),
        ("gemma3_text", False, {AHEAD}),
        ("mamba", True, {"window wrap", AHEAD}),
    ],
)
def test_all_stages_of_sound_models_agree(model_type: str, continuous_batching: bool, inapplicable: set[str]) -> None:
    report = verify(tiny_model(model_type), device="reference", new_tokens=6, continuous_batching=continuous_batching)
    report.raise_if_failed()
    assert report.passed and not report.parting
    assert [(r.stage, r.prompt_length) for r in report.results] == [(s, n) for s in STAGES for n in (5, 11, 19)]
    assert [(c.stage, c.name) for c in report.checks] == [(s, name) for s in STAGES for name in TRIALS]
    assert {c.name for c in report.checks if c.passed is None} == inapplicable
    assert "all 24 comparisons passed" in report.to_text()


def test_an_artifact_is_held_against_the_model_that_it_was_made_from(tmp_path: Path, store: Path) -> None:
    folder = tmp_path / "model"
    model = tiny_model("llama")
    model.save_pretrained(folder)
    first = verify(str(folder), device="reference", new_tokens=2, prompts=prompts(model), options={"batch_size": 2})
    (compiled,) = store.glob("*/*/qpc-*/")
    record = json.loads(report_path(compiled).read_text())
    assert record["passed"] and record["model"] == str(folder) == first.model
    assert record["geometry"]["batch_size"] == 2

    again = verify(compiled, new_tokens=2, prompts=[[5, 6, 7]])
    assert again.passed and again.geometry == first.geometry
    with pytest.raises(OptionError, match="ctx_len=99 was asked for"):
        verify(compiled, ctx_len=99, prompts=[[5]])
    with pytest.raises(PromptError, match="no tokenizer"):
        verify(compiled, prompts=["words"])

    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    model.save_pretrained(folder)
    with pytest.raises(ArtifactError, match="is not the one that"):
        verify(compiled)


def test_a_failed_report_names_stage_and_layer() -> None:
    logits = torch.eye(3).numpy()
    bad = StageResult(STAGES[1], 0, 5, compare(logits, -logits))
    report = Report("m", "reference", "float32", {}, 1e-3, [bad], [], f"{STAGES[1]} parts from {STAGES[0]} at layer 3")
    with pytest.raises(VerificationError, match=r"^m: program on reference parts .* at layer 3; prompt 0 \(5 tokens\)"):
        report.raise_if_failed()
    assert "FAILED" in report.to_text()
    assert report.to_json()["passed"] is False
