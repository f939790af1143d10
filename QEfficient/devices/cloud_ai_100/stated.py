"""How far logits may be from those of the same weights computed in float32: stated here, held by `verify`.

The numbers are bounds of what docs/cloud_ai_100.md says was measured, on the simulator: what the matrix units of a card
add to what float16 gives is not known.
"""

from __future__ import annotations

import onnx_ir as ir

from QEfficient.devices import Accuracy
from QEfficient.devices.routing import chooses
from QEfficient.program import CompiledProgram

ROLE = "lm"
LARGEST, TYPICAL = 0.03, 0.01
"""Largest and typical error of what is computed in float16."""
OUTLIERS = 0.125
"""Part of the steps in which models that choose experts may be off by more: the card chooses in float16 too."""


def accuracy_of(compiled: CompiledProgram) -> Accuracy:
    """What is stated for a compiled program."""
    is_turned = chooses(ir.load(compiled.program.onnx_path(ROLE)))
    return Accuracy(LARGEST, TYPICAL, OUTLIERS if is_turned else 0.0)
