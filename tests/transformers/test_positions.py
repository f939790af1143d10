"""Models that have positions for fewer tokens than the compiled context."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import transformers
from small_models import drawn

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.errors import PromptError

POSITIONS = 24


def small_gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=97, n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4)
    config.bos_token_id = config.eos_token_id = None
    return drawn(transformers.GPT2LMHeadModel(config))


@pytest.fixture(scope="module")
def model() -> QEFFAutoModelForCausalLM:
    return QEFFAutoModelForCausalLM(small_gpt2())


def test_compiling_says_so(model: QEFFAutoModelForCausalLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model.compile(prefill_seq_len=8, ctx_len=64)
    assert f"ctx_len is 64, but GPT2LMHeadModel has {POSITIONS} positions only." in caplog.text


def test_an_answer_ends_at_the_last_position(model: QEFFAutoModelForCausalLM) -> None:
    model.compile(prefill_seq_len=8, ctx_len=64)
    (ids,) = model.generate(input_ids=[[5, 9, 40]], generation_len=60).generated_ids
    assert len(ids) == POSITIONS - 3


def test_a_longer_prompt_is_refused(model: QEFFAutoModelForCausalLM) -> None:
    model.compile(prefill_seq_len=8, ctx_len=64)
    with pytest.raises(PromptError, match=f"prompt has 30 tokens, but the model has {POSITIONS} positions only"):
        model.generate(input_ids=[list(range(30))], generation_len=2)


def test_a_model_without_a_table_of_positions_has_no_such_bound() -> None:
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(
        **sizes, num_attention_heads=4, max_position_embeddings=POSITIONS, eos_token_id=None
    )
    rotary = QEFFAutoModelForCausalLM(drawn(transformers.LlamaForCausalLM(config)))
    rotary.compile(prefill_seq_len=8, ctx_len=64)
    (ids,) = rotary.generate(input_ids=[[5, 9, 40]], generation_len=40).generated_ids
    assert len(ids) == 40
