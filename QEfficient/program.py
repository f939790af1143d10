"""What is made: graphs with a contract, and the folders that hold them. Every tensor name is made in this file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from QEfficient.errors import ArtifactError
from QEfficient.specs import CompileSpec, EncodeSpec

FORMAT_VERSION = 4
"""Of the manifests; part of every fingerprint, so that a program of another format is made anew."""
MANIFEST = "manifest.json"
RETAINED = "_RetainedState"

KEPT_LOGITS, COMPUTE_CONTEXT = "num_logits_to_keep", "comp_ctx_lengths"
"""Inputs whose length says of how many last tokens logits are wanted, and how many slots attention reads."""

NEXT_TOKENS, PROBABILITIES = "next_tokens", "probs"
ACCEPTED_TOKENS, TOKEN_BITMASKS = "last_accepted_output_tokens", "token_bitmasks"
MARKED_REPETITION, MARKED_PRESENCE = "past_repetition_penalty_buffer", "past_presence_penalty_buffer"
"""Of graphs that choose tokens: outputs, inputs, and the states that remember which tokens a sequence has had."""

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
_LATENT_NAMES = {"key": "compressed_kv", "value": "k_pe"}


def state_name(kind: str, layer: int, index: int = 0, prefix: str | None = None, latent: bool = False) -> str:
    """The input name of a state: `past_key.3`, `conv_state.0_1`; a prefix marks keys and values (`past_key.3_abc`)."""
    stem = _LATENT_NAMES[kind] if latent else _STATE_NAMES[kind]
    name = f"{stem}.{layer}" + (f"_{index}" if index else "")
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
    """key | value | indexer | conv | recurrent | tokens | marks"""
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
    def chooses_tokens(self) -> bool:
        """Whether it ends in tokens in place of logits."""
        return any(t.name == NEXT_TOKENS for t in self.outputs)

    @property
    def guesses(self) -> int:
        """How many tokens further ahead than the next one there are logits of, beside those of the next."""
        logits = next((t for t in self.outputs if t.name == "logits"), None)
        return 0 if logits is None or len(logits.shape) < 4 else int(logits.shape[2]) - 1

    @property
    def answer(self) -> str:
        """The output that says what comes next."""
        return NEXT_TOKENS if self.chooses_tokens else "logits"

    @property
    def controls(self) -> tuple[TensorSpec, ...]:
        """The inputs that steer a call, beside tokens and where they stand."""
        return tuple(t for t in self.inputs if t.name not in ("input_ids", "position_ids", "batch_index"))

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

    @property
    def simulated(self) -> bool:
        """Whether it is for a stand-in of the device alone."""
        return bool(self.report.get("simulated"))

    @property
    def place(self) -> str:
        """Where it runs, for people: the device, and whether that is simulated."""
        return place_name(self.device, self.simulated)


@dataclass(frozen=True)
class CompiledEncoder:
    """A program without state made ready for one device and the lengths that it is called with."""

    folder: Path
    device: str
    spec: EncodeSpec
    program: ExportedProgram
    fingerprint: str
    report: Mapping[str, Any] = field(default_factory=dict)


_PROGRAM_KIND, _ENCODER_KIND = "compiled", "compiled as an encoder"


def place_name(device: str, simulated: bool) -> str:
    """`cloud_ai_100 (simulated)`: whatever says on what something ran says that too."""
    return f"{device} (simulated)" if simulated else device


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
    kind = _ENCODER_KIND if isinstance(compiled, CompiledEncoder) else _PROGRAM_KIND
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


def compiled_folder(path: Path) -> Path:
    """The folder of a compiled program, given that or one directly inside: `compile` names what the device reads."""
    if not (path / MANIFEST).is_file() and _kind(path.parent) in (_PROGRAM_KIND, _ENCODER_KIND):
        return path.parent
    return path


def _kind(folder: Path) -> str:
    """Of the artifact in a folder; empty where there is none that can be read."""
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


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
    """Read back a compiled program from its folder, or from the one inside that its device writes."""
    folder = compiled_folder(folder)
    record = _read_manifest(folder, _PROGRAM_KIND)
    beside = folder.parent  # where it lies unless a compile_dir was given; the store may have been moved
    place = beside if (beside / MANIFEST).is_file() else Path(record["program_folder"])
    program = _exported_from(record["program"], place)
    spec = CompileSpec(**record["spec"])
    return CompiledProgram(folder, record["device"], spec, program, record["fingerprint"], record["report"])


def load_encoder(folder: Path) -> CompiledEncoder:
    """Read back a compiled encoder from its folder, or from the one inside that its device writes."""
    folder = compiled_folder(folder)
    record = _read_manifest(folder, _ENCODER_KIND)
    beside = folder.parent  # where it lies unless a compile_dir was given; the store may have been moved
    place = beside if (beside / MANIFEST).is_file() else Path(record["program_folder"])
    program = _exported_from(record["program"], place)
    spec = EncodeSpec(**{**record["spec"], "seq_lens": tuple(record["spec"]["seq_lens"])})
    return CompiledEncoder(folder, record["device"], spec, program, record["fingerprint"], record["report"])
