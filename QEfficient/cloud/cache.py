"""`qefficient cache`: what was exported and compiled, and what it takes on the disk."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from QEfficient.cloud._arguments import Parser, UsageError

if TYPE_CHECKING:
    from QEfficient.artifacts import ArtifactStore, Entry

HELP = "List, describe, verify or remove what was exported and compiled."
EXAMPLES = """\
  qefficient cache list
  qefficient cache info LlamaForCausalLM-11fc        the beginning of a name is enough
  qefficient cache verify                            reads and hashes every byte
  qefficient cache remove qpc-3711 qpc-9a0b
  qefficient cache remove --all"""

COLUMNS = ("name", "size", "last used", "device", "model", "state")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("action", choices=list(ACTIONS), metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("names", metavar="NAME", nargs="*", help="artifacts by the beginning of their name, or by path")
    parser.add_argument("--all", action="store_true", help="with remove: everything")


def run(arguments: argparse.Namespace) -> int:
    from QEfficient.artifacts import ArtifactStore

    _check(arguments)
    return ACTIONS[arguments.action](ArtifactStore(), arguments)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse names where they mean nothing, and a removal of nothing."""
    action, names = arguments.action, arguments.names
    if arguments.all and (action != "remove" or names):
        raise UsageError("--all goes with `cache remove`, without names.")
    if action == "list" and names:
        raise UsageError("`cache list` takes no names. `cache info NAME` describes one artifact.")
    if action in ("info", "remove") and not names and not arguments.all:
        raise UsageError(f"`cache {action}` needs the name of an artifact. `qefficient cache list` shows them.")


def _list(store: ArtifactStore, arguments: argparse.Namespace) -> int:
    from QEfficient.artifacts import format_size
    from QEfficient.cloud._presentation import document, note, table

    entries = store.entries()
    total = sum(entry.size for entry in entries)
    unfinished = store.unfinished_size()
    if arguments.json:
        records = [_record(entry) for entry in entries]
        document({"root": store.root, "size": total, "unfinished": unfinished, "artifacts": records})
        return 0
    if entries:
        table(COLUMNS, [(_shown_name(entry), *_row(entry)[1:]) for entry in entries])
    note(f"{len(entries)} artifacts, {format_size(total)}, in {store.root}")
    if unfinished:
        note(f"unfinished builds hold {format_size(unfinished)} there: the next build removes what killed ones left")
    return 0


def _shown_name(entry: Entry) -> str:
    """On a terminal a compiled program stands below the one that it was made from, without repeating its name."""
    outer, separator, own = entry.name.rpartition("/")
    return f"  {own}" if sys.stdout.isatty() and separator and not outer.startswith("/") else entry.name


def _row(entry: Entry) -> tuple[str, ...]:
    from QEfficient.artifacts import format_size

    state = "complete" if entry.complete else "damaged"
    return entry.name, format_size(entry.size), _moment(entry.last_used), entry.device or "-", entry.source, state


def _record(entry: Entry) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(entry)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "unknown"


def _info(store: ArtifactStore, arguments: argparse.Namespace) -> int:
    from QEfficient.cloud._presentation import document

    entries = [store.find(name) for name in arguments.names]
    if arguments.json:
        records = [{**_record(entry), **store.info(entry)} for entry in entries]
        document(records[0] if len(records) == 1 else records)
        return 0
    for entry in entries:
        _describe(entry, store.info(entry))
    return 0


def _describe(entry: Entry, info: dict[str, Any]) -> None:
    from QEfficient.artifacts import format_size
    from QEfficient.cloud._presentation import table

    manifest = info["manifest"]
    about = {
        **dict(zip(COLUMNS, _row(entry), strict=True)),
        "kind": entry.kind,
        "path": entry.path,
        "created": _moment(entry.created),
        "dtype": manifest.get("dtype", manifest.get("program", {}).get("dtype", "")),
        **{name: value for name, value in manifest.get("spec", {}).items() if value not in (None, {})},
        "compiled": ", ".join(info["compiled"]),
    }
    table(("property", "value"), [(name, value) for name, value in about.items() if value != ""])
    table(("file", "size"), [(name, format_size(size)) for name, size in info["files"].items()])


def _verify(store: ArtifactStore, arguments: argparse.Namespace) -> int:
    from QEfficient.cloud._presentation import document, table
    from QEfficient.errors import ArtifactError

    entries = [store.find(name) for name in arguments.names] or store.entries()
    damage = {entry.name: store.verify(entry.path) for entry in entries}
    if arguments.json:
        document({"artifacts": damage})
    else:
        table(("name", "state"), [(name, "; ".join(sentences) or "complete") for name, sentences in damage.items()])
    damaged = [name for name, sentences in damage.items() if sentences]
    if damaged:
        found = f"{len(damaged)} of {len(entries)} artifacts are damaged: {', '.join(damaged[:5])}."
        raise ArtifactError(f"{found} Remove them with `qefficient cache remove NAME` and make them again.")
    return 0


def _remove(store: ArtifactStore, arguments: argparse.Namespace) -> int:
    from QEfficient.artifacts import format_size
    from QEfficient.cloud._presentation import document, note

    entries = _outermost(store.entries() if arguments.all else [store.find(name) for name in arguments.names])
    inside = [e for e in store.entries() if any(e.path.is_relative_to(outer.path) for outer in entries)]
    freed = sum(entry.size for entry in inside or entries)
    for entry in entries:
        store.remove(entry)
        note(f"removed {entry.name}")
    if arguments.json:
        document({"removed": [entry.name for entry in entries], "freed": freed})
    else:
        note(f"{format_size(freed)} freed")
    return 0


def _outermost(entries: Sequence[Entry]) -> list[Entry]:
    """Without those that go with another one, and each once."""
    unique = {entry.path: entry for entry in entries}
    return [entry for path, entry in unique.items() if not any(parent in unique for parent in path.parents)]


ACTIONS: dict[str, Callable[[ArtifactStore, argparse.Namespace], int]] = {
    "list": _list,
    "info": _info,
    "verify": _verify,
    "remove": _remove,
}


if __name__ == "__main__":
    from QEfficient.cloud.main import run_alone

    sys.exit(run_alone("cache"))
