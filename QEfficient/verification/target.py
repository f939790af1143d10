"""What is verified: a model that is yet to be exported, or an artifact and the model that it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import transformers

from QEfficient.artifacts import ArtifactStore, plain
from QEfficient.devices import FOREIGN_OPTIONS, get_device
from QEfficient.errors import ArtifactError, OptionError
from QEfficient.program import (
    COMPUTE_CONTEXT,
    KEPT_LOGITS,
    MANIFEST,
    CompiledProgram,
    ExportedProgram,
    compiled_folder,
    load_compiled,
    load_exported,
)
from QEfficient.specs import CompileSpec
from QEfficient.transformers.loading import ModelSource, open_source
from QEfficient.transformers.models.card_options import (
    CardConfig,
    Shapes,
    graph_options,
    numbers,
    read_qaic_config,
    shaped,
    sharing,
)
from QEfficient.transformers.models.causal_lm import QEFFAutoModelForCausalLM
from QEfficient.transformers.models.projected import open_projections
from QEfficient.transformers.models.stages import compile_program

SHORTEST_CONTEXT = 64
DEFAULTS = {"prefill_seq_len": 8, "batch_size": 3}
"""Small chunks: prompts cross several of their edges."""
DEFAULT_SLOTS = 2
DEFAULT_AHEAD = 3
"""Tokens tried ahead, of a program that can."""


@dataclass
class Target:
    """A model, and what has been made of it already."""

    source: ModelSource
    program: ExportedProgram | None = None
    compiled: CompiledProgram | None = None
    geometry: dict[str, Any] = field(default_factory=dict)
    """Options of `compile` that were given."""
    qaic_config: Mapping[str, Any] | None = None

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
        chosen, wants_slots = get_device(device), bool(continuous_batching or self.geometry.get("full_batch_size"))
        length = ctx_len or max(SHORTEST_CONTEXT, -(-needed // 8) * 8)
        shapes = self._shapes(length)
        spec = self._spec(wants_slots, length, chosen.in_small_pieces)
        own = chosen.own_options(spec.device_options)
        chosen.check_calls(shaped(spec, shapes, self._card), own)
        source = replace(self.source, dtype=chosen.export_dtype(self.source.dtype, own))
        program = self.program or self._exported(source, spec, shapes, progress)
        batches = program.graphs["lm"].spec.continuous_batching
        if continuous_batching is not None and continuous_batching != batches:
            kind = "with" if batches else "without"
            raise OptionError(f"the program in {program.folder} was exported {kind} continuous batching.")
        progress("compile")
        spec = self._spec(batches, length, chosen.in_small_pieces)
        return compile_program(program, shaped(spec, shapes, self._card), chosen, ArtifactStore())

    @property
    def _card(self) -> CardConfig:
        """What the graph can do, or is to."""
        if self.program is None:
            return read_qaic_config(self.qaic_config)
        there = _inputs(self.program)
        guesses = bool(self.program.graphs["lm"].spec.guesses)
        return CardConfig(KEPT_LOGITS in there, COMPUTE_CONTEXT in there, projections=guesses)

    @property
    def _guesses(self) -> int:
        """How many tokens ahead the program guesses, or will guess."""
        if self.program is not None:
            return self.program.graphs["lm"].spec.guesses
        projections = open_projections(self._card, self.source)
        return 0 if projections is None else projections.spec.heads

    def _shapes(self, ctx_len: int) -> Shapes:
        """The kinds of calls that were asked for; some of each kind that the graph is for where none was."""
        given = {name: value for name, value in self.geometry.items() if name in _shape_names(Shapes)}
        if self._card.speculative_target:
            given.setdefault("num_speculative_tokens", self._guesses or DEFAULT_AHEAD)
        if self._card.compute_context and self.program is not None and not Shapes(**given).reads_less:
            half, quarter = -(-ctx_len // 2), -(-ctx_len // 4)
            given |= {"comp_ctx_lengths_prefill": [quarter], "comp_ctx_lengths_decode": [half, ctx_len]}
        return Shapes(**given)

    def _exported(
        self, source: ModelSource, spec: CompileSpec, shapes: Shapes, progress: Callable[[str], None]
    ) -> ExportedProgram:
        model = QEFFAutoModelForCausalLM(source, spec.continuous_batching, self.qaic_config)
        model.progress = progress
        options = graph_options(
            self._card, shapes, source.config, sharing(self.geometry), shaped(spec, shapes, self._card)
        )
        return load_exported(Path(model.export(**options)).parent)

    def _spec(self, continuous_batching: bool, ctx_len: int, pieces: Mapping[str, Any]) -> CompileSpec:
        calls = _shape_names(Shapes)
        plain = {name: value for name, value in self.geometry.items() if name not in calls}
        shape = {name: value for name, value in plain.items() if name in _shape_names()}
        own = {name: value for name, value in plain.items() if name not in shape}
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
            value = tuple(sorted(set(numbers(name, value)))) if isinstance(found, tuple) else value
            if value is not None and value != found:
                raise OptionError(
                    f"{name}={value!r} was asked for, but the program in {self.compiled.folder} is compiled for"
                    f" {name}={found!r}. Verify the folder of the exported program to compile it anew."
                )


def open_target(target: Any, options: Mapping[str, Any], device: str | None) -> Target:
    """Find out what `target` is, and which options are for `compile`; refuses what cannot be verified."""
    known = {*_shape_names(), *FOREIGN_OPTIONS, *get_device(device).options}
    geometry = {name: value for name, value in options.items() if name in known}
    rest = {name: value for name, value in options.items() if name not in (*geometry, "qaic_config")}
    config = options.get("qaic_config")
    check_compared(read_qaic_config(config).sampler is not None)
    if isinstance(target, ModelSource):
        return Target(target, geometry=geometry, qaic_config=config)
    artifact = compiled_folder(Path(target).expanduser()) if isinstance(target, (str, Path)) else None
    if artifact is not None and (artifact / MANIFEST).is_file():
        opened = _open_artifact(artifact, rest, geometry)
        assert opened.program is not None
        _check_config(opened.program, read_qaic_config(config))
        return opened
    model = str(target) if isinstance(target, Path) else target
    source = open_source(model, transformers.AutoModelForCausalLM, rest)
    return Target(source, geometry=geometry, qaic_config=config)


def check_compared(chooses_tokens: bool) -> None:
    """Refuse what gives nothing to compare."""
    if chooses_tokens:
        raise OptionError(
            "the program chooses its tokens itself and gives no logits, which are what is compared. Verify the same"
            " model without include_sampler; the rest of the graph is the same."
        )


def _check_config(program: ExportedProgram, config: CardConfig) -> None:
    """Refuse what an exported graph has not, or does not tell."""
    there = _inputs(program)
    asked = {
        "speculative_model_type": (config.speculative_target and KEPT_LOGITS not in there)
        or (config.projections and not program.graphs["lm"].spec.guesses),
        "ccl_enabled": config.compute_context and COMPUTE_CONTEXT not in there,
        "replicate_kv_heads": config.replicate_kv_heads,
    }
    for name in (name for name, is_wrong in asked.items() if is_wrong):
        raise OptionError(
            f"qaic_config['{name}'] was asked for, but the program in {program.folder} is exported already. Leave it"
            " out, or verify the model itself."
        )


def _inputs(program: ExportedProgram) -> set[str]:
    return {tensor.name for tensor in program.graphs["lm"].spec.inputs}


def _shape_names(record: type = CompileSpec) -> set[str]:
    return {f.name for f in fields(record)} - {"device_options"}


def _open_artifact(folder: Path, options: dict[str, Any], geometry: dict[str, Any]) -> Target:
    folder = ArtifactStore().open(folder)
    kind = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("kind")
    compiled = load_compiled(folder) if kind == "compiled" else None
    program = compiled.program if compiled is not None else load_exported(folder)
    check_compared(program.graphs["lm"].spec.chooses_tokens)
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
