"""What a model's generation config asks for, and what is given on top of it."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig

from QEfficient.errors import OptionError
from QEfficient.generation.defaults import HONOURED, LEFT_OUT, LEFT_OUT_OF_DRAWING, left_out, recorded, sampling_params
from QEfficient.specs import SamplingParams

DRAWING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}


@pytest.mark.parametrize(
    ("config", "given", "wanted"),
    [
        ({}, {}, {}),
        ({}, {"temperature": 0.8}, {"temperature": 0.8}),
        ({}, {"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True}, {}, {"temperature": 1.0}),
        (DRAWING, {}, {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}),
        (DRAWING, {"temperature": None}, {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}),
        (DRAWING, {"top_p": 0.5, "repetition_penalty": 1.0}, {"temperature": 0.6, "top_p": 0.5}),
        (DRAWING, {"temperature": 0}, {"temperature": 0.0, "top_p": 0.9, "repetition_penalty": 1.1}),
        (DRAWING, {"do_sample": False}, {"temperature": 0.0, "top_p": 0.9, "repetition_penalty": 1.1}),
        (DRAWING, {"do_sample": False, "temperature": 0.7}, {"top_p": 0.9, "repetition_penalty": 1.1}),
        ({**DRAWING, "do_sample": False}, {}, {"top_p": 0.9, "repetition_penalty": 1.1}),
        ({**DRAWING, "do_sample": None}, {}, {"top_p": 0.9, "repetition_penalty": 1.1}),
        ({"temperature": 0.6}, {"do_sample": True}, {"temperature": 0.6}),
        ({"max_new_tokens": 9, "min_new_tokens": 5}, {}, {"max_new_tokens": 9, "min_new_tokens": 5}),
        ({"max_new_tokens": 9, "min_new_tokens": 5}, {"max_new_tokens": 3}, {"max_new_tokens": 3, "min_new_tokens": 3}),
        ({"max_new_tokens": 9}, {"max_length": 20}, {"max_length": 20}),
        ({"max_length": 20}, {"max_new_tokens": 4}, {"max_length": 20, "max_new_tokens": 4}),
        ({"stop_strings": ["a", "b"], "num_return_sequences": 2}, {}, {"stop": ("a", "b"), "n": 2}),
    ],
)
def test_each_value_that_is_given_goes_before_the_config(
    config: dict[str, Any], given: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert sampling_params(config, given) == SamplingParams(**wanted)


def test_who_is_to_blame() -> None:
    with pytest.raises(OptionError, match="^top_k must not be negative"):
        sampling_params({"top_p": 3.0}, {"top_k": -1})
    with pytest.raises(OptionError, match="the generation config cannot be followed: top_p must lie in"):
        sampling_params({"top_p": 3.0}, {"top_k": 1})
    assert sampling_params({"top_p": 3.0}, {"top_p": 1.0}).top_p == 1.0


def test_only_what_is_set_and_matters_is_recorded() -> None:
    assert recorded(GenerationConfig().to_dict()) == recorded({}) == {}
    config = GenerationConfig(
        do_sample=False, top_k=5, use_cache=True, eos_token_id=2, num_beams=1, no_repeat_ngram_size=3,
        num_assistant_tokens=4, bad_words_ids=[[3], [4]], max_length=100,
    )  # fmt: skip
    wanted = {"do_sample": False, "top_k": 5, "no_repeat_ngram_size": 3, "bad_words_ids": True, "max_length": 100}
    assert recorded(config.to_diff_dict()) == wanted


def test_what_is_not_done_is_named() -> None:
    asked = {"num_beams": 4, "no_repeat_ngram_size": 0, "bad_words_ids": [[3]], "eta_cutoff": 0.1, "top_p": 0.5}
    sentence = left_out(asked)
    assert "num_beams=4, bad_words_ids," in sentence and "ngram" not in sentence and "eta" not in sentence
    assert "eta_cutoff=0.1" in left_out({**asked, "do_sample": True})
    assert left_out(recorded({**asked, "do_sample": True})) == left_out({**asked, "do_sample": True})
    assert left_out(DRAWING) == left_out({"num_beams": 1, "guidance_scale": None}) == ""


def test_transformers_knows_all_these_names() -> None:
    assert {*HONOURED, *LEFT_OUT, *LEFT_OUT_OF_DRAWING, "do_sample"} <= set(GenerationConfig().to_dict())
