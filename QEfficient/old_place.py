"""Where scripts of Qualcomm's library look for a compiled program: in `qpcs`, with two files beside it.

`qpcs` is an artifact like others, so it appears whole or not at all and is found again. What else it holds is replaced
only if it was made here too. The files beside it are copies, for readers of the old library; ours read none of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from QEfficient.artifacts import ArtifactStore
from QEfficient.errors import ArtifactError
from QEfficient.program import MANIFEST, CompiledProgram
from QEfficient.publication import (
    CHECKSUMS,
    REPLACING_PREFIX,
    Build,
    WaitHook,
    mark_used,
    remove_atomically,
    sole_builder,
)

FOLDER = "qpcs"
BESIDE = ("specializations.json", "mdp_ts_config.json")


class OldPlace(ArtifactStore):
    """A store with room for one compiled program, of which the last one asked for stays."""

    def __init__(self, qpc_path: str | Path) -> None:
        super().__init__()
        self._around = Path(os.path.abspath(Path(qpc_path).expanduser()))
        self._digest = ""

    def compiled_folder(self, exported: Path, digest: str, compile_dir: str | Path | None = None) -> Path:
        self._digest = digest
        return self._around / FOLDER

    def publish(
        self,
        target: Path,
        build: Build,
        documents: Mapping[str, Any] | None = None,
        on_wait: WaitHook | None = None,
    ) -> Path:
        self._check_beside()
        with sole_builder(target, on_wait or (lambda _: None)):
            if not self._is_current(target):
                _refuse_foreign(target)
                self._replace(target, build, documents)
        mark_used(target)
        return target

    def show(self, compiled: CompiledProgram) -> CompiledProgram:
        """Lay the files beside it, each at once."""
        for name in BESIDE:
            if (compiled.folder / name).is_file():
                fresh = self._around / f".{name}"
                shutil.copyfile(compiled.folder / name, fresh)
                fresh.replace(self._around / name)
        return compiled

    def _replace(self, target: Path, build: Build, documents: Mapping[str, Any] | None) -> None:
        """The new one is whole before the old one goes."""
        fresh = target.with_name(f"{REPLACING_PREFIX}{target.name}")
        if fresh.exists():  # of a process that was killed
            shutil.rmtree(fresh)
        super().publish(fresh, build, documents)
        if target.exists():
            remove_atomically(target)
        fresh.rename(target)

    def _is_current(self, target: Path) -> bool:
        if not self.is_complete(target):
            return False
        found = json.loads((target / MANIFEST).read_text(encoding="utf-8")).get("fingerprint")
        return bool(found == self._digest)

    def _check_beside(self) -> None:
        """Refuse a folder that is an artifact with such files of its own."""
        try:
            own = json.loads((self._around / CHECKSUMS).read_text(encoding="utf-8"))["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        taken = [name for name in BESIDE if name in own]
        if taken:
            raise ArtifactError(f"{self._around} has a {taken[0]} of its own. Choose another folder for qpc_path.")


def _refuse_foreign(target: Path) -> None:
    ours = (target / CHECKSUMS).is_file() and (target / MANIFEST).is_file()
    if target.exists() and not ours and (not target.is_dir() or any(target.iterdir())):
        raise ArtifactError(f"{target} was not made by QEfficient, so it is not replaced. Move or delete it.")
