"""Takes log-probabilities from the logits that come back, and writes them down on the requests that asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from QEfficient.devices import Limits, Row
from QEfficient.errors import OptionError
from QEfficient.generation.logprobs import token_logprobs
from QEfficient.generation.request import Request


def check_logprobs(request: Request, limits: Limits) -> None:
    """Refuse log-probabilities of a prompt where a run gives back the logits of its last token only."""
    if request.params.prompt_logprobs is not None and limits.logits < min(2, limits.chunk):
        raise OptionError(
            "prompt_logprobs needs the logits of every token of the prompt, but this program gives those of the last"
            " one only. Leave it out, or use a device whose sessions give more."
        )


def record_tokens(
    logits: np.ndarray, rows: np.ndarray, tokens: Sequence[int | None], requests: Sequence[Request]
) -> None:
    """Write down the new token of each request that asks for it; its logits are in the row that `rows` names."""
    asking = [n for n, r in enumerate(requests) if r.params.logprobs is not None and tokens[n] is not None]
    if not asking:
        return
    tops = [requests[n].params.logprobs or 0 for n in asking]
    found = token_logprobs(logits[rows[asking]], [tokens[n] or 0 for n in asking], max(tops))
    for n, top, record in zip(asking, tops, found, strict=True):
        known = requests[n].logprobs
        known[len(requests[n].generated) :] = [record.with_top(top)]  # in place of one from a step that came to nothing


def record_prompt(logits: np.ndarray, row: Row, request: Request) -> None:
    """Write down the prompt's tokens that follow those of a row, from the logits of that row's last tokens."""
    if not request.wants_prompt_logits:
        return
    if not request.prompt_logprobs:
        request.prompt_logprobs.append(None)
    first = row.start + len(row.tokens) - row.logits  # the position of the token that gave the first of them
    skipped = len(request.prompt_logprobs) - 1 - first
    tokens = request.prompt[first + skipped + 1 : first + row.logits + 1]
    if skipped >= 0 and tokens:
        wanted = logits[skipped : skipped + len(tokens)]
        request.prompt_logprobs += token_logprobs(wanted, tokens, request.params.prompt_logprobs or 0)
