"""Programs that choose tokens themselves, against the sampling of the host: from the same logits, with the same random
numbers, the same token."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices import Batch, Choice, Row, Session, get_device
from QEfficient.errors import OptionError
from QEfficient.generation.adjustments import ADJUSTMENTS
from QEfficient.generation.masks import OneOf
from QEfficient.generation.request import Request
from QEfficient.generation.shortlist import Settings, shortlist
from QEfficient.program import CompiledProgram, load_compiled
from QEfficient.specs import SamplerSpec, SamplingParams
from QEfficient.transformers.sampling_head import Call, choose_tokens
from QEfficient.verification.tiny_models import prompts, tiny_model

WIDEST = 64
GEOMETRY: dict[str, Any] = {"ctx_len": 64, "prefill_seq_len": 8, "num_cores": 8}
SAMPLER = {"include_sampler": True, "max_top_k_ids": WIDEST, "include_guided_decoding": True}
SLOTS, ROWS = {"full_batch_size": 2}, {"batch_size": 2}
MANY_SLOTS = {"full_batch_size": 9}
"""So many that a call of each one's next token is larger than one of a prompt."""
PREFILL_ONLY = {"batch_size": 2, "prefill_only": True}
KEPT_SLOTS = {"kv_cache_batch_size": 2, "prefill_only": True}
"""These decode in the calls of prompts."""


def wrapped(config: dict[str, Any] | None, slots: bool = True, model_type: str = "llama") -> QEFFAutoModelForCausalLM:
    return QEFFAutoModelForCausalLM(tiny_model(model_type), slots, config)


def compiled(device: str, config: dict[str, Any] | None, geometry: dict[str, int]) -> CompiledProgram:
    model = wrapped(config, "batch_size" not in geometry)
    return load_compiled(Path(model.compile(device=device, **GEOMETRY, **geometry)))


def chosen_by_host(logits: np.ndarray, request: Request, numbers: np.ndarray) -> int:
    """What the host's own adjustments and filters leave, and of that the largest sum of score and noise."""
    scores = logits[None].astype(np.float32).copy()
    for link in ADJUSTMENTS:
        if link.concerns(request):
            link.apply(scores, [0], [request])
    if request.params.greedy:
        return int(scores.argmax())
    found = shortlist(scores, Settings.of([request.params]), whole=True)
    order = np.argsort(-scores[0], kind="stable")[:WIDEST]
    kept = set(found.tokens[0][np.isfinite(found.scores[0])].tolist())
    noise = -np.log(-np.log(numbers.astype(np.float64)))
    sums = [
        scores[0, token] / request.params.temperature + noise[rank] if token in kept else -np.inf
        for rank, token in enumerate(order)
    ]
    return int(order[int(np.argmax(sums))])


def drawn_params(own: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=own.choice((0.0, 0.5, 1.0, 1.7)),
        top_k=own.choice((1, 3, 20, WIDEST)),
        top_p=own.choice((0.3, 0.9, 1.0)),
        min_p=own.choice((0.0, 0.05)),
        repetition_penalty=own.choice((1.0, 1.4)),
        presence_penalty=own.choice((0.0, 0.7)),
    )


def as_choice(params: SamplingParams, numbers: np.ndarray) -> Choice:
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty")
    return Choice(numbers, **{name: getattr(params, name) for name in names})


def next_token(session: Session, slot: int, request: Request, choice: Choice | None, chunk: int = 8) -> np.ndarray:
    """Feed what the session has not had yet."""
    if request.generated:
        start = request.length - 1
    else:
        start = (request.length - 1) // chunk * chunk
        for at in range(0, start, chunk):
            session.run(Batch((Row(slot, request.tokens_from(at, chunk), at),)))
        choice = replace(choice, follows_prompt=True) if choice else None
    return session.run(Batch((Row(slot, request.tokens_from(start, chunk), start, choice=choice),)))[0]


