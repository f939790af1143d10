"""Text in, text out: templates and tokenisation before the engine; detokenisation and stop strings after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from QEfficient.errors import OptionError, PromptError
from QEfficient.generation.engine import Engine, Event
from QEfficient.generation.masks import MaskedParams, TokenMask
from QEfficient.generation.recording import check_logprobs
from QEfficient.generation.request import FinishReason, Request, RequestOutput, output_of
from QEfficient.specs import SamplingParams

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
LONGEST_WAIT = 3
"""A character has at most four bytes: after three tokens without one, the bytes are broken rather than unfinished."""

GREEDY = SamplingParams()

MaskMaker = Callable[[], TokenMask]
"""Makes the mask of one answer."""


class Tokenizer(Protocol):
    """What is used of transformers' tokenizers."""

    eos_token_id: int | None

    def __call__(self, text: str, /, *, add_special_tokens: bool = True) -> Mapping[str, Any]: ...

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool = False) -> str: ...


class TokensOnly:
    """Stands in where no tokenizer is: tokens come and go as they are, and there is no text."""

    eos_token_id: int | None = None

    def __call__(self, text: str, /, *, add_special_tokens: bool = True) -> Mapping[str, Any]:
        raise OptionError("the model came without a tokenizer: pass tokenizer=, or give input_ids= in place of text.")

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool = False) -> str:
        return ""


class Streamer(Protocol):
    """transformers' streamers: prompt tokens `[1, n]` first, then new tokens `[1]`."""

    def put(self, value: np.ndarray, /) -> None: ...

    def end(self) -> None: ...


def check_streamer(streamer: Any) -> None:
    """Refuse what cannot be fed, before there is something to feed it with."""
    lacking = [name for name in ("put", "end") if not callable(getattr(streamer, name, None))]
    if streamer is None or not (lacking or isinstance(streamer, type)):
        return
    found = f"the class {streamer.__name__}" if isinstance(streamer, type) else f"{streamer!r} without {lacking[0]}"
    raise OptionError(
        f"streamer must be an object with the methods put and end, but {found} was given. Pass a streamer of"
        " transformers, such as TextStreamer(tokenizer), or stream=True for an iterator."
    )


