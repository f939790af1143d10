"""The artifact store: folders named by fingerprint, published atomically, each built by one process at a time.

    <root>/<architecture>/<name>-<fingerprint>/                       an exported program
    <root>/<architecture>/<name>-<fingerprint>/qpc-<fingerprint>/     that program, compiled

A folder that has its final name is complete; how that is done is in :mod:`QEfficient.publication`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from QEfficient.errors import ArtifactError, StorageError
from QEfficient.program import MANIFEST, compiled_folder
from QEfficient.publication import (
    CHECKSUMS,
    LOCK_PREFIX,
    Build,
    WaitHook,
    build_and_rename,
    damages,
    files_of,
    locked,
    make_folder,
    mark_used,
    remove_atomically,
    remove_leftovers,
    sole_builder,
    unfinished,
)

COMPILED_PREFIX = "qpc-"
REFUSALS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file grew beyond the size that is allowed here",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
}


LACK_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)


def plain(value: Any) -> Any:
    """`value` in JSON's own types: the same for the same content, whatever the order of its sets."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        record = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"__type__": type(value).__name__, **record}
    if isinstance(value, Mapping) and all(isinstance(key, str) or type(key) is int for key in value):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value), key=_canonical)
    raise TypeError(f"{type(value).__name__} has no JSON form that could be hashed or stored: {value!r}")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(obj: Any) -> str:
    """16 hexadecimal digits that depend on the content of `obj` and on nothing else."""
    return hashlib.sha256(_canonical(plain(obj)).encode("ascii")).hexdigest()[:16]


def write_json(path: Path, document: Any) -> None:
    """Write a document for people and programs to read."""
    path.write_text(json.dumps(plain(document), indent=4, allow_nan=False) + "\n", encoding="utf-8")


LARGER_UNITS = (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6))


def format_size(size: int) -> str:
    """`1.2 GB`, or the same in the unit that suits it, from kB to PB."""
    unit, factor = next((unit for unit in LARGER_UNITS if size >= unit[1]), ("kB", 1e3))
    return f"{size / factor:,.1f} {unit}"


@dataclass(frozen=True)
class Entry:
    """One artifact of the store. Times are seconds since the epoch; sizes exclude the artifacts inside it."""

    name: str
    """`<name>-<fingerprint>`, followed by `/qpc-<fingerprint>` for a compiled program; the path outside the root."""
    kind: str
    """exported | compiled"""
    path: Path
    size: int
    created: float
    last_used: float
    source: str
    """What the model was asked for as: a name, a folder, or `object`."""
    device: str
    """Empty for an exported program."""
    complete: bool


