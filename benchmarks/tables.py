"""The tables of a shape: the same ones for the terminal and for the document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.cases import BATCHES, CONTEXTS, OPEN, PREFILLS, Case
from benchmarks.engines import ENGINES, OTHERS
from benchmarks.samples import Spread, View
from benchmarks.targets import TARGETS, Verdict, judge


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = ["| " + " | ".join(self.head) + " |", "|---" + "|---:" * (len(self.head) - 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return f"### {self.title}\n\n{self.note}\n\n" + "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Group:
    """Cases that belong side by side."""

    title: str
    metric: str
    cases: tuple[Case, ...]
    label: Callable[[Case], str]


GROUPS = (
    Group("Decode over sequences", "decode", BATCHES, lambda case: f"{case.sequences} seq."),
    Group("Prefill over the prompt's length", "prefill", PREFILLS, lambda case: f"{case.context:,}"),
    Group("Decode over context", "decode", CONTEXTS, lambda case: f"{case.context:,}"),
)
NOTES = {
    "Decode over sequences": "Tokens per second of all sequences together, each with a prompt of 128 tokens;"
    " median (least to most).",
    "Prefill over the prompt's length": "Tokens of one prompt per second, until its first new token is there;"
    " median (least to most).",
    "Decode over context": "Tokens per second of one sequence behind so many tokens; median (least to most).",
}


def tables(view: View) -> list[Table]:
    """Those for which there are samples."""
    found = [_targets(view)]
    for group in GROUPS:
        if {case.name for case in _cases(view, group)} <= {BATCHES[0].name} and group.cases is CONTEXTS:
            continue  # the first case stands among the decode cases already
        found += [_speeds(view, group), _ratios(view, group)]
        if group.metric == "decode":
            found.append(_limits(view, group))
    found += [_opening(view), _memory(view)]
    return [table for table in found if table.rows]


def engine_names(view: View) -> list[str]:
    return [engine.name for engine in (*ENGINES, *OTHERS) if view.has(engine.name)]


def _filled(view: View, group: Group, cell: Callable[[str, Case], str | None], names: Sequence[str]) -> list[list[str]]:
    """A row for each name that has anything to show, a column for each case that anyone has."""
    cases = _cases(view, group)
    rows = [[name, *((cell(name, case) or "–") for case in cases)] for name in names]
    return [row for row in rows if any(entry != "–" for entry in row[1:])]


def _cases(view: View, group: Group) -> list[Case]:
    names = engine_names(view)
    return [case for case in group.cases if any(view.by_round(name, case, group.metric) for name in names)]


def _table(view: View, group: Group, title: str, note: str, rows: list[list[str]]) -> Table:
    head = ("", *(group.label(case) for case in _cases(view, group)))
    return Table(title, note, head, tuple(map(tuple, rows)))


def _speeds(view: View, group: Group) -> Table:
    def cell(name: str, case: Case) -> str | None:
        return _shown(view.spread(name, case, group.metric), 1 if group.metric == "decode" else 0)

    return _table(view, group, group.title, NOTES[group.title], _filled(view, group, cell, engine_names(view)))


def _ratios(view: View, group: Group) -> Table:
    names = engine_names(view)
    ours = [name for name in names if name.startswith("ours-") and not name.endswith("-engine")]
    peers = [name for name in names if not name.startswith("ours-")]
    rows = []
    for own in ours:
        for peer in peers:

            def cell(_: str, case: Case, own: str = own, peer: str = peer) -> str | None:
                return _shown(view.ratio(own, peer, case, group.metric), 2)

            rows += _filled(view, group, cell, [f"{own} / {peer}"])
    note = "Ours over theirs: ratios within a round; median (least to most)."
    return _table(view, group, f"{group.title}: ours over theirs", note, rows)


def _limits(view: View, group: Group) -> Table:
    def cell(name: str, case: Case) -> str | None:
        speed, limit = view.spread(name, case, group.metric), view.limit(name, case)
        return f"{limit:,.0f} ({speed.median / limit:.0%})" if speed and limit else None

    note = (
        "Tokens per second if each step took as long as reading its weights, keys and values once at the machine's"
        " bandwidth, and how much of that was reached."
    )
    return _table(view, group, f"{group.title}: the limit", note, _filled(view, group, cell, engine_names(view)))


def _opening(view: View) -> Table:
    rows = []
    for name in engine_names(view):
        total = view.spread(name, OPEN, "first_token")
        if total is not None:
            parts = [view.spread(name, OPEN, f"{part}_seconds") for part in ("import", "open", "first_token")]
            rows.append((name, _shown(total, 2) or "–", *(f"{part.median:.2f}" if part else "–" for part in parts)))
    note = (
        "Seconds in a fresh process, files in the page cache: from opening to the first token behind a prompt of 16,"
        " without importing libraries, which stands beside it."
    )
    return Table("Open to first token", note, ("", "open + first token", "imports", "open", "first token"), tuple(rows))


def _memory(view: View) -> Table:
    rows = []
    for name in engine_names(view):
        ratio = view.spread(name, OPEN, "resident_ratio")
        if ratio is not None:
            kinds = ("resident", "private", "file", "library_bytes")
            parts = [view.spread(name, OPEN, kind) for kind in kinds]
            megabytes = [f"{part.median / 1e6:,.0f}" if part else "–" for part in parts]
            rows.append((name, *megabytes, f"{view.needed_bytes(name) / 1e6:,.0f}", f"{ratio.median:.2f}"))
    note = (
        "MB of a fresh process after a prompt of 128 tokens and 16 more: all that is resident, what of it is its own,"
        " what is mapped from files, what importing the libraries took; beside it the weights, keys and values."
    )
    head = ("", "resident", "private", "of files", "libraries", "weights + cache", "ratio")
    return Table("Memory", note, head, tuple(rows))


def _targets(view: View) -> Table:
    verdicts = [judge(view, target) for target in TARGETS]
    rows = tuple(_verdict(verdict) for verdict in verdicts if verdict.found is not None)
    note = "What we want and what was measured: ratios within a round; median (least to most)."
    return Table("Targets", note, ("", "against", "wanted", "measured", "reached"), rows)


def _verdict(verdict: Verdict) -> tuple[str, ...]:
    target = verdict.target
    wanted = f"≥ {target.wanted:g}" if target.peers else f"≤ {target.wanted:g}"
    return target.what, verdict.peer or "–", wanted, _shown(verdict.found, 2) or "–", "yes" if verdict.met else "no"


def _shown(spread: Spread | None, digits: int) -> str | None:
    if spread is None:
        return None
    if spread.least == spread.most:
        return f"{spread.median:,.{digits}f}"
    return f"{spread.median:,.{digits}f} ({spread.least:,.{digits}f}–{spread.most:,.{digits}f})"
