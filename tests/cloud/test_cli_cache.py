"""`qefficient cache` on a store of small artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Cli

from QEfficient.artifacts import ArtifactStore, write_json
from QEfficient.program import MANIFEST
from QEfficient.publication import TEMPORARY_PREFIX

EXPORTED, COMPILED = "Tiny-0123456789abcdef", "Tiny-0123456789abcdef/qpc-fedcba9876543210"


@pytest.fixture
def store(scratch: Path) -> ArtifactStore:
    """An exported program and its compiled form."""
    store = ArtifactStore(scratch)

    def build(manifest: dict[str, object]) -> None:
        folder = store.exported_folder("Tiny", "Tiny", "0123456789abcdef")
        target = folder if manifest["kind"] == "exported" else store.compiled_folder(folder, "fedcba9876543210")
        store.publish(target, lambda where: _fill(where, manifest))

    build({"kind": "exported", "dtype": "float32", "model": {"source": "some/model"}})
    build({"kind": "compiled", "device": "reference", "spec": {"ctx_len": 64}, "program": {"dtype": "float32"}})
    return store


def _fill(folder: Path, manifest: dict[str, object]) -> None:
    write_json(folder / MANIFEST, manifest)
    (folder / "data").write_bytes(b"x" * 5000)


def test_list(cli: Cli, store: ArtifactStore) -> None:
    result = cli("cache", "list")
    rows = [line.split("\t") for line in result.out.splitlines()]
    assert [(row[0], row[3], row[4], row[5]) for row in rows[1:]] == [
        (EXPORTED, "-", "some/model", "complete"),
        (COMPILED, "reference", "", "complete"),
    ]
    assert "2 artifacts, " in result.err and str(store.root) in result.err
    document = cli("cache", "list", "--json").json
    assert [a["name"] for a in document["artifacts"]] == [EXPORTED, COMPILED]
    assert document["size"] == sum(a["size"] for a in document["artifacts"]) > 10_000


def test_the_list_says_what_unfinished_builds_hold(cli: Cli, store: ArtifactStore) -> None:
    """Of a builder that was killed; the next one removes it, as is said."""
    left = store.find(EXPORTED).path.with_name(f"{TEMPORARY_PREFIX}01234567-Tiny-1")
    (left / "weights").mkdir(parents=True)
    (left / "weights" / "data").write_bytes(b"x" * 3_000_000)
    result = cli("cache", "list")
    assert "2 artifacts, " in result.err and "unfinished builds hold 3.0 MB there: the next build" in result.err
    assert cli("cache", "list", "--json").json["unfinished"] == 3_000_000
    store.publish(store.exported_folder("Tiny", "Tiny", "1" * 16), lambda where: _fill(where, {"kind": "exported"}))
    assert not left.exists() and "unfinished" not in cli("cache", "list").err


def test_an_empty_store_lists_nothing(cli: Cli, scratch: Path) -> None:
    result = cli("cache", "list")
    assert (result.code, result.out) == (0, "") and "0 artifacts" in result.err
    assert cli("cache", "list", "--json").json["artifacts"] == []


def test_info(cli: Cli, store: ArtifactStore) -> None:
    result = cli("cache", "info", "qpc-fed")
    assert {f"name\t{COMPILED}", "ctx_len\t64", "dtype\tfloat32", "data\t5.0 kB"} <= set(result.out.splitlines())
    document = cli("cache", "info", EXPORTED, "--json").json
    assert document["compiled"] == [COMPILED] and document["files"]["data"] == 5000


def test_verify(cli: Cli, store: ArtifactStore) -> None:
    assert cli("cache", "verify").out.splitlines()[1:] == [f"{EXPORTED}\tcomplete", f"{COMPILED}\tcomplete"]
    (store.find(EXPORTED).path / "data").write_bytes(b"y" * 5000)
    result = cli("cache", "verify", "--json")
    assert result.code == 1 and f"1 of 2 artifacts are damaged: {EXPORTED}." in result.error
    assert result.json["artifacts"][COMPILED] == [] and "SHA-256" in result.json["artifacts"][EXPORTED][0]
    assert cli("cache", "verify", "qpc-fed").code == 0


def test_a_damaged_artifact_shows_in_the_list(cli: Cli, store: ArtifactStore) -> None:
    (store.find("qpc-fed").path / "data").unlink()
    assert cli("cache", "list").out.splitlines()[2].endswith("damaged")


def test_remove(cli: Cli, store: ArtifactStore) -> None:
    result = cli("cache", "remove", "qpc-fed")
    assert (result.code, result.out) == (0, "") and f"removed {COMPILED}" in result.err and "5.5 kB freed" in result.err
    assert [entry.name for entry in store.entries()] == [EXPORTED]


@pytest.mark.parametrize("words", [["--all"], [EXPORTED, "qpc-fed"], [EXPORTED, EXPORTED]], ids=str)
def test_what_is_inside_goes_along(cli: Cli, store: ArtifactStore, words: list[str]) -> None:
    result = cli("cache", "remove", *words, "--json")
    assert result.code == 0 and result.json["removed"] == [EXPORTED] and result.json["freed"] > 10_000
    assert store.entries() == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["info", "nothing"], 1, "starts with 'nothing'"),
        (["info"], 2, "needs the name of an artifact"),
        (["remove"], 2, "needs the name of an artifact"),
        (["remove", "--all", "qpc-fed"], 2, "--all goes with"),
        (["verify", "--all"], 2, "--all goes with"),
        (["list", "qpc-fed"], 2, "takes no names"),
        (["lits"], 2, "invalid choice: 'lits'"),
        ([], 2, "ACTION"),
    ],
)
def test_refusals(cli: Cli, store: ArtifactStore, words: list[str], code: int, message: str) -> None:
    result = cli("cache", *words)
    assert result.code == code and message in result.error
    assert len(store.entries()) == 2