class ArtifactStore:
    """Where artifacts are, who may write them, and whether they are whole; not what they contain."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = _absolute(root or _default_root())

    def exported_folder(self, architecture: str, name: str, digest: str, export_dir: str | Path | None = None) -> Path:
        """Where a program belongs. With `export_dir` /x/y that is /x/y-<fingerprint>."""
        if export_dir is not None:
            return _absolute(f"{_absolute(export_dir)}-{digest}")
        return self.root / _folder_name(architecture or name) / f"{_folder_name(name)}-{digest}"

    def compiled_folder(self, exported: Path, digest: str, compile_dir: str | Path | None = None) -> Path:
        """Where the compiled form of the program in the folder `exported` belongs."""
        return _absolute(compile_dir or exported) / f"{COMPILED_PREFIX}{digest}"

    def check_writable(self, needed_bytes: int = 0, folder: Path | None = None) -> None:
        """Raise `StorageError` if `needed_bytes` do not fit in `folder` (default the root): asked before long work."""
        place = folder or self.root
        with self._refusals_explained(place):
            make_folder(place)
            # Permission bits would not tell: root has them all, on a read-only disk too.
            _try_writing(place)
            remove_leftovers(self.root)
            free = shutil.disk_usage(place).free
        if free < needed_bytes:
            found = f"{place} has {format_size(free)} free, but {format_size(needed_bytes)} are needed."
            raise StorageError(f"{found} {self._advice(place, errno.ENOSPC)}")

    def publish(
        self,
        target: Path,
        build: Build,
        documents: Mapping[str, Any] | None = None,
        on_wait: WaitHook | None = None,
    ) -> Path:
        """Make `target` exist and be complete; `build` runs unless it already is. Returns `target`.

        `build` must leave a manifest, and nothing that names the folder it wrote to. `documents` are small JSON files,
        by name, that are put beside what it writes.
        """
        target = _absolute(target)
        with self._refusals_explained(target):
            if not self.is_complete(target):
                with sole_builder(target, on_wait or (lambda _: None)):
                    if not self.is_complete(target):  # else another process built it while this one waited
                        self._refuse_occupied(target)
                        remove_leftovers(self.root)
                        build_and_rename(target, _with_documents(build, documents or {}))
        mark_used(target)
        return target

    def is_complete(self, folder: Path) -> bool:
        """Whether every file is there with its right size. Well under a millisecond: nothing is hashed."""
        return (folder / MANIFEST).is_file() and not any(damages(folder, hashing=False))

    def open(self, folder: str | Path) -> Path:
        """The folder, if it holds a complete artifact; else `ArtifactError`. Notes that it was used."""
        folder = _absolute(folder)
        if not folder.is_dir():
            raise ArtifactError(f"there is no artifact at {folder}: the folder does not exist.")
        damage, name = next(damages(folder, hashing=False), None), self._name(folder)
        if damage is not None:
            advice = f"Remove it with `qefficient cache remove {name}` and make it again."
            raise ArtifactError(f"the artifact {name} is damaged: {damage}. {advice}")
        mark_used(folder)
        return folder

    def verify(self, folder: Path) -> list[str]:
        """Read and hash every byte; a sentence about each file that is missing, truncated or altered."""
        return list(damages(folder, hashing=True))

    def entries(self) -> list[Entry]:
        """Everything below the root, damaged artifacts included, sorted by name."""
        folders = (*self.root.glob("*/*"), *self.root.glob(f"*/*/{COMPILED_PREFIX}*"))
        return sorted((self._entry(f) for f in folders if self._is_artifact(f)), key=lambda entry: entry.name)

    def unfinished_size(self) -> int:
        """Bytes below the root that belong to no artifact yet: of builders that work, or died. `publish` deletes what
        the dead ones left."""
        return sum(_size_inside(folder) for folder in unfinished(self.root))

    def find(self, prefix: str) -> Entry:
        """The one artifact whose name, folder or fingerprint starts with `prefix`, or that lies at this path."""
        if os.sep in prefix and self._is_artifact(folder := compiled_folder(_absolute(prefix))):
            return self._entry(folder)
        entries = self.entries()
        matches = [e for e in entries if e.name == prefix] or [e for e in entries if prefix and _matches(e, prefix)]
        if not matches:
            advice = "`qefficient cache list` names those that are there."
            raise ArtifactError(f"no artifact in {self.root} starts with '{prefix}'. {advice}")
        if len(matches) > 1:
            names = ", ".join(entry.name for entry in matches[:5])
            raise ArtifactError(f"'{prefix}' fits {len(matches)} artifacts ({names}). Give more of the name.")
        return matches[0]

    def info(self, entry: Entry) -> dict[str, Any]:
        """The manifest, the size of each file, and the names of the compiled programs inside."""
        compiled = [self._name(f) for f in entry.path.glob(f"{COMPILED_PREFIX}*") if self._is_artifact(f)]
        sizes = {f.relative_to(entry.path).as_posix(): f.stat().st_size for f in files_of(entry.path)}
        return {"manifest": _read_object(entry.path / MANIFEST), "files": sizes, "compiled": sorted(compiled)}

    def remove(self, entry: Entry) -> None:
        """Delete an artifact, with the compiled programs inside it; refuse while somebody is building there."""
        if not entry.path.is_dir():
            raise ArtifactError(f"{entry.name} is not there any more.")
        try:
            with self._refusals_explained(entry.path), locked(entry.path):
                remove_atomically(entry.path)
        except BlockingIOError:
            reason = "another process is building there. Try again when it is done."
            raise ArtifactError(f"{entry.name} cannot be removed now: {reason}") from None

    def _name(self, folder: Path) -> str:
        parts = folder.relative_to(self.root).parts if folder.is_relative_to(self.root) else ()
        return "/".join(parts[1:]) if len(parts) in (2, 3) else str(folder)

    def _is_artifact(self, folder: Path) -> bool:
        parts = folder.relative_to(self.root).parts if folder.is_relative_to(self.root) else (folder.name,)
        hidden = any(name.startswith(".") for name in parts)
        return not hidden and ((folder / CHECKSUMS).is_file() or (folder / MANIFEST).is_file())

    def _entry(self, folder: Path) -> Entry:
        manifest = _read_object(folder / MANIFEST)
        model = manifest.get("model") or manifest.get("program", {}).get("model", {})
        return Entry(
            name=self._name(folder),
            kind="compiled" if folder.name.startswith(COMPILED_PREFIX) else "exported",
            path=folder,
            size=sum(file.stat().st_size for file in files_of(folder)),
            created=_modified(folder / MANIFEST),
            last_used=_modified(folder / CHECKSUMS),
            source=str(model.get("source", "")),
            device=str(manifest.get("device", "")),
            complete=self.is_complete(folder),
        )

    def _refuse_occupied(self, target: Path) -> None:
        """A damaged artifact, or somebody else's files, are not ours to overwrite."""
        if (target / CHECKSUMS).exists():
            self.open(target)
        elif target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise ArtifactError(f"{target} is in the way: it is no complete artifact of QEfficient. Move or delete it.")

    def _advice(self, place: Path, reason: int) -> str:
        other = "set QEFF_HOME to another folder" if place.is_relative_to(self.root) else "choose another folder"
        if reason in LACK_OF_SPACE:
            return f"Free some space there, or {other}."
        return f"{other[0].upper()}{other[1:]}, or allow writing there."

    @contextlib.contextmanager
    def _refusals_explained(self, place: Path) -> Iterator[None]:
        """Turn the operating system's refusal to write around `place` into a `StorageError`."""
        try:
            yield
        except OSError as error:
            reason = REFUSALS.get(error.errno or 0)
            if reason is None or not _concerns(error.filename, place.parent):
                raise
            existing = next(folder for folder in (place, *place.parents) if os.path.isdir(folder))
            if error.errno in LACK_OF_SPACE:
                reason += f" ({format_size(shutil.disk_usage(existing).free)} free without the unfinished files)"
            advice = self._advice(place, error.errno or 0)
            raise StorageError(f"{place} cannot be written: {reason}. {advice}") from error


