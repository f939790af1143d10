"""Two programs on a card whose states have other bytes are refused before one of them is opened."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qaic_simulator.root import write_root
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices.cloud_ai_100.custom_io import FILE
from QEfficient.devices.cloud_ai_100.opened import open_program
from QEfficient.devices.cloud_ai_100.sdk import ROOT_VARIABLE
from QEfficient.devices.cloud_ai_100.session import CloudSession
from QEfficient.devices.handover import check_alike
from QEfficient.errors import OptionError
from QEfficient.program import CompiledProgram
from QEfficient.verification.tiny_models import prompts, tiny_config

NEW = 8
PACKED = "keeps past_key.0 in mxint8, that for decoding as plain numbers"
PLAIN = "keeps past_key.0 as plain numbers, that for decoding in mxint8"


def tiny(seed: int) -> Any:
    """Heads as wide as a block."""
    config = tiny_config("llama")
    config.head_dim = 32
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


Models = dict[str, QEFFAutoModelForCausalLM]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Compiled for one phase each, or for both; `other` has other weights."""
    folder = tmp_path_factory.mktemp("handover")
    shape: dict[str, Any] = {"ctx_len": 64, "prefill_seq_len": 8, "num_cores": 8, "device": "cloud_ai_100"}
    asked: dict[str, dict[str, Any]] = {
        "prefill": {"prefill_only": True},
        "packed prefill": {"prefill_only": True, "mxint8_kv_cache": True},
        "decode": {"prefill_only": False},
        "packed decode": {"prefill_only": False, "mxint8_kv_cache": True},
        "packed": {"mxint8_kv_cache": True},
        "other prefill": {"prefill_only": True},
    }
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ROOT_VARIABLE, str(write_root(folder / "sdk", "1.22")))
        for name, options in asked.items():
            found[name] = QEFFAutoModelForCausalLM(tiny(1 if name.startswith("other") else 0))
            found[name].compile(compile_dir=folder / name, **shape, **options)
    return found


def program(model: QEFFAutoModelForCausalLM) -> CompiledProgram:
    assert isinstance(model.compiled, CompiledProgram)
    return model.compiled


def answers(model: QEFFAutoModelForCausalLM, **options: Any) -> list[list[int]]:
    asked = [list(prompt) for prompt in prompts(tiny(0))]
    info = model.generate(input_ids=asked, max_new_tokens=NEW, ignore_eos=True, temperature=0, **options)
    return [list(found) for found in info.generated_ids]


@pytest.mark.parametrize(
    ("decode", "prefill", "message"),
    [
        ("decode", "packed prefill", PACKED),
        ("packed decode", "prefill", PLAIN),
        ("decode", "other prefill", "has other weights than that for decoding"),
    ],
)
def test_nothing_is_opened(
    new_sdk: str, models: Models, decode: str, prefill: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CloudSession, "__init__", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(OptionError, match=message):
        answers(models[decode], prefill_model=models[prefill])


def test_who_is_open_stays_so(new_sdk: str, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    said = answers(models["decode"], prefill_model=models["prefill"])
    monkeypatch.setattr(CloudSession, "__init__", lambda *_: pytest.fail("it was opened once more"))
    with pytest.raises(OptionError, match=PACKED):
        answers(models["decode"], prefill_model=models["packed prefill"])
    assert answers(models["decode"], prefill_model=models["prefill"]) == said


def test_what_both_keep_in_blocks_is_handed_over(new_sdk: str, models: Models) -> None:
    assert answers(models["packed decode"], prefill_model=models["packed prefill"]) == answers(models["packed"])


def test_programs_that_are_known_by_their_containers_alone(new_sdk: str, models: Models, tmp_path: Path) -> None:
    """What the compiler was told lies beside them."""
    opened = {}
    for name in ("prefill", "packed prefill", "decode"):
        shutil.copytree(program(models[name]).folder / "qpc", tmp_path / name / "qpc")
        shutil.copy(program(models[name]).folder / FILE, tmp_path / name)
        opened[name] = open_program(tmp_path / name / "qpc")
        assert not opened[name].program.fingerprint
    check_alike(opened["decode"], opened["prefill"])
    with pytest.raises(OptionError, match=PACKED):
        check_alike(opened["decode"], opened["packed prefill"])
