"""Programs that guess tokens with the projections of their checkpoint: the guesses are what the projections say, and
tokens are those of the model without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices import Batch, Row, get_device
from QEfficient.errors import ModelError, OptionError, UnsupportedModelError, WeightsError
from QEfficient.generation.cloud_infer import QAICInferenceSession
from QEfficient.verification.eager import expect
from QEfficient.verification.tiny_models import prompts, tiny_model

TURBO = {"speculative_model_type": "turbo"}
HEADS, LAYERS = 3, 2
CONTEXT = {"ctx_len": 64, "prefill_seq_len": 8}
SLOTS, ROWS = {"full_batch_size": 2}, {"batch_size": 2}
NEW = 12


def projected(folder: Path, model: Any, scale: float, **said: Any) -> dict[str, torch.Tensor]:
    """Save a model and projections for it, which change nothing if `scale` is 0."""
    model.save_pretrained(folder)
    width = model.get_output_embeddings().weight.shape[-1]
    places = [f"projections.{head}.{layer}.linear" for head in range(HEADS) for layer in range(LAYERS)]
    source = torch.Generator().manual_seed(1)
    sizes = {"weight": (width, width), "bias": (width,)}
    tensors = {
        f"{place}.{kind}": scale * torch.randn(size, generator=source)
        for place in places
        for kind, size in sizes.items()
    }
    save_file(tensors, folder / "speculator.safetensors")
    config = {"turbo_num_heads": HEADS, "turbo_num_layers": LAYERS, **said}
    (folder / "speculator_config.json").write_text(json.dumps(config))
    return tensors


def by_hand(model: Any, tensors: dict[str, torch.Tensor], prompt: list[int]) -> list[int]:
    """What each projection takes for the likeliest token, by PyTorch."""
    found = []
    with torch.no_grad():
        last = model.base_model(torch.tensor([prompt])).last_hidden_state[:, -1]
        for head in range(HEADS):
            hidden = last
            for layer in range(LAYERS):
                weight, bias = (tensors[f"projections.{head}.{layer}.linear.{kind}"] for kind in ("weight", "bias"))
                hidden = hidden + torch.nn.functional.silu(hidden @ weight.T + bias)
            found.append(int(model.get_output_embeddings()(hidden).argmax()))
    return found


@pytest.fixture(scope="module")
def repeating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 that says the same token over and over, and projections that change nothing: so they guess that."""
    folder = tmp_path_factory.mktemp("repeating")
    projected(folder, tiny_model("gpt2"), 0)
    return folder


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_guesses_are_what_the_projections_say(tmp_path: Path, model_type: str) -> None:
    model = tiny_model(model_type)
    tensors = projected(tmp_path, model, 0.2)
    wrapped = QEFFAutoModelForCausalLM.from_pretrained(str(tmp_path), True, TURBO)
    wrapped.compile(device="reference", retain_full_kv=True, **CONTEXT, **SLOTS)
    assert wrapped.is_tlm and wrapped.model.config.speculative_config["num_speculative_tokens"] == HEADS
    assert wrapped.compiled is not None and wrapped.compiled.spec.num_speculative_tokens == (HEADS,)
    asked = [list(map(int, prompt)) for prompt in (prompts(model)[0], prompts(model)[1][:7])]
    with get_device("reference").load(wrapped.compiled) as session:
        for slot, prompt in enumerate(asked):
            logits = session.run(Batch((Row(slot, prompt, 0),)))
            assert logits.shape == (1, model.config.vocab_size) and session.guesses is not None
            assert session.guesses.tolist() == [by_hand(model, tensors, prompt)]
        session.run(Batch((Row(0, (4, 5), len(asked[0]), 2), Row(1, (6,), len(asked[1])))))
        both = [by_hand(model, tensors, [*asked[0], *tokens]) for tokens in ((4,), (4, 5))]
        assert session.guesses.tolist() == [*both, by_hand(model, tensors, [*asked[1], 6])]


@pytest.mark.parametrize("device", ["reference", "cloud_ai_100"])
@pytest.mark.parametrize("shape", [SLOTS, ROWS], ids=["slots", "rows"])
def test_tokens_are_those_of_the_model(tmp_path: Path, new_sdk: str, device: str, shape: dict[str, int]) -> None:
    """Projections that change nothing say that the next token comes again, which a GPT-2 of this size does say."""
    model = tiny_model("gpt2")
    projected(tmp_path, model, 0)
    wrapped = QEFFAutoModelForCausalLM.from_pretrained(str(tmp_path), bool(shape is SLOTS), TURBO)
    wrapped.compile(device=device, **CONTEXT, **shape)
    asked = [list(map(int, prompt)) for prompt in prompts(model)]
    said = [list(expect(model, prompt, NEW).tokens) for prompt in asked]
    info = wrapped.generate(input_ids=asked, max_new_tokens=NEW, ignore_eos=True, temperature=0)
    assert [list(found) for found in info.generated_ids] == said
    repeated = sum(a == b for tokens in said for a, b in zip(tokens[1:], tokens[2:], strict=False))
    assert info.drafted >= info.accepted > repeated / 2 > 0
    plain = wrapped.generate(input_ids=asked, max_new_tokens=NEW, ignore_eos=True, temperature=0, decoding="plain")
    assert [list(found) for found in plain.generated_ids] == said and plain.drafted == 0


