"""A model type without quirks needs no code of ours: one that no transformers knows, and some that only newer ones do.

Also run with the oldest transformers that we support (`scripts/check_oldest_transformers.sh`), so nothing here is for
one version only.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_up_model
import pytest
import torch
from made_up_model import MadeUpConfig, MadeUpForCausalLM
from small_models import drawn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.transformers import families
from QEfficient.verification.tiny_models import causal_types, prompts, tiny_model

TOKENS = 16
LAYERS = {
    "attention": ["sliding_attention", "full_attention"],
    "memory": ["linear_attention", "full_attention"],
}
NEWER = ("mimo_v2_flash", "granite_swa", "kimi_linear")
"""Types of newer versions of transformers than the oldest that we support, without a file in our families."""


@pytest.fixture(autouse=True)
def _reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QEFF_DEVICE", "reference")


@pytest.fixture
def registered() -> Iterator[None]:
    """transformers knows the type as if it were its own, for one test."""
    AutoConfig.register(MadeUpConfig.model_type, MadeUpConfig)
    AutoModelForCausalLM.register(MadeUpConfig, MadeUpForCausalLM)
    yield
    CONFIG_MAPPING._extra_content.pop(MadeUpConfig.model_type)
    AutoModelForCausalLM._model_mapping._extra_content.pop(MadeUpConfig)


def made_up(kind: str) -> PreTrainedModel:
    config = MadeUpConfig(layer_types=LAYERS[kind], attn_implementation="eager")
    model: PreTrainedModel = drawn(MadeUpForCausalLM(config))
    return model


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """transformers' own answer, all computed anew for each token."""
    ids = list(prompt)
    for _ in range(TOKENS):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def check(model: PreTrainedModel, source: Any, caplog: pytest.LogCaptureFixture, **options: Any) -> None:
    """Chunked prefill, three prompts of different lengths, windows that wrap: every token as transformers has it."""
    wanted = [greedy(model, prompt) for prompt in prompts(model)]
    assert len({token for answer in wanted for token in answer}) > 8, "the model is too dull to tell anything"
    with caplog.at_level(logging.WARNING, logger="QEfficient"):
        ours = QEFFAutoModelForCausalLM.from_pretrained(source, **options)
        slots = {"full_batch_size": 2} if options.get("continuous_batching") else {}
        ours.compile(prefill_seq_len=8, ctx_len=64, **slots)
    assert "whole context" not in caplog.text, "it was not run with its state, but by replay"
    assert ours.generate(input_ids=prompts(model), generation_len=TOKENS).generated_ids == wanted


def test_nobody_knows_the_made_up_type() -> None:
    known = {model_type for family in families._families() for model_type in family.MODEL_TYPES}
    assert MadeUpConfig.model_type not in {*CONFIG_MAPPING_NAMES, *known}
    assert not known & set(NEWER)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("continuous_batching", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_registered_type(
    kind: str, continuous_batching: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = made_up(kind)
    model.save_pretrained(tmp_path)
    check(model, tmp_path, caplog, continuous_batching=continuous_batching)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_model_object_of_a_type_that_is_not_even_registered(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model = made_up(kind)
    check(model, model, caplog)


def test_a_type_that_comes_with_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "checkpoint"
    model = made_up("attention")
    model.config.auto_map = {
        "AutoConfig": "made_up_model.MadeUpConfig",
        "AutoModelForCausalLM": "made_up_model.MadeUpForCausalLM",
    }
    model.save_pretrained(folder)
    shutil.copy(made_up_model.__file__, folder)
    check(model, folder, caplog, trust_remote_code=True)


@pytest.mark.parametrize("model_type", NEWER)
def test_a_type_of_newer_versions_only(model_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if model_type not in causal_types():
        pytest.skip("this version of transformers does not know it")
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    check(model, tmp_path, caplog)
