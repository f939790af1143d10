"""Ours beside its peers, on this machine: makes the models, installs and feeds the peers, measures, writes it down.

    python -m benchmarks                                       everything; hours; writes docs/benchmarks.md
    python -m benchmarks --quick                               a first impression, on the terminal
    python -m benchmarks --shape 1b --engines 'ours-*' 'llama.cpp-*' --cases 1x128 4x128 --rounds 3
    python -m benchmarks --from docs/benchmarks.json           writes the document again from samples

Only a run of everything writes the document; the samples of the last run of any kind are in the cache (last.json). The
export and the native kernel have their own: python -m benchmarks.export, python -m benchmarks.linear.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as TerminalTable

from benchmarks import cases, engines
from benchmarks.artifacts import TOP, Preparation, offline
from benchmarks.checkpoints import SHAPES
from benchmarks.document import write_document
from benchmarks.engines import Engine
from benchmarks.environment import peers_python
from benchmarks.machine import describe, read_bandwidth
from benchmarks.pool import Pool, Worker
from benchmarks.rounds import Contender, Run
from benchmarks.samples import Results, View
from benchmarks.tables import tables

COMPARED = ("0.5b", "1b")
ROUNDS, LEAST_ROUNDS, QUICK_ROUNDS = 5, 3, 1
WIDTH = 160
"""Of tables in a file; a terminal knows its own."""
OWN_LIBRARIES = ("torch", "transformers", "openvino", "onnx", "numpy")


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    if given.samples:
        print(write_document(Results.load(given.samples), given.output))
        return
    chosen, selected, shapes, rounds, full = _selection(given)
    results = Results(about=_about(given.threads, rounds))
    peers = functools.cache(lambda: peers_python(given.cache))
    with Pool(1e9 * given.memory) as pool:
        for shape in shapes:
            preparation = Preparation(given.cache, shape, given.threads, peers)
            contenders = prepared(chosen, preparation, given.cache, results, peers)
            if contenders:
                run = Run(shape, given.threads, pool, results, functools.partial(print, flush=True))
                run.run(contenders, selected, rounds, lambda: read_bandwidth(given.threads))
            pool.close()
            results.save(given.cache / "last.json")
        results.about["restless"] = sorted(pool.restless)
    results.save(given.cache / "last.json")
    show(results)
    if full:
        print(f"Written: {write_document(results, given.output)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--quick", action="store_true", help="a few engines and cases, the smallest shape, one round")
    parser.add_argument("--shape", nargs="+", choices=sorted(SHAPES), help=f"default: {' '.join(COMPARED)}")
    parser.add_argument("--engines", nargs="+", metavar="NAME", help="names or patterns; default: all")
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="such as 4x128 (sequences x prompt) or open")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument("--threads", type=int, default=cores, help="default: one for each core")
    parser.add_argument("--memory", type=float, default=_memory(), metavar="GB", help="for all open engines together")
    parser.add_argument("--cache", type=_folder, default=TOP / "benchmarks" / ".cache", metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=TOP / "docs", metavar="FOLDER", help="of the document")
    parser.add_argument("--from", type=Path, dest="samples", metavar="JSON", help="measure nothing, only write")
    return parser


def _folder(text: str) -> Path:
    return Path(text).resolve()


def _memory() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(line for line in lines if line.startswith("MemAvailable"))
    return round(0.7 * int(available.split()[1]) / 1e6, 1)


def _selection(
    given: argparse.Namespace,
) -> tuple[tuple[Engine, ...], tuple[cases.Case, ...], tuple[str, ...], int, bool]:
    """Engines, cases, shapes, rounds, and whether that is everything."""
    usual = engines.named_engines(list(engines.QUICK)) if given.quick else engines.ENGINES
    chosen = engines.named_engines(given.engines) if given.engines else usual
    selected = cases.named_cases(given.cases) if given.cases else cases.QUICK if given.quick else cases.CASES
    shapes = tuple(given.shape or (COMPARED[:1] if given.quick else COMPARED))
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    everything = chosen == engines.ENGINES and selected == cases.CASES and set(COMPARED) <= set(shapes)
    return chosen, selected, shapes, rounds, everything and rounds >= LEAST_ROUNDS


def _about(threads: int, rounds: int) -> dict[str, object]:
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=TOP, capture_output=True, text=True).stdout
    return {
        "date": datetime.date.today().isoformat(),
        "command": command,
        "commit": commit.strip() or "not a checkout",
        "threads": threads,
        "rounds": rounds,
        "machine": describe(),
        "versions": {name: importlib.metadata.version(name) for name in OWN_LIBRARIES},
    }


def prepared(
    chosen: Sequence[Engine], preparation: Preparation, cache: Path, results: Results, peers: Callable[[], Path]
) -> list[Contender]:
    """The engines with their files; one whose file cannot be made is noted and left out."""
    found = []
    for engine in chosen:
        try:
            python = Path(sys.executable) if engine.own else peers()
            made = preparation.prepare(engine)
        except RuntimeError as error:
            results.failures.append(f"{engine.name}: {error}")
            print(f"{engine.name} is left out: {error}", flush=True)
        else:
            found.append(Contender(engine, made, functools.partial(_start, engine, python, cache)))
    return found


def _start(engine: Engine, python: Path, cache: Path) -> Worker:
    command = [str(python), "-m", f"benchmarks.workers.{engine.worker}"]
    log = cache / "logs" / f"worker-{engine.name}.log"
    return Worker(engine.name, command, log, cwd=TOP, env={**os.environ, **offline()})


def show(results: Results) -> None:
    """The tables, on the terminal."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for shape in results.facts:
        for table in tables(View(results, shape)):
            console.print(f"\n[bold]{shape}: {table.title}[/]\n{table.note}", highlight=False)
            shown = TerminalTable()
            for number, name in enumerate(table.head):
                shown.add_column(name, justify="right" if number else "left", no_wrap=not number)
            for row in table.rows:
                shown.add_row(*row)
            console.print(shown)
    for failure in results.failures:
        console.print(f"failed: {failure}", style="red", markup=False)