class Detokenizer:
    """Turns tokens into pieces of text, and never splits a character.

    A token's text depends on the tokens before it (spaces, bytes of one character), so a short window of earlier tokens
    is decoded with and without the new ones, and the difference is the new text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._read = 0
        self._read_text = ""

    def push(self, tokens: Iterable[int]) -> str:
        """The text that became certain."""
        return "".join(self._push_one(token) for token in tokens)

    def flush(self) -> str:
        """What was held back, as it stands."""
        return self._advance(self._decode())

    def _push_one(self, token: int) -> str:
        self._window.append(token)
        text = self._decode()
        waiting = len(self._window) - self._read <= LONGEST_WAIT
        if len(text) <= len(self._read_text) or (text.endswith(UNFINISHED) and waiting):
            return ""
        return self._advance(text)

    def _advance(self, text: str) -> str:
        piece = text[len(self._read_text) :]
        self._window = self._window[self._read :]
        self._read, self._read_text = len(self._window), self._decode()
        return piece

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=True)


class StopStrings:
    """Ends text before the first stop string; holds back what may become one."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(filter(None, stops))
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that is certainly before any stop string."""
        if self.found:
            return ""
        self._held += text
        starts = [start for stop in self._stops if (start := self._held.find(stop)) >= 0]
        self.found = bool(starts)
        if self.found:
            return self._held[: min(starts)]
        return self._release(len(self._held) - self._possible())

    def flush(self) -> str:
        """What was held back, for nothing follows."""
        return "" if self.found else self._release(len(self._held))

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _possible(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(map(len, self._stops), default=0)
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in lengths if any(s.startswith(self._held[-n:]) for s in self._stops)), 0)


class TextWriter:
    """The text of one request, piece by piece."""

    def __init__(self, tokenizer: Tokenizer, stops: Iterable[str] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(stops)
        self._pieces: list[str] = []
        self.read = 0
        """How many tokens it has taken in: none behind a stop string."""

    @property
    def text(self) -> str:
        """All pieces so far."""
        return "".join(self._pieces)

    @property
    def stopped(self) -> bool:
        """Whether a stop string came up."""
        return self._stops.found

    def push(self, tokens: Iterable[int], last: bool = False) -> str:
        """The text that became certain; with `last` everything."""
        piece = ""
        for token in tokens:
            if self.stopped:
                break
            piece += self._stops.push(self._detokenizer.push([token]))
            self.read += 1
        if last:
            piece += self._stops.push(self._detokenizer.flush()) + self._stops.flush()
        self._pieces.append(piece)
        return piece


@dataclass(frozen=True)
class TextEvent:
    """New text of a request, possibly empty; the last event of a request says why it ended."""

    request: Request
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None


class TextGenerator:
    """An engine with a tokenizer."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, eos_token_ids: Sequence[int] | None = None) -> None:
        """`eos_token_ids`: the model's; default the tokenizer's own."""
        self._engine = engine
        self._tokenizer = tokenizer
        own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self._eos_ids = own if eos_token_ids is None else tuple(eos_token_ids)

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be encoded."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Text as tokens."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None) -> list[int]:
        """Messages as tokens by the tokenizer's chat template; `options` (`tools`, …) go to the template."""
        if not self.has_chat_template:
            raise PromptError(
                "messages were given, but the tokenizer has no chat template. Give a plain prompt instead."
            )
        given = {"add_generation_prompt": True, **(options or {})}
        # The template writes the special tokens itself.
        return self.encode(self._rendered(messages, given), add_special_tokens=False)

    def _rendered(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        from jinja2.exceptions import TemplateError  # what transformers renders templates with

        tokenizer: Any = self._tokenizer
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except TemplateError as error:  # many templates refuse roles that they do not know, or their order
            raise PromptError(f"the chat template refuses these messages: {error}") from error

    def request(self, ids: Sequence[int], params: SamplingParams = GREEDY, priority: int = 0) -> Request:
        """A request that ends at the model's end-of-sequence tokens: the first answer, where several are wanted."""
        return Request(tuple(ids), params, self._eos_ids, priority, _own_mask(params, None))

    def requests(
        self,
        ids: Sequence[int],
        params: SamplingParams = GREEDY,
        priority: int = 0,
        mask: MaskMaker | None = None,
    ) -> list[Request]:
        """A request for each of the `n` answers that `params` wants; `mask` makes one for each of them."""
        answers: list[Request] = []
        for sample in range(params.n):
            own_mask, first = _own_mask(params, mask), answers[0] if answers else None
            answers.append(Request(tuple(ids), params, self._eos_ids, priority, own_mask, sample, like=first))
        check_logprobs(answers[0], self._engine.session.limits)
        return answers

    def writer(self, request: Request) -> TextWriter:
        """For those who step the engine themselves."""
        return TextWriter(self._tokenizer, request.params.stop)

    def stream(self, requests: Sequence[Request]) -> Iterator[TextEvent]:
        """Run requests, yielding their text as it comes; closing the iterator cancels those that are left."""
        return self._stream({request: self.writer(request) for request in requests})

    def read(self, event: Event, writer: TextWriter) -> TextEvent:
        """What an event of the engine says, as text; a stop string ends the request. For those who step the engine."""
        request, known = event.request, writer.read
        text = writer.push(event.tokens, last=request.finished)
        if writer.stopped:
            self._engine.finish(request, "stop")
            request.finish_reason = "stop"  # a stop string goes before a length reached with the same token
            request.shorten(writer.read)  # several tokens may have come at once
        return TextEvent(request, event.tokens[: writer.read - known], text, request.finish_reason)

    def stream_text(self, prompt: str, params: SamplingParams = GREEDY) -> Iterator[str]:
        """Run one prompt, yielding its text in pieces; closing the iterator cancels what is left."""
        return self.stream_ids(self.encode(prompt), params)

    def stream_ids(
        self, ids: Sequence[int], params: SamplingParams = GREEDY, mask: MaskMaker | None = None
    ) -> Iterator[str]:
        """As `stream_text`, from tokens. What cannot run is refused at once, not with the first piece."""
        if params.n != 1:
            raise OptionError(f"an iterator of text follows one answer, but n is {params.n}. Leave it out.")
        if isinstance(self._tokenizer, TokensOnly):
            raise OptionError("the model came without a tokenizer, so there is no text to stream: pass tokenizer=.")
        (request,) = self.requests(ids, params, mask=mask)
        self._engine.scheduler.check(request)
        return (event.text for event in self.stream([request]) if event.text)

    def generate_texts(
        self, prompts: Sequence[str], params: SamplingParams = GREEDY, streamer: Streamer | None = None
    ) -> list[RequestOutput]:
        """Run prompts to their ends; outputs in the order of the prompts, the `n` answers to one side by side."""
        return self.generate_ids([self.encode(prompt) for prompt in prompts], params, streamer)

    def generate_ids(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] = GREEDY,
        streamer: Streamer | None = None,
        mask: MaskMaker | None = None,
    ) -> list[RequestOutput]:
        """As `generate_texts`, from tokens. `params`: for all prompts, or for each. A streamer follows one prompt."""
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        if streamer is not None and len(prompts) != 1:
            raise OptionError(f"a streamer follows one prompt, but {len(prompts)} were given. Leave it out.")
        if streamer is not None and each[0].n != 1:
            raise OptionError(f"a streamer follows one answer, but n is {each[0].n}. Leave it out.")
        writers = {
            request: self.writer(request)
            for ids, own in zip(prompts, each, strict=True)
            for request in self.requests(ids, own, mask=mask)
        }
        if streamer is None:
            for _ in self._stream(writers):
                pass
        else:
            self._feed(streamer, writers)
        return [output_of(request, writer.text) for request, writer in writers.items()]

    def _feed(self, streamer: Streamer, writers: Mapping[Request, TextWriter]) -> None:
        try:
            for request in writers:
                streamer.put(np.array([request.prompt], np.int64))
            for event in self._stream(writers):
                for token in event.tokens:
                    streamer.put(np.array([token], np.int64))
        finally:
            streamer.end()  # also after an error: another thread may wait for the end

    def _stream(self, writers: Mapping[Request, TextWriter]) -> Iterator[TextEvent]:
        for event in self._engine.stream(list(writers)):
            writer = writers[event.request]
            if not writer.stopped:  # else its end was told with the stop string
                yield self.read(event, writer)


def _own_mask(params: SamplingParams, mask: MaskMaker | None) -> TokenMask | None:
    """What one answer may say: a mask made for it, or that of its parameters."""
    own = params.mask if isinstance(params, MaskedParams) else None
    if own is not None and mask is not None:
        raise OptionError("mask and the token_bitmasks of sampling_params both say what may come. Leave one out.")
    return mask() if mask is not None else own