@pytest.mark.parametrize(
    ("geometry", "chunk"),
    [(SLOTS, 8), (ROWS, 8), (SLOTS, 1), (MANY_SLOTS, 8), (PREFILL_ONLY, 8), (KEPT_SLOTS, 8)],
    ids=["slots", "rows", "token by token", "many slots", "prefill only", "prefill only, kept slots"],
)
def test_the_token_of_the_host(geometry: dict[str, int], chunk: int) -> None:
    """On the reference device, beside the program that ends in logits: 240 tokens of 30 requests in two slots, whose
    memory starts as if all had been said. Prompts of one token are among them, and with a last chunk of one."""
    own = random.Random(5)
    plain, chooser = (compiled("reference", config, geometry) for config in (None, SAMPLER))
    with get_device("reference").load(plain) as logits, get_device("reference").load(chooser) as tokens:
        for number in range(30):
            request = Request(tuple(own.sample(range(200), own.choice((1, 1, 2, 5, 8, 9, 17)))), drawn_params(own))
            for _ in range(8):
                numbers = np.array([own.random() for _ in range(WIDEST)], np.float32)
                wanted = chosen_by_host(next_token(logits, number % 2, request, None, chunk), request, numbers)
                found = next_token(tokens, number % 2, request, as_choice(request.params, numbers), chunk)
                assert int(found.argmax()) == wanted and found.sum() == 1, request.params
                request.generated.append(wanted)


def marked(accepted: list[int], positions: list[int]) -> list[set[int]]:
    """The tokens that a call of one line with one kept token leaves marked, for repetition and for presence; before it
    7 and 8 were, each for one of them."""
    names = ("repetition_penalties", "presence_penalties", "temperatures", "top_ps", "min_ps", "random_numbers")
    controls = {name: torch.full((1, 1), 0.5) for name in names}
    controls |= {"last_accepted_output_tokens": torch.tensor([accepted]), "top_ks": torch.ones((1, 1))}
    call = Call(torch.tensor([accepted]), torch.tensor([positions]), None, controls)
    memory = [torch.arange(10)[None] == token for token in (7, 8)]
    _, after = choose_tokens(torch.zeros((1, 1, 10)), call, memory, SamplerSpec(max_top_k_ids=1))
    return [set(buffer[0].nonzero()[:, 0].tolist()) for buffer in after]


def test_which_tokens_are_of_a_prompt() -> None:
    """As the contract has it, by the length of the call, and as the tokens say: -1 less themselves for a prompt's,
    with the size of the vocabulary for one of an answer."""
    assert marked([3], [5]) == [{7, 3}, {8, 3}]
    assert marked([3, 4], [5, 6]) == [{7, 3, 4}, set()] and marked([3, 4], [0, 1]) == [{3, 4}, set()]
    assert marked([3, 0], [5, -1]) == [{7, 3}, set()], "the last piece of a prompt"
    assert marked([-4], [5]) == marked([-4, -1], [5, -1]) == [{7, 3}, set()]
    assert marked([13, 0], [5, -1]) == [{7, 3}, {8, 3}]
    assert marked([13, 0], [-1, -1]) == marked([-4, -1], [-1, -1]) == [{7}, {8}]


def test_how_often_each_token_comes() -> None:
    """Against the probabilities that the host draws from."""
    count, vocabulary = 20_000, 40
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((1, 1, vocabulary), generator=generator).expand(count, 1, vocabulary) * 2
    spec = SamplerSpec(max_top_k_ids=vocabulary, return_pdfs=True)

    def column(value: float) -> torch.Tensor:
        return torch.full((count, 1), value)

    controls = {
        "last_accepted_output_tokens": torch.zeros((count, 1), dtype=torch.int64),
        "repetition_penalties": column(1.0),
        "presence_penalties": column(0.0),
        "temperatures": column(1.3),
        "top_ks": column(12).int(),
        "top_ps": column(0.9),
        "min_ps": column(0.02),
        "random_numbers": torch.rand((count, vocabulary), generator=generator),
    }
    call = Call(controls["last_accepted_output_tokens"], torch.full((count, 1), -1), None, controls)
    memory = [torch.zeros((count, vocabulary), dtype=torch.bool)] * 2
    (chances, tokens), _ = choose_tokens(logits, call, memory, spec)
    params = SamplingParams(temperature=1.3, top_k=12, top_p=0.9, min_p=0.02)
    found = shortlist(logits[0].numpy(), Settings.of([params]), whole=True)
    wanted = np.zeros(vocabulary)
    wanted[found.tokens[0]] = np.exp(found.scores[0])
    wanted /= wanted.sum()
    assert np.allclose(chances[0, 0].numpy(), wanted, atol=1e-6)
    frequency = np.bincount(tokens.flatten().numpy(), minlength=vocabulary) / count
    assert (frequency[wanted == 0] == 0).all()
    assert np.abs(frequency - wanted).max() < 4 * np.sqrt(0.25 / count)


