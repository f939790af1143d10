"""Families whose states transformers hands around in ways of their own, and those that only the tokens can restore."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.errors import UnsupportedModelError
from QEfficient.transformers.loading import open_source
from QEfficient.transformers.observe import CACHE_NAMES, cache_arguments
from QEfficient.transformers.replay import Replay, ReplayModule
from QEfficient.transformers.retained_module import RetainedModule
from QEfficient.transformers.transform import retain
from QEfficient.verification.tiny_models import prompts, tiny_config, tiny_model

COUNT = 8


@torch.no_grad()
def greedy(model: Any, prompt: list[int]) -> list[int]:
    tokens = list(prompt)
    for _ in range(COUNT):
        tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("model_type", ["rwkv", "xlstm", "minimax", "cpmant", "prophetnet"])
def test_tokens_are_those_of_transformers(model_type: str, tmp_path: Any) -> None:
    tiny_model(model_type).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    asked = prompts(model)
    served = QEFFAutoModelForCausalLM.from_pretrained(str(tmp_path), continuous_batching=True)
    served.compile(prefill_seq_len=5, ctx_len=40, full_batch_size=2)
    found = served.generate(input_ids=asked, generation_len=COUNT).generated_ids
    assert found == [greedy(model, prompt) for prompt in asked]


@pytest.mark.parametrize("tried", [3, [0, 3]])
def test_tokens_tried_ahead_where_all_are_computed_again(tried: int | list[int]) -> None:
    """A run has fewer tokens than its shape holds, and more come before it."""
    model = tiny_model("openai-gpt")
    asked = prompts(model)
    served = QEFFAutoModelForCausalLM(model, qaic_config={"speculative_model_type": "target"})
    served.compile(device="reference", prefill_seq_len=5, ctx_len=40, batch_size=2, num_speculative_tokens=tried)
    wanted = [greedy(model, prompt) for prompt in asked]
    for decoding in (None, "prompt_lookup"):
        found = served.generate(input_ids=asked, generation_len=COUNT, decoding=decoding).generated_ids
        assert found == wanted


@pytest.mark.parametrize(
    ("model_type", "change"),
    [
        ("llama", {"is_causal": False}),
        ("roberta", {"is_decoder": False}),
        ("xlnet", {"attn_type": "bi"}),
        ("cpmant", {}),
    ],
)
def test_tokens_that_see_those_behind_them(model_type: str, change: dict[str, Any]) -> None:
    """The slots behind the last are nobody's to see, and what was said of a draft would not hold."""
    config = tiny_config(model_type)
    for name, value in change.items():
        setattr(config, name, value)
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    asked = [[7], [9, 12, 33, 8, 5], [*[11] * 9, 4, 5]]
    served = QEFFAutoModelForCausalLM(model)
    served.compile(device="reference", prefill_seq_len=4, ctx_len=32, batch_size=3)
    found = served.generate(input_ids=asked, generation_len=COUNT, ignore_eos=True).generated_ids
    assert found == [greedy(model, prompt) for prompt in asked]
    target = QEFFAutoModelForCausalLM(model, qaic_config={"speculative_model_type": "target"})
    with pytest.raises(UnsupportedModelError, match="its tokens see those behind them, so that drafts"):
        target.export()


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_cache_by_any_name_that_models_have_for_it(name: str) -> None:
    whole = tiny_model("llama")
    plain = whole.forward

    def renamed(input_ids: Any, position_ids: Any = None, use_cache: Any = None, **named: Any) -> Any:
        cache = cache_arguments(plain, named[name])
        return plain(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache, **cache)

    kinds = inspect.Parameter
    parameters = [kinds(each, kinds.KEYWORD_ONLY) for each in ("input_ids", "position_ids", "use_cache", name)]
    renamed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    whole.forward = renamed
    assert isinstance(retain(whole), RetainedModule)


def test_rwkv_that_transformers_has_rescaled_is_not_rescaled_again() -> None:
    model = tiny_model("rwkv")
    asked = prompts(model)[:1]
    wanted = greedy(model, asked[0])  # rescales the weights of `model`
    assert model.rwkv.layers_are_rescaled
    served = QEFFAutoModelForCausalLM(model)
    assert served.generate(input_ids=asked, generation_len=COUNT).generated_ids == [wanted]
    assert greedy(model, asked[0]) == wanted


def test_a_model_that_keeps_something_of_its_own_is_not_replayed() -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = torch.zeros(1)

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            self.calls = self.calls + 1
            return SimpleNamespace(logits=torch.zeros(1, 3, 7))

    with pytest.raises(UnsupportedModelError, match="keeps from call to call"):
        ReplayModule(Counting(), Replay("a test"))


def test_no_tokenizer_is_made_up_for_a_folder_without_one(tmp_path: Any) -> None:
    tiny_model("rwkv").save_pretrained(tmp_path)
    assert open_source(tmp_path, AutoModelForCausalLM, {}).tokenizer() is None
