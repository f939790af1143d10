"""How `generate` is told to choose tokens: by the model's generation config, by another one, by keywords."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_models import small_llama, word_tokenizer
from transformers import GenerationConfig

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.errors import OptionError
from QEfficient.program import load_compiled
from QEfficient.specs import SamplingParams

PROMPTS = [[5, 9, 40], [7, 7, 3, 2, 1, 60]]
COUNT = 10
OWN = {
    "do_sample": True,
    "temperature": 2.0,
    "top_k": 30,
    "repetition_penalty": 1.3,
    "num_beams": 3,
    "eos_token_id": [96],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that wants its tokens drawn."""
    path = tmp_path_factory.mktemp("checkpoint")
    small_llama().save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps(OWN))
    return path


@pytest.fixture
def model(folder: Path) -> Any:
    opened = QEFFAutoModelForCausalLM.from_pretrained(str(folder))
    opened.compile(prefill_seq_len=8, ctx_len=32, batch_size=2)
    return opened


def theirs(prompt: list[int], **options: Any) -> list[int]:
    """What transformers' `generate` says."""
    model = small_llama()
    model.generation_config = GenerationConfig()
    with torch.no_grad():
        output = model.generate(torch.tensor([prompt]), max_new_tokens=COUNT, **options)
    found: list[int] = output[0, len(prompt) :].tolist()
    return found


def ours(model: Any, **options: Any) -> Any:
    return model.generate(input_ids=PROMPTS, generation_len=COUNT, **options).generated_ids


def test_the_manifest_says_what_the_config_says(model: Any) -> None:
    facts = load_compiled(Path(model.qpc_path)).program.model
    assert facts.eos_token_ids == (96,)
    assert facts.generation == {name: value for name, value in OWN.items() if name != "eos_token_id"}


def test_another_config_is_another_program(folder: Path, model: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "generation_config.json").write_text(json.dumps({**OWN, "temperature": 0.5}))
    other = QEFFAutoModelForCausalLM.from_pretrained(str(copy))
    assert Path(other.export()) != Path(model.onnx_path)


def test_a_model_draws_if_its_config_says_so(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "QEfficient"):
        drawn = ours(model, seed=1)
        assert drawn == ours(model, seed=1) != ours(model, seed=2)
    said = [record.getMessage() for record in caplog.records if "num_beams=3" in record.getMessage()]
    assert len(said) == 1 and "\n" not in said[0]
    params = SamplingParams(max_new_tokens=COUNT, temperature=2.0, top_k=30, repetition_penalty=1.3, seed=1)
    assert drawn == ours(model, sampling=params)
    assert drawn != ours(model, sampling=params, top_k=0)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"do_sample": False}, {"temperature": 0.0, "do_sample": True}])
def test_greedy_whatever_the_config_says(model: Any, options: dict[str, Any]) -> None:
    """Its penalty stays: in transformers it does."""
    wanted = [theirs(prompt, do_sample=False, repetition_penalty=1.3, eos_token_id=[96]) for prompt in PROMPTS]
    assert ours(model, **options) == wanted != [theirs(prompt, do_sample=False) for prompt in PROMPTS]
    assert min(map(len, wanted)) < COUNT


def test_plain_greedy(model: Any) -> None:
    wanted = [theirs(prompt, do_sample=False) for prompt in PROMPTS]
    assert ours(model, sampling=SamplingParams(max_new_tokens=COUNT, ignore_eos=True)) == wanted
    assert ours(model, temperature=0, repetition_penalty=1.0, ignore_eos=True) == wanted


def test_penalties_and_biases_are_those_of_transformers(model: Any) -> None:
    bias = {40: 3.5, 9: -2.0, 0: 1.0}
    asked = {"do_sample": False, "repetition_penalty": 1.6}
    wanted = [theirs(p, sequence_bias={(t,): b for t, b in bias.items()}, **asked) for p in PROMPTS]
    assert ours(model, logit_bias=bias, ignore_eos=True, **asked) == wanted


@pytest.mark.parametrize("kind", [dict, GenerationConfig])
def test_another_config_for_one_call(model: Any, kind: Any) -> None:
    wanted = [theirs(prompt, do_sample=False, repetition_penalty=2.0) for prompt in PROMPTS]
    end = wanted[0][4]
    config = kind(do_sample=False, repetition_penalty=2.0, eos_token_id=end)
    found = ours(model, generation_config=config)
    assert found == [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in wanted]
    assert ours(model, generation_config=config, ignore_eos=True) == wanted
    assert ours(model, generation_config=config, min_new_tokens=5)[0][:4] == wanted[0][:4]
    assert len(ours(model, generation_config=config, min_new_tokens=9)[0]) >= 9


def test_a_longest_length_counts_the_prompt(model: Any) -> None:
    config = {"do_sample": False, "max_length": 8}
    found = model.generate(input_ids=PROMPTS, generation_config=config, ignore_eos=True).generated_ids
    assert [len(tokens) for tokens in found] == [5, 2]


def test_several_answers_and_their_logprobs(model: Any) -> None:
    info = model.generate(input_ids=PROMPTS, generation_len=3, n=2, seed=4, logprobs=2, ignore_eos=True)
    assert [len(answers) for answers in info.generated_ids] == [2, 2] == [len(texts) for texts in info.generated_texts]
    assert [[list(output.generated_ids) for output in answers] for answers in info.outputs] == info.generated_ids
    assert info.generated_ids[0][0] != info.generated_ids[0][1]
    llama = small_llama()
    for prompt, answers in zip(PROMPTS, info.outputs, strict=True):
        for output in answers:
            with torch.no_grad():
                logits = llama(torch.tensor([[*prompt, *output.generated_ids]])).logits[0, len(prompt) - 1 : -1]
            for record, token, row in zip(output.logprobs, output.generated_ids, logits.log_softmax(-1), strict=True):
                assert record.token == token and record.logprob == pytest.approx(float(row[token]), abs=1e-4)
                assert [each for each, _ in record.top] == row.topk(2).indices.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"generation_config": {"temperatur": 1.0}},
            "generation_config does not know 'temperatur'. Did you mean 'temp",
        ),
        ({"generation_config": 3}, "must be a GenerationConfig or a dict, not int"),
        ({"generation_config": {}, "sampling": SamplingParams()}, "Give one of them"),
        ({"sampling": SamplingParams(), "topk": 3}, "Did you mean 'top_k'"),
        ({"generation_config": {"top_p": 7.0}}, "generation config cannot be followed: top_p must lie in"),
        ({"top_p": float("nan")}, "top_p must be a finite number"),
    ],
)
def test_bad_options(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ours(model, **options)


def test_a_model_object_brings_its_own() -> None:
    live = small_llama()
    live.generation_config = transformers.GenerationConfig(do_sample=True, temperature=3.0, pad_token_id=11)
    facts = QEFFAutoModelForCausalLM(live)._facts
    assert facts.generation == {"do_sample": True, "temperature": 3.0} and facts.pad_token_id == 11
    live.generation_config = None
    assert QEFFAutoModelForCausalLM(live)._facts.generation == {}
