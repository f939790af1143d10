"""The artifact store, with real processes, real kills and a really full disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import pytest

from QEfficient import publication
from QEfficient.artifacts import ArtifactStore, fingerprint, format_size, plain, write_json
from QEfficient.errors import ArtifactError, StorageError
from QEfficient.program import MANIFEST
from QEfficient.publication import CHECKSUMS, LOCK_PREFIX, TEMPORARY_PREFIX, file_digest

ROOT_USER = os.geteuid() == 0
EXPORTED = {"kind": "exported", "model": {"source": "some/model"}}
COMPILED = {"kind": "compiled", "device": "null", "program": EXPORTED}


def write_files(folder: Path, manifest: dict[str, Any] = EXPORTED, pause: float = 0.0) -> None:
    """What a builder does: some files of known content, slowly, the manifest among them."""
    (folder / "tokenizer").mkdir()
    for number in range(6):
        with (folder / ("tokenizer" if number % 2 else ".") / f"part{number}.bin").open("wb") as file:
            for piece in range(4):
                file.write(bytes([number, piece]) * 5000)
                file.flush()
                time.sleep(pause / 24)
        if number == 2:
            write_json(folder / MANIFEST, manifest)


BUILDER_PROCESS = """
import sys
from pathlib import Path
from QEfficient.artifacts import ArtifactStore
from tests.test_artifacts import write_files
store, target, log, pause = ArtifactStore(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
def build(folder):
    with log.open("a") as file:
        file.write("build\\n")
    write_files(folder, pause=pause)
def wait(folder):
    with log.open("a") as file:
        file.write("wait\\n")
print(store.publish(target, build, {"hashed_export_params.json": {"a": 1}}, wait), flush=True)
"""


def start_builder(root: Path, target: Path, log: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER_PROCESS, str(root), str(target), str(log), str(pause)]
    return subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


def content(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def hidden(root: Path, prefix: str = TEMPORARY_PREFIX) -> list[Path]:
    return [path for path in root.rglob("*") if path.name.startswith(prefix)]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def published(store: ArtifactStore) -> Path:
    target = store.exported_folder("LlamaForCausalLM", "Llama", fingerprint({"a": 1}))
    return store.publish(target, write_files, {"hashed_export_params.json": {"a": 1}})


def publish_compiled(store: ArtifactStore, exported: Path, digest: str = "f" * 16) -> Path:
    return store.publish(store.compiled_folder(exported, digest), lambda folder: write_files(folder, COMPILED))


# Fingerprints


@dataclass(frozen=True)
class Record:
    name: str
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class OtherRecord:
    name: str
    sizes: tuple[int, ...] = (1, 2)


def test_fingerprint_is_the_hash_of_canonical_json() -> None:
    canonical = '{"a":[1,2.5,null,true],"b":"\\u00e9"}'
    assert fingerprint({"b": "é", "a": [1, 2.5, None, True]}) == hashlib.sha256(canonical.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ((1, (2, 3)), [1, [2, 3]]),
        ({"x", "y", "z"}, frozenset(("z", "x", "y"))),
        (Path("/a/b"), "/a/b"),
        (PurePosixPath("c"), "c"),
        (MappingProxyType({"a": Record("n")}), {"a": Record("n", (1, 2))}),
        ({0: "LABEL"}, {"0": "LABEL"}),
    ],
)
def test_equal_content_has_one_fingerprint(one: Any, same: Any) -> None:
    assert fingerprint(one) == fingerprint(same)
    assert len(fingerprint(one)) == 16


def test_different_content_has_different_fingerprints() -> None:
    values: list[Any] = [
        1,
        1.5,
        "1",
        None,
        True,
        [],
        {},
        Record("n"),
        OtherRecord("n"),
        Record("m"),
        {"name": "n"},
        ["n"],
    ]
    assert len({fingerprint(value) for value in values}) == len(values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_fingerprint_refuses_numbers_that_are_none(value: Any) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        fingerprint(value)


@pytest.mark.parametrize("value", [b"bytes", object(), 1j, int, Record, {"a": {1: {None: 2}}}, {True: 1}, lambda: 0])
def test_fingerprint_refuses_what_has_no_canonical_form(value: Any) -> None:
    with pytest.raises(TypeError, match="has no JSON form"):
        fingerprint(value)


def test_set_order_does_not_depend_on_the_process() -> None:
    code = "from QEfficient.artifacts import fingerprint; print(fingerprint({'a', 'b', 'c', 'd', 'e'}))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def test_plain_dataclass_keeps_its_type_name() -> None:
    assert plain(Record("n")) == {"__type__": "Record", "name": "n", "sizes": [1, 2]}


# Places


def test_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ArtifactStore().root == tmp_path / "home"
    monkeypatch.delenv("QEFF_HOME")
    assert ArtifactStore().root == tmp_path / "cache" / "qeff_models"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert ArtifactStore().root == tmp_path / ".cache" / "qeff_models"
    assert ArtifactStore("~/mine").root == tmp_path / "mine"
    assert not list(tmp_path.iterdir()), "naming a store must not make folders"


def test_folders(store: ArtifactStore, tmp_path: Path) -> None:
    exported = store.exported_folder("LlamaForCausalLM", "meta/Llama 3", "12ab")
    assert exported == store.root / "LlamaForCausalLM" / "meta-Llama-3-12ab"
    assert store.exported_folder("", "../x", "12ab") == store.root / "x" / "x-12ab"
    assert store.exported_folder("A", "n", "12ab", export_dir=f"{tmp_path}/x/y/") == tmp_path / "x" / "y-12ab"
    assert store.compiled_folder(exported, "34cd") == exported / "qpc-34cd"
    assert store.compiled_folder(exported, "34cd", compile_dir=tmp_path) == tmp_path / "qpc-34cd"


# Publication


def test_publish_writes_everything_and_a_record_of_it(store: ArtifactStore, published: Path) -> None:
    record = json.loads((published / CHECKSUMS).read_text())["files"]
    written = content(published)
    del written[CHECKSUMS]
    assert record == {n: {"size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in written.items()}
    assert {"tokenizer/part1.bin", MANIFEST, "hashed_export_params.json"} < set(record)
    assert json.loads((published / "hashed_export_params.json").read_text()) == {"a": 1}
    assert store.verify(published) == []
    assert store.open(published) == published
    assert not hidden(store.root)


def test_a_repeated_request_is_answered_at_once(store: ArtifactStore, published: Path) -> None:
    def never(folder: Path) -> None:
        raise AssertionError("built again")

    start = time.perf_counter()
    for _ in range(100):
        assert store.publish(published, never) == published
    assert (time.perf_counter() - start) / 100 < 0.01


def test_digests_that_the_builder_knows_are_not_computed_again(store: ArtifactStore, tmp_path: Path) -> None:
    def build(folder: Path) -> dict[str, str]:
        write_files(folder)
        return {"part0.bin": "known"}

    target = store.publish(tmp_path / "y-1", build)
    record = json.loads((target / CHECKSUMS).read_text())["files"]
    assert record["part0.bin"]["sha256"] == "known"
    assert record["part2.bin"]["sha256"] == file_digest(target / "part2.bin")


def test_a_failing_builder_leaves_nothing(store: ArtifactStore) -> None:
    def fail(folder: Path) -> None:
        write_files(folder)
        raise KeyError("a bug")

    target = store.exported_folder("A", "n", "1")
    with pytest.raises(KeyError, match="a bug"):
        store.publish(target, fail)
    with pytest.raises(ArtifactError, match="left no manifest"):
        store.publish(target, lambda folder: None)
    assert not target.exists()
    assert not hidden(store.root)
    assert store.publish(target, write_files) == target


def test_foreign_folders_are_not_overwritten(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "y-1").mkdir()
    (tmp_path / "y-1" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="is in the way"):
        store.publish(tmp_path / "y-1", write_files)
    (tmp_path / "y-2").write_text("a file")
    with pytest.raises(ArtifactError, match="is in the way"):
        store.publish(tmp_path / "y-2", write_files)
    (tmp_path / "y-3").mkdir()
    assert store.is_complete(store.publish(tmp_path / "y-3", write_files))
    assert (tmp_path / "y-1" / "thesis.txt").read_text() == "years of work"


# Damage


def test_a_truncated_file_is_found_at_once(store: ArtifactStore, published: Path) -> None:
    os.truncate(published / "part0.bin", 1234)
    assert not store.is_complete(published)
    sentence = r"part0\.bin is truncated \(1,234 bytes found, 40,000 expected\).*`qefficient cache remove (\S+)`"
    with pytest.raises(ArtifactError, match=sentence) as caught:
        store.open(published)
    with pytest.raises(ArtifactError, match=sentence):
        store.publish(published, write_files)
    name = str(caught.value).partition("cache remove ")[2].partition("`")[0]
    store.remove(store.find(name))  # what the message says to do works
    assert store.publish(published, write_files) == published
    assert store.verify(published) == []


def test_verify_names_every_damage(store: ArtifactStore, published: Path) -> None:
    os.truncate(published / "part0.bin", 10)
    (published / "part2.bin").unlink()
    altered = bytearray((published / "part4.bin").read_bytes())
    altered[-1] ^= 1
    (published / "part4.bin").write_bytes(altered)
    with (published / "tokenizer" / "part1.bin").open("ab") as file:
        file.write(b"more")
    assert store.verify(published) == [
        "part0.bin is truncated (10 bytes found, 40,000 expected)",
        "part2.bin is missing (40,000 bytes expected)",
        "part4.bin is altered (40,000 bytes as expected, but another SHA-256)",
        "tokenizer/part1.bin is altered (40,004 bytes found, 40,000 expected)",
    ]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"files": 1'])
def test_a_damaged_record_is_damage(store: ArtifactStore, published: Path, damage: str) -> None:
    (published / CHECKSUMS).write_text(damage)
    assert not store.is_complete(published)
    with pytest.raises(ArtifactError, match=r"checksums\.json is missing or damaged.*cache remove"):
        store.open(published)
    assert [entry.complete for entry in store.entries()] == [False]


def test_opening_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no artifact at .*nowhere"):
        store.open(tmp_path / "nowhere")


# Processes


def test_kill_9_at_any_moment_leaves_no_broken_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    target, log, seed = store.exported_folder("A", "n", "1"), tmp_path / "log", random.randrange(10**9)
    reference = content(ArtifactStore(tmp_path / "other").publish(tmp_path / "other" / "A" / "n-1", write_files))
    moments, unfinished = random.Random(seed), 0
    for _ in range(20):
        log.unlink(missing_ok=True)
        process = start_builder(store.root, target, log, pause=0.3)
        wait_until(log.exists)
        end = time.monotonic() + moments.uniform(0, 0.4)
        while time.monotonic() < end:
            assert not target.exists() or store.is_complete(target), f"half an artifact was visible (seed {seed})"
        process.kill()
        process.communicate()
        unfinished += not target.exists()
        if target.exists():
            assert store.verify(target) == [], f"seed {seed}"
            store.remove(store.find("n-1"))
    assert unfinished > 3, "no kill hit a build"
    store.publish(target, write_files, {"hashed_export_params.json": {"a": 1}})
    published = content(target)
    del published["hashed_export_params.json"], published[CHECKSUMS], reference[CHECKSUMS]
    assert published == reference
    assert not hidden(store.root), "what the killed builders left was not removed"


def test_leftovers_of_other_artifacts_are_removed_too(store: ArtifactStore, published: Path, tmp_path: Path) -> None:
    for target in (store.exported_folder("A", "n", "1"), store.compiled_folder(published, "2" * 16)):
        process = start_builder(store.root, target, tmp_path / "log", pause=60)
        wait_until(lambda target=target: bool(hidden(target.parent)))  # type: ignore[misc]
        store.check_writable()
        assert len(hidden(store.root)) == 1, "a living builder's folder must stay"
        process.kill()
        process.communicate()
        store.check_writable()
        assert not hidden(store.root)
    assert store.verify(published) == []


def test_two_processes_build_once(store: ArtifactStore, tmp_path: Path) -> None:
    target, log = store.exported_folder("A", "n", "1"), tmp_path / "log"
    processes = [start_builder(store.root, target, log, pause=1.0) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in processes] == [str(target)] * 3
    assert sorted(log.read_text().split()) == ["build", "wait", "wait"]
    assert store.verify(target) == []


def test_two_threads_build_once(store: ArtifactStore) -> None:
    builds: list[Path] = []

    def build(folder: Path) -> None:
        builds.append(folder)
        write_files(folder, pause=0.2)

    target = store.exported_folder("A", "n", "1")
    threads = [threading.Thread(target=store.publish, args=(target, build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


def test_a_waiting_process_takes_over_from_a_killed_one(store: ArtifactStore, tmp_path: Path) -> None:
    target, logs = store.exported_folder("A", "n", "1"), [tmp_path / "first", tmp_path / "second"]
    first = start_builder(store.root, target, logs[0], pause=60)
    wait_until(logs[0].exists)
    second = start_builder(store.root, target, logs[1], pause=0.01)
    wait_until(lambda: logs[1].exists() and logs[1].read_text() == "wait\n")
    first.kill()
    first.communicate()
    assert second.communicate()[0].strip() == str(target)
    assert logs[1].read_text().split() == ["wait", "build"]
    assert not hidden(store.root)


# Disks


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if not ROOT_USER or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True)


def write_too_much(folder: Path) -> None:
    write_files(folder)
    (folder / "weights.bin").write_bytes(bytes(8_000_000))


def test_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=2) as disk:
        store = ArtifactStore(disk)
        target = store.exported_folder("A", "n", "1")
        with pytest.raises(StorageError, match=r"A/n-1 cannot be written: the disk is full \(.* free.*QEFF_HOME"):
            store.publish(target, write_too_much)
        assert not target.exists()
        assert not hidden(disk)
        assert store.is_complete(store.publish(target, write_files))
        with pytest.raises(StorageError, match=r"disk has .* free, but 5\.0 GB are needed\. Free some space"):
            store.check_writable(5_000_000_000)


def test_a_file_that_may_not_grow(store: ArtifactStore) -> None:
    code = f"""
import resource, sys
from QEfficient.artifacts import ArtifactStore
from QEfficient.errors import StorageError
from tests.test_artifacts import write_too_much
store = ArtifactStore({str(store.root)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, {resource.getrlimit(resource.RLIMIT_FSIZE)[1]}))
try:
    store.publish(store.exported_folder("A", "n", "1"), write_too_much)
except StorageError as error:
    print(error)
"""
    output = run_python(code)
    assert "a file grew beyond the size that is allowed here" in output
    assert not hidden(store.root)
    assert not store.entries()


def run_python(code: str) -> str:
    command, top = [sys.executable, "-c", code], Path(__file__).parent.parent
    return subprocess.run(command, cwd=top, capture_output=True, text=True, check=True).stdout


def test_a_read_only_disk_can_be_read(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=2) as disk:
        store = ArtifactStore(disk)
        target = store.publish(store.exported_folder("A", "n", "1"), write_files)
        remount(disk, "ro")
        assert store.open(target) == target
        assert store.publish(target, write_too_much) == target
        for refused in (
            lambda: store.check_writable(),
            lambda: store.publish(store.exported_folder("A", "n", "2"), write_files),
            lambda: publish_compiled(store, target),
            lambda: store.remove(store.find("n-1")),
        ):
            with pytest.raises(StorageError, match="the file system is read-only.*QEFF_HOME"):
                refused()


def test_without_permission(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o555)
    code = f"""
import os
from QEfficient.artifacts import ArtifactStore
from QEfficient.errors import StorageError
if os.geteuid() == 0:
    os.seteuid(65534)  # root has every permission
store = ArtifactStore({str(root / "store")!r})
for action in (store.check_writable, lambda: store.publish(store.exported_folder("A", "n", "1"), None)):
    try:
        action()
    except StorageError as error:
        print(error)
"""
    lines = run_python(code).splitlines()
    assert len(lines) == 2
    assert all("permission is denied" in line and str(root) in line and "QEFF_HOME" in line for line in lines)


def test_a_file_as_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ArtifactStore(tmp_path / "file")
    with pytest.raises(StorageError, match="a file is where a folder should be"):
        store.check_writable()
    with pytest.raises(StorageError, match="a file is where a folder should be"):
        store.publish(store.exported_folder("A", "n", "1"), write_files)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a file system that takes no folders is needed")
def test_a_root_where_no_folder_can_be_made() -> None:
    with pytest.raises(StorageError, match="its file system takes no folder '/proc/"):
        ArtifactStore("/proc/qefficient").check_writable()


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no", "/elsewhere/token"), FileNotFoundError("x")])
def test_troubles_of_the_builder_elsewhere_are_not_the_stores(store: ArtifactStore, error: OSError) -> None:
    def fail(folder: Path) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        store.publish(store.exported_folder("A", "n", "1"), fail)
    assert caught.value is error


# Listing and removing


def test_entries(store: ArtifactStore, published: Path, tmp_path: Path) -> None:
    before = time.time()
    compiled = publish_compiled(store, published)
    (store.root / "Empty" / "folder").mkdir(parents=True)
    (store.root / "A" / f"{TEMPORARY_PREFIX}12345678-n-1").mkdir(parents=True)
    (store.root / "A" / f"{TEMPORARY_PREFIX}12345678-n-1" / MANIFEST).write_text("{}")
    os.utime(published / CHECKSUMS, (1000, 1000))
    exported_entry, compiled_entry = store.entries()
    assert (exported_entry.name, exported_entry.kind, exported_entry.path) == (published.name, "exported", published)
    assert (exported_entry.source, exported_entry.device, exported_entry.complete) == ("some/model", "", True)
    assert exported_entry.last_used == 1000
    assert (compiled_entry.kind, compiled_entry.device, compiled_entry.path) == ("compiled", "null", compiled)
    assert compiled_entry.source == "some/model"
    assert compiled_entry.name == f"{published.name}/{compiled.name}"
    assert compiled_entry.created == pytest.approx(before, abs=10)
    sizes = sum(len(data) for name, data in content(published).items() if not name.startswith(("qpc-", ".lock")))
    assert exported_entry.size == sizes
    store.open(published)
    assert store.entries()[0].last_used == pytest.approx(time.time(), abs=10)


def test_entries_of_an_empty_store(store: ArtifactStore) -> None:
    assert store.entries() == []
    assert not store.root.exists()


def test_find(store: ArtifactStore, published: Path, tmp_path: Path) -> None:
    compiled = publish_compiled(store, published)
    other = store.publish(store.exported_folder("B", "Llama", "0" * 16), write_files)
    outside = store.publish(store.exported_folder("B", "x", "1" * 16, tmp_path / ".hidden" / "x"), write_files)
    digest = published.name.rpartition("-")[2]
    for prefix, found in (
        (published.name, published),
        (published.name[:8], published),
        (digest[:5], published),
        ("qpc-ff", compiled),
        ("ffff", compiled),
        (f"{published.name}/qpc-f", compiled),
        ("0000", other),
        (str(outside), outside),
    ):
        assert store.find(prefix).path == found
    for prefix, sentence in (
        ("Llama", "fits 2 artifacts.*Give more"),
        ("Mistral", "no artifact in .* starts with 'Mistral'"),
        ("", "no artifact"),
    ):
        with pytest.raises(ArtifactError, match=sentence):
            store.find(prefix)


def test_info(store: ArtifactStore, published: Path) -> None:
    compiled = publish_compiled(store, published)
    info = store.info(store.find(published.name))
    assert info["manifest"] == EXPORTED
    assert info["files"]["tokenizer/part1.bin"] == 40_000
    assert info["compiled"] == [f"{published.name}/{compiled.name}"]
    assert not any(name.startswith("qpc-") for name in info["files"])


def test_remove(store: ArtifactStore, published: Path) -> None:
    compiled = publish_compiled(store, published)
    entries = store.entries()
    store.remove(entries[1])
    assert not compiled.exists()
    assert store.verify(published) == []
    store.remove(entries[0])
    assert store.entries() == []
    assert not hidden(store.root)
    with pytest.raises(ArtifactError, match="not there any more"):
        store.remove(entries[0])


def test_remove_refuses_while_a_compiled_program_is_built_inside(
    store: ArtifactStore, published: Path, tmp_path: Path
) -> None:
    entry = store.find(published.name)
    process = start_builder(store.root, store.compiled_folder(published, "2" * 16), tmp_path / "log", pause=60)
    wait_until((tmp_path / "log").exists)
    with pytest.raises(ArtifactError, match="another process is building there"):
        store.remove(entry)
    assert store.verify(published) == []
    process.kill()
    process.communicate()
    store.remove(entry)
    assert not published.exists()


def test_a_build_inside_waits_for_removal_and_then_says_so(
    store: ArtifactStore, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removal starts between the builder's first look and its lock."""
    entry = store.find(published.name)

    def removed_meanwhile(folder: Path) -> None:
        raise AssertionError("built in a folder that was removed")

    original = publication.locked

    @contextlib.contextmanager
    def remove_first(target: Path, **options: Any) -> Iterator[None]:
        if options.get("shared"):
            with monkeypatch.context() as patch:
                patch.setattr(publication, "locked", original)
                store.remove(entry)
        with original(target, **options):
            yield

    monkeypatch.setattr(publication, "locked", remove_first)
    with pytest.raises(ArtifactError, match="was removed by another process"):
        store.publish(store.compiled_folder(published, "2" * 16), removed_meanwhile)
    assert not published.exists()


def test_nothing_stays(store: ArtifactStore, published: Path) -> None:
    publish_compiled(store, published)
    assert not hidden(store.root, LOCK_PREFIX)
    store.remove(store.find(published.name))
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_a_lock_whose_file_was_removed_is_none(tmp_path: Path) -> None:
    """Who waited for it waits for the file that took its place, and tells that it waits once."""
    target = tmp_path / "target"
    order: list[str] = []

    def second() -> None:
        with publication.locked(target, on_wait=lambda _: order.append("waits")):
            order.append("has it")

    with contextlib.ExitStack() as another_file:
        with publication.locked(target):
            thread = threading.Thread(target=second)
            thread.start()
            wait_until(lambda: order == ["waits"])
            (tmp_path / f"{LOCK_PREFIX}target").unlink()
            another_file.enter_context(publication.locked(target))
            with pytest.raises(BlockingIOError), publication.locked(target):
                pass
        thread.join(0.2)
        assert thread.is_alive(), "it has a lock that another one holds"
    thread.join()
    assert order == ["waits", "has it"] and not list(tmp_path.iterdir())


def test_many_who_want_the_same_lock(tmp_path: Path) -> None:
    """One at a time, though each removes the file."""
    target, inside, seen = tmp_path / "target", [0], []

    def enter() -> None:
        for _ in range(100):
            with publication.locked(target, on_wait=lambda _: None):
                inside[0] += 1
                seen.append(inside[0])
                inside[0] -= 1
            with publication.locked(target, shared=True, on_wait=lambda _: None):
                pass

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 600 and not list(tmp_path.iterdir())


def test_format_size() -> None:
    sizes = (0, 1500, 2_000_000, 5_120_000_000, 1_260_000_000_000, 128_800_000_000_000_000)
    assert list(map(format_size, sizes)) == ["0.0 kB", "1.5 kB", "2.0 MB", "5.1 GB", "1.3 TB", "128.8 PB"]
