"""What people and programs see: data on stdout, everything else on stderr; rich on a terminal, plain text elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TextIO

from QEfficient.artifacts import format_size
from QEfficient.progress import listening


def note(text: str) -> None:
    """A remark."""
    print(text, file=sys.stderr)


def document(value: Any) -> None:
    """The JSON document of a command."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Data: drawn on a terminal; elsewhere tab-separated, a line per row."""
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw(sys.stdout, columns, cells)
        return
    for row in (columns, *cells):
        print("\t".join(cell.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n") for cell in row))


def side_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A drawn table beside the data."""
    _draw(sys.stderr, columns, [[str(cell) for cell in row] for row in rows])


def _draw(stream: TextIO, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        figures = bool(rows) and all(row[number][:1].isdigit() for row in rows)
        drawn.add_column(name, justify="right" if figures else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    Console(file=stream, markup=False, highlight=False).print(drawn)


class StageClock:
    """Takes the seconds of each stage of long work, and shows on a terminal which one runs."""

    def __init__(self, verbose: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._shown = sys.stderr.isatty() and not verbose
        self._stage = ""
        self._start = 0.0
        self._bar: Any = None
        self._task: Any = None
        self._opened = ExitStack()

    def __call__(self, stage: str, shown: bool = True) -> None:
        """The next stage begins. Without `shown` the terminal is left to others, who show a progress of their own."""
        self.stop()
        self._stage, self._start = stage, time.perf_counter()
        if self._shown and shown:
            self._show(stage)

    def stop(self) -> None:
        """The running stage is over, and no other begins."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._stage:
            passed = time.perf_counter() - self._start
            self.seconds[self._stage] = round(self.seconds.get(self._stage, 0.0) + passed, 3)
            self._stage = ""

    def __enter__(self) -> StageClock:
        self._opened.enter_context(listening(self._advance))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._opened.close()

    def summary(self) -> None:
        """A table of all stages, or a remark that nothing was to be done."""
        if not self.seconds:
            note("nothing to do: the program is there")
            return
        rows = [(stage, f"{seconds:.2f}") for stage, seconds in self.seconds.items()]
        side_table(("stage", "seconds"), [*rows, ("total", f"{sum(self.seconds.values()):.2f}")])

    def _show(self, stage: str) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(stage)
        self._bar.start()

    def _advance(self, done: int, total: int | None) -> None:
        if self._bar is not None:
            of_all = "" if total is None else f" of {format_size(total)}"
            self._bar.update(self._task, description=f"{self._stage}: {format_size(done)}{of_all} written")
