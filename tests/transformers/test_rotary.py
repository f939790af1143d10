"""Rotary frequencies that transformers changes as a text grows: ours follow the compiled context."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers
from small_models import SIZES, drawn

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.verification.ladder import verify

TRAINED, COUNT = 32, 6
SHORT, LONG = [[5, 9, 40, 17]], [[(7 * i) % 90 + 3 for i in range(TRAINED + 2)]]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 2.0, 2.5, 3.0],
    "original_max_position_embeddings": TRAINED,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def phi() -> Any:
    sizes = {**SIZES, "original_max_position_embeddings": TRAINED, "rope_parameters": dict(LONGROPE)}
    return drawn(transformers.Phi3ForCausalLM(transformers.Phi3Config(**sizes)))


def llama() -> Any:
    sizes = {**SIZES, "max_position_embeddings": TRAINED, "rope_parameters": DYNAMIC}
    return drawn(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)))


def phi_moe() -> Any:
    """Its code scales cosines and sines besides."""
    scaled = {**LONGROPE, "short_mscale": 1.2, "long_mscale": 1.4}
    sizes = {**SIZES, "rope_parameters": scaled, "num_local_experts": 3, "num_experts_per_tok": 2}
    return drawn(transformers.PhimoeForCausalLM(transformers.PhimoeConfig(**sizes)))


@torch.no_grad()
def greedy(model: Any, prompt: list[int]) -> list[int]:
    tokens = list(prompt)
    for _ in range(COUNT):
        tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def answers(model: Any, prompts: list[list[int]], ctx_len: int) -> list[list[int]]:
    served = QEFFAutoModelForCausalLM(model)
    served.compile(prefill_seq_len=8, ctx_len=ctx_len)
    found: list[list[int]] = served.generate(input_ids=prompts, generation_len=COUNT).generated_ids
    return found


@pytest.mark.parametrize("make", [phi, llama, phi_moe])
def test_short_texts_in_a_short_context(make: Any) -> None:
    assert answers(make(), SHORT, TRAINED) == [greedy(make(), SHORT[0])]


@pytest.mark.parametrize("make", [phi, phi_moe])
def test_long_texts_in_a_long_context(make: Any) -> None:
    assert answers(make(), LONG, 64) == [greedy(make(), LONG[0])]


@pytest.mark.slow
def test_verify_shows_transformers_the_same_length() -> None:
    report = verify(phi_moe(), device="reference", ctx_len=64, new_tokens=2, prompts=[SHORT[0], LONG[0]])
    report.raise_if_failed()


def test_every_text_of_a_long_context_has_one_set_of_frequencies(caplog: pytest.LogCaptureFixture) -> None:
    model = phi()
    with caplog.at_level(logging.WARNING):
        found = answers(model, SHORT, 64)
    assert (
        f"ctx_len is 64: all texts get the rotary frequencies that Phi3ForCausalLM has for texts longer than {TRAINED}"
        in caplog.text
    )
    model.config.rope_parameters["short_factor"] = LONGROPE["long_factor"]
    long_throughout = transformers.Phi3ForCausalLM(model.config).eval()
    long_throughout.load_state_dict(model.state_dict())
    assert found == [greedy(long_throughout, SHORT[0])] != [greedy(phi(), SHORT[0])]
