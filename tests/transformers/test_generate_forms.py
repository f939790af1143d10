"""`generate` as it streams: iterators, transformers' streamers, and messages through the chat template."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from small_models import chat_tokenizer, small_llama, word_tokenizer

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.errors import OptionError, PromptError
from QEfficient.generation.masks import OneOf

COUNT = 8
TEXT = "what are you called"
MESSAGES = [{"role": "user", "content": TEXT}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    small_llama().save_pretrained(path)
    chat_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(params=["cpu", "reference"])
def model(folder: Path, request: pytest.FixtureRequest) -> Any:
    model = QEFFAutoModelForCausalLM.from_pretrained(folder)
    model.compile(prefill_seq_len=8, ctx_len=64, device=request.param)
    return model


def whole(model: Any, prompt: Any, **options: Any) -> str:
    ((text,),) = model.generate(prompt, generation_len=COUNT, **options).generated_texts
    return str(text)


def running(model: Any) -> int:
    """How many requests the model's engine has."""
    return int(model._session.running.statistics.running + model._session.running.statistics.waiting)


# The iterator


def test_the_pieces_are_the_text(model: Any, tokenizer: Any) -> None:
    wanted = whole(model, TEXT)
    ids = tokenizer(TEXT)["input_ids"]
    for pieces in (
        model.generate(TEXT, generation_len=COUNT, stream=True),
        model.generate(prompts=[TEXT], generation_len=COUNT, stream=True),
        model.generate(tokenizer, TEXT, generation_len=COUNT, stream=True),
        model.generate(input_ids=[ids], generation_len=COUNT, stream=True),
        model.generate(tokenizer(TEXT, return_tensors="pt"), generation_len=COUNT, stream=True),
    ):
        assert isinstance(pieces, Iterator)
        found = list(pieces)
        assert len(found) == COUNT and "".join(found) == wanted != ""


def test_the_first_piece_comes_before_the_others_are_computed(model: Any) -> None:
    pieces = model.generate(TEXT, generation_len=COUNT, stream=True)
    assert next(pieces)
    assert model._session.running.statistics.generated < COUNT and running(model) == 1


def test_closing_the_iterator_ends_the_request(model: Any) -> None:
    wanted = whole(model, TEXT)
    pieces = model.generate(TEXT, generation_len=COUNT, stream=True)
    next(pieces)
    pieces.close()
    assert running(model) == 0 and list(pieces) == []
    assert whole(model, TEXT) == wanted


def test_two_iterators_do_not_disturb_one_another(model: Any) -> None:
    other = "My name is"
    wanted = whole(model, TEXT), whole(model, other)
    first = model.generate(TEXT, generation_len=COUNT, stream=True)
    begun = next(first)
    second = model.generate(other, generation_len=COUNT, stream=True)
    between = next(second)
    assert whole(model, TEXT) == wanted[0]
    assert (begun + "".join(first), between + "".join(second)) == wanted


