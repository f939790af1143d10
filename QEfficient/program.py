"""What is made: graphs with a contract, and the folders that hold them. Every tensor name is made in this file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from QEfficient.errors import ArtifactError
from QEfficient.specs import CompileSpec, EncodeSpec

FORMAT_VERSION = 3
"""Of the manifests; part of every fingerprint, so that a program of another format is made anew."""
MANIFEST = "manifest.json"
RETAINED = "_RetainedState"

Dimension = int | str


def retained(name: str) -> str:
    """The output that holds the next value of the state input `name`."""
    return name + RETAINED


_STATE_NAMES = {
    "key": "past_key",
    "value": "past_value",
    "indexer": "past_indexer",
    "conv": "conv_state",
    "recurrent": "recurrent_state",
    "tokens": "past_tokens",
}


def state_name(kind: str, layer: int, index: int = 0, prefix: str | None = None) -> str:
    """The input name of a state: `past_key.3`, `conv_state.0_1`; a prefix marks keys and values (`past_key.3_abc`)."""
    name = f"{_STATE_NAMES[kind]}.{layer}" + (f"_{index}" if index else "")
    return f"{name}_{prefix}" if prefix and kind in ("key", "value") else name


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...]
    """Numbers, and names of symbolic dimensions (`batch_size`, `seq_len`, `ctx_len`, …)."""

    def resolve(self, symbols: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with every symbol replaced by its number."""
        missing = [d for d in self.shape if isinstance(d, str) and d not in symbols]
        if missing:
            raise ArtifactError(f"tensor '{self.name}' has the dimension '{missing[0]}', which nothing gives a size.")
        return tuple(symbols[d] if isinstance(d, str) else d for d in self.shape)


@dataclass(frozen=True)
class StateSpec:
    """A state tensor: the input `name` and, paired by name, the output that replaces it."""

    tensor: TensorSpec
    kind: str
    """key | value | indexer | conv | recurrent | tokens"""
    layer: int
    window: int | None = None
    """Slots of a rolling buffer (slot = position mod window); None where a slot is a position."""

    @property
    def input(self) -> TensorSpec:
        return self.tensor

    @property
    def output(self) -> TensorSpec:
        return TensorSpec(retained(self.tensor.name), self.tensor.dtype, self.tensor.shape)


@dataclass(frozen=True)
class Context:
    """What a model and its graph make of `ctx_len`."""

    positions: int | None = None
    """Tokens that the model can tell apart, whatever `ctx_len` is: the rows of its table of positions."""
    trained: int | None = None
    """The largest `ctx_len` with the rotary frequencies of short texts; None if there is one set for all."""
    multiple_of: int = 1
    largest: int | None = None
    """The graph holds for no larger `ctx_len`, and for multiples only."""


@dataclass(frozen=True)
class GraphSpec:
    """The contract of one graph: inputs, outputs, and which output is which input's next state."""

    inputs: tuple[TensorSpec, ...]
    """Without the states."""
    outputs: tuple[TensorSpec, ...]
    """Without the states; `logits` first."""
    states: tuple[StateSpec, ...] = ()
    context: Context = Context()

    @property
    def all_inputs(self) -> tuple[TensorSpec, ...]:
        return self.inputs + tuple(s.input for s in self.states)

    @property
    def all_outputs(self) -> tuple[TensorSpec, ...]:
        return self.outputs + tuple(s.output for s in self.states)

    @property
    def continuous_batching(self) -> bool:
        return any(t.name == "batch_index" for t in self.inputs)

    @property
    def windows(self) -> dict[str, int]:
        """Symbol → slots of every rolling buffer."""
        return {str(s.tensor.shape[2]): s.window for s in self.states if s.window is not None}


@dataclass(frozen=True)
class ModelFacts:
    """What right-of-ONNX code needs to know about the model, without the model."""

    name: str
    """Class name of the model; the ONNX file's stem."""
    architecture: str
    model_type: str
    task: str
    """causal-lm | features"""
    vocab_size: int
    max_positions: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    """What the model's generation config says about how tokens are chosen, in transformers' words: what is set only."""
    source: str = ""
    """What the user asked for: a name, a folder, or `object`."""


@dataclass(frozen=True)
class Graph:
    """One ONNX file of a program."""

    file: str
    """Relative to the program's folder."""
    spec: GraphSpec


