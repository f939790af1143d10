"""What is verified: a model that is yet to be exported, or an artifact and the model that it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import transformers

from QEfficient.artifacts import ArtifactStore, plain
from QEfficient.devices import FOREIGN_OPTIONS, get_device
from QEfficient.errors import ArtifactError, OptionError
from QEfficient.program import MANIFEST, CompiledProgram, ExportedProgram, compiled_folder, load_compiled, load_exported
from QEfficient.specs import CompileSpec
from QEfficient.transformers.loading import ModelSource, open_source
from QEfficient.transformers.models.causal_lm import QEFFAutoModelForCausalLM
from QEfficient.transformers.models.stages import compile_program

SHORTEST_CONTEXT = 64
DEFAULTS = {"prefill_seq_len": 8, "batch_size": 3}
"""Small chunks: prompts cross several of their edges."""
DEFAULT_SLOTS = 2


@dataclass
class Target:
    """A model, and what has been made of it already."""

    source: ModelSource
    program: ExportedProgram | None = None
    compiled: CompiledProgram | None = None
    geometry: dict[str, Any] = field(default_factory=dict)
    """Options of `compile` that were given."""

    def tokenizer(self) -> Any | None:
        return self.source.tokenizer()

    def compile(
        self,
        device: str | None,
        continuous_batching: bool | None,
        ctx_len: int | None,
        needed: int,
        progress: Callable[[str], None],
    ) -> CompiledProgram:
        """The compiled program; `needed` tokens must fit where no `ctx_len` was asked for."""
        if self.compiled is not None:
            self._refuse_geometry(device, continuous_batching, ctx_len)
            return self.compiled
        wants_slots = bool(continuous_batching or self.geometry.get("full_batch_size"))
        program = self.program or self._exported(wants_slots, progress)
        batches = program.graphs["lm"].spec.continuous_batching
        if continuous_batching is not None and continuous_batching != batches:
            kind = "with" if batches else "without"
            raise OptionError(f"the program in {program.folder} was exported {kind} continuous batching.")
        chosen = get_device(device)
        progress("compile")
        length = ctx_len or max(SHORTEST_CONTEXT, -(-needed // 8) * 8)
        return compile_program(program, self._spec(batches, length, chosen.in_small_pieces), chosen, ArtifactStore())

    def _exported(self, continuous_batching: bool, progress: Callable[[str], None]) -> ExportedProgram:
        model = QEFFAutoModelForCausalLM(self.source, continuous_batching=continuous_batching)
        model.progress = progress
        return load_exported(Path(model.export()).parent)

    def _spec(self, continuous_batching: bool, ctx_len: int, pieces: Mapping[str, Any]) -> CompileSpec:
        shape = {name: value for name, value in self.geometry.items() if name in _shape_names()}
        own = {name: value for name, value in self.geometry.items() if name not in shape}
        if continuous_batching:
            shape.setdefault("full_batch_size", DEFAULT_SLOTS)
            shape.setdefault("batch_size", 1)
        return CompileSpec(**{**DEFAULTS, **shape, "ctx_len": ctx_len}, device_options={**pieces, **own})

    def _refuse_geometry(self, device: str | None, continuous_batching: bool | None, ctx_len: int | None) -> None:
        assert self.compiled is not None
        spec = self.compiled.spec
        asked = {"device": device, "continuous_batching": continuous_batching, "ctx_len": ctx_len, **self.geometry}
        for name, value in asked.items():
            found = self.compiled.device if name == "device" else getattr(spec, name, spec.device_options.get(name))
            if value is not None and value != found:
                raise OptionError(
                    f"{name}={value!r} was asked for, but the program in {self.compiled.folder} is compiled for"
                    f" {name}={found!r}. Verify the folder of the exported program to compile it anew."
                )


def open_target(target: Any, options: Mapping[str, Any], device: str | None) -> Target:
    """Find out what `target` is, and which options are for `compile`; refuses what cannot be verified."""
    known = {*_shape_names(), *FOREIGN_OPTIONS, *get_device(device).options}
    geometry = {name: value for name, value in options.items() if name in known}
    rest = {name: value for name, value in options.items() if name not in geometry}
    if isinstance(target, ModelSource):
        return Target(target, geometry=geometry)
    artifact = compiled_folder(Path(target).expanduser()) if isinstance(target, (str, Path)) else None
    if artifact is not None and (artifact / MANIFEST).is_file():
        return _open_artifact(artifact, rest, geometry)
    model = str(target) if isinstance(target, Path) else target
    return Target(open_source(model, transformers.AutoModelForCausalLM, rest), geometry=geometry)


def _shape_names() -> set[str]:
    return {f.name for f in fields(CompileSpec)} - {"device_options"}


def _open_artifact(folder: Path, options: dict[str, Any], geometry: dict[str, Any]) -> Target:
    folder = ArtifactStore().open(folder)
    kind = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("kind")
    compiled = load_compiled(folder) if kind == "compiled" else None
    program = compiled.program if compiled is not None else load_exported(folder)
    name = program.model.source
    if name == "object":
        raise ArtifactError(
            f"{folder} was made from a model object, which is not there to compare it with. Verify that object instead."
        )
    source = open_source(name, transformers.AutoModelForCausalLM, {"dtype": program.dtype, **options})
    _check_weights(program, source)
    return Target(source, program, compiled, geometry)


def _check_weights(program: ExportedProgram, source: ModelSource) -> None:
    """Refuse a checkpoint that is another one by now."""
    try:
        record = json.loads((program.folder / "hashed_export_params.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if record.get("weights") != plain(source.weights.identity()):
        raise ArtifactError(
            f"the checkpoint '{source.name}' is not the one that {program.folder} was exported from. Export it again."
        )