def test_a_stop_string_ends_the_pieces(model: Any) -> None:
    words = whole(model, TEXT).split()
    pieces = model.generate(TEXT, generation_len=COUNT, stream=True, stop=words[3])
    assert "".join(pieces).split() == words[:3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [TEXT, TEXT]}, "stream=True follows one prompt, but 2 were given"),
        ({"prompts": TEXT, "n": 2, "temperature": 1.0}, "follows one answer, but n is 2"),
        ({"prompts": TEXT, "streamer": object()}, "stream=True and streamer= were both given"),
        ({"input_ids": [[5] * 70]}, "prompt has 70 tokens.*ctx_len 64"),
    ],
)
def test_what_cannot_be_streamed_is_refused_at_once(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(**options, stream=True)


def test_without_a_tokenizer_there_is_no_text_to_stream() -> None:
    model = QEFFAutoModelForCausalLM(small_llama())
    with pytest.raises(OptionError, match="no text to stream: pass tokenizer="):
        model.generate(input_ids=[[5, 6]], stream=True)
    assert len(list(model.generate(chat_tokenizer(), TEXT, generation_len=COUNT, stream=True))) == COUNT


# transformers' streamers


def test_text_streamer_prints(model: Any, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = whole(model, TEXT)
    capsys.readouterr()
    whole(model, TEXT, streamer=transformers.TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out == wanted + "\n"
    whole(model, TEXT, streamer=transformers.TextStreamer(tokenizer))
    assert capsys.readouterr().out.split() == [*TEXT.split(), *wanted.split()]


def test_text_iterator_streamer_in_a_thread(model: Any, tokenizer: Any) -> None:
    wanted = whole(model, TEXT)
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = Thread(target=model.generate, args=(TEXT,), kwargs={"generation_len": COUNT, "streamer": streamer})
    thread.start()
    pieces = [piece for piece in streamer if piece]
    thread.join()
    assert "".join(pieces) == wanted and len(pieces) > 1


def test_who_waits_for_a_streamer_learns_of_an_error(model: Any, tokenizer: Any) -> None:
    streamer = transformers.TextIteratorStreamer(tokenizer, timeout=60)
    with pytest.raises(PromptError, match="70 tokens"):
        model.generate(input_ids=[[5] * 70], streamer=streamer)
    assert len(list(streamer)) > 0  # the prompt, and the end


@pytest.mark.parametrize("options", [{"prompts": [TEXT, TEXT]}, {"prompts": TEXT, "n": 2, "temperature": 1.0}])
def test_a_streamer_follows_one_answer(model: Any, tokenizer: Any, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="a streamer follows one"):
        model.generate(**options, streamer=transformers.TextStreamer(tokenizer))


@pytest.mark.parametrize(
    ("streamer", "found"),
    [
        (1, "1 without put"),
        (SimpleNamespace(put=print), r"namespace\(.*\) without end"),
        (transformers.TextStreamer, "the class TextStreamer"),
    ],
    ids=["number", "half", "class"],
)
def test_what_is_no_streamer_is_refused_before_any_work(folder: Path, streamer: Any, found: str) -> None:
    model = QEFFAutoModelForCausalLM.from_pretrained(str(folder))
    with pytest.raises(OptionError, match=f"an object with the methods put and end, but {found} was given"):
        model.generate(TEXT, streamer=streamer)
    assert model.onnx_path is None and model.compiled is None


# Messages


def test_messages_go_through_the_template(model: Any, tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text == f"user {TEXT} assistant"
    wanted = whole(model, text)
    assert whole(model, MESSAGES) == wanted != whole(model, TEXT)
    assert whole(model, [MESSAGES]) == wanted
    assert "".join(model.generate(MESSAGES, generation_len=COUNT, stream=True)) == wanted
    assert whole(model, tuple(MESSAGES), chat_template_kwargs={"mark": "word20"}) == whole(model, f"user {TEXT} word20")


def test_several_conversations(model: Any) -> None:
    other = [{"role": "system", "content": "My name is"}, *MESSAGES]
    found = model.generate(prompts=[MESSAGES, other], generation_len=COUNT).generated_texts
    assert found == [[whole(model, MESSAGES)], [whole(model, other)]]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "wizard", "content": "hi"}], "the chat template refuses these messages: no such role"),
        ([{"content": "hi"}], "a message is a dict with 'role' and 'content', but one has content"),
        ({"role": "user", "content": "hi"}, "messages are given as a list"),
    ],
)
def test_messages_that_cannot_be_used(model: Any, messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(messages)


def test_messages_need_a_template(model: Any) -> None:
    with pytest.raises(PromptError, match="no chat template"):
        model.generate(word_tokenizer(), MESSAGES)


def test_the_turns_before_are_not_computed_again(folder: Path) -> None:
    model = QEFFAutoModelForCausalLM.from_pretrained(folder)
    model.compile(ctx_len=128, device="cpu")
    messages = [{"role": "user", "content": " ".join(["what"] * 40)}]
    ((first,),) = model.generate(messages, generation_len=COUNT).outputs
    messages += [{"role": "assistant", "content": first.text}, *MESSAGES]
    ((second,),) = model.generate(messages, generation_len=COUNT).outputs
    assert (first.cached_tokens, second.cached_tokens) == (0, 32)


# Masks


def test_a_mask_for_each_answer(model: Any, tokenizer: Any) -> None:
    """Whatever the model would say, it says one of these."""
    choices = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("what you are", "you called")]
    made: list[OneOf] = []

    def mask() -> OneOf:
        made.append(OneOf(choices))
        return made[-1]

    info = model.generate(prompts=[TEXT, TEXT + TEXT], generation_len=COUNT, mask=mask)
    assert len(made) == 2
    assert {texts[0].strip() for texts in info.generated_texts} <= {"what you are", "you called"}
    pieces = "".join(model.generate(TEXT, generation_len=COUNT, stream=True, mask=mask))
    assert pieces.strip() == info.generated_texts[0][0].strip()
