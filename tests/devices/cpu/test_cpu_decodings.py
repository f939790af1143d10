"""Tokens tried ahead on the CPU device: they come sooner, and are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import Exported

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices import Session, get_device
from QEfficient.errors import OptionError
from QEfficient.generation.decoding.draft_model import DraftModel
from QEfficient.generation.decoding.prompt_lookup import PromptLookup
from QEfficient.generation.engine import Engine
from QEfficient.generation.request import Request
from QEfficient.program import load_compiled
from QEfficient.specs import SamplingParams

PHRASE = [7, 150, 33, 2, 90]
PROMPTS = [PHRASE * 5, [211, 5, 64, *PHRASE, 5, 64], [250, 1], PHRASE * 8 + [9], PHRASE * 5]
CHOICES: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7, "seed": 3, "top_k": 20},
    {"repetition_penalty": 1.2, "logprobs": 1},
    {"temperature": 1.0, "seed": 4, "presence_penalty": 0.5, "min_new_tokens": 4},
)


def requests() -> list[Request]:
    params = [SamplingParams(max_new_tokens=32, **choice) for choice in CHOICES]
    return [Request(tuple(ids), one) for one in params for ids in PROMPTS]


@pytest.fixture(scope="module")
def session(llama: Exported) -> Iterator[Session]:
    """Short of blocks."""
    with get_device("cpu").load(llama.compile(weight_format="f32", kv_cache_tokens=256, max_tokens=24)) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain(session: Session) -> list[tuple[int, ...]]:
    return [output.generated_ids for output in Engine(session).generate(requests())]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("make", ["prompt lookup", "draft model"])
def test_the_same_tokens(llama: Exported, session: Session, plain: Any, make: str, adaptive: bool) -> None:
    if make == "prompt lookup":
        engine = Engine(session, PromptLookup(8, adaptive=adaptive))
        assert [output.generated_ids for output in engine.generate(requests())] == plain
    else:
        compiled = llama.compile(weight_format="int8", batch_size=3, max_tokens=16, linear_kernel="openvino")
        with get_device("cpu").load(compiled) as drafts:
            engine = Engine(session, DraftModel(drafts, 5, adaptive=adaptive))
            assert [output.generated_ids for output in engine.generate(requests())] == plain
    counts = engine.statistics
    assert counts.cache.evictions and (adaptive or counts.accepted > 20)


def test_a_copy_as_draft_model_is_right(llama: Exported) -> None:
    compiled = llama.compile(weight_format="f32")
    with get_device("cpu").load(compiled) as session, get_device("cpu").load(compiled) as drafts:
        engine = Engine(session, DraftModel(drafts, 6, adaptive=False))
        engine.generate([replace(one, params=SamplingParams(max_new_tokens=32)) for one in requests()[:5]])
        assert engine.statistics.acceptance > 0.95  # the last bits of logits depend on how many rows run


class Model:
    """The auto-class over the model of the fixture, and a smaller one."""

    def __init__(self, llama: Exported) -> None:
        self.large = self._compiled(llama.model)
        config = transformers.LlamaConfig(**{**llama.model.config.to_dict(), "num_hidden_layers": 1})
        torch.manual_seed(1)
        self.small = self._compiled(transformers.LlamaForCausalLM(config).eval())

    @staticmethod
    def _compiled(model: Any) -> Any:
        wrapped = QEFFAutoModelForCausalLM(model)
        wrapped.compile(device="cpu", num_threads=1, ctx_len=96, batch_size=4, weight_format="f32")
        return wrapped


@pytest.fixture(scope="module")
def model(llama: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEFF_HOME", str(tmp_path_factory.mktemp("home")))
        yield Model(llama)


ASKED: dict[str, Callable[[Model], dict[str, Any]]] = {
    "by name": lambda model: {"decoding": "prompt_lookup"},
    "by transformers' option": lambda model: {"prompt_lookup_num_tokens": 4},
    "by a config": lambda model: {"generation_config": {"prompt_lookup_num_tokens": 4}},
    "by an object": lambda model: {"decoding": PromptLookup(3, adaptive=False)},
    "by a draft model": lambda model: {"draft_model": model.small},
    "by transformers' name": lambda model: {"assistant_model": model.small},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_generate_tries_ahead(model: Model, asked: Callable[[Model], dict[str, Any]]) -> None:
    options = {"input_ids": PROMPTS[:2], "generation_len": 24, "temperature": 0}
    expected = model.large.generate(**options)
    found = model.large.generate(**options, **asked(model))
    assert found.generated_ids == expected.generated_ids
    assert expected.drafted == 0 and "Drafts" not in repr(expected)
    assert found.drafted >= found.accepted and ("Drafts: " in repr(found)) == bool(found.drafted)


def test_what_was_learnt_stays(model: Model) -> None:
    options: dict[str, Any] = {"input_ids": PROMPTS[:1], "generation_len": 8, "decoding": "prompt_lookup"}
    model.large.generate(**options)
    kept = model.large._session.decoding
    model.large.generate(**options)
    assert model.large._session.decoding is kept
    model.large.generate(**options | {"decoding": "plain"})
    assert model.large._session.decoding is not kept


class Numbers:
    """A tokenizer whose text is the numbers of the tokens."""

    eos_token_id = None

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool = False) -> str:
        return "".join(f"{token} " for token in token_ids)


def test_an_open_iterator_goes_on_with_the_decoding_of_the_latest_call(model: Model) -> None:
    long: dict[str, Any] = {"tokenizer": Numbers(), "input_ids": PROMPTS[:1], "temperature": 0, "generation_len": 60}
    short = {**long, "input_ids": PROMPTS[1:2], "generation_len": 4}
    ((expected,),) = model.large.generate(**long).outputs
    with get_device("cpu").load(model.small.compiled) as session:
        own = DraftModel(session, 3, adaptive=False)
        pieces = model.large.generate(**long, stream=True, decoding=own)
        found, drafted = next(pieces), []
        for asked in (
            {"draft_model": model.small},
            {"decoding": PromptLookup(2, adaptive=False)},
            {},
            {"decoding": own},
        ):
            drafted.append(model.large.generate(**short, **asked).drafted)
            found += next(pieces)
        assert not model.large._session.running.idle
        with pytest.raises(OptionError, match="no decoding 'prompt_look'"):
            model.large.generate(**short, decoding="prompt_look")
        assert found + "".join(pieces) == expected.text
    assert drafted[2] == 0 < drafted[3] < model.large._session.running.statistics.drafted
    assert model.large.generate(**long).drafted == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"decoding": "prompt_look"}, "no decoding 'prompt_look'.*Did you mean"),
        ({"decoding": 3}, "must be a name or a Decoding, not int"),
        ({"decoding": "plain", "prompt_lookup_num_tokens": 4}, "goes with prompt lookup"),
        ({"prompt_lookup_num_tokens": 0}, "positive whole number, not 0"),
        ({"draft_model": "small"}, "must be a QEFFAutoModelForCausalLM, not str"),
    ],
)
def test_wrong_wishes_are_refused(model: Model, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        model.large.generate(input_ids=PROMPTS[:1], generation_len=4, **options)


def test_wrong_draft_models_are_refused(model: Model, llama: Exported) -> None:
    given: dict[str, Any] = {"input_ids": PROMPTS[:1], "generation_len": 4}
    with pytest.raises(OptionError, match="Give one of them"):
        model.large.generate(**given, draft_model=model.small, decoding="prompt_lookup")
    with pytest.raises(OptionError, match="two names of one thing"):
        model.large.generate(**given, draft_model=model.small, assistant_model=model.large)
    with pytest.raises(OptionError, match="not compiled"):
        model.large.generate(**given, draft_model=QEFFAutoModelForCausalLM(llama.model))
    config = transformers.LlamaConfig(**{**llama.model.config.to_dict(), "num_hidden_layers": 1, "vocab_size": 299})
    with pytest.raises(OptionError, match="vocabulary of 299 tokens, but LlamaForCausalLM has 300"):
        model.large.generate(**given, draft_model=Model._compiled(transformers.LlamaForCausalLM(config)))


def test_sessions_that_cannot_go_back_are_named(hybrid: Exported, tmp_path: Path) -> None:
    wrapped: Any = hybrid._wrapped
    options: dict[str, Any] = {"input_ids": [[3, 9, 4, 3, 9]], "generation_len": 4}
    wrapped.compile(compile_dir=tmp_path, device="cpu", num_threads=1, ctx_len=32)
    with pytest.raises(OptionError, match="recurrent states"):
        wrapped.generate(**options, decoding="prompt_lookup")
    wrapped.compile(compile_dir=tmp_path, device="reference", ctx_len=32)
    with pytest.raises(OptionError, match="device 'reference': .* Compile it with num_speculative_tokens"):
        wrapped.generate(**options, prompt_lookup_num_tokens=4)
    assert wrapped.generate(**options).generated_ids


def test_a_models_own_config_may_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama: Exported) -> None:
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "home"))
    llama.model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"prompt_lookup_num_tokens": 3}')
    model: Any = QEFFAutoModelForCausalLM.from_pretrained(str(tmp_path / "model"))
    options: dict[str, Any] = {"input_ids": PROMPTS[:1], "generation_len": 4}
    folder = model.compile(device="cpu", num_threads=1, ctx_len=48)
    assert load_compiled(folder).program.model.generation["prompt_lookup_num_tokens"] == 3
    model.generate(**options)
    assert model._session.decoding.lookahead == 3
    model.generate(**options, decoding="plain")
    assert not hasattr(model._session.decoding, "lookahead")
    model.compile(device="reference", ctx_len=48)
    assert model.generate(**options).drafted == 0
