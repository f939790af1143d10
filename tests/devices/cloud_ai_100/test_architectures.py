"""Models of different structure, compiled and run by both versions of the stand-ins: they say what the reference device
says in float16. docs/cloud_ai_100_models.md has more of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices import get_device
from QEfficient.program import load_compiled
from QEfficient.specs import CompileSpec
from QEfficient.transformers.loading import open_source
from QEfficient.verification.comparison import Comparison, agreement
from QEfficient.verification.eager import Expected
from QEfficient.verification.forced import greedy
from QEfficient.verification.ladder import verify
from QEfficient.verification.narrow_reference import Original, narrow_reference, reference_in
from QEfficient.verification.tiny_models import prompts, tiny_model
from QEfficient.verification.truth import Truth

TYPES = {
    "llama": "dense",
    "deepseek_v2": "latent attention, experts",
    "falcon_h1": "both in each layer",
}
SHAPE: Mapping[str, Any] = {"prefill_seq_len": 6, "ctx_len": 40}
WAYS: Mapping[str, Mapping[str, Any]] = {"rows": {"batch_size": 3}, "slots": {"full_batch_size": 2}}
NEW = 10
TRIED = {"chunk boundaries", "alone and among others", "slot reuse", "idle rows", "window wrap", "last position"}
AGAINST = reference_in("float16")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@cache
def original(model_type: str) -> Original:
    model = tiny_model(model_type)
    return Original(open_source(model, AutoModelForCausalLM, {}), model)


@cache
def wanted(model_type: str, way: str) -> Truth:
    """The tokens of the reference device in float16, which are the same for all versions."""
    asked = [Expected(tuple(prompt), (0,) * NEW, np.zeros((NEW, 1))) for prompt in prompts(original(model_type).model)]
    device, spec = get_device("cloud_ai_100"), CompileSpec(**SHAPE, **WAYS[way])
    with narrow_reference(device, spec, original(model_type), asked, threads=1) as truth:
        assert isinstance(truth, Truth), truth
        return truth


def as_far_as_alike(truth: Truth, expected: Expected, found: Expected) -> Comparison:
    """What is generated is the same until two tokens are equally good, and from there on about something else."""
    differs = [a != b for a, b in zip(expected.tokens, found.tokens, strict=True)]
    steps = differs.index(True) + 1 if any(differs) else len(differs)
    return truth.compare(expected.logits[:steps], found.logits[:steps])


def generated(model_type: str, way: str, folder: Path) -> tuple[Truth, Sequence[Expected]]:
    geometry = WAYS[way]
    wrapped = QEFFAutoModelForCausalLM(original(model_type).source, continuous_batching="full_batch_size" in geometry)
    compiled = load_compiled(wrapped.compile(device="cloud_ai_100", compile_dir=folder, **SHAPE, **geometry))
    device, truth = get_device("cloud_ai_100"), wanted(model_type, way)
    with device.load(compiled) as session:
        return truth.allowing(device.accuracy(compiled)), greedy(session, truth.expected)


@pytest.mark.parametrize("model_type", TYPES)
def test_what_the_reference_device_says_in_float16(sdk: str, tmp_path: Path, model_type: str) -> None:
    for way in WAYS:
        truth, found = generated(model_type, way, tmp_path / way)
        compared = [as_far_as_alike(truth, e, own) for e, own in zip(truth.expected, found, strict=True)]
        assert all(c.passed for c in compared), (way, [c.describe() for c in compared if not c.passed])
        assert agreement(truth.name, compared).same >= 2, f"{way}: most of three prompts have no ties"


def test_the_cache_under_torture(new_sdk: str) -> None:
    """Chunks, idle rows, slots that are used again, windows that wrap: nothing of it shows."""
    source = original("gemma3_text").source
    report = verify(source, device="cloud_ai_100", new_tokens=NEW, continuous_batching=True)
    report.raise_if_failed()
    assert report.simulated and report.narrow is not None
    assert (report.narrow.against, report.narrow.prompts, report.narrow.same) == (AGAINST, 3, 3)
    assert sum(result.against == AGAINST for result in report.results) == 3
    tried = {check.name for check in report.checks if check.stage == "program on cloud_ai_100" and check.passed}
    assert tried >= TRIED
    assert f"3 of 3 prompts are continued as by the {AGAINST}" in report.to_text()
