"""How far logits may be from those of the same weights computed in float32: stated here, held by `verify`.

The numbers are bounds of what docs/cpu.md says was measured.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from QEfficient.devices import FLOAT32_ERROR, Accuracy
from QEfficient.devices.cpu.opening import MODEL_FILE, runs_natively
from QEfficient.devices.cpu.options import recorded_options
from QEfficient.devices.routing import chooses
from QEfficient.program import CompiledProgram

COMPUTING: Mapping[str, tuple[float, float]] = {
    "f32": (FLOAT32_ERROR, FLOAT32_ERROR),
    "bf16": (0.1, 0.03),
    "f16": (0.1, 0.03),
}
"""What is computed in → largest and typical error."""
NATIVE, OTHERS = (0.08, 0.01), (0.15, 0.03)
"""Of compressed layers. The native kernel rounds activations as `rounding` does, but for those that another order of
sums brings to the other side of a half; how OpenVINO's kernels round them is not known."""
ROUNDED_AGAIN = (0.15, 0.035)
"""Added where what compressed layers take is not exact: then other activations come to the other side."""
CACHE: Mapping[str, tuple[float, float]] = {
    "f32": (0, 0),
    "f16": (0.005, 0.002),
    "bf16": (0.005, 0.002),
    "u8": (0.05, 0.015),
}
"""Added by keys and values that are kept in less than 32 bits."""
OUTLIERS = 0.25
"""Part of the steps in which models that choose experts may be off by more."""
TURNED = (0.25, 0.5)
"""Typical error and part of the steps where what they choose by is not exact: a token with another expert is another
token, and so are those that follow it. What is wrong altogether is wrong in most steps."""


def accuracy_of(compiled: CompiledProgram) -> Accuracy:
    """What is stated for a compiled program."""
    options = recorded_options(compiled.report)
    errors = [COMPUTING[options.compute_in], CACHE[options.kv_cache]]
    is_exact = options == options.exact
    if options.compresses:
        errors.append(NATIVE if runs_natively(options) else OTHERS)
        errors += [] if is_exact else [ROUNDED_AGAIN]
    largest, typical = (round(sum(parts), 6) for parts in zip(*errors, strict=True))
    if largest <= FLOAT32_ERROR or not chooses(ir.load(compiled.folder / MODEL_FILE)):
        return Accuracy(largest, typical)
    return Accuracy(largest, typical, OUTLIERS) if is_exact else Accuracy(largest, *TURNED)
