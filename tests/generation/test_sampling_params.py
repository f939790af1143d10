"""What may be asked for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from QEfficient.errors import OptionError
from QEfficient.specs import SamplingParams


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -0.1}, "temperature must not be negative"),
        ({"temperature": math.nan}, "temperature must be a finite number, not nan"),
        ({"temperature": True}, "temperature must be a finite number"),
        ({"temperature": "1"}, "temperature must be a finite number"),
        ({"top_p": math.inf}, "top_p must be a finite number"),
        ({"top_p": 1.1}, r"top_p must lie in \[0, 1\]"),
        ({"min_p": -0.1}, "min_p must lie in"),
        ({"typical_p": 0}, "typical_p must lie in"),
        ({"top_k": -1}, "top_k must not be negative"),
        ({"top_k": 1.5}, "top_k must be a whole number, not 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty must lie in"),
        ({"presence_penalty": math.nan}, "presence_penalty must be a finite number"),
        ({"frequency_penalty": -math.inf}, "frequency_penalty must be a finite number"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"min_new_tokens": -1}, "min_new_tokens must not be negative"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens 5 is larger than max_new_tokens 4"),
        ({"seed": 1.0}, "seed must be a whole number"),
        ({"n": 0}, "n must lie in"),
        ({"n": 1000}, "n must lie in"),
        ({"logprobs": -1}, "logprobs must lie in"),
        ({"logprobs": 101}, r"logprobs must lie in \[0, 100\], not 101"),
        ({"prompt_logprobs": 101}, "prompt_logprobs must lie in"),
        ({"logit_bias": {5: math.nan}}, "the logit_bias of token 5 must be a finite number"),
        ({"logit_bias": {5: -math.inf}}, "the logit_bias of token 5 must be a finite number"),
        ({"logit_bias": {"5": 1.0}}, "must be a whole number, not '5'"),
        ({"logit_bias": {-5: 1.0}}, "must not be negative"),
        ({"logit_bias": [5, 6]}, "logit_bias must give numbers by token id"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids must not be negative"),
        ({"stop_token_ids": 3}, "stop_token_ids must be a list, not 3"),
        ({"stop_token_ids": ("a",)}, "must be a whole number, not 'a'"),
        ({"stop": ("a", 3)}, "stop must be a text or several of them"),
    ],
    ids=str,
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SamplingParams(**given)


def test_records_are_values() -> None:
    asked: dict[str, Any] = {"logit_bias": {9: 1.0, 2: -3}, "stop": "end", "stop_token_ids": [3, 4]}
    params = SamplingParams(**asked)
    assert params.logit_bias == ((2, -3), (9, 1.0)) and params.stop == ("end",) and params.stop_token_ids == (3, 4)
    again = SamplingParams(**{**asked, "logit_bias": params.logit_bias, "stop": ["end"]})
    assert params == again and hash(params) == hash(again)


def test_numbers_of_numpy_are_numbers() -> None:
    params = SamplingParams(temperature=np.float32(0.5), top_k=np.int64(3), seed=-5, logit_bias={np.int32(4): 1})
    assert not params.greedy and SamplingParams(temperature=0).greedy
