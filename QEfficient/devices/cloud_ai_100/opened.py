"""A folder with programqpc.bin as a compiled program: contract and geometry are read from what the compiler wrote.

No manifest is needed, so it does not matter who compiled it: this library or Qualcomm's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from QEfficient.devices.cloud_ai_100.container import BINARY, FILE, Description, Tensor, read_description
from QEfficient.devices.cloud_ai_100.partitions import WRITTEN, devices_in
from QEfficient.devices.cloud_ai_100.sdk import is_simulated, sdk_root
from QEfficient.errors import ArtifactError, DeviceError, OptionError
from QEfficient.program import (
    COMPUTE_CONTEXT,
    KEPT_LOGITS,
    MANIFEST,
    MARKED_PRESENCE,
    MARKED_REPETITION,
    CompiledProgram,
    ExportedProgram,
    Graph,
    GraphSpec,
    ModelFacts,
    StateSpec,
    TensorSpec,
    compiled_folder,
    load_compiled,
    retained,
    state_name,
)
from QEfficient.specs import CompileSpec

DEVICE_NAME, ROLE = "cloud_ai_100", "lm"
BINARIES = (BINARY, "qpcs")
"""Folders that compilers wrote it into."""
INTERNAL, PUBLIC = "_InternalRetainedState", "_RetainedState"
OVER_CONTEXT = ("key", "value", "indexer", "tokens")
"""Kinds of state with a place for each position, on the last axis but one."""
NO_LAYER = -1
UNKNOWN = "recurrent"
"""Taken for a sum over all tokens, of which the least is assumed."""
KINDS = {
    **{state_name(kind, 0).partition(".")[0]: kind for kind in (*OVER_CONTEXT, "conv", "recurrent")},
    **dict.fromkeys(("compressed_kv", "k_pe"), "key"),
    **dict.fromkeys((MARKED_REPETITION, MARKED_PRESENCE), "marks"),
}
WITH_VOCABULARY = ("logits", MARKED_REPETITION)
DTYPES = {
    0: "float32", 1: "float16", 2: "int8", 3: "uint8", 4: "int16", 5: "int32", 6: "int32", 7: "int64", 8: "int8",
}  # fmt: skip
"""By the numbers of the runtime."""

Sizes = dict[str, tuple[int, ...]]
"""Of every tensor, by name: one shape that the program takes."""


def find_binary(path: Path) -> Path | None:
    """The folder with programqpc.bin: this one, or the one inside that the compiler wrote."""
    return next((folder for folder in (path, *(path / name for name in BINARIES)) if (folder / FILE).is_file()), None)


def open_program(path: str | Path, ctx_len: int | None = None) -> CompiledProgram:
    """The language model in a folder. `ctx_len`: use fewer tokens of context than it was compiled for."""
    folder = find_binary(Path(path).expanduser())
    if folder is None:
        raise ArtifactError(f"{path} holds no {FILE}: name the folder that the compiler wrote.")
    description = read_description(folder / FILE)
    sizes = description.sizes()
    if "input_ids" not in sizes[0]:
        found = ", ".join(tensor.name for tensor in description.inputs[:5])
        raise DeviceError(f"{folder} holds no language model: it takes {found}, but no input_ids.")
    graph = _graph(description)
    spec = _spec(graph, sizes, _context(graph, ctx_len))
    _check_shapes(spec, sizes)
    vocabulary = next((sizes[0][name][-1] for name in WITH_VOCABULARY if name in sizes[0]), 0)
    name = str(folder)
    facts = ModelFacts(name, "", "", "causal-lm", vocabulary, source=name)
    program = ExportedProgram(folder, {ROLE: Graph("", graph)}, facts, "float16", "")
    report = {"simulated": is_simulated(sdk_root()), **_devices(folder)}
    return CompiledProgram(folder, DEVICE_NAME, spec, program, "", report)


def _devices(folder: Path) -> dict[str, int]:
    """For how many it was compiled, as far as what was written beside it says: the program itself does not."""
    beside = compiled_folder(folder)
    if (beside / MANIFEST).is_file():
        return {"devices": load_compiled(beside).report.get("devices", 1)}
    for path in (path for pattern in WRITTEN for path in folder.parent.glob(pattern)):
        with suppress(OptionError):
            return {"devices": devices_in(path)}
    return {}


def _graph(description: Description) -> GraphSpec:
    """Inputs and outputs, and which output is which input's next state. Symbols stand where shapes differ."""
    sizes = description.sizes()
    inputs = {tensor.name: _tensor(tensor, sizes) for tensor in description.inputs}
    outputs = {_public(tensor.name): _tensor(tensor, sizes) for tensor in description.outputs}
    kept = [name for name in inputs if retained(_public(name)) in outputs]
    following = {retained(_public(name)) for name in kept}
    longest = max((_slots(inputs[name]) or 0 for name in kept), default=0)
    return GraphSpec(
        tuple(tensor for name, tensor in inputs.items() if name not in kept),
        tuple(tensor for name, tensor in outputs.items() if name not in following),
        tuple(_state(inputs[name], longest) for name in kept),
    )