def _try_writing(folder: Path) -> None:
    """Write a file there, which vanishes. A folder of a file system that takes no files (/proc) says that it is not
    there."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except FileNotFoundError:
        raise StorageError(f"{folder} takes no files: choose another folder.") from None


def _with_documents(build: Build, documents: Mapping[str, Any]) -> Build:
    def build_all(folder: Path) -> Mapping[str, str] | None:
        digests = build(folder)
        for name, document in documents.items():
            write_json(folder / name, document)
        if not (folder / MANIFEST).is_file():
            raise ArtifactError(f"the builder of this artifact left no {MANIFEST}; this is a bug of the builder.")
        return digests

    return build_all


def _default_root() -> str:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return os.environ.get("QEFF_HOME") or f"{cache}/qeff_models"


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _folder_name(text: str) -> str:
    """`text` as the name of one folder that is neither hidden nor too long."""
    return re.sub(r"[^\w.+-]+", "-", text).lstrip(".-")[:120] or "model"


def _matches(entry: Entry, prefix: str) -> bool:
    """`Llama-12` means the exported program alone, not also every compiled one inside it."""
    own = entry.path.name
    starts = own.startswith(prefix) or own.rpartition("-")[2].startswith(prefix)
    return starts or ("/" in prefix and entry.name.startswith(prefix))


def _concerns(filename: Any, folder: Path) -> bool:
    """Whether an error about `filename` (None: a write to an open file) is about writing below `folder`, or a lock."""
    path = _absolute(filename) if isinstance(filename, str) else folder
    return path.is_relative_to(folder) or folder.is_relative_to(path) or path.name.startswith(LOCK_PREFIX)


def _size_inside(folder: Path) -> int:
    """Of all files below a folder that somebody may be filling or deleting meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size if path.is_file() else 0
    return total


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0
