"""A request: one prompt's tokens, its limits, its timings and the reason it ended."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from QEfficient.generation.history import TokenCounts
from QEfficient.generation.logprobs import TokenLogprob
from QEfficient.generation.masks import TokenMask
from QEfficient.specs import SamplingParams

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error", "exhausted"]
"""`exhausted`: the request's mask let nothing come next."""


@dataclass
class Timings:
    """Readings of `time.perf_counter()`, filled by the engine; and seconds of work."""

    submitted: float | None = None
    started: float | None = None
    """When its first tokens ran."""
    first_token: float | None = None
    finished: float | None = None
    prefill: float = 0.0
    """Its share of the steps in which its prompt ran."""

    @property
    def time_to_first_token(self) -> float | None:
        if self.submitted is None or self.first_token is None:
            return None
        return self.first_token - self.submitted

    @property
    def queued(self) -> float | None:
        """Seconds before its first tokens ran."""
        if self.submitted is None or self.started is None:
            return None
        return self.started - self.submitted


@dataclass(eq=False)
class Request:
    """One sequence on its way. Two requests are the same only if they are one object."""

    prompt: tuple[int, ...]
    params: SamplingParams = SamplingParams()
    eos_ids: tuple[int, ...] = ()
    priority: int = 0
    """Higher goes first; among equals, first come."""
    mask: TokenMask | None = None
    """Which tokens may come next."""
    sample: int = 0
    """Which of the `n` answers to its prompt it is."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    generated: list[int] = field(default_factory=list)
    """Includes the token that ended it."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of each generated token, if the parameters ask for them."""
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    """Of each token of the prompt, likewise; nothing comes before the first, so its place is empty."""
    exhausted: bool = False
    """Whether its mask was found to let nothing come next: it ends when its tokens are taken over."""
    finish_reason: FinishReason | None = None
    timings: Timings = field(default_factory=Timings)
    deadline: float | None = None
    """Seconds after submission; whatever is left then is not computed."""
    salt: str = ""
    """Requests share what was computed for a common beginning only if they have the same."""
    like: Request | None = None
    """Another with the same prompt, which is computed only once for both if the session can share it."""
    cached_tokens: int = 0
    """How many tokens of its prompt did not have to be computed."""

    def __post_init__(self) -> None:
        self.prompt = tuple(int(token) for token in self.prompt)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.generated)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Every token that ends it."""
        return frozenset(self.params.stop_token_ids) | frozenset(() if self.params.ignore_eos else self.eos_ids)

    @cached_property
    def random(self) -> np.random.Generator:
        """Its own source of randomness, so that its tokens do not depend on who shares its batch."""
        if self.params.seed is None:
            return np.random.default_rng()
        seed = self.params.seed % 2**64
        return np.random.default_rng([seed, self.sample] if self.sample else seed)

    @cached_property
    def counts(self) -> TokenCounts:
        """Which tokens it has, and how often."""
        return TokenCounts(self.prompt, self.generated)

    @cached_property
    def bias(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens, and what is added to their logits."""
        pairs = dict(self.params.logit_bias)
        return np.array(list(pairs), np.int64), np.array(list(pairs.values()), np.float64)

    @property
    def most_new(self) -> int | None:
        """How many tokens its parameters let it generate; None: as many as the context holds."""
        params = self.params
        if params.max_new_tokens is not None or params.max_length is None:
            return params.max_new_tokens
        return params.max_length - len(self.prompt)

    @property
    def wants_prompt_logits(self) -> bool:
        """Whether log-probabilities of its prompt are still to be taken. Such a request computes its whole prompt."""
        return self.params.prompt_logprobs is not None and len(self.prompt_logprobs) < len(self.prompt)

    def logits_wanted(self, start: int, count: int) -> int:
        """After how many of `count` tokens from position `start`, counted from the last, it wants logits."""
        through = int(start + count == self.length)
        if not self.wants_prompt_logits:
            return through
        first = max(start, len(self.prompt_logprobs) - 1)  # the logits there are about the next token
        return max(start + count - first, through) if first + 1 < len(self.prompt) else through

    def fork(self, params: SamplingParams | None = None) -> Request:
        """A new request for another sample of the same prompt. Give it another seed, if any."""
        params = self.params if params is None else params
        return Request(
            self.prompt, params, self.eos_ids, self.priority, deadline=self.deadline, salt=self.salt, like=self
        )

    def tokens_from(self, start: int, count: int) -> tuple[int, ...]:
        """Up to `count` tokens of prompt and generated ones, from position `start`."""
        prompt = self.prompt[start : start + count]
        skipped = max(start - len(self.prompt), 0)
        return prompt + tuple(self.generated[skipped : skipped + count - len(prompt)])

    def extend(self, tokens: Iterable[int], ctx_len: int) -> tuple[int, ...]:
        """Keep tokens up to the first that ends the request; return those that were kept."""
        kept = []
        for token in tokens:
            if self.finished:
                break
            self.generated.append(token)
            kept.append(token)
            self.finish_reason = self._reason_to_end(token, ctx_len)
        if self.exhausted and not self.finished:
            self.finish_reason = "exhausted"
        return tuple(kept)

    def shorten(self, count: int) -> None:
        """Keep only the first `count` generated tokens."""
        if len(self.generated) > count:
            if "counts" in vars(self):
                self.counts.shorten(count)
            del self.generated[count:]

    def _reason_to_end(self, token: int, ctx_len: int) -> FinishReason | None:
        if token in self.end_ids:
            return "stop"
        most = self.most_new
        if self.length >= ctx_len or (most is not None and len(self.generated) >= most):
            return "length"
        return None


@dataclass(frozen=True)
class RequestOutput:
    """What came of a request."""

    id: str
    prompt_ids: tuple[int, ...]
    generated_ids: tuple[int, ...]
    finish_reason: FinishReason
    timings: Timings
    text: str = ""
    cached_tokens: int = 0
    sample: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()


def output_of(request: Request, text: str = "") -> RequestOutput:
    """The output of a finished request."""
    assert request.finish_reason is not None, f"request {request.id} has not finished"
    return RequestOutput(
        request.id,
        request.prompt,
        tuple(request.generated),
        request.finish_reason,
        request.timings,
        text,
        request.cached_tokens,
        request.sample,
        tuple(request.logprobs[: len(request.generated)]),
        tuple(request.prompt_logprobs),
    )
