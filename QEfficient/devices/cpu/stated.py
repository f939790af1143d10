"""How far logits may be from those of the same weights computed in float32: stated here, held by `verify`.

The numbers are bounds of what docs/cpu.md says was measured.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from QEfficient.devices import FLOAT32_ERROR, Accuracy
from QEfficient.devices.cpu.opening import MODEL_FILE
from QEfficient.devices.cpu.options import CpuOptions
from QEfficient.program import CompiledProgram

COMPUTING: Mapping[str, tuple[float, float]] = {
    "f32": (FLOAT32_ERROR, FLOAT32_ERROR),
    "bf16": (0.1, 0.03),
    "f16": (0.1, 0.03),
    "int8": (0.15, 0.03),
    "int4": (0.15, 0.03),
}
"""Format of weights → largest and typical error: 16 bits are computed in 16 bits, compressed layers take their
activations in 8 bits."""
CACHE: Mapping[str, tuple[float, float]] = {
    "f32": (0, 0),
    "f16": (0.005, 0.002),
    "bf16": (0.005, 0.002),
    "u8": (0.05, 0.015),
}
"""Added by keys and values that are kept in less than 32 bits."""
OUTLIERS = 0.25
"""Part of the steps in which models that choose experts may be off by more."""


def accuracy_of(compiled: CompiledProgram) -> Accuracy:
    """What is stated for a compiled program."""
    options = CpuOptions(**compiled.report["options"])
    computing = max(COMPUTING[wanted] for wanted in options.formats)
    largest, typical = (a + b for a, b in zip(computing, CACHE[options.kv_cache], strict=True))
    turns = largest > FLOAT32_ERROR and _chooses(ir.load(compiled.folder / MODEL_FILE))
    return Accuracy(round(largest, 6), round(typical, 6), OUTLIERS if turns else 0.0)


def _chooses(model: ir.Model) -> bool:
    """Whether the largest of some numbers decide what is computed."""
    return any(node.op_type == "TopK" for node in model.graph.all_nodes())