@pytest.mark.parametrize("geometry", [SLOTS, ROWS], ids=["slots", "rows"])
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_on_the_card(new_sdk: str, geometry: dict[str, int], model_type: str) -> None:
    """Greedy as the program that ends in logits, with penalties."""
    asked = [list(prompt) for prompt in prompts(tiny_model(model_type))[:2]]
    found = {}
    for device in ("reference", "cloud_ai_100"):
        for config in (None, SAMPLER):
            model = wrapped(config, geometry is SLOTS, model_type)
            model.compile(device=device, **GEOMETRY, **geometry)
            options = {"input_ids": asked, "max_new_tokens": 10, "ignore_eos": True}
            info = model.generate(temperature=0, repetition_penalty=1.2, presence_penalty=0.1, **options)
            found[device, bool(config)] = [list(ids) for ids in info.generated_ids]
            model._forget_session()
    assert found["cloud_ai_100", True] == found["reference", True] == found["reference", False]


def test_drawn_on_the_card(new_sdk: str) -> None:
    """In float16 the random numbers are coarser, so that now and then another token wins."""
    own, equal = random.Random(6), 0
    judge, card = (compiled(device, SAMPLER, SLOTS) for device in ("reference", "cloud_ai_100"))
    with get_device("reference").load(judge) as reference, get_device("cloud_ai_100").load(card) as session:
        for number in range(20):
            request = Request(tuple(own.sample(range(200), 6)), drawn_params(own))
            for _ in range(5):
                numbers = np.array([own.random() for _ in range(WIDEST)], np.float32)
                choice = as_choice(request.params, numbers)
                tokens = [int(next_token(s, number % 2, request, choice).argmax()) for s in (reference, session)]
                equal += tokens[0] == tokens[1]
                request.generated.append(tokens[0])
    assert equal >= 90, f"{equal} of 100"


def test_what_a_grammar_lets_it_say(new_sdk: str) -> None:
    model = wrapped(SAMPLER)
    model.compile(device="cloud_ai_100", **GEOMETRY, **SLOTS)
    info = model.generate(
        input_ids=[[5, 6, 7]], temperature=1.0, mask=lambda: OneOf([[9, 8, 7], [9, 4]], [2]), max_new_tokens=9
    )
    assert list(info.generated_ids[0])[:2] in ([9, 8], [9, 4])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logprobs": 1}, "logprobs"),
        ({"temperature": 1.0, "top_k": WIDEST + 1}, "max_top_k_ids"),
        ({"decoding": "prompt_lookup"}, "chooses tokens itself"),
    ],
)
def test_what_a_program_cannot_do(options: dict[str, Any], word: str) -> None:
    model = wrapped(SAMPLER)
    model.compile(device="reference", **GEOMETRY, **SLOTS)
    with pytest.raises(OptionError, match=word):
        model.generate(input_ids=[[5, 6, 7]], max_new_tokens=3, **options)


def test_a_sampler_and_what_it_needs() -> None:
    assert os.environ["QEFF_HOME"]
    with pytest.raises(OptionError, match="include_sampler=True only"):
        wrapped({"return_pdfs": True})
    with pytest.raises(ValueError, match="does not choose tokens"):
        wrapped({"include_sampler": True, "speculative_model_type": "target"})
