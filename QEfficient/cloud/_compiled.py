"""Finds compiled programs by folder or by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from QEfficient.program import CompiledProgram


def is_compiled(where: str) -> bool:
    """Whether a compiled program lies in a folder, or below it."""
    from pathlib import Path

    from QEfficient.artifacts import COMPILED_PREFIX
    from QEfficient.program import MANIFEST, compiled_folder

    folder = compiled_folder(Path(where).expanduser())
    return (folder / MANIFEST).is_file() or any(folder.glob(f"{COMPILED_PREFIX}*/{MANIFEST}"))


def output_folder(compiled: CompiledProgram) -> Path:
    """What of a compiled program is named to scripts."""
    from QEfficient.devices import device_class

    return device_class(compiled.device).output(compiled.folder)


def find_compiled(where: str) -> CompiledProgram:
    """The compiled program in a folder, the only one below it, or the one that the store knows by this name. A folder
    with programqpc.bin will do, whoever compiled it."""
    from pathlib import Path

    from QEfficient.artifacts import COMPILED_PREFIX, ArtifactStore
    from QEfficient.devices.cloud_ai_100.opened import find_binary, open_program
    from QEfficient.errors import ArtifactError
    from QEfficient.program import MANIFEST, compiled_folder, load_compiled

    folder, store = compiled_folder(Path(where).expanduser()), ArtifactStore()
    if not folder.is_dir():
        if folder.name != where:
            raise ArtifactError(f"there is no folder {where}. `qefficient compile` prints the folder that it made.")
        folder = store.find(where).path
    inside = [manifest.parent for manifest in sorted(folder.glob(f"{COMPILED_PREFIX}*/{MANIFEST}"))]
    if not inside and not (folder / MANIFEST).is_file() and find_binary(folder) is not None:
        return open_program(folder)
    if len(inside) > 1:
        names = ", ".join(path.name for path in inside[:5])
        raise ArtifactError(f"{folder} holds {len(inside)} compiled programs ({names}). Name one of them.")
    compiled = load_compiled(inside[0] if inside else folder)
    store.open(compiled.folder)
    return compiled


def with_end(compiled: CompiledProgram, tokenizer: Any) -> CompiledProgram:
    """A program known by its container alone says nothing of the end of a text: its tokenizer does."""
    from dataclasses import replace

    end = tokenizer.eos_token_id
    if compiled.program.fingerprint or end is None:
        return compiled
    facts = replace(compiled.program.model, eos_token_ids=(end,), pad_token_id=tokenizer.pad_token_id)
    return replace(compiled, program=replace(compiled.program, model=facts))
