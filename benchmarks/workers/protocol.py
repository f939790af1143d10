"""What every worker does: take orders as lines of JSON, time what the engine does, answer with a line of JSON.

open     {folder, threads, tokens, sequences, options}  → seconds of importing and of opening, facts of the engine
prefill  {prompt, seed, way}                            → seconds until the first token of one sequence
decode   {sequences, context, tokens, seed, way}        → the same, and seconds of `tokens` steps after it
memory   {}                                             → what of this process is resident, in bytes
close    {}                                             → the process ends
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WARM_STEPS = 2
"""Steps after the prompt that are not counted: in the first ones engines still choose kernels and touch new pages."""
FIRST_TOKEN_ID = 10
"""Prompts keep clear of the special tokens below."""


class Runner(ABC):
    """One engine. A sequence's tokens are always the greedy ones."""

    @abstractmethod
    def load_library(self) -> None:
        """Import everything."""

    @abstractmethod
    def open(self, folder: Path, threads: int, room: Mapping[str, int], options: Mapping[str, Any]) -> dict[str, Any]:
        """Make the model ready; `room` says the most `tokens` of all sequences and the most `sequences`.

        Returns facts: at least `version`, `vocabulary` and `kv_element_bytes`.
        """

    def choose(self, way: str) -> None:
        """How the next sequences run, for those who have several ways."""
        if way:
            raise ValueError(f"{type(self).__name__} has no way '{way}'")

    @abstractmethod
    def begin(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        """Make room for these sequences and so many new tokens of each. Not timed."""

    @abstractmethod
    def prefill(self) -> None:
        """Run the prompts until each has its first token."""

    @abstractmethod
    def step(self) -> None:
        """One more token for each."""

    @abstractmethod
    def end(self) -> list[list[int]]:
        """Forget the sequences; returns the new tokens of each. Not timed."""


def prompts(count: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Different tokens for every seed: an engine that remembers prompts has nothing to gain."""
    source = random.Random(seed)
    return [[source.randrange(FIRST_TOKEN_ID, vocabulary) for _ in range(length)] for _ in range(count)]


def memory() -> dict[str, int]:
    """Resident bytes of this process and the parts they consist of."""
    parts = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        parts[name.rstrip(":")] = int(value) * 1024
    # Not Private_*: a mapped page counts there or not depending on which other processes have it mapped as well
    return {"resident": parts["Rss"], "private": parts["Anonymous"], "file": parts["Rss"] - parts["Anonymous"]}


class Service:
    """Orders in, answers out."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._vocabulary = 0

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        operation = order.pop("op")
        answers = {"open": self._open, "prefill": self._prefill, "decode": self._decode, "memory": memory}
        return answers[operation](**order)

    def _open(self, folder: str, threads: int, options: dict[str, Any], **room: int) -> dict[str, Any]:
        started = time.perf_counter()
        self._runner.load_library()
        imported = time.perf_counter()
        libraries = memory()["resident"]
        resumed = time.perf_counter()
        facts = self._runner.open(Path(folder), threads, room, options)
        opened = time.perf_counter()
        self._vocabulary = facts["vocabulary"]
        return {
            **facts,
            "import_seconds": imported - started,
            "open_seconds": opened - resumed,
            "library_bytes": libraries,
        }

    def _prefill(self, prompt: int, seed: int, way: str = "") -> dict[str, Any]:
        return self._decode(1, prompt, 0, seed, way)

    def _decode(self, sequences: int, context: int, tokens: int, seed: int, way: str = "") -> dict[str, Any]:
        warm = WARM_STEPS if tokens else 0
        self._runner.choose(way)
        self._runner.begin(prompts(sequences, context, self._vocabulary, seed), 1 + warm + tokens)
        try:
            started = time.perf_counter()
            self._runner.prefill()
            prefilled = time.perf_counter()
            for _ in range(warm):
                self._runner.step()
            warmed = time.perf_counter()
            for _ in range(tokens):
                self._runner.step()
            finished = time.perf_counter()
        finally:
            made = self._runner.end()
        if any(len(one) != 1 + warm + tokens for one in made) or len(made) != sequences:
            counts = sorted({len(one) for one in made})
            raise RuntimeError(f"{1 + warm + tokens} tokens of {sequences} sequences were wanted, not {counts}")
        answer = {"prefill_seconds": prefilled - started, "first": made[0][:8]}
        return {**answer, "decode_seconds": finished - warmed, "tokens": tokens} if tokens else answer


def serve(runner: Runner) -> None:
    """Answer until told to close. What libraries print goes to the log, not among the answers."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    service = Service(runner)
    for line in sys.stdin:
        order = json.loads(line)
        if order["op"] == "close":
            break
        try:
            answer = {"ok": True, **service.answer(order)}
        except Exception as error:  # whatever a library raises: the others go on
            traceback.print_exc()
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
    answers.flush()
    # Some libraries hang or crash when the interpreter takes them down; there is nothing left to save here.
    os._exit(0)
