"""Programs that choose tokens themselves: what a call tells them about each row, and what it makes of their answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from QEfficient.devices import Choice, ChoiceLimits, Row
from QEfficient.errors import DeviceError
from QEfficient.program import ACCEPTED_TOKENS, TOKEN_BITMASKS, GraphSpec

RANDOM = "random_numbers"
HALF = 0.5
"""A random number where none is needed."""
SETTINGS = ("repetition_penalties", "presence_penalties", "temperatures", "top_ks", "top_ps", "min_ps", RANDOM)
FED = (ACCEPTED_TOKENS, *SETTINGS, TOKEN_BITMASKS)


def choice_limits(graph: GraphSpec) -> ChoiceLimits | None:
    """What a graph can do; None if it ends in logits."""
    if not graph.chooses_tokens:
        return None
    widths = {tensor.name: tensor.shape[-1] for tensor in graph.inputs}
    return ChoiceLimits(int(widths[RANDOM]), _vocabulary(graph), TOKEN_BITMASKS in widths)


def decodes(row: Row) -> bool:
    """Whether its token is one of the answer, not of the prompt."""
    return row.choice is not None and not row.choice.follows_prompt


def choice_feeds(
    rows: Sequence[Row], lines: Iterable[int], input_ids: np.ndarray, graph: GraphSpec, kept: int
) -> dict[str, np.ndarray]:
    """The inputs of one call, which gives tokens for the last `kept` of each line. The token that was accepted last is
    the one that comes in, as are those of a prompt. A graph tells them apart by the length of the call, where the
    token does not say it: those of a prompt come in as -1 less themselves, since a call may be too short for one; that
    of an answer as much further on as there are tokens where a call is too long for it."""
    limits = choice_limits(graph)
    assert limits is not None
    height = len(input_ids)
    plain = Choice(np.full(limits.widest, HALF, np.float32))
    choices, accepted = [plain] * height, input_ids.copy()
    for row, line in zip(rows, lines, strict=True):
        choices[line] = row.choice or plain
        if not decodes(row):
            accepted[line] = -1 - accepted[line]
        elif input_ids.shape[1] > kept:
            accepted[line] += limits.vocabulary
    feeds = {ACCEPTED_TOKENS: accepted} | _settings(choices, limits.widest)
    if limits.guided:
        every = np.ones(limits.vocabulary, bool)
        feeds[TOKEN_BITMASKS] = np.stack([every if c.allowed is None else c.allowed for c in choices])
    return feeds


def _settings(choices: Sequence[Choice], widest: int) -> dict[str, np.ndarray]:
    def column(values: Iterable[float], kind: type = np.float32) -> np.ndarray:
        return np.array(list(values), kind)[:, None]

    return {
        "repetition_penalties": column(c.repetition_penalty for c in choices),
        "presence_penalties": column(c.presence_penalty for c in choices),
        "temperatures": column(c.temperature for c in choices),
        "top_ks": column((c.top_k or widest for c in choices), np.int32),
        "top_ps": column(c.top_p for c in choices),
        "min_ps": column(c.min_p for c in choices),
        RANDOM: np.stack([c.random_numbers for c in choices]).astype(np.float32),
    }


def as_logits(tokens: np.ndarray, graph: GraphSpec) -> np.ndarray:
    """`[rows, kept, vocabulary]`, 1 at the tokens `[rows, kept, 1]` and 0 elsewhere."""
    vocabulary = _vocabulary(graph)
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise DeviceError(f"the program chose the token {int(tokens.max())} of a vocabulary of {vocabulary:,}.")
    logits = np.zeros((*tokens.shape[:2], vocabulary), np.float32)
    np.put_along_axis(logits, tokens, 1.0, axis=-1)
    return logits


def _vocabulary(graph: GraphSpec) -> int:
    return int(next(state for state in graph.states if state.kind == "marks").tensor.shape[-1])
