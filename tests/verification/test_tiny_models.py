"""The tiny models themselves: valid, the same each time, and with something to say."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from QEfficient.verification.tiny_models import causal_types, prompts, tiny_config, tiny_model
from QEfficient.verification.tiny_overrides import GAINS, OVERRIDES, SEEDS

TYPES = ("llama", "gpt2", "mixtral", "mamba", "deepseek_v3", "gemma3_text")
STEPS = 24


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads cost a model this small more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def model_of(model_type: str) -> PreTrainedModel:
    return tiny_model(model_type)


@torch.no_grad()
def last_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()


@cache
def reference(model_type: str) -> tuple[list[list[int]], float]:
    """Greedy tokens for each prompt, and the smallest distance of the two best logits as a share of their range."""
    model, tokens, margins = model_of(model_type), [], []
    for prompt in prompts(model):
        ids = list(prompt)
        for _ in range(STEPS):
            logits = last_logits(model, ids)
            assert logits.isfinite().all()
            best, second = logits.topk(2).values.tolist()
            margins.append((best - second) / float(logits.max() - logits.min()))
            ids.append(int(logits.argmax()))
        tokens.append(ids[len(prompt) :])
    return tokens, min(margins)


@pytest.mark.parametrize("model_type", TYPES)
def test_a_model_depends_on_its_seed_and_on_nothing_else(model_type: str) -> None:
    first = model_of(model_type).state_dict()
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    again, other = tiny_model(model_type).state_dict(), tiny_model(model_type, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("model_type", TYPES)
def test_greedy_tokens_vary_and_are_clear(model_type: str) -> None:
    tokens, margin = reference(model_type)
    assert min(len(set(line)) for line in tokens) >= 8
    assert len({tuple(line) for line in tokens}) == len(tokens)
    assert margin > 1e-3


@pytest.mark.parametrize("model_type", TYPES)
def test_order_and_content_of_the_prompt_matter(model_type: str) -> None:
    model = model_of(model_type)
    prompt = prompts(model)[2]
    swapped = [*prompt[:-4], prompt[-3], prompt[-4], *prompt[-2:]]
    changed = [*prompt[:-4], prompts(model)[0][0], *prompt[-3:]]
    logits = last_logits(model, prompt)
    for other in (swapped, changed):
        assert (last_logits(model, other) - logits).std() > 0.02 * logits.std()


@pytest.mark.parametrize("model_type", TYPES)
def test_the_library_generates_the_same_tokens_with_its_cache(model_type: str) -> None:
    model, (tokens, _) = model_of(model_type), reference(model_type)
    for prompt, expected in zip(prompts(model), tokens, strict=True):
        output = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=STEPS)
        assert output[0, len(prompt) :].tolist() == expected


@pytest.mark.parametrize("model_type", TYPES)
def test_prompts_are_ordinary_tokens(model_type: str) -> None:
    model = model_of(model_type)
    lines = prompts(model)
    assert [len(line) for line in lines] == [5, 11, 19]
    text = model.config.get_text_config(decoder=True)
    special = {getattr(text, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
    assert all(0 <= token < text.vocab_size and token not in special for line in lines for token in line)


def test_every_kind_of_layer_is_there() -> None:
    assert tiny_config("deepseek_v3").first_k_dense_replace == 1
    assert tiny_config("gemma3_text").layer_types == ["sliding_attention", "full_attention"]
    assert tiny_config("mixtral").num_local_experts == 4


def test_a_model_can_have_half_the_precision() -> None:
    half = tiny_model("llama", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    weight = model_of("llama").lm_head.weight
    assert torch.equal(half.lm_head.weight, weight.to(torch.bfloat16))


def test_types_are_sorted_and_many() -> None:
    types = causal_types()
    assert types == sorted(types)
    assert set(TYPES) <= set(types)


def test_the_tables_name_types_and_each_once() -> None:
    known = set(CONFIG_MAPPING_NAMES) | set(causal_types())
    for table in (SEEDS, GAINS):
        named = [name for names in table.values() for name in names.split()]
        assert len(named) == len(set(named))
        assert set(named) <= known
    assert known >= OVERRIDES.keys()