@dataclass(frozen=True)
class ExportedProgram:
    """A published folder: graphs by role over one set of weights, and the manifest."""

    folder: Path
    graphs: Mapping[str, Graph]
    model: ModelFacts
    dtype: str
    fingerprint: str
    report: Mapping[str, Any] = field(default_factory=dict)
    """Notes of the export: seconds per stage, how each layer keeps its state, versions."""

    def onnx_path(self, role: str = "lm") -> Path:
        return self.folder / self.graphs[role].file

    @property
    def has_tokenizer(self) -> bool:
        return (self.folder / "tokenizer").is_dir()


@dataclass(frozen=True)
class CompiledProgram:
    """A program made ready for one device and one geometry."""

    folder: Path
    device: str
    spec: CompileSpec
    program: ExportedProgram
    fingerprint: str
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CompiledEncoder:
    """A program without state made ready for one device and the lengths that it is called with."""

    folder: Path
    device: str
    spec: EncodeSpec
    program: ExportedProgram
    fingerprint: str
    report: Mapping[str, Any] = field(default_factory=dict)


_ENCODER_KIND = "compiled as an encoder"


def _graph_from(record: Mapping[str, Any]) -> Graph:
    def tensor(t: Mapping[str, Any]) -> TensorSpec:
        return TensorSpec(t["name"], t["dtype"], tuple(t["shape"]))

    spec = record["spec"]
    states = tuple(StateSpec(tensor(s["tensor"]), s["kind"], s["layer"], s["window"]) for s in spec["states"])
    inputs, outputs = tuple(map(tensor, spec["inputs"])), tuple(map(tensor, spec["outputs"]))
    return Graph(record["file"], GraphSpec(inputs, outputs, states, Context(**spec["context"])))


def exported_to_record(program: ExportedProgram) -> dict[str, Any]:
    """The manifest of an exported program (everything but its folder)."""
    record = asdict(program)
    del record["folder"]
    return {"kind": "exported", "format": FORMAT_VERSION, **record}


def compiled_to_record(compiled: CompiledProgram | CompiledEncoder) -> dict[str, Any]:
    """The manifest of a compiled program; it holds that of its exported program, and where that lies."""
    record = asdict(compiled)
    del record["folder"]
    record["program"] = exported_to_record(compiled.program)
    record["program_folder"] = str(compiled.program.folder)
    kind = _ENCODER_KIND if isinstance(compiled, CompiledEncoder) else "compiled"
    return {"kind": kind, "format": FORMAT_VERSION, **record}


def _read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{folder} holds no {MANIFEST}: it is not an artifact of QEfficient.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ArtifactError(f"{path} is damaged. Remove the folder and make the artifact again.") from None
    if record.get("format") != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder} has format version {record.get('format')}, this release reads {FORMAT_VERSION}. Make it again."
        )
    if record.get("kind") != kind:
        raise ArtifactError(
            f"{folder} holds a program that is {record.get('kind')}, but one that is {kind} was asked for."
        )
    return record


def _exported_from(record: Mapping[str, Any], folder: Path) -> ExportedProgram:
    facts = dict(record["model"])
    facts["eos_token_ids"] = tuple(facts["eos_token_ids"])
    graphs = {role: _graph_from(graph) for role, graph in record["graphs"].items()}
    return ExportedProgram(
        folder, graphs, ModelFacts(**facts), record["dtype"], record["fingerprint"], record["report"]
    )


def load_exported(folder: Path) -> ExportedProgram:
    """Read back an exported program from its folder."""
    return _exported_from(_read_manifest(folder, "exported"), folder)


def load_compiled(folder: Path) -> CompiledProgram:
    """Read back a compiled program from its folder."""
    record = _read_manifest(folder, "compiled")
    beside = folder.parent  # where it lies unless a compile_dir was given; the store may have been moved
    place = beside if (beside / MANIFEST).is_file() else Path(record["program_folder"])
    program = _exported_from(record["program"], place)
    spec = CompileSpec(**record["spec"])
    return CompiledProgram(folder, record["device"], spec, program, record["fingerprint"], record["report"])


def load_encoder(folder: Path) -> CompiledEncoder:
    """Read back a compiled encoder from its folder."""
    record = _read_manifest(folder, _ENCODER_KIND)
    beside = folder.parent  # where it lies unless a compile_dir was given; the store may have been moved
    place = beside if (beside / MANIFEST).is_file() else Path(record["program_folder"])
    program = _exported_from(record["program"], place)
    spec = EncodeSpec(**{**record["spec"], "seq_lens": tuple(record["spec"]["seq_lens"])})
    return CompiledEncoder(folder, record["device"], spec, program, record["fingerprint"], record["report"])
