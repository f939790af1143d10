"""The stages behind the verbs: source → exported program → compiled program → session. Only here all parts meet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from QEfficient.artifacts import ArtifactStore, fingerprint, plain, write_json
from QEfficient.devices import Device
from QEfficient.errors import OptionError
from QEfficient.graph.exporter import Source, graph_transforms, write_program
from QEfficient.program import (
    FORMAT_VERSION,
    MANIFEST,
    CompiledEncoder,
    CompiledProgram,
    ExportedProgram,
    ModelFacts,
    compiled_to_record,
    exported_to_record,
    load_compiled,
    load_encoder,
    load_exported,
)
from QEfficient.specs import CompileSpec, EncodeSpec, ExportSpec
from QEfficient.transformers.loading import ModelSource
from QEfficient.transformers.models.compute_contexts import slow_prompts

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]
VERSIONED = ("qefficient", "torch", "transformers", "onnx", "onnxscript", "onnx-ir")


def versions() -> dict[str, str]:
    """Versions of everything that shapes an exported graph."""

    def of(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "unknown"

    return {name: of(name) for name in VERSIONED}


@dataclass(frozen=True)
class ExportRequest:
    """One export: what, how, and where to."""

    source: ModelSource
    spec: ExportSpec
    facts: ModelFacts
    prepare: Callable[[], Source]
    """Builds the module over fake parameters; called only if there is something to do."""
    extra: Mapping[str, Any]
    """What else tells two exports apart (pooling, the auto-class)."""
    export_dir: str | Path | None = None

    def identity(self) -> dict[str, Any]:
        """Everything that the fingerprint covers."""
        config = self.source.config.to_dict()
        config.pop("transformers_version", None)
        return {
            "config": _jsonable(config),
            "weights": self.source.weights.identity(),
            "spec": self.spec,
            "facts": replace(self.facts, source=""),
            "versions": versions(),
            "format": FORMAT_VERSION,
            **self.extra,
        }


def _jsonable(value: Any) -> Any:
    """A config as plain JSON: what JSON has no form for becomes its text."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def export(request: ExportRequest, store: ArtifactStore, progress: Progress) -> ExportedProgram:
    """The published program of a request, built now or found."""
    identity = request.identity()
    digest = fingerprint(identity)
    facts = request.facts
    folder = store.exported_folder(facts.architecture or facts.name, facts.name, digest, request.export_dir)
    if not store.is_complete(folder):
        store.check_writable(folder=folder.parent)

    def build(target: Path) -> None:
        source = request.prepare()
        graph = write_program(source, request.spec, target, progress)
        tokenizer = request.source.tokenizer()
        if tokenizer is not None:
            tokenizer.save_pretrained(target / "tokenizer")
        program = ExportedProgram(
            folder=target,
            graphs={"lm": graph},
            model=facts,
            dtype=request.spec.dtype,
            fingerprint=digest,
            report={"versions": versions(), "states": source.notes, "transforms": _transforms(source, request.spec)},
        )
        write_json(target / MANIFEST, plain(exported_to_record(program)))

    documents = {"hashed_export_params.json": plain(identity)}
    store.publish(folder, build, documents, on_wait=lambda _: progress("wait for another process"))
    return load_exported(store.open(folder))


def _transforms(source: Source, spec: ExportSpec) -> dict[str, list[str]]:
    """What became of the model, then of its graph."""
    return {"model": list(source.transforms), "graph": graph_transforms(spec)}


def compile_program(
    program: ExportedProgram,
    spec: CompileSpec,
    device: Device,
    store: ArtifactStore,
    compile_dir: str | Path | None = None,
) -> CompiledProgram:
    """The published compiled form of a program for one device and geometry."""
    own = replace(spec, device_options=device.own_options(spec.device_options))
    _check_context(program, spec)
    if slow_prompts(spec):
        logger.warning("%s", slow_prompts(spec))
    wanted = _Compiled(program, own, device, device.compile, CompiledProgram)
    return load_compiled(wanted.published(store, compile_dir))


def compile_encoder(
    program: ExportedProgram,
    spec: EncodeSpec,
    device: Device,
    store: ArtifactStore,
    compile_dir: str | Path | None = None,
) -> CompiledEncoder:
    """The published compiled form of a program without state for one device and some lengths."""
    wanted = _Compiled(program, spec, device, device.compile_encoder, CompiledEncoder)
    return load_encoder(wanted.published(store, compile_dir))


@dataclass(frozen=True)
class _Compiled:
    """What is to be compiled, and how."""

    program: ExportedProgram
    spec: CompileSpec | EncodeSpec
    device: Device
    compile: Callable[..., Mapping[str, Any]]
    record: Callable[..., CompiledProgram | CompiledEncoder]

    def published(self, store: ArtifactStore, compile_dir: str | Path | None) -> Path:
        identity = {
            "device": self.device.name,
            "spec": self.spec,
            "ingredients": self.device.ingredients(self.spec.device_options),
            "program": self.program.fingerprint,
            "versions": versions(),
        }
        digest = fingerprint(identity)
        folder = store.compiled_folder(self.program.folder, digest, compile_dir)

        def build(target: Path) -> None:
            report = self.compile(self.program, self.spec, target)
            made = self.record(target, self.device.name, self.spec, self.program, digest, report)
            write_json(target / MANIFEST, plain(compiled_to_record(made)))

        store.publish(folder, build, {"hashed_compile_params.json": plain(identity)})
        return store.open(folder)


def _check_context(program: ExportedProgram, spec: CompileSpec) -> None:
    """Refuse a `ctx_len` that the graph does not hold for, and say what the model has less of."""
    context, name, asked = program.graphs["lm"].spec.context, program.model.name, f"ctx_len is {spec.ctx_len}"
    if spec.ctx_len % context.multiple_of:
        raise OptionError(f"{asked}, but {name} needs a multiple of {context.multiple_of}.")
    if context.largest is not None and spec.ctx_len > context.largest:
        raise OptionError(f"{asked}, but {name} takes at most {context.largest}.")
    if context.positions is not None and spec.ctx_len > context.positions:
        logger.warning("%s, but %s has %d positions only.", asked, name, context.positions)
    if context.trained is not None and spec.ctx_len > context.trained:
        logger.warning(
            "%s: all texts get the rotary frequencies that %s has for texts longer than %d tokens. transformers changes"
            " them where a text grows longer; for short texts alone compile with that ctx_len.",
            *(asked, name, context.trained),
        )


def check_batching(program_batches: bool, spec: CompileSpec) -> None:
    """Continuous batching is a property of the graph; the geometry must agree."""
    if program_batches and not spec.continuous_batching:
        loaded = "the model was loaded with continuous_batching=True."
        if spec.prefill_only is True:  # scripts of Qualcomm's library know this error and the other one
            raise OptionError(f"full_batch_size or kv_cache_batch_size is needed: {loaded}")
        raise TypeError(f"full_batch_size is needed: {loaded}")
    if spec.continuous_batching and not program_batches:
        raise OptionError(
            f"{spec.batching_asked} needs continuous batching: load the model with continuous_batching=True."
        )
