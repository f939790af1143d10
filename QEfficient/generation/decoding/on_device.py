"""Tokens that the program itself chooses: each row is told how, and its answer is taken as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from QEfficient.devices import Choice, ChoiceLimits
from QEfficient.errors import OptionError
from QEfficient.generation.masks import unpacked
from QEfficient.generation.plan import Plan, Step
from QEfficient.generation.request import Request
from QEfficient.specs import SamplingParams

NOT_ON_DEVICE = ("frequency_penalty", "typical_p", "logit_bias", "min_new_tokens", "logprobs", "prompt_logprobs")
"""What no program does, so it must be as it is by default."""


class OnDevice:
    """One token a step. Its random numbers are the request's own, as on the host, but other ones."""

    def __init__(self, limits: ChoiceLimits) -> None:
        self._limits = limits

    def propose(self, plan: Plan) -> Plan:
        return replace(plan, steps=tuple(map(self._told, plan.steps)))

    def accept(self, plan: Plan, logits: np.ndarray) -> Sequence[Sequence[int]]:
        steps = [step for step in plan.steps if step.row.logits]
        ends = np.cumsum([step.row.logits for step in steps])
        tokens = logits[ends - 1].argmax(-1) if steps else []
        return [self._taken(step, int(token)) for step, token in zip(steps, tokens, strict=True)]

    @staticmethod
    def _taken(step: Step, token: int) -> tuple[int, ...]:
        allowed = step.row.choice.allowed if step.row.choice is not None else None
        step.request.exhausted = allowed is not None and not allowed.any()
        return (token,) if _is_end(step) and not step.request.exhausted else ()

    def _told(self, step: Step) -> Step:
        if not _is_end(step):
            return step
        return replace(step, row=replace(step.row, choice=self._choice(step)))

    def _choice(self, step: Step) -> Choice:
        request = step.request
        params = request.params
        check_params(params, self._limits.widest)
        return Choice(
            random_numbers=self._random_numbers(request),
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            allowed=self._allowed(request),
            follows_prompt=step.row.start < len(request.prompt),
        )

    def _random_numbers(self, request: Request) -> np.ndarray:
        if request.params.greedy:
            return np.full(self._limits.widest, 0.5, np.float32)
        return request.random.random(self._limits.widest, np.float32)

    def _allowed(self, request: Request) -> np.ndarray | None:
        if request.mask is None:
            return None
        if not self._limits.guided:
            raise OptionError(
                "the program chooses tokens itself and cannot be told which may be said: load the model with"
                " qaic_config={'include_sampler': True, 'include_guided_decoding': True}."
            )
        allowed: np.ndarray = unpacked([request.mask.mask(request.generated)], self._limits.vocabulary)[0]
        return allowed


def check_params(params: SamplingParams, widest: int) -> None:
    """Refuse what a program that chooses among so many tokens cannot do."""
    plain = SamplingParams()
    for name in NOT_ON_DEVICE:
        if getattr(params, name) != getattr(plain, name):
            raise OptionError(f"the program chooses tokens itself, which {name} is not part of. Leave it out.")
    if params.top_k > widest:
        raise OptionError(
            f"top_k is {params.top_k}, but the program chooses among {widest} tokens. Load the model with a larger"
            " max_top_k_ids (--max-top-k-ids)."
        )


def _is_end(step: Step) -> bool:
    """Whether the row reaches the end of what its request has: what comes next is new then."""
    return step.row.start + len(step.row.tokens) == step.request.length
