from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from QEfficient.devices import Batch
from QEfficient.devices.null import NullSession
from QEfficient.errors import OptionError, PromptError
from QEfficient.generation.engine import Engine
from QEfficient.generation.masks import OneOf
from QEfficient.generation.text import Detokenizer, StopStrings, TextGenerator, TextWriter
from QEfficient.specs import CompileSpec, SamplingParams

EOS = 256
MULTIBYTE = "a é 你好 🙂👍🏽 \N{ZERO WIDTH JOINER}é z"


class ByteTokenizer:
    """One token a byte, and one that ends; knows nothing of padding."""

    eos_token_id: int | None = EOS
    chat_template: str | None = None

    def __call__(self, text: str, /, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool = False) -> str:
        assert skip_special_tokens
        return bytes(token for token in token_ids if token < EOS).decode(errors="replace")

    def apply_chat_template(self, messages: Any, tokenize: bool, add_generation_prompt: bool, mark: str = "") -> str:
        return "".join(m["content"] + mark for m in messages) + ">" * add_generation_prompt


class ByteFallbackTokenizer(ByteTokenizer):
    """As sentencepiece: a run of bytes that is no text is all replacement characters, one a byte."""

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool = False) -> str:
        raw = bytes(token for token in token_ids if token < EOS)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "\N{REPLACEMENT CHARACTER}" * len(raw)


class Parrot(NullSession):
    """Says a text, whatever the prompt, then ends."""

    def __init__(self, text: str) -> None:
        super().__init__(CompileSpec(full_batch_size=2, prefill_seq_len=8, ctx_len=256), EOS + 1)
        self._script = [*text.encode(), EOS]
        self._prompt: dict[int, int] = {}

    def run(self, batch: Batch) -> np.ndarray:
        logits = super().run(batch)
        for line, row in zip(logits, (row for row in batch.rows if row.logits), strict=True):
            if row.start == 0:
                self._prompt[row.slot] = len(row.tokens)
            line[self._script[row.start + len(row.tokens) - self._prompt[row.slot]]] = 100.0
        return logits


def generator(text: str) -> TextGenerator:
    return TextGenerator(Engine(Parrot(text)), ByteTokenizer())


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), ByteFallbackTokenizer()], ids=["bytes", "fallback"])
def test_no_piece_splits_a_character(tokenizer: ByteTokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push([token]) for token in MULTIBYTE.encode()]
    assert "".join(pieces) == MULTIBYTE
    assert all(len(piece) <= 1 for piece in pieces)


@pytest.mark.parametrize("size", [2, 3, 5, 100])
def test_several_tokens_at_once(size: int) -> None:
    detokenizer, raw = Detokenizer(ByteTokenizer()), MULTIBYTE.encode()
    pieces = [detokenizer.push(raw[start : start + size]) for start in range(0, len(raw), size)]
    assert "".join(pieces) == MULTIBYTE


def test_broken_bytes_do_not_block() -> None:
    detokenizer = Detokenizer(ByteTokenizer())
    pieces = [detokenizer.push([token]) for token in b"\x80\x80\x80\x80\x80\x80\x80\x80"]
    assert "".join(pieces)
    assert "".join(pieces) + detokenizer.push(b"end") + detokenizer.flush() == "\N{REPLACEMENT CHARACTER}" * 8 + "end"


def test_flush_gives_the_unfinished_character() -> None:
    detokenizer = Detokenizer(ByteTokenizer())
    assert detokenizer.push("a🙂".encode()[:-1]) == "a"
    assert detokenizer.flush() == "\N{REPLACEMENT CHARACTER}"
    assert detokenizer.flush() == ""


def pushed(stops: Sequence[str], pieces: Sequence[str]) -> tuple[list[str], bool]:
    filter_ = StopStrings(stops)
    texts = [filter_.push(piece) for piece in pieces]
    return [*texts, filter_.flush()], filter_.found


@pytest.mark.parametrize(
    ("stops", "pieces", "texts", "found"),
    [
        ([], ["ab", "c"], ["ab", "c", ""], False),
        ([""], ["ab"], ["ab", ""], False),
        (["END"], ["a E", "N", "D b"], ["a ", "", "", ""], True),
        (["END"], ["a E", "N", "X b"], ["a ", "", "ENX b", ""], False),
        (["END"], ["a EN"], ["a ", "EN"], False),
        (["END"], ["EEN", "D"], ["E", "", ""], True),
        (["aab"], ["a", "a", "a", "b", "c"], ["", "", "a", "", "", ""], True),
        (["xyz", "yq"], ["xy", "q"], ["", "x", ""], True),
        (["b", "ab"], ["zab"], ["z", ""], True),
        (["\n\n"], ["one\n", "two\n", "\n"], ["one", "\ntwo", "", ""], True),
    ],
)
def test_stop_strings(stops: list[str], pieces: list[str], texts: list[str], found: bool) -> None:
    assert pushed(stops, pieces) == (texts, found)


def test_writer_joins_both() -> None:
    writer = TextWriter(ByteTokenizer(), ["🙂!"])
    pieces = [writer.push([token]) for token in "né🙂!?".encode()]
    assert writer.stopped and writer.text == "".join(pieces) == "né"
    unfinished = TextWriter(ByteTokenizer(), ["🙂!"])
    assert unfinished.push("né🙂".encode()) == "né"
    assert unfinished.push([], last=True) == "🙂"


