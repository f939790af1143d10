"""`compile_graph`: an exported graph becomes a folder that OpenVINO opens: lowered, compressed, mapped.

1. open       functions inlined, everything in float32 but the weights on disk
2. lower      attention into blocks and tokens into one row, if the whole graph allows it
3. compress   linear layers and embeddings, a tensor at a time
4. write      the graph and its one file of weights
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from QEfficient.devices.cpu.calibration import calibrate
from QEfficient.devices.cpu.compression import BITS, Activations, Compression
from QEfficient.devices.cpu.experts import Experts, chosen_bytes, expert_bytes, find_experts, most_chosen
from QEfficient.devices.cpu.float32 import widen
from QEfficient.devices.cpu.linear import find_linears, linear_bytes
from QEfficient.devices.cpu.lowering import ATTENTION, DOMAIN, LAST_TOKENS, Lowered, Lowering, is_recurrent, unpackable
from QEfficient.devices.cpu.opening import MODEL_FILE
from QEfficient.devices.cpu.options import CpuOptions
from QEfficient.devices.cpu.reductions import keep_reduced_axes
from QEfficient.devices.slotted import check_batching
from QEfficient.devices.weight_file import WeightFile
from QEfficient.errors import OptionError
from QEfficient.program import ExportedProgram
from QEfficient.specs import CompileSpec

logger = logging.getLogger(__name__)

ROLE = "lm"
GATHERED = 1 << 30
"""Bytes of experts that the tokens of a run may copy."""


def open_graph(program: ExportedProgram) -> ir.Model:
    """The exported graph with its functions inlined, but for those that a lowering replaces."""
    model = ir.load(program.onnx_path(ROLE))
    common.InlinePass(lambda function: not _replaceable(function))(model)
    widen(model)
    return model


def _replaceable(function: ir.Function) -> bool:
    named = function.domain == DOMAIN and (function.name in LAST_TOKENS or function.name.startswith(ATTENTION))
    return named or is_recurrent(function)


STEERING = ("num_speculative_tokens", "comp_ctx_lengths_prefill", "comp_ctx_lengths_decode", "prefill_only")


def compile_graph(program: ExportedProgram, spec: CompileSpec, options: CpuOptions, folder: Path) -> Mapping[str, Any]:
    """Write the model into `folder`; returns the report."""
    ctx_len = spec.ctx_len
    opened = _opened(program, ctx_len, options)
    _check_calls(program, opened, spec)
    linears, experts = find_linears(opened.model), find_experts(opened.model)
    chosen = _within_memory(options.resolved(linear_bytes(linears) + expert_bytes(experts)), opened.model, experts)
    chosen.check()
    if chosen.batch_invariant:
        _refuse_slots(program, opened, "cannot be batch_invariant")
    with TemporaryDirectory(dir=folder) as scratch, WeightFile(folder) as file:
        activations = _activations(program, ctx_len, chosen, Path(scratch)) if chosen.calibration else None
        Compression(opened.model, file, chosen, activations).run(linears, experts)
        size = file.size
    opened.model.ir_version = 10
    ir.save(opened.model, folder / MODEL_FILE)
    return {
        "options": asdict(chosen),
        "layers": {str(state.layer): opened.way(state.layer) for state in program.graphs[ROLE].spec.states},
        "paged": len(opened.lowered.paged) if opened.lowered else 0,
        "states": opened.lowered.states if opened.lowered else None,
        "linear_layers": len(linears),
        "expert_layers": len(experts),
        "weight_bytes": size,
    }


def _check_calls(program: ExportedProgram, opened: _Opened, spec: CompileSpec) -> None:
    """Packed tokens need no shapes, and say so; padded calls need those that the graph is for."""
    if opened.lowered is None:
        check_batching(program.graphs[ROLE].spec, spec)
        return
    needless = [name for name in STEERING if getattr(spec, name) not in ((), None)]
    if needless:
        logger.info(
            "device 'cpu' has no use for %s: any run may have any tokens, gives the logits of all that are wanted and"
            " reads what is there.",
            ", ".join(needless),
        )


def _within_memory(options: CpuOptions, model: ir.Model, experts: Sequence[Experts]) -> CpuOptions:
    """With fewer tokens in a run where each has copies made of its experts' matrices: uncompressed ones have no kernel
    of their own."""
    if options.expert_format in BITS or not experts:
        return options
    most = max(GATHERED // max(chosen_bytes(experts) * most_chosen(model), 1), 1)
    if most >= options.max_tokens:
        return options
    logger.warning(
        "max_tokens is %d in place of %d: experts in %s are copied for each token; int8 and int4 have a kernel.",
        *(most, options.max_tokens, options.expert_format),
    )
    return replace(options, max_tokens=most)


@dataclass(frozen=True)
class _Opened:
    """A graph that is lowered as far as it can be."""

    model: ir.Model
    lowered: Lowered | None
    reason: str | None
    """Why it is not lowered."""

    def way(self, layer: int) -> str:
        """Where a layer's state lies, and why not in blocks."""
        reason = self.reason if self.lowered is None else self.lowered.slotted.get(layer)
        if reason is None:
            return "blocks"
        is_mixed = self.lowered is not None and layer in self.lowered.mixed
        return f"blocks and slots: {reason}" if is_mixed else f"slots: {reason}"


def _opened(program: ExportedProgram, ctx_len: int, options: CpuOptions) -> _Opened:
    model, spec = open_graph(program), program.graphs[ROLE].spec
    reason = unpackable(model, spec)
    may_be_narrow = options.kv_cache in ("auto", "u8")
    lowered = Lowering(model, spec, ctx_len, widen_values=may_be_narrow).run() if reason is None else None
    common.InlinePass()(model)
    model.functions.clear()
    keep_reduced_axes(model)
    return _Opened(model, lowered, reason)


def _refuse_slots(program: ExportedProgram, opened: _Opened, what: str) -> None:
    ways = [opened.way(state.layer) for state in program.graphs[ROLE].spec.states]
    slotted = [way for way in ways if way != "blocks"]
    if slotted:
        raise OptionError(f"{program.model.name} {what}: a layer lies in {slotted[0]}. Leave the option out.")


def _activations(program: ExportedProgram, ctx_len: int, options: CpuOptions, scratch: Path) -> Activations:
    opened = _opened(program, ctx_len, options)
    _refuse_slots(program, opened, "cannot be calibrated")
    return calibrate(program, opened.model, options.calibration, scratch).activations
