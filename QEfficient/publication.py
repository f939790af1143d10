"""Publication of a folder: all of it or nothing, by one process at a time, with a record of each file's size and hash.

The folder is built under a hidden name beside its place, by the process that holds the kernel's lock of the place, and
renamed when every byte is on the disk. Why so: docs/decisions/0001-artifact-store.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from QEfficient.errors import ArtifactError, StorageError

CHECKSUMS = "checksums.json"
LOCK_PREFIX = ".lock-qeff-"
TEMPORARY_PREFIX = ".tmp-qeff-"  # distinctive, because leftovers are found and deleted by it
REPLACING_PREFIX = ".new-"
"""Of a publication that will take the place of another."""

Build = Callable[[Path], Mapping[str, str] | None]
"""Fills the folder it is given; may return file → SHA-256 of files that it hashed while writing them."""
WaitHook = Callable[[Path], None]
"""Called with a folder before waiting for another process that is building there."""


def build_and_rename(target: Path, build: Build) -> None:
    """Build `target`, whose lock the caller holds, out of sight; whatever fails leaves no trace."""
    _remove_temporaries(target)
    temporary = _temporary_name(target)
    temporary.mkdir()
    try:
        _seal(temporary, build(temporary) or {})
        os.rename(temporary, target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _temporary_name(target: Path) -> Path:
    """A new name each time: the orphaned child of a killed builder must not write into the next builder's folder."""
    return target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{target.name}")


def final_place(folder: Path) -> Path:
    """Where a folder that is being built will lie: what is written in it may name that. Others lie where they are."""
    built = re.fullmatch(rf"{re.escape(TEMPORARY_PREFIX)}[0-9a-f]{{8}}-(?P<name>.+)", folder.name)
    return folder.with_name(built["name"].removeprefix(REPLACING_PREFIX)) if built else folder


def _seal(folder: Path, digests: Mapping[str, str]) -> None:
    """Note size and SHA-256 of each file and push everything to the disk; a known digest spares reading the file."""
    files = {}
    for path in files_of(folder):
        name = path.relative_to(folder).as_posix()
        files[name] = {"size": path.stat().st_size, "sha256": digests.get(name) or file_digest(path)}
    (folder / CHECKSUMS).write_text(json.dumps({"files": files}, indent=4) + "\n", encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """Every file of one publication, without those of publications inside it and of their builders."""
    found: list[Path] = []
    for path in folder.iterdir():
        if path.name.startswith((LOCK_PREFIX, TEMPORARY_PREFIX)) or (path / CHECKSUMS).exists():
            continue
        found += [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]
    return sorted(found)


def damages(folder: Path, *, hashing: bool) -> Iterator[str]:
    """A sentence per file that differs from the record of its publication: by size, and by content if asked."""
    record = _record(folder)
    if record is None:
        yield f"{CHECKSUMS} is missing or damaged"
    for name, expected in (record or {}).items():
        size, path = int(expected["size"]), folder / name
        found = path.stat().st_size if path.exists() else None
        if found is None:
            yield f"{name} is missing ({size:,} bytes expected)"
        elif found != size:
            yield f"{name} is {'truncated' if found < size else 'altered'} ({found:,} bytes found, {size:,} expected)"
        elif hashing and file_digest(path) != expected["sha256"]:
            yield f"{name} is altered ({size:,} bytes as expected, but another SHA-256)"


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        files: dict[str, Any] = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))["files"]
        return files
    except (OSError, ValueError, KeyError, TypeError):
        return None


def mark_used(folder: Path) -> None:
    """The record's time of change is the last use: access times are switched off on many disks."""
    with contextlib.suppress(OSError):  # a read-only store can be used all the same
        os.utime(folder / CHECKSUMS)


def remove_atomically(target: Path) -> None:
    """Delete a folder, whose lock the caller holds, so that nobody sees half of it."""
    doomed = _temporary_name(target)
    os.rename(target, doomed)
    shutil.rmtree(doomed)


def unfinished(root: Path) -> list[Path]:
    """The folders below `root` of builders, those that work and those that died."""
    pattern = f"{TEMPORARY_PREFIX}????????-?*"
    return [*root.glob(f"*/{pattern}"), *root.glob(f"*/*/{pattern}")]


def remove_leftovers(root: Path) -> None:
    """Delete what dead builders left below `root`."""
    for leftover in unfinished(root):
        owner = leftover.with_name(leftover.name[len(TEMPORARY_PREFIX) + len("12345678-") :])
        # BlockingIOError: its builder lives. Any other: somebody was faster, or it is not ours to delete.
        with contextlib.suppress(OSError), locked(owner):
            _remove_temporaries(owner)


def _remove_temporaries(target: Path) -> None:
    for folder in list(target.parent.glob(f"{TEMPORARY_PREFIX}????????-{glob.escape(target.name)}")):
        shutil.rmtree(folder)


def make_folder(folder: Path) -> None:
    """Make a folder and those around it, unless they exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StorageError(f"{folder} cannot be made: a file is where a folder should be.") from None
    except FileNotFoundError as error:  # a file system that takes no folders, such as /proc
        raise StorageError(f"{folder} cannot be made: its file system takes no folder '{error.filename}'.") from None


@contextlib.contextmanager
def sole_builder(target: Path, on_wait: WaitHook) -> Iterator[None]:
    """Hold the lock of `target`; share that of the publication around it, which must not be removed meanwhile."""
    surrounding = target.parent
    with contextlib.ExitStack() as locks:
        if (surrounding / CHECKSUMS).is_file():
            locks.enter_context(locked(surrounding, shared=True, on_wait=on_wait))
            if not (surrounding / CHECKSUMS).is_file():
                raise ArtifactError(f"{surrounding} was removed by another process. Make it again.")
        make_folder(surrounding)
        locks.enter_context(locked(target, on_wait=on_wait))
        yield


@contextlib.contextmanager
def locked(target: Path, *, shared: bool = False, on_wait: WaitHook | None = None) -> Iterator[None]:
    """Hold the kernel's lock of `target`, which dies with its holder. Without `on_wait` a held one is BlockingIOError.

    Who leaves last removes the lock file, which may lie in a folder of the user's. Only who has it alone may do so, and
    who gets a lock looks whether its file is still the one that others find.
    """
    path = target.with_name(LOCK_PREFIX + target.name)
    with _locked_file(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, target, on_wait) as file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # others hold it too, or the folder takes no changes any more
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_still(path, file):  # between the two locks, somebody else may have removed it
                    path.unlink()
            fcntl.flock(file, fcntl.LOCK_UN)  # closing would not do if `build` left a forked child behind


def _locked_file(path: Path, operation: int, target: Path, on_wait: WaitHook | None) -> IO[str]:
    """The lock file, open and locked. One that was removed while this process waited for it locks nothing: then there
    is another, or none yet, and who was faster may be waited for again, which is told once."""
    waiting = False
    while True:
        file = path.open("a")
        try:
            try:
                fcntl.flock(file, operation | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait is None:
                    raise
                if not waiting:
                    on_wait(target)
                waiting = True
                fcntl.flock(file, operation)
            if _is_still(path, file):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _is_still(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
