"""Runs prompts alone, without generating: for scripts that look at the first logits themselves."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from QEfficient.devices import Batch, Row
from QEfficient.errors import OptionError
from QEfficient.generation.engine import Engine
from QEfficient.generation.text import TextGenerator

logger = logging.getLogger(__name__)


def checked_length(asked: int | None, prompt_tokens: int, ctx_len: int) -> int:
    """How many tokens are to be generated behind a prompt; by default as many as the context holds."""
    room = ctx_len - prompt_tokens
    if asked is None:
        return room
    if asked <= 0:
        raise OptionError(f"generation_len must be a positive whole number, not {asked!r}.")
    if asked > room:
        logger.warning(
            "generation_len is %d, but behind a prompt of %d tokens a context of %d holds %d: answers end there.",
            *(asked, prompt_tokens, ctx_len, room),
        )
    return asked


class PromptRunner:
    """Feeds the session of an engine that has nothing to do, and caches nothing of its slots."""

    def __init__(self, engine: Engine, text: TextGenerator) -> None:
        self._engine, self._text = engine, text

    def run_prefill(
        self,
        prompt: str | Sequence[str],
        generation_len: int | None,
        prefill_logit_bs: int = 1,
        decode_batch_id: Any = None,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
        """Run prompts to their ends. `decode_batch_id`: their slots; default 0, 1, … `prefill_logit_bs`: how many rows
        of logits come back, which are as many as prompts; 1 may be said of any number.

        Returns the logits behind each prompt `[prompts, 1, vocabulary]`, the positions of the tokens that come next
        `[prompts, 1]`, and how many can be generated.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        slots = list(range(len(prompts))) if decode_batch_id is None else np.ravel(decode_batch_id).tolist()
        self._check(prompts, slots, prefill_logit_bs)
        requests = [self._text.request(self._text.encode(each)) for each in prompts]
        for request in requests:
            self._engine.scheduler.check(request)
        lengths = [len(request.prompt) for request in requests]
        length = checked_length(generation_len, max(lengths), self._engine.session.limits.ctx_len)
        rows = [(slot, request.prompt) for slot, request in zip(slots, requests, strict=True)]
        with self._engine.turn:
            logits = self._logits(rows)
        return {"logits": logits[:, None]}, np.array(lengths, np.int64)[:, None], length

    def _check(self, prompts: Sequence[str], slots: Sequence[int], logits: int) -> None:
        if not prompts or len(prompts) != len(slots):
            raise OptionError(f"{len(prompts)} prompts were given for {len(slots)} slots. Give as many of both.")
        if logits not in (1, len(prompts)):
            raise OptionError(
                f"prefill_logit_bs is {logits}, but {len(prompts)} prompts give as many rows of logits. Leave it out."
            )
        if not self._engine.idle:
            raise OptionError("answers are still being generated with this program: take them first, or cancel them.")

    def _logits(self, rows: Sequence[tuple[int, tuple[int, ...]]]) -> np.ndarray:
        most = self._engine.session.limits.prefill_rows
        groups = [rows[first : first + most] for first in range(0, len(rows), most)]
        return np.concatenate([self._logits_of(group) for group in groups])

    def _logits_of(self, rows: Sequence[tuple[int, tuple[int, ...]]]) -> np.ndarray:
        """Of rows that run together, chunk by chunk."""
        session, chunk = self._engine.session, self._engine.session.limits.chunk
        found: dict[int, np.ndarray] = {}
        for start in range(0, max(len(tokens) for _, tokens in rows), chunk):
            left = [(slot, tokens) for slot, tokens in rows if start < len(tokens)]
            ending = [slot for slot, tokens in left if start + chunk >= len(tokens)]
            batch = Batch(tuple(Row(s, t[start : start + chunk], start, int(s in ending)) for s, t in left))
            found.update(zip(ending, session.run(batch), strict=True))
        return np.stack([found[slot] for slot, _ in rows])
