"""What is written about a compilation, by the names that its files have when it is published.

A program is built in a folder of another name, and scripts of Qualcomm's library get the container without a folder
around it. So the compiler was told paths that nobody will find; its log and the report name those that hold. The graph
that it read is not kept, and has no other name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from QEfficient.devices.cloud_ai_100.running import LOG
from QEfficient.publication import final_place

COMMANDS = ("command", "commands")


def by_final_names(folder: Path, lifted: Path | None, report: Mapping[str, Any]) -> dict[str, Any]:
    """The report, with its paths as they will be, and so the log in `folder`. `lifted`: where the container lay, if
    it lies in `folder` itself now."""
    place = str(final_place(folder))
    names = [str(path) for path in (lifted, folder) if path is not None]
    log = folder / LOG
    log.write_text(_renamed(log.read_text(encoding="utf-8"), names, place), encoding="utf-8")
    return {key: _renamed(value, names, place) if key in COMMANDS else value for key, value in report.items()}


def _renamed(said: Any, names: Sequence[str], place: str) -> Any:
    """Texts, or lists of them, with `place` where one of the names was; the longest name comes first."""
    if not isinstance(said, str):
        return [_renamed(part, names, place) for part in said]
    for name in names:
        said = said.replace(name, place)
    return said
