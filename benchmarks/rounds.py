"""The run itself: in every round each case, in every case each engine once, so that all see the same weather."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.artifacts import Prepared
from benchmarks.cases import MEMORY, MOST_SEQUENCES, MOST_TOKENS, OPEN, Case
from benchmarks.engines import Engine
from benchmarks.pool import Pool, Worker, WorkerDied, WorkerError
from benchmarks.samples import Results, Sample

LIBRARIES = 600e6
WEIGHT_COPIES = 2.5
"""Engines that pack weights their own way hold them twice while they open."""
DEATHS = 2
"""So many, and an engine is out."""


@dataclass(frozen=True)
class Contender:
    """An engine with its file, ready to be started."""

    engine: Engine
    prepared: Prepared
    start: Callable[[], Worker]


class Run:
    """One shape's rounds."""

    def __init__(self, shape: str, threads: int, pool: Pool, results: Results, say: Callable[[str], None]) -> None:
        self._shape, self._threads, self._pool, self._results, self._say = shape, threads, pool, results, say
        self._given_up: set[tuple[str, str]] = set()
        self._deaths: dict[str, int] = {}
        self._facts = results.facts.setdefault(shape, {})
        self._known: dict[str, dict[str, Any]] = {}
        """Of each process."""

    def run(
        self, contenders: Sequence[Contender], cases: Sequence[Case], rounds: int, weather: Callable[[], float]
    ) -> None:
        for number in range(1, rounds + 1):
            self._results.bandwidths.append(weather())
            reads = f"{self._results.bandwidths[-1] / 1e9:.1f} GB/s"
            self._say(f"{self._shape}, round {number} of {rounds}, memory is read at {reads}")
            for case, contender in schedule(contenders, cases, number):
                self._sample(contender, case, number)

    def _sample(self, contender: Contender, case: Case, number: int) -> None:
        name = contender.engine.name
        if (name, case.name) in self._given_up or self._deaths.get(name, 0) >= DEATHS:
            return
        try:
            values = self._fresh(contender, number) if case.fresh else self._tokens(contender, case, number)
        except WorkerError as error:
            self._fail(contender.engine, case, error)
        else:
            self._results.samples.append(Sample(self._shape, name, case.name, number, values))
            self._say(f"  {case.name:>8}  {name:<26} {_outcome(case, values)}")
            self._pool.rest(contender.engine.process)

    def _fail(self, engine: Engine, case: Case, error: WorkerError) -> None:
        """This case is not tried again; the others are, in a new process."""
        name = engine.name
        self._pool.drop(engine.process)
        self._given_up.add((name, case.name))
        self._deaths[name] = self._deaths.get(name, 0) + isinstance(error, WorkerDied)
        self._results.failures.append(f"{self._shape}, {case.name}: {error}")
        self._say(f"  {case.name:>8}  {name:<26} failed: {error}")

    def _tokens(self, contender: Contender, case: Case, number: int) -> dict[str, float]:
        worker, started = self._pool.get(contender.engine.process, _need(contender), contender.start)
        if started:
            self._introduce(worker, contender)
        self._facts[contender.engine.name] = self._known[contender.engine.process]
        way = {"way": contender.engine.way}
        seed = 1000 * number + case.sequences
        if case.sequences == 1 and case.context <= 2048 and case.name not in worker.met:
            # Engines choose kernels for a shape when they first meet it
            worker.ask("prefill", prompt=case.context, seed=seed + 500, **way)
        worker.met.add(case.name)
        if case.tokens:
            sizes = {"sequences": case.sequences, "context": case.context, "tokens": case.tokens}
            answer = worker.ask("decode", **sizes, seed=seed, **way)
        else:
            answer = worker.ask("prefill", prompt=case.context, seed=seed, **way)
        del answer["first"]
        return answer

    def _fresh(self, contender: Contender, number: int) -> dict[str, float]:
        """A process that does nothing else; its file has been read before and lies in memory."""
        process, way = contender.engine.process, {"way": contender.engine.way}
        if process not in self._known:
            worker, _ = self._pool.get(process, _need(contender), contender.start)
            self._introduce(worker, contender)
        self._facts[contender.engine.name] = self._known[process]
        self._pool.drop(process)
        self._pool.make_room(_need(contender))
        worker = contender.start()
        try:
            facts = self._introduce(worker, contender)
            first = worker.ask("prefill", prompt=OPEN.context, seed=number, **way)
            worker.ask("decode", sequences=1, context=MEMORY.context, tokens=MEMORY.tokens, seed=number, **way)
            held = worker.ask("memory")
        finally:
            worker.close()
        timed = {key: facts[key] for key in ("import_seconds", "open_seconds", "library_bytes")}
        return {**timed, "first_token_seconds": first["prefill_seconds"], **held}

    def _introduce(self, worker: Worker, contender: Contender) -> dict[str, Any]:
        """Have it open the model; note what it is."""
        prepared, room = contender.prepared, {"tokens": MOST_TOKENS, "sequences": MOST_SEQUENCES}
        options = dict(contender.engine.options)
        facts = worker.ask("open", folder=str(prepared.folder), threads=self._threads, options=options, **room)
        self._known[contender.engine.process] = {
            "version": facts["version"],
            "settings": facts.get("settings"),
            "weight_bytes": prepared.weight_bytes,
            "step_bytes": prepared.step_bytes,
            "kv_token_bytes": prepared.kv_token_elements * facts["kv_element_bytes"],
        }
        return facts


def schedule(contenders: Sequence[Contender], cases: Sequence[Case], number: int) -> Iterator[tuple[Case, Contender]]:
    """Cases in order, engines in an order that every round turns by one: nobody always follows the same neighbour."""
    turn = (number - 1) % len(contenders)
    for case in cases:
        if case.most_rounds is None or number <= case.most_rounds:
            turned = (*contenders[turn:], *contenders[:turn])
            yield from ((case, contender) for contender in turned if contender.engine.runs(case))


def _need(contender: Contender) -> float:
    return LIBRARIES + WEIGHT_COPIES * contender.prepared.weight_bytes


def _outcome(case: Case, values: dict[str, float]) -> str:
    if case.fresh:
        seconds = values["open_seconds"] + values["first_token_seconds"]
        return f"{seconds:.2f} s to the first token, {values['resident'] / 1e6:,.0f} MB"
    said = [f"prompt {case.context / values['prefill_seconds']:,.0f} tok/s"] if case.sequences == 1 else []
    if "decode_seconds" in values:
        said.append(f"decode {case.sequences * values['tokens'] / values['decode_seconds']:,.1f} tok/s")
    return ", ".join(said)
