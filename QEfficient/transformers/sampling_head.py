"""A graph that ends in tokens: the choice among logits, with the penalties' memory as state.

The order: what may be said at all, penalties, temperature, the likeliest `max_top_k_ids`, of these `top_k`, `top_p`,
`min_p`, then one of them by the random numbers that come in (the largest sum of score and Gumbel noise). At temperature
0 it is the likeliest after the penalties.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from QEfficient.program import ACCEPTED_TOKENS, TOKEN_BITMASKS
from QEfficient.specs import SamplerSpec

FORBIDDEN = -65504.0
"""Score of what is not said. Finite, and no more than float16 holds."""
SMALLEST = 6.2e-5
"""Of a random number's logarithm: so much that its own is finite in float16 too."""

Controls = Mapping[str, torch.Tensor]
"""What steers a call, by the names of the contract."""


@dataclass(frozen=True)
class Call:
    """What came in with the logits."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    batch_index: torch.Tensor | None
    controls: Controls


@dataclass(frozen=True)
class _Marks:
    """Which tokens a sequence has had: `[rows, vocabulary]`."""

    repetition: torch.Tensor
    presence: torch.Tensor


def choose_tokens(
    logits: torch.Tensor, call: Call, memory: list[torch.Tensor], spec: SamplerSpec
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs (`probs` if asked for, `next_tokens`) of logits `[rows, kept, vocabulary]`, and the next memory."""
    logits = logits.float()
    if spec.guided:
        logits = torch.where(call.controls[TOKEN_BITMASKS][:, None], logits, FORBIDDEN)
    before = [_rows(buffer, call) for buffer in memory]
    marks = _marked(call, _Marks(*before), logits)
    logits = _penalized(logits, marks, call.controls)
    likeliest = logits.argmax(-1, keepdim=True)
    drawn, chances = _drawn(logits, call.controls, spec)
    cold = _each(call.controls["temperatures"]) == 0
    tokens = torch.where(cold, likeliest, drawn)
    outputs = [tokens]
    if spec.return_pdfs:
        certain = torch.zeros_like(logits).scatter(-1, likeliest, 1.0)
        outputs = [torch.where(cold, certain, chances), tokens]
    after = [
        _written(buffer, rows, call) for buffer, rows in zip(memory, (marks.repetition, marks.presence), strict=True)
    ]
    return outputs, after


def _each(parameter: torch.Tensor) -> torch.Tensor:
    """`[rows, 1]` against `[rows, kept, vocabulary]`."""
    return parameter[:, :, None]


def _rows(buffer: torch.Tensor, call: Call) -> torch.Tensor:
    return buffer if call.batch_index is None else buffer[call.batch_index[:, 0]]


def _written(buffer: torch.Tensor, rows: torch.Tensor, call: Call) -> torch.Tensor:
    return rows if call.batch_index is None else buffer.index_put((call.batch_index[:, 0],), rows)


def _marked(call: Call, before: _Marks, logits: torch.Tensor) -> _Marks:
    """A prompt marks its tokens against repetition only, and its beginning forgets what was there; in decoding the
    token that was accepted is marked for both. Rows without a token stay as they are.

    A prompt shows by the length of the call, unless its tokens say what they are: a prompt's are given as -1 less
    themselves where it may come in token by token, an accepted one as itself and the size of the vocabulary where it
    may come in a long call."""
    width = logits.shape[-1]
    positions, accepted = call.position_ids, call.controls[ACCEPTED_TOKENS]
    valid, of_prompt, of_answer = positions >= 0, accepted < 0, accepted >= width
    tokens = torch.where(of_prompt, -1 - accepted, torch.where(of_answer, accepted - width, accepted))
    places = torch.where(valid, tokens, width)  # a spare column takes padding
    zeros = torch.zeros((positions.shape[0], width + 1), dtype=torch.float32)
    new = zeros.scatter(1, places, 1.0)[:, :width] > 0.5
    prefill = torch.scalar_tensor(positions.shape[1]) > torch.scalar_tensor(logits.shape[1])
    begins = (positions == 0).any(dim=1, keepdim=True)
    prompted = begins | (valid & (of_prompt | (prefill & ~of_answer))).any(dim=1, keepdim=True)
    repetition = (before.repetition & ~begins) | new
    presence = (before.presence | new) & ~prompted
    return _Marks(repetition, presence)


def _penalized(logits: torch.Tensor, marks: _Marks, controls: Controls) -> torch.Tensor:
    repetition = _each(controls["repetition_penalties"])
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(marks.repetition[:, None], repeated, logits)
    return torch.where(marks.presence[:, None], logits - _each(controls["presence_penalties"]), logits)


def _drawn(logits: torch.Tensor, controls: Controls, spec: SamplerSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """A token of each row, and every token's chance."""
    temperature = _each(controls["temperatures"])
    count = min(spec.max_top_k_ids, logits.shape[-1])
    scores, tokens = torch.topk(logits / torch.where(temperature == 0, 1.0, temperature), count)  # likeliest first
    ranks = torch.arange(count)
    scores = torch.where(ranks < _each(controls["top_ks"]), scores, FORBIDDEN)
    chances = scores.softmax(-1)
    at_most = 1 - chances.cumsum(-1) + chances  # of a token and all that are less likely
    kept = (at_most > 1 - _each(controls["top_ps"])) & (chances >= _each(controls["min_ps"]) * chances[:, :, :1])
    scores = torch.where(kept | (ranks == 0), scores, FORBIDDEN)
    noise = -torch.log((-torch.log(controls["random_numbers"][:, None, :count])).clamp(min=SMALLEST))
    drawn = tokens.gather(-1, (scores + noise).argmax(-1, keepdim=True))
    return drawn, torch.zeros_like(logits).scatter(-1, tokens, scores.softmax(-1))
