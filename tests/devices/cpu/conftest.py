"""Small models, exported once, for the tests of the CPU device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.program import CompiledProgram, load_compiled
from QEfficient.verification.tiny_models import tiny_model

Compile = Callable[..., CompiledProgram]


class Exported:
    """One model, and its program compiled for what a test asks for."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model = model
        self._wrapped = QEFFAutoModelForCausalLM(model)
        self._wrapped.export(folder)
        self._folder = folder / "compiled"

    def compile(self, **options: Any) -> CompiledProgram:
        options = {"device": "cpu", "num_threads": 1, "ctx_len": 96, "batch_size": 4, **options}
        return load_compiled(self._wrapped.compile(compile_dir=self._folder, **options))

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """Hugging Face's, after every token."""
        return self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()

    def greedy(self, ids: list[int], count: int) -> list[int]:
        known = list(ids)
        for _ in range(count):
            known.append(int(self.logits(known)[-1].argmax()))
        return known[len(ids) :]


def medium_llama() -> Any:
    """Large enough for groups of weights, with a part of a group left over."""
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=160,
        intermediate_size=224,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(medium_llama(), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One layer with recurrent state, one with attention."""
    return Exported(tiny_model("qwen3_next"), tmp_path_factory.mktemp("hybrid"))
