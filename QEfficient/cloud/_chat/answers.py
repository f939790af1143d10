"""One answer, as it comes, and how fast it was."""

from __future__ import annotations

from collections.abc import Callable

from QEfficient.generation.engine import Engine
from QEfficient.generation.request import Request, RequestOutput, output_of
from QEfficient.generation.text import TextGenerator


def answer(
    engine: Engine, text: TextGenerator, request: Request, say: Callable[[str], None], stopped: Callable[[], bool]
) -> RequestOutput:
    """Run a request to its end, or until `stopped`, which is asked before each step, those of its prompt too."""
    writer = text.writer(request)
    engine.submit(request)
    try:
        while not request.finished and not stopped():
            for event in engine.step():
                say(text.read(event, writer).text)
    finally:
        engine.cancel(request)
    if request.finish_reason == "cancelled":
        say(writer.push((), last=True))  # what was held back
    return output_of(request, writer.text)


def figures(output: RequestOutput, ctx_len: int) -> str:
    """A line about an answer."""
    timings, count = output.timings, len(output.generated_ids)
    parts = [f"{count:,} token{'' if count == 1 else 's'}"]
    if timings.first_token is not None and timings.finished is not None and count > 1:
        parts.append(f"{_rate(count - 1, timings.finished - timings.first_token)} tokens/s")
    if timings.time_to_first_token is not None:
        parts.append(f"first after {timings.time_to_first_token:.2f} s")
    parts.append(f"{output.cached_tokens:,} of {len(output.prompt_ids):,} prompt tokens cached")
    ended = _ended(output, ctx_len)
    return " · ".join([*parts, ended] if ended else parts)


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / max(seconds, 1e-9):,.1f}"


def _ended(output: RequestOutput, ctx_len: int) -> str:
    """Why it ended, unless the model itself ended it."""
    if output.finish_reason == "cancelled":
        return "stopped"
    if output.finish_reason == "length":
        full = len(output.prompt_ids) + len(output.generated_ids) >= ctx_len
        return "the context is full" if full else "the length is reached"
    return ""
