"""What the native kernel does to the activations of a layer, in ONNX: each group of a row's becomes signed bytes.

The reference device can so compute with the numbers that the kernel computes with, and what is left between the two is
the order of sums.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from QEfficient.devices.cpu.editing import Nodes

STEPS = 127
LEAST = 2.0**-90
"""Groups whose largest magnitude is below count as zeros (quantization.hpp)."""


def rounded(build: Nodes, value: ir.Value, width: int, group: int) -> ir.Value:
    """Activations `[…, width]` as the kernel takes them."""
    sizes = build("Shape", value, end=-1)
    missing = -width % group
    if missing:
        value = build("Pad", value, build.constant([0, missing]), None, build.constant([-1]))
    groups = build("Reshape", value, build("Concat", sizes, build.constant([-1, group]), axis=0))
    levels, step = _levels(build, groups)
    whole = build("Reshape", build("Mul", levels, step), build("Concat", sizes, build.constant([-1]), axis=0))
    if missing:
        whole = build("Slice", whole, build.constant([0]), build.constant([width]), build.constant([-1]))
    return whole


def _levels(build: Nodes, groups: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Whole numbers for the values of each group, and what one is worth."""
    steps, zero = build.constant(STEPS, np.float32), build.constant(0, np.float32)
    top = build("ReduceMax", build("Abs", groups), build.constant([-1]), keepdims=1)
    is_nothing = build("Less", top, build.constant(LEAST, np.float32))
    inverse = build("Where", is_nothing, zero, build("Div", steps, top))
    step = build("Where", is_nothing, zero, build("Div", top, steps))
    return build("Round", build("Mul", groups, inverse)), step