def test_generate_texts() -> None:
    outputs = generator(MULTIBYTE).generate_texts(["one", "two", "three"])
    assert [output.text for output in outputs] == [MULTIBYTE] * 3
    assert {output.finish_reason for output in outputs} == {"stop"}
    assert outputs[2].prompt_ids == tuple(b"three")
    assert outputs[0].generated_ids[-1] == EOS


def test_generate_ids_with_eos_of_the_model() -> None:
    generating = TextGenerator(Engine(Parrot("abc")), ByteTokenizer(), eos_token_ids=(ord("b"), 5))
    (output,) = generating.generate_ids([[1, 2]])
    assert output.text == "ab" and output.finish_reason == "stop"


@pytest.mark.parametrize("length", [None, 7])
def test_stop_string_ends_the_request(length: int | None) -> None:
    params = SamplingParams(stop=("wo",), max_new_tokens=length)
    engine = Engine(Parrot("hello world"))
    (output,) = TextGenerator(engine, ByteTokenizer()).generate_texts(["x"], params)
    if length is None:
        assert (output.text, output.finish_reason, len(output.generated_ids)) == ("hello ", "stop", 8)
    else:
        assert (output.text, output.finish_reason) == ("hello w", "length")  # what was held back comes out
    assert engine.idle


def test_stop_string_goes_before_length() -> None:
    (output,) = generator("hello world").generate_texts(["x"], SamplingParams(stop=("wo",), max_new_tokens=8))
    assert (output.text, output.finish_reason) == ("hello ", "stop")


def test_several_answers() -> None:
    session = NullSession(CompileSpec(full_batch_size=2, prefill_seq_len=8, ctx_len=64), EOS + 1)
    generating = TextGenerator(Engine(session), ByteTokenizer())
    params = SamplingParams(n=3, temperature=8.0, seed=1, max_new_tokens=6)
    outputs = generating.generate_texts(["one", "two"], params)
    assert [(output.prompt_ids, output.sample) for output in outputs] == [
        (tuple(text), sample) for text in (b"one", b"two") for sample in range(3)
    ]
    assert len({output.generated_ids for output in outputs}) == 6
    (alone,) = generating.generate_texts(["one"], replace(params, n=1))
    assert alone.generated_ids == outputs[0].generated_ids
    with pytest.raises(OptionError, match="n is 3"):
        generating.generate_texts(["one"], params, RecordingStreamer())


def test_logprobs_of_a_prompt_that_no_run_gives() -> None:
    with pytest.raises(OptionError, match="prompt_logprobs needs the logits of every token of the prompt"):
        generator("hello").generate_texts(["one"], SamplingParams(prompt_logprobs=1))


def test_a_mask_for_each_answer() -> None:
    generating = generator("hello")
    requests = generating.requests([1, 2], SamplingParams(n=2, logprobs=0), mask=lambda: OneOf([b"ab"], [EOS]))
    assert requests[0].mask is not requests[1].mask
    texts = dict.fromkeys(requests, "")
    for event in generating.stream(requests):
        texts[event.request] += event.text
    assert list(texts.values()) == ["ab", "ab"]


def test_stream_text_and_leaving_early() -> None:
    generating = generator("hello world")
    assert list(generating.stream_text("x")) == list("hello world")
    pieces: Iterator[str] = generating.stream_text("x")
    assert next(pieces) == "h"
    del pieces
    assert [output.text for output in generating.generate_texts(["y"])] == ["hello world"]


def test_stream_of_several() -> None:
    generating = generator("né")
    requests = [generating.request(generating.encode(text)) for text in ("a", "b", "c")]
    texts = dict.fromkeys(requests, "")
    for event in generating.stream(requests):
        texts[event.request] += event.text
    assert list(texts.values()) == ["né"] * 3


def test_encode_chat() -> None:
    generating = generator("x")
    with pytest.raises(PromptError, match="no chat template"):
        generating.encode_chat([{"role": "user", "content": "hi"}])
    generating._tokenizer.chat_template = "there is one"  # type: ignore[attr-defined]
    assert generating.encode_chat([{"role": "user", "content": "hi"}], {"mark": "!"}) == list(b"hi!>")


class RecordingStreamer:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def put(self, value: np.ndarray) -> None:
        self.seen.append(value.tolist())

    def end(self) -> None:
        self.seen.append("end")


def test_streamer() -> None:
    streamer = RecordingStreamer()
    generator("ab").generate_texts(["xyz"], streamer=streamer)
    assert streamer.seen == [[list(b"xyz")], [ord("a")], [ord("b")], [EOS], "end"]
    with pytest.raises(OptionError, match="2 were given"):
        generator("ab").generate_texts(["x", "y"], streamer=streamer)


def test_with_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)} | {"<end>": EOS}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    assert tokenizer.pad_token is None

    session = Parrot("")
    session._script = [*tokenizer(MULTIBYTE)["input_ids"], EOS]
    streamer = transformers.TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    (output,) = TextGenerator(Engine(session), tokenizer).generate_texts(["hé"], streamer=streamer)
    assert output.text == MULTIBYTE == tokenizer.decode(output.generated_ids, skip_special_tokens=True)
    assert capsys.readouterr().out == MULTIBYTE + "\n"


def test_torch_is_not_imported() -> None:
    modules = "QEfficient.generation.text, QEfficient.generation.metrics, QEfficient.devices.null"
    code = f"import sys, {modules}, QEfficient.devices.reference; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