def _public(name: str) -> str:
    return name.rsplit("/", 1)[-1].replace(INTERNAL, PUBLIC)


def _tensor(tensor: Tensor, sizes: Sequence[Sizes]) -> TensorSpec:
    symbols = ("batch_size", "seq_len") if "_ids" in tensor.name or tensor.name == "batch_index" else ()
    dims = []
    for axis, size in enumerate(tensor.dims):
        differ = len({entry[tensor.name][axis] for entry in sizes}) > 1
        dims.append((symbols[axis] if axis < len(symbols) else tensor.name) if differ else size)
    return TensorSpec(_public(tensor.name), DTYPES.get(tensor.kind, f"type {tensor.kind}"), tuple(dims))


def _kind(name: str) -> str:
    return KINDS.get(name.partition(".")[0], UNKNOWN)


def _slots(tensor: TensorSpec) -> int | None:
    """How many positions a state has places for; None where it is not about positions."""
    return int(tensor.shape[-2]) if _kind(tensor.name) in OVER_CONTEXT else None


def _state(tensor: TensorSpec, longest: int) -> StateSpec:
    layer, slots = re.search(r"\.(\d+)", tensor.name), _slots(tensor)
    rolling = slots is not None and slots < longest
    return StateSpec(tensor, _kind(tensor.name), int(layer[1]) if layer else NO_LAYER, slots if rolling else None)


def _context(graph: GraphSpec, asked: int | None) -> int:
    found = max((_slots(state.input) or 0 for state in graph.states), default=0)
    if not found and not asked:
        raise OptionError("no state of this program says how long its context is. Give ctx_len.")
    if found and asked is not None and asked > found:
        raise OptionError(f"ctx_len {asked:,} was asked for, but the program was compiled for {found:,}.")
    return asked or found


def _spec(graph: GraphSpec, sizes: Sequence[Sizes], ctx_len: int) -> CompileSpec:
    decoding = [entry for entry in sizes if _decodes(entry)]
    prefill = [entry for entry in sizes if entry not in decoding]
    rows = max(entry["input_ids"][0] for entry in decoding or prefill)
    slots = max((sizes[0][state.input.name][0] for state in graph.states), default=rows)
    batches = graph.continuous_batching
    return CompileSpec(
        1 if batches else rows,
        max(entry["input_ids"][1] for entry in prefill or decoding),
        ctx_len,
        rows if batches else None,
        slots if batches else None,
        num_speculative_tokens=_lengths(decoding, "input_ids", 1, -1) if KEPT_LOGITS in sizes[0] else (),
        comp_ctx_lengths_prefill=_lengths(prefill, COMPUTE_CONTEXT, 0),
        comp_ctx_lengths_decode=_lengths(decoding, COMPUTE_CONTEXT, 0),
        prefill_only=None if decoding else True,
    )


def _decodes(entry: Sizes) -> bool:
    """Decoding wants the logits of every token that it is given."""
    return entry["input_ids"][1] == entry.get(KEPT_LOGITS, (1,))[0]


def _lengths(entries: Sequence[Sizes], name: str, axis: int, more: int = 0) -> tuple[int, ...]:
    return tuple(sorted({entry[name][axis] + more for entry in entries if name in entry}))


def _check_shapes(spec: CompileSpec, sizes: Sequence[Sizes]) -> None:
    """Refuse shapes that no session here calls, before a prompt has run."""
    found = sorted({entry["input_ids"] for entry in sizes})
    for entry in spec.specializations():
        wanted = entry.symbols["batch_size"], entry.symbols["seq_len"]
        if wanted not in found:
            raise DeviceError(f"'{entry.name}' calls with input_ids {list(wanted)}, but the program takes {found}.")
