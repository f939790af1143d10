"""What a server lives by, measured on our engine alone.

    python -m benchmarks.service                           the demo model, every case
    python -m benchmarks.service ./checkpoint --weight-format int4 --cases prefix
    python -m benchmarks.service --cases many --requests 2000

prefix   time to the first token of a prompt, and of another that begins with the same 2,048 tokens
many     short requests through one engine, 32 at a time; the process's resident memory as they go by
lookup   tokens a second with prompt lookup beside plain decoding, in turns: where text repeats, and where it does not
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.demo import DEMO_NAME
from QEfficient.devices import Session, get_device
from QEfficient.generation.decoding.prompt_lookup import PromptLookup
from QEfficient.generation.engine import Engine
from QEfficient.generation.masks import OneOf
from QEfficient.generation.request import Request
from QEfficient.program import CompiledProgram, load_compiled
from QEfficient.specs import SamplingParams

SHARED, OWN = 2048, 32
"""Tokens of a prompt that others begin with, and those that only it has."""
ANSWERED = 256
COMPANY = 32
REPORTED = 1000
"""Requests between two readings of the memory."""


def prefix(compiled: CompiledProgram, arguments: argparse.Namespace) -> Iterator[str]:
    first, second = [], []
    with get_device("cpu").load(compiled) as session:
        engine, tokens = Engine(session), _Tokens(compiled)
        _first_token(engine, tokens(SHARED))  # the first run of a session makes room for everything
        for _ in range(arguments.rounds):
            beginning = tokens(SHARED)
            first.append(_first_token(engine, beginning + tokens(OWN)))
            second.append(_first_token(engine, beginning + tokens(OWN)))
    one, other = statistics.median(first), statistics.median(second)
    yield f"first token of {SHARED + OWN} tokens: {one * 1e3:.1f} ms"
    yield f"of another prompt with the same {SHARED}: {other * 1e3:.1f} ms, {other / one:.3f} of it"


def many(compiled: CompiledProgram, arguments: argparse.Namespace) -> Iterator[str]:
    with get_device("cpu").load(compiled) as session:
        started, readings = time.perf_counter(), []
        for done, memory in _stream(session, _Tokens(compiled), arguments.requests):
            readings.append(memory)
            yield f"{done:6,} requests: {memory / 1e6:.1f} MB, {done / (time.perf_counter() - started):.0f} a second"
        if len(readings) > 2:
            yield f"the last {REPORTED:,} beside the second: {readings[-1] / readings[1]:.4f}"


def lookup(compiled: CompiledProgram, arguments: argparse.Namespace) -> Iterator[str]:
    tokens = _Tokens(compiled)
    with get_device("cpu").load(compiled) as session:
        for what, copies in (("an answer that repeats its prompt", True), ("an answer of random tokens", False)):
            plain, tried, ratios = Engine(session), Engine(session, PromptLookup()), []
            for _ in range(arguments.rounds + 1):
                prompt = tokens(ANSWERED)
                answer = prompt if copies else tokens(ANSWERED)
                before, found, after = (_speed(engine, prompt, answer) for engine in (plain, tried, plain))
                ratios.append(2 * found / (before + after))
            counts, spread = tried.statistics, f"{min(ratios[1:]):.2f} to {max(ratios[1:]):.2f}"
            yield f"{what}: {statistics.median(ratios[1:]):.2f} of plain ({spread})"
            yield f"{what}: {counts.accepted:,} of {counts.drafted:,} drafts kept"


def _speed(engine: Engine, prompt: list[int], answer: list[int]) -> float:
    """Tokens a second of an answer that a mask makes to be this one, after its first token."""
    params = SamplingParams(max_new_tokens=len(answer), ignore_eos=True)
    request = Request(tuple(prompt), params, mask=OneOf([answer]))
    engine.generate([request])
    times = request.timings
    assert request.generated == answer and times.finished is not None and times.first_token is not None
    return (len(answer) - 1) / (times.finished - times.first_token)


def _stream(session: Session, tokens: _Tokens, count: int) -> Iterator[tuple[int, float]]:
    """Keeps requests coming; after every so many the mean of the resident memory since the last."""
    engine, random = Engine(session), np.random.default_rng(1)
    submitted, seen = 0, []
    while submitted < count or not engine.idle:
        while submitted < count and engine.scheduler.waiting + engine.scheduler.running < COMPANY:
            params = SamplingParams(max_new_tokens=int(random.integers(1, 17)), temperature=float(submitted % 2))
            engine.submit(Request(tuple(tokens(int(random.integers(4, 65)))), params))
            submitted += 1
            if submitted % REPORTED == 0:
                yield submitted, statistics.fmean(seen)
                seen.clear()
        engine.step()
        seen.append(_resident())


def _first_token(engine: Engine, prompt: list[int]) -> float:
    request = Request(tuple(prompt), SamplingParams(max_new_tokens=1))
    engine.generate([request])
    seconds = request.timings.time_to_first_token
    assert seconds is not None
    return seconds


class _Tokens:
    """Random ones."""

    def __init__(self, compiled: CompiledProgram) -> None:
        self._random, self._count = np.random.default_rng(0), compiled.program.model.vocab_size

    def __call__(self, count: int) -> list[int]:
        return [int(token) for token in self._random.integers(0, self._count, count)]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


Measured = Callable[[CompiledProgram, argparse.Namespace], Iterator[str]]
CASES: dict[str, Measured] = {"prefix": prefix, "many": many, "lookup": lookup}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=DEMO_NAME, help="a checkpoint's folder; default: the demo model")
    parser.add_argument("--weight-format", default="auto")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=10_000)
    arguments = parser.parse_args()
    wrapped = QEFFAutoModelForCausalLM.from_pretrained(arguments.model, continuous_batching=True)
    options = {"weight_format": arguments.weight_format, "kv_cache_tokens": 16_384}
    context = 2 * SHARED
    folder = wrapped.compile(device="cpu", ctx_len=context, full_batch_size=COMPANY, **options)
    for name in arguments.cases:
        for line in CASES[name](load_compiled(folder), arguments):
            print(f"{name}: {line}", flush=True)


if __name__ == "__main__":
    main()
