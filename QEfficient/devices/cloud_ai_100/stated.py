"""How far logits may be from those of the same weights computed in float32: stated here, held by `verify`.

The numbers are bounds of what docs/cloud_ai_100.md says was measured, on the simulator: what the matrix units of a card
add to what float16 gives is not known.

Weights in MXFP6 add nothing: the same weights are what is computed with (`stored_program`), rounded to the nearest,
ties to even, as the format's specification recommends. Which way the compiler rounds is not published. If it cuts off,
or takes ties away from zero where weights are of bfloat16 and many are ties, its weights are about as far from these as
these are from the exported ones, and its programs are called wrong: a bound that let them pass would let any fault in
weights pass.
"""

from __future__ import annotations

import onnx_ir as ir

from QEfficient.devices import Accuracy
from QEfficient.devices.cloud_ai_100.options import read_options
from QEfficient.devices.routing import chooses
from QEfficient.program import CompiledProgram

ROLE = "lm"
HALF = (0.03, 0.01)
"""Largest and typical error of what is computed in float16."""
MXINT8 = (0.02, 0.01)
"""Added by keys and values of so few bits."""
OUTLIERS = 0.125
"""Part of the steps in which models that choose experts may be off by more: the card chooses in float16 too."""


def accuracy_of(compiled: CompiledProgram) -> Accuracy:
    """What is stated for a compiled program."""
    options = read_options(compiled.spec.device_options)
    errors = [HALF, MXINT8] if options.mxint8_kv_cache else [HALF]
    largest, typical = (round(sum(parts), 6) for parts in zip(*errors, strict=True))
    is_turned = chooses(ir.load(compiled.program.onnx_path(ROLE)))
    return Accuracy(largest, typical, OUTLIERS if is_turned else 0.0)