def test_a_script_that_drives_the_card_itself(repeating: Path, new_sdk: str) -> None:
    """As those of Qualcomm's library: the first logits verify, what the others of the last right row say is tried."""
    model = tiny_model("gpt2")
    wrapped = QEFFAutoModelForCausalLM.from_pretrained(str(repeating), True, TURBO)
    session = QAICInferenceSession(wrapped.compile(device="cloud_ai_100", num_cores=16, **CONTEXT, **SLOTS))
    session.skip_buffers([name for name in (*session.input_names, *session.output_names) if name.startswith("past_")])
    vocabulary, kept = model.config.vocab_size, HEADS + 1
    prompt = list(map(int, prompts(model)[0]))
    ids, positions = np.zeros((1, 8), np.int64), np.full((1, 8), -1, np.int64)
    ids[0, : len(prompt)], positions[0, : len(prompt)] = prompt, np.arange(len(prompt))
    session.set_buffers({"logits": np.zeros((1, 1, kept, vocabulary), np.float32)})
    fed = {"input_ids": ids, "position_ids": positions, "batch_index": np.zeros((1, 1), np.int64)}
    first = session.run({**fed, "num_logits_to_keep": np.zeros((1, 1), np.int64)})["logits"].argmax(-1)
    tokens, tried, position, runs = [int(first[0, 0, 0])], first[0, 0], len(prompt), 0
    session.set_buffers({"logits": np.zeros((2, kept, kept, vocabulary), np.float32)})
    while len(tokens) < NEW:
        ids, positions = np.zeros((2, kept), np.int64), np.full((2, kept), -1, np.int64)
        ids[0], positions[0] = tried, np.arange(position, position + kept)
        fed = {"input_ids": ids, "position_ids": positions, "batch_index": np.array([[0], [1]])}
        logits = session.run({**fed, "num_logits_to_keep": np.zeros((kept, 1), np.int64)})["logits"][0]
        chosen = logits[:, 0].argmax(-1)
        right = int((tried[1:] == chosen[:-1]).cumprod().sum()) + 1
        tokens += chosen[:right].tolist()
        tried, position, runs = logits[right - 1].argmax(-1), position + right, runs + 1
    session.deactivate()
    assert tokens[:NEW] == list(expect(model, prompt, NEW).tokens) and runs < NEW - 1


def test_a_model_object_says_where_they_lie(tmp_path: Path) -> None:
    model = tiny_model("llama")
    projected(tmp_path, model, 0.2)
    with pytest.raises(OptionError, match="the model is an object. Say in qaic_config"):
        QEFFAutoModelForCausalLM(model, qaic_config=TURBO)
    wrapped = QEFFAutoModelForCausalLM(model, qaic_config={**TURBO, "pretrained_model_name_or_path": str(tmp_path)})
    wrapped.export()
    assert wrapped._program is not None and wrapped._program.graphs["lm"].spec.guesses == HEADS
    assert not hasattr(model.config, "speculative_config")


@pytest.mark.parametrize(
    ("file", "said", "error", "words"),
    [
        ("speculator_config.json", None, ModelError, "has no speculator_config.json"),
        ("speculator.safetensors", None, ModelError, "has no speculator.safetensors"),
        ("speculator_config.json", "{", ModelError, "is damaged"),
        ("speculator_config.json", "[]", ModelError, "no JSON object"),
        (
            "speculator_config.json",
            '{"turbo_num_heads": 0, "turbo_num_layers": 1}',
            ModelError,
            "'turbo_num_heads' must",
        ),
        ("speculator_config.json", '{"model_type": "medusa"}', UnsupportedModelError, "of type 'medusa'"),
    ],
)
def test_files_that_are_not_right(
    tmp_path: Path, file: str, said: str | None, error: type[Exception], words: str
) -> None:
    projected(tmp_path, tiny_model("llama"), 0)
    (tmp_path / file).unlink()
    if said is not None:
        (tmp_path / file).write_text(said)
    with pytest.raises(error, match=words):
        QEFFAutoModelForCausalLM.from_pretrained(str(tmp_path), qaic_config=TURBO)


def test_weights_that_the_config_does_not_describe(tmp_path: Path) -> None:
    projected(tmp_path, tiny_model("llama"), 0, turbo_num_heads=2)
    wrapped = QEFFAutoModelForCausalLM.from_pretrained(str(tmp_path), qaic_config=TURBO)
    with pytest.raises(WeightsError, match="for 2 projections of 2 layer.s., '2.0.linear.bias' should be nothing"):
        wrapped.export()


def refused(folder: Path, words: str, device: str = "reference", model_type: str = "llama", **options: Any) -> None:
    projected(folder, tiny_model(model_type), 0)
    wrapped = QEFFAutoModelForCausalLM.from_pretrained(str(folder), True, TURBO)
    with pytest.raises((OptionError, NotImplementedError), match=words):
        wrapped.compile(device=device, **CONTEXT, **SLOTS, **options)
    assert wrapped.onnx_path is None


def test_what_cannot_have_them(tmp_path: Path) -> None:
    refused(tmp_path / "cpu", "device 'cpu' runs no projections", "cpu")
    refused(tmp_path / "recurrent", "recurrent states cannot go back", model_type="qwen3_next")
    refused(tmp_path / "rolling", "Pass retain_full_kv=True", model_type="gemma2")
