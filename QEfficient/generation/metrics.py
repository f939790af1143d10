"""How fast it was: the figures that scripts read from the printed lines, computed from finished requests.

Geometry: with continuous batching `batch_size` is 1 here, whatever decodes together; else it is that of the program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np

from QEfficient.generation.request import RequestOutput

SIMULATED = "Simulated: nothing ran on a card, and the times say nothing about one"


@dataclass
class PerfMetrics:
    """Seconds, and tokens a second of one line of the batch (multiply by `batch_size` for all)."""

    prefill_time: float
    """Of one batch of prompts on average; with continuous batching of one prompt."""
    decode_perf: float
    """New tokens after each request's first, over the time that was not prefill."""
    total_perf: float
    """The same tokens over all the time."""
    total_time: float


@dataclass(repr=False)
class CloudAI100ExecInfo:
    """Texts, tokens and figures of one `generate`; prints as the lines that scripts look for."""

    batch_size: int
    generated_texts: list[str] | list[list[str]]
    """With continuous batching one text per prompt, else one list per batch. With several answers to each prompt (`n`)
    always one list per prompt."""
    generated_ids: Any
    """Padded `[prompts, longest]`; without continuous batching a list of such arrays, one per batch. With several
    answers a list of arrays `[n, longest]`, one per prompt."""
    perf_metrics: PerfMetrics
    outputs: list[list[RequestOutput]] = field(default_factory=list)
    """All that is known of the answers, one list per prompt: tokens, why each ended, log-probabilities, timings."""
    drafted: int = 0
    """Tokens that were tried ahead meanwhile (docs/decodings.md), also for iterators that are open."""
    accepted: int = 0
    """Those of them that were kept."""
    simulated: bool = False
    """Whether nothing ran on a card: the figures say nothing about one then."""

    def __repr__(self) -> str:
        drafts = f"\nDrafts: {self.accepted} of {self.drafted} tokens kept" if self.drafted else ""
        simulated = f"\n{SIMULATED}" if self.simulated else ""
        return _lines(self.perf_metrics, self.batch_size, "tokens/sec") + drafts + simulated


@dataclass(repr=False)
class CloudAI100ExecInfoNew:
    """Tokens and figures without texts, and with another word for the unit."""

    batch_size: int
    generated_ids: Any
    perf_metrics: PerfMetrics

    def __repr__(self) -> str:
        return _lines(self.perf_metrics, self.batch_size, "token/sec")


def _lines(metrics: PerfMetrics, batch_size: int, unit: str) -> str:
    return (
        f"Average Prefill time a.k.a TTFT is= {metrics.prefill_time:.2f} sec\n"
        f"Decode is= {metrics.decode_perf * batch_size:.2f} {unit}\n"
        f"Total is= {metrics.total_perf * batch_size:.2f} {unit}\n"
        f"Total (E2E) inference time is= {metrics.total_time:.2f} sec"
    )


def perf_metrics(outputs: Sequence[RequestOutput], batch_size: int = 1) -> PerfMetrics:
    """The figures of requests that ran together. Those that never ran (cancelled in the queue) do not count."""
    ran = [output for output in outputs if output.timings.first_token is not None]
    if not ran:
        return PerfMetrics(0.0, 0.0, 0.0, 0.0)
    total = _latest(ran) - _earliest(ran)
    prefill = sum(output.timings.prefill for output in ran)
    tokens = sum(max(len(output.generated_ids) - 1, 0) for output in ran) / batch_size
    batches = max(len(ran) / batch_size, 1.0)  # rows that stay idle shorten no prefill
    return PerfMetrics(
        prefill_time=prefill / batches,
        decode_perf=_rate(tokens, total - prefill),
        total_perf=_rate(tokens, total),
        total_time=total,
    )


def average(metrics: Sequence[PerfMetrics]) -> PerfMetrics:
    """The mean of several runs."""
    return PerfMetrics(*(float(mean) for mean in np.mean([astuple(each) for each in metrics], axis=0)))


def exec_info(
    outputs: Sequence[RequestOutput], batch_size: int, continuous_batching: bool, pad_token_id: int = 0, n: int = 1
) -> CloudAI100ExecInfo:
    """The record that `generate` of the auto-classes returns. `n`: how many outputs each prompt has, side by side."""
    texts = [output.text for output in outputs]
    by_prompt = [list(outputs[first : first + n]) for first in range(0, len(outputs), n)]
    rows = 1 if continuous_batching else batch_size
    metrics = perf_metrics(outputs, rows)
    if continuous_batching and n == 1:
        return CloudAI100ExecInfo(rows, texts, padded_ids(outputs, pad_token_id), metrics, by_prompt)
    together = n if n > 1 else batch_size
    parts = [slice(first, first + together) for first in range(0, len(outputs), together)]
    ids = [padded_ids(outputs[part], pad_token_id) for part in parts]
    return CloudAI100ExecInfo(rows, [texts[part] for part in parts], ids, metrics, by_prompt)


def padded_ids(outputs: Sequence[RequestOutput], pad_token_id: int = 0) -> np.ndarray:
    """Generated tokens as one array `[outputs, longest]`."""
    longest = max((len(output.generated_ids) for output in outputs), default=0)
    padded = np.full((len(outputs), longest), pad_token_id, np.int64)
    for line, output in zip(padded, outputs, strict=True):
        line[: len(output.generated_ids)] = output.generated_ids
    return padded


def _earliest(outputs: Sequence[RequestOutput]) -> float:
    return min(output.timings.submitted or 0.0 for output in outputs)


def _latest(outputs: Sequence[RequestOutput]) -> float:
    return max(output.timings.finished or 0.0 for output in outputs)


def _rate(tokens: float, seconds: float) -> float:
    return tokens / seconds if tokens and seconds > 0 else 0.0
