"""Finds compiled programs by folder or by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from QEfficient.program import CompiledProgram


def is_compiled(where: str) -> bool:
    """Whether a compiled program lies in a folder, or below it."""
    from pathlib import Path

    from QEfficient.artifacts import COMPILED_PREFIX
    from QEfficient.program import MANIFEST

    folder = Path(where).expanduser()
    return (folder / MANIFEST).is_file() or any(folder.glob(f"{COMPILED_PREFIX}*/{MANIFEST}"))


def find_compiled(where: str) -> CompiledProgram:
    """The compiled program in a folder, the only one below it, or the one that the store knows by this name."""
    from pathlib import Path

    from QEfficient.artifacts import COMPILED_PREFIX, ArtifactStore
    from QEfficient.errors import ArtifactError
    from QEfficient.program import MANIFEST, load_compiled

    folder, store = Path(where).expanduser(), ArtifactStore()
    if not folder.is_dir():
        if folder.name != where:
            raise ArtifactError(f"there is no folder {where}. `qefficient compile` prints the folder that it made.")
        folder = store.find(where).path
    inside = [manifest.parent for manifest in sorted(folder.glob(f"{COMPILED_PREFIX}*/{MANIFEST}"))]
    if len(inside) > 1:
        names = ", ".join(path.name for path in inside[:5])
        raise ArtifactError(f"{folder} holds {len(inside)} compiled programs ({names}). Name one of them.")
    compiled = load_compiled(inside[0] if inside else folder)
    store.open(compiled.folder)
    return compiled
