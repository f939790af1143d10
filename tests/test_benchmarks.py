"""The harness of `python -m benchmarks`, with workers that pretend. No time is measured here, and no peer installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.artifacts import Prepared
from benchmarks.cases import BATCHES, CASES, OPEN, PREFILLS, Case, named_cases
from benchmarks.conversion.gguf_file import gguf_name, interleaved
from benchmarks.document import write_document
from benchmarks.engines import ENGINES, Engine, named_engines
from benchmarks.machine import read_bandwidth
from benchmarks.pool import Pool, Worker, WorkerDied, WorkerError
from benchmarks.rounds import Contender, Run, schedule
from benchmarks.samples import Results, Sample, View
from benchmarks.tables import tables
from benchmarks.targets import TARGETS, judge

TOP = Path(__file__).parent.parent
ONE, FOUR = BATCHES[0], BATCHES[2]
# A worker whose speed is given; `dies_at` and `fails_at` name orders that it does not survive or cannot do.
FAKE = """
import json, sys, time
speed, dies_at, fails_at, journal = float(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
for line in sys.stdin:
    order = json.loads(line)
    with open(journal, "a") as file:
        file.write(json.dumps([sys.argv[5], order]) + "\\n")
    operation = order["op"]
    if operation == "close":
        break
    if operation == dies_at:
        print("out of luck", file=sys.stderr)
        sys.exit(3)
    if operation == fails_at:
        print(json.dumps({"ok": False, "error": "ValueError: no"}), flush=True)
        continue
    print(json.dumps({"ok": True, **{
        "open": {"version": "1", "vocabulary": 9, "kv_element_bytes": 2, "import_seconds": 1, "open_seconds": 0.25,
                 "library_bytes": 5},
        "prefill": {"prefill_seconds": order.get("prompt", 0) / speed / 10, "first": [1]},
        "decode": {"prefill_seconds": order.get("context", 0) / speed / 10, "first": [1], "tokens": order.get("tokens"),
                   "decode_seconds": order.get("tokens", 0) / speed},
        "memory": {"resident": 2000, "private": 1500, "file": 500},
    }[operation]}), flush=True)
"""


@pytest.fixture
def contender(tmp_path: Path) -> Callable[..., Contender]:
    """Makes an engine of a name that pretends to be so fast."""

    def make(name: str, speed: float = 10.0, dies_at: str = "-", fails_at: str = "-") -> Contender:
        told = [str(speed), dies_at, fails_at, str(tmp_path / "journal"), name]
        command = [sys.executable, "-c", FAKE, *told]
        start = partial(Worker, name, command, tmp_path / f"{name}.log")
        return Contender(Engine(name, "fake", None, 4), Prepared(tmp_path, 1000, 800, 4), start)

    return make


@pytest.fixture
def run_all(tmp_path: Path) -> Callable[..., Results]:
    def run(contenders: list[Contender], cases: tuple[Case, ...], rounds: int = 1) -> Results:
        results = Results()
        with Pool(1e12) as pool:
            Run("tiny", 2, pool, results, lambda _: None).run(contenders, cases, rounds, lambda: 1e6)
        return results

    return run


def journal(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(name, order) for name, order in map(json.loads, (folder / "journal").read_text().splitlines())]


# The order of things


def test_every_engine_has_its_turn_in_every_case_of_every_round(
    contender: Callable[..., Contender], run_all: Callable[..., Results], tmp_path: Path
) -> None:
    run_all([contender("a"), contender("b")], (FOUR, BATCHES[3]), rounds=2)
    ran = [(name, order["sequences"]) for name, order in journal(tmp_path) if order["op"] == "decode"]
    assert ran == [("a", 4), ("b", 4), ("a", 8), ("b", 8), ("b", 4), ("a", 4), ("b", 8), ("a", 8)]
    opened = [name for name, order in journal(tmp_path) if order["op"] == "open"]
    assert opened == ["a", "b"], "workers stay open"


def test_prompts_are_the_same_for_all_engines_and_new_in_every_round(
    contender: Callable[..., Contender], run_all: Callable[..., Results], tmp_path: Path
) -> None:
    run_all([contender("a"), contender("b")], (FOUR,), rounds=2)
    seeds = [order["seed"] for _, order in journal(tmp_path) if order["op"] == "decode"]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]


def test_long_cases_have_fewer_rounds_and_engines_skip_what_is_not_for_them(
    contender: Callable[..., Contender],
) -> None:
    anyone = contender("a")
    small = Contender(Engine("b", "fake", None, 4, most_sequences=2), anyone.prepared, anyone.start)
    twice = Case(1, 8192, most_rounds=2)
    names = [[(c.name, who.engine.name) for c, who in schedule([anyone, small], (FOUR, twice), n)] for n in (1, 3)]
    assert names == [[("4x128", "a"), ("1x8192", "a"), ("1x8192", "b")], [("4x128", "a")]]


def test_opening_is_measured_in_a_process_of_its_own(
    contender: Callable[..., Contender], run_all: Callable[..., Results], tmp_path: Path
) -> None:
    results = run_all([contender("a")], (ONE, OPEN))
    orders = [order["op"] for _, order in journal(tmp_path)]
    assert orders == ["open", "prefill", "decode", "close", "open", "prefill", "decode", "memory", "close"]
    values = results.samples[-1].values
    assert values["open_seconds"] == 0.25 and values["resident"] == 2000


def test_two_ways_in_one_process(
    contender: Callable[..., Contender], run_all: Callable[..., Results], tmp_path: Path
) -> None:
    plain = contender("a")
    other = Contender(Engine("a-engine", "fake", None, 4, way="engine", shares="a"), plain.prepared, plain.start)
    results = run_all([plain, other], (FOUR,), rounds=2)
    assert [order["op"] for _, order in journal(tmp_path)].count("open") == 1
    assert {s.engine for s in results.samples} == {"a", "a-engine"} == set(results.facts["tiny"])
    assert {order["way"] for _, order in journal(tmp_path) if order["op"] == "decode"} == {"", "engine"}


def test_memory_makes_the_worker_go_that_was_used_last(contender: Callable[..., Contender]) -> None:
    with Pool(budget=1.0) as pool:
        first, started = pool.get("a", 0.5, contender("a").start)
        second, _ = pool.get("b", 0.5, contender("b").start)
        assert started and not first.alive and second.alive
        assert pool.get("b", 0.5, contender("b").start) == (second, False)


# When something goes wrong


def test_a_worker_that_dies_says_why_and_the_rest_goes_on(
    contender: Callable[..., Contender], run_all: Callable[..., Results], tmp_path: Path
) -> None:
    results = run_all([contender("a", dies_at="decode"), contender("b")], (ONE, FOUR, PREFILLS[1]), rounds=2)
    assert {(s.engine, s.case) for s in results.samples} == {("b", "1x128"), ("b", "4x128"), ("b", "1x512")}
    assert len(results.failures) == 2, "not tried again"
    assert "a died with status 3" in results.failures[0] and "out of luck" in results.failures[0]


def test_what_an_engine_cannot_do_costs_it_that_case_only(
    contender: Callable[..., Contender], run_all: Callable[..., Results], tmp_path: Path
) -> None:
    results = run_all([contender("a", fails_at="decode")], (FOUR, PREFILLS[1]), rounds=2)
    assert [s.case for s in results.samples] == ["1x512", "1x512"]
    asked = {"sequences": 4, "context": 128, "tokens": 32, "seed": 1004, "way": ""}
    assert results.failures == [f"tiny, 4x128: a cannot decode {asked}: ValueError: no"]


def test_a_worker_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    worker = Worker("mute", [sys.executable, "-c", "import sys; sys.stdin.read()"], tmp_path / "log")
    with pytest.raises(WorkerDied, match="mute did not answer 'open' in time"):
        worker.ask("open", seconds=0.2)
    assert not worker.alive
    worker.close()


def test_the_real_protocol_checks_the_number_of_tokens(tmp_path: Path) -> None:
    code = """
from benchmarks.workers.protocol import Runner, serve
class Lazy(Runner):
    def load_library(self): print("libraries print")
    def open(self, folder, threads, room, options): return {"vocabulary": 100, "options": options, "room": room}
    def begin(self, prompts, tokens): self.made = [[] for _ in prompts]
    def prefill(self): self.step()
    def step(self): [one.append(1) for one in self.made if len(one) < 5]
    def end(self): return self.made
serve(Lazy())
"""
    worker = Worker("lazy", [sys.executable, "-c", code], tmp_path / "log", cwd=TOP)
    facts = worker.ask("open", folder="x", threads=1, options={"a": 1}, tokens=7, sequences=3)
    assert facts["options"] == {"a": 1} and facts["room"] == {"tokens": 7, "sequences": 3}
    assert worker.ask("decode", sequences=2, context=3, tokens=2, seed=0)["tokens"] == 2
    assert worker.ask("prefill", prompt=3, seed=0)["first"] == [1]
    with pytest.raises(WorkerError, match=r"6 tokens of 1 sequences were wanted, not \[5\]"):
        worker.ask("decode", sequences=1, context=3, tokens=3, seed=0)
    assert worker.ask("memory")["resident"] > 0
    worker.close()
    assert not worker.alive


# What is made of the samples


def sample(engine: str, case: Case, number: int, tokens_per_second: float) -> Sample:
    seconds = case.sequences * case.tokens / tokens_per_second if case.tokens else 1.0
    values = {"prefill_seconds": case.context / tokens_per_second, "decode_seconds": seconds, "tokens": case.tokens}
    return Sample("tiny", engine, case.name, number, values)


FACTS = {"version": "7", "settings": {}, "weight_bytes": 1000, "step_bytes": 900, "kv_token_bytes": 2.0}


@pytest.fixture
def results() -> Results:
    """Ours twice as fast as a peer, on a machine that is three times as slow in one round."""
    found = Results(bandwidths=[2e4, 3e4])
    for number, weather in enumerate((1.0, 3.0, 1.1), 1):
        for engine, speed in (("ours-int4", 60.0), ("llama.cpp-q4_0", 30.0), ("llama.cpp-q8_0", 20.0)):
            found.samples += [sample(engine, case, number, speed / weather) for case in (*BATCHES, *PREFILLS[1:])]
            found.facts.setdefault("tiny", {})[engine] = FACTS
        opened = {"import_seconds": 1.0, "open_seconds": 0.5, "first_token_seconds": 0.7, "library_bytes": 9}
        held = {"resident": 1932.0, "private": 1000.0, "file": 932.0}
        found.samples.append(Sample("tiny", "ours-int4", "open", number, {**opened, **held}))
    found.about = {"date": "2026-01-01", "command": "python -m benchmarks", "commit": "abc", "threads": 2, "rounds": 3}
    found.about |= {
        "machine": {k: k for k in ("processor", "instructions", "memory", "system")},
        "versions": {"x": "1"},
    }
    return found


def test_medians_and_what_they_lie_between(results: Results) -> None:
    spread = View(results, "tiny").spread("ours-int4", FOUR, "decode")
    assert spread is not None
    assert [round(v, 1) for v in (spread.least, spread.median, spread.most)] == [20.0, 54.5, 60.0]


def test_ratios_are_taken_within_a_round(results: Results) -> None:
    ratio = View(results, "tiny").ratio("ours-int4", "llama.cpp-q4_0", FOUR, "decode")
    assert ratio is not None and ratio.least == ratio.most == pytest.approx(2)


def test_the_limit_is_what_a_step_reads(results: Results) -> None:
    read = 900 + 4 * (128 + 1 + 16) * 2
    assert View(results, "tiny").limit("ours-int4", FOUR) == pytest.approx(3e4 / read * 4)


def test_targets_are_judged(results: Results) -> None:
    verdicts = {(t.what, t.peers): judge(View(results, "tiny"), t) for t in TARGETS}
    four = verdicts["decode, 4 sequences, 4 bits", ("llama.cpp-q4_0",)]
    assert four.met and four.found is not None and four.found.median == pytest.approx(2)
    best = next(v for (what, _), v in verdicts.items() if what == "prompt of 512, 4 bits")
    assert best.peer == "llama.cpp-q4_0", "the best of its formats"
    opening = verdicts["seconds from open to first token, 4 bits", ()]
    assert opening.met is False and opening.found is not None and opening.found.median == pytest.approx(1.2)
    memory = verdicts["resident bytes over weights and cache, 4 bits", ()]
    assert memory.found is not None and memory.found.median == pytest.approx(1932 / (1000 + 2 * 144))
    assert verdicts["decode, 1 sequence, 8 bits", ("llama.cpp-q8_0",)].met is None, "ours was not there"


def test_the_document_says_it_all_and_can_be_written_again(results: Results, tmp_path: Path) -> None:
    results.failures.append("tiny: something broke")
    page = write_document(results, tmp_path).read_text()
    for expected in (
        "`python -m benchmarks`, 3 rounds, 2 threads",
        "read at 0.0 GB/s",
        "| decode, 4 sequences, 4 bits | llama.cpp-q4_0 | ≥ 1.6 | 2.00 | yes |",
        "| ours-int4 / llama.cpp-q4_0 | 2.00 |",
        "| ours-int4 | 55 (20–60) |",
        "- tiny: something broke",
        "![Decode over sequences](benchmarks/tiny-decode.svg)",
    ):
        assert expected in page
    assert len(list((tmp_path / "benchmarks").glob("tiny-*.svg"))) == 3
    again = Results.load(tmp_path / "benchmarks.json")
    assert again == results
    assert write_document(again, tmp_path).read_text() == page


def test_partial_runs_show_what_they_have(results: Results) -> None:
    results.samples = [s for s in results.samples if s.case == "1x512"]
    shown = [table.title for table in tables(View(results, "tiny"))]
    assert shown == [
        "Targets",
        "Prefill over the prompt's length",
        "Prefill over the prompt's length: ours over theirs",
    ]


# Parts


def test_bandwidth_is_positive() -> None:
    assert read_bandwidth(2, megabytes=4, repeats=1) > 0


def test_names_choose_and_wrong_ones_are_refused() -> None:
    assert [engine.name for engine in named_engines(["llama.cpp-q*"])] == ["llama.cpp-q4_0", "llama.cpp-q8_0"]
    assert "ours-bf16" not in [engine.name for engine in named_engines(["ours-*"])]
    assert [engine.name for engine in named_engines(["ours-bf16"])] == ["ours-bf16"]
    assert named_cases(["open", "4x128"]) == (FOUR, OPEN)
    with pytest.raises(ValueError, match="no engine is called nobody"):
        named_engines(["nobody"])
    with pytest.raises(ValueError, match="no case 5x5; there are 1x128"):
        named_cases(["5x5"])


def test_targets_name_engines_and_cases_that_are_run() -> None:
    names = {engine.name for engine in ENGINES}
    assert {name for t in TARGETS for name in (t.ours, *t.peers)} <= names
    assert {t.case for t in TARGETS} <= set(CASES)


def test_rows_for_llama_cpp_are_interleaved() -> None:
    weight = np.arange(16).reshape(8, 2)
    assert interleaved(weight, 2)[:, 0].tolist() == [0, 4, 2, 6, 8, 12, 10, 14]
    assert gguf_name("model.layers.11.self_attn.q_proj.weight") == "blk.11.attn_q.weight"
    assert gguf_name("model.embed_tokens.weight") == "token_embd.weight"
