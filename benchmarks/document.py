"""docs/benchmarks.md with its samples and pictures, written from the samples of a full run."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases import Case
from benchmarks.charts import Line, line_chart
from benchmarks.samples import Results, View
from benchmarks.tables import GROUPS, Group, engine_names, tables

SAMPLES = "benchmarks.json"
PAGE = "benchmarks.md"
PICTURES = "benchmarks"

METHOD = """\
How it is measured: every engine is a process of its own that stays open and waits while others run; in every round each
case is run once by each engine, in an order that turns from round to round. Prompts are random tokens, others in every
round; tokens are chosen greedily; the two steps after a prompt are not counted. Weights are random, in the shapes of
real models, so the figures say nothing about quality. Figures are medians over the rounds; ratios are taken within a
round. `ours-*` is a loop around a session; `ours-*-engine` is the same, in the same process, through the engine that
serves requests.

The formats: llama.cpp's Q4_0 has a head in Q6_K, its cache is in f16; openvino-genai's int4 has groups of 128
everywhere, `head8` keeps the head and the embedding in int8; onnxruntime-genai's int4 has blocks of 32 and a cache in
f32; ours has groups of 128 in layers and head, and an embedding in 8 bits beside them, which is looked up, not read.
openvino-genai and ours keep keys and values in 8 bits.
"""
ACROSS = {
    "Decode over sequences": ("decode", "sequences"),
    "Prefill over the prompt's length": ("prefill", "tokens of the prompt"),
    "Decode over context": ("context", "tokens before"),
}


def write_document(results: Results, folder: Path) -> Path:
    """Returns the page."""
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    results.save(folder / SAMPLES)
    parts = ["# Benchmarks\n", _head(results), METHOD]
    for shape in results.facts:
        view = View(results, shape)
        parts.append(f"## {shape}\n")
        parts += [_picture(view, group, folder) for group in GROUPS]
        parts += [table.markdown() for table in tables(view)]
    parts += [_versions(results), _failures(results)]
    page = folder / PAGE
    page.write_text("\n".join(part for part in parts if part))
    return page


def _head(results: Results) -> str:
    about = results.about
    machine = about["machine"]
    lines = [
        f"{about['date']}, `{about['command']}`, {about['rounds']} rounds, {about['threads']} threads.\n",
        f"- processor: {machine['processor']}; {machine['instructions']}",
        f"- memory: {machine['memory']}, read at {results.bandwidth / 1e9:.1f} GB/s by all threads together"
        f" (lowest reading of the run: {min(results.bandwidths) / 1e9:.1f})",
        f"- system: {machine['system']}",
        f"- commit: {about['commit']}",
        f"- closed after each use, since their threads did not rest: {', '.join(about.get('restless', ())) or 'none'}",
        f"- every sample: [{SAMPLES}]({SAMPLES})\n",
    ]
    return "\n".join(lines)


def _picture(view: View, group: Group, folder: Path) -> str:
    lines = [_line(view, group, name) for name in engine_names(view)]
    lines = [line for line in lines if len(line.points) > 1]
    if not lines:
        return ""
    short, across = ACROSS[group.title]
    file = f"{PICTURES}/{view.shape}-{short}.svg"
    (folder / file).write_text(line_chart(f"{group.title}, {view.shape}", across, "tokens per second", lines))
    return f"![{group.title}]({file})\n"


def _line(view: View, group: Group, name: str) -> Line:
    def place(case: Case) -> float:
        return case.context if group.cases[0].sequences == group.cases[-1].sequences else case.sequences

    spreads = [(place(case), view.spread(name, case, group.metric)) for case in group.cases]
    points = tuple((x, spread.median) for x, spread in spreads if spread is not None)
    return Line(name, points, thick=name.startswith("ours-"))


def _versions(results: Results) -> str:
    found = {name: facts["version"] for engines in results.facts.values() for name, facts in engines.items()}
    lines = [f"- {name}: {version}" for name, version in {**results.about["versions"], **found}.items()]
    return "## Versions\n\n" + "\n".join(lines) + "\n"


def _failures(results: Results) -> str:
    if not results.failures:
        return ""
    return "## What failed\n\n" + "\n".join(f"- {failure}" for failure in results.failures) + "\n"
