"""A tiny model with a tokenizer of bytes, compiled for the simulator, as a script of Qualcomm's library has it: a
folder with programqpc.bin and no more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qaic_simulator.root import write_root
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices.cloud_ai_100.sdk import ROOT_VARIABLE
from QEfficient.verification.tiny_models import tiny_model

GEOMETRY: dict[str, Any] = {"ctx_len": 64, "prefill_seq_len": 8}


def byte_tokenizer() -> Any:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=letters[-1], padding_side="left")


@contextmanager
def simulated(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ROOT_VARIABLE, str(write_root(folder / "sdk", "1.22")))
        patch.setenv("QAIC_SIM_STATE", str(folder / "cards.json"))
        yield


@dataclass(frozen=True)
class Scripted:
    """A program in a folder that nothing of ours lies around, and the model behind it."""

    qpc: Path
    model: QEFFAutoModelForCausalLM
    tokenizer: Any

    def wanted(self, prompts: list[str], count: int) -> list[list[int]]:
        """The tokens of the reference device."""
        ids = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        found = self.model.generate(input_ids=ids, generation_len=count, ignore_eos=True)
        return [list(each) for each in found.generated_ids]


def scripted(folder: Path, continuous_batching: bool = False, model_type: str = "llama", **geometry: Any) -> Scripted:
    model = QEFFAutoModelForCausalLM(tiny_model(model_type), continuous_batching=continuous_batching)
    compiled = model.compile(device="cloud_ai_100", compile_dir=folder / "compiled", **{**GEOMETRY, **geometry})
    bare = folder / "elsewhere"
    bare.mkdir()
    shutil.copy(next(compiled.rglob("programqpc.bin")), bare)
    left = {name: value for name, value in geometry.items() if not name.startswith("num_")}
    model.compile(device="reference", compile_dir=folder / "reference", **{**GEOMETRY, **left})
    return Scripted(bare, model, byte_tokenizer())


def written(folder: Path) -> list[list[dict[str, Any]]]:
    """What aic_batch_io.json says."""
    found: list[list[dict[str, Any]]] = json.loads((folder / "aic_batch_io.json").read_text())["IO-files"]
    return found
