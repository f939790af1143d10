"""Whether the weights of layers fit what they are applied to: ONNX's inference looks at few of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import onnx

from qaic_simulator.graph.binding import Program
from qaic_simulator.graph.folding import attribute

Shape = tuple[int, ...]
Check = Callable[[Program, onnx.NodeProto], None]
GATES = MappingProxyType({"RNN": 1, "GRU": 3, "LSTM": 4})
"""Matrices of one direction that lie one under the other."""


def shapes_of(program: Program, node: onnx.NodeProto) -> list[Shape | None]:
    """Of a node's operands; None for those that are left out."""
    return [program.shape(name) if name else None for name in node.input]


def operand(shapes: Sequence[Shape | None], place: int) -> Shape | None:
    """The shape of an operand that may be left out."""
    return shapes[place] if place < len(shapes) else None


def refuse(program: Program, node: onnx.NodeProto, shapes: str) -> None:
    """For operands that do not fit one another."""
    program.refuse("graph.mismatch", f"{node.op_type}: {shapes} do not fit.", node)


def broadcasts(shape: Shape, wanted: Shape) -> bool:
    """Whether a shape can be made to be another by repeating it."""
    pairs = zip(reversed(shape), reversed(wanted), strict=False)
    return len(shape) <= len(wanted) and all(size in (1, other) for size, other in pairs)


def _kernel_fits(node: onnx.NodeProto, data: Shape, kernel: Sequence[int]) -> bool:
    """Whether a window lies within the padded data along each axis; inference makes sizes below one of others."""
    sizes, axes = data[2:], len(data) - 2
    dilations = attribute(node, "dilations") or [1] * axes
    pads = attribute(node, "pads") or [0] * (2 * axes)
    if len(kernel) != axes or len(dilations) != axes or len(pads) != 2 * axes:
        return False
    if attribute(node, "auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        return True
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    return all(
        span <= size + begin + end
        for span, size, begin, end in zip(spans, sizes, pads[:axes], pads[axes:], strict=True)
    )


def _convolution(weights: int, bias: int) -> Check:
    """By where the weights and the bias stand among the operands."""

    def check(program: Program, node: onnx.NodeProto) -> None:
        shapes = shapes_of(program, node)
        data, kernel, groups = shapes[0] or (), shapes[weights] or (), attribute(node, "group", 1)
        if len(data) < 3 or len(kernel) != len(data) or data[1] != kernel[1] * groups or kernel[0] % groups:
            refuse(program, node, f"data {data} and a kernel {kernel} in {groups} groups")
        elif list(attribute(node, "kernel_shape", kernel[2:])) != list(kernel[2:]):
            refuse(program, node, f"a kernel {kernel} and its attribute {attribute(node, 'kernel_shape')}")
        elif not _kernel_fits(node, data, kernel[2:]):
            refuse(program, node, f"data {data} and a kernel {kernel}")
        _check_vector(program, node, bias, kernel[0])

    return check


def _transposed_convolution(program: Program, node: onnx.NodeProto) -> None:
    shapes, groups = shapes_of(program, node), attribute(node, "group", 1)
    data, kernel = shapes[0] or (), shapes[1] or ()
    if len(data) < 3 or len(kernel) != len(data) or data[1] != kernel[0] or data[1] % groups:
        refuse(program, node, f"data {data} and a kernel {kernel} in {groups} groups")
    _check_vector(program, node, 2, kernel[1] * groups)


def _pool(program: Program, node: onnx.NodeProto) -> None:
    data, kernel = program.shape(node.input[0]), attribute(node, "kernel_shape")
    if not _kernel_fits(node, data, kernel):
        refuse(program, node, f"data {data} and a window {tuple(kernel)}")


def _check_vector(program: Program, node: onnx.NodeProto, place: int, length: int) -> None:
    """Refuse a bias or a scale that has not one number for each channel."""
    found = operand(shapes_of(program, node), place)
    if found is not None and found != (length,):
        refuse(program, node, f"operand {place} of shape {found} and {length} channels")


def _scaled_channels(program: Program, node: onnx.NodeProto) -> None:
    channels = program.shape(node.input[0])[1:2]
    for place in range(1, len(node.input)):
        _check_vector(program, node, place, channels[0] if channels else 0)


def _recurrent(program: Program, node: onnx.NodeProto) -> None:
    """Weights of so many directions, gates and hidden numbers; `B` and `P` lie after one another."""
    shapes, gates = shapes_of(program, node), GATES[node.op_type]
    data, again = shapes[0] or (), shapes[2] or ()
    ways = 2 if attribute(node, "direction", b"forward") == b"bidirectional" else 1
    hidden = attribute(node, "hidden_size", again[-1] if again else 0)
    if len(data) != 3:
        refuse(program, node, f"data {data} that are not of three dimensions")
        return
    rows = data[0] if attribute(node, "layout", 0) else data[1]
    first = (rows, ways, hidden) if attribute(node, "layout", 0) else (ways, rows, hidden)
    wanted: dict[int, Shape] = {1: (ways, gates * hidden, data[2]), 2: (ways, gates * hidden, hidden)}
    wanted |= {3: (ways, 2 * gates * hidden), 4: (rows,), 5: first, 6: first, 7: (ways, 3 * hidden)}
    for place, shape in wanted.items():
        found = operand(shapes, place)
        if found is not None and found != shape:
            refuse(program, node, f"data {data}, {hidden} hidden numbers and operand {place} of shape {found}")


def _layer_norm(program: Program, node: onnx.NodeProto) -> None:
    data, axis = program.shape(node.input[0]), attribute(node, "axis", -1)
    for name in filter(None, node.input[1:]):
        scale = program.shape(name)
        if not broadcasts(scale, data[axis:]):
            refuse(program, node, f"data {data} and a scale {scale}")


def _slope(program: Program, node: onnx.NodeProto) -> None:
    data, slope = map(program.shape, node.input)
    if not broadcasts(slope, data):
        refuse(program, node, f"data {data} and a slope {slope}")


def _gemm(program: Program, node: onnx.NodeProto) -> None:
    bias, made = operand(shapes_of(program, node), 2), program.shape(node.output[0])
    if bias is not None and not broadcasts(bias, made):
        refuse(program, node, f"a product {made} and a bias {bias}")


def _zero_points(program: Program, node: onnx.NodeProto) -> None:
    """Of a product of integers: one for all of the first matrix, one for all or for each column of the second."""
    shapes = shapes_of(program, node)
    columns = (shapes[1] or ())[-1:]
    for place, allowed in ((2, ((), (1,))), (3, ((), (1,), columns))):
        found = operand(shapes, place)
        if found is not None and found not in allowed:
            refuse(program, node, f"a matrix {shapes[place - 2]} and zero points {found}")


def _regions(program: Program, node: onnx.NodeProto) -> None:
    regions = program.shape(node.input[1])
    if regions[1:] != (4,):
        refuse(program, node, f"regions {regions} and four corners")


def _squares(program: Program, node: onnx.NodeProto) -> None:
    """Of pixels that become channels, or the other way round."""
    data, size = program.shape(node.input[0]), attribute(node, "blocksize")
    parts = {data[1] % size**2} if node.op_type == "DepthToSpace" else {length % size for length in data[2:]}
    if parts != {0}:
        refuse(program, node, f"data {data} and squares of {size}")


def _normalized(program: Program, node: onnx.NodeProto) -> None:
    data, axis = program.shape(node.input[0]), attribute(node, "axis", -1)
    if not -len(data) <= axis < len(data):
        refuse(program, node, f"data {data} and axis {axis}")


def _bounds(program: Program, node: onnx.NodeProto) -> None:
    for shape in filter(None, shapes_of(program, node)[1:]):
        if shape != (1,):
            refuse(program, node, f"a bound of shape {shape} and numbers")


def _quantized(program: Program, node: onnx.NodeProto) -> None:
    """One scale for all, for each place of an axis, or for each block of it."""
    shapes = shapes_of(program, node)
    data, scale, zero = shapes[0] or (), shapes[1] or (), operand(shapes, 2)
    block, axis = attribute(node, "block_size", 0), attribute(node, "axis", 1)
    if zero is not None and zero != scale and not {zero, scale} <= {(), (1,)}:
        refuse(program, node, f"scales {scale} and zero points {zero}")
    if scale in ((), (1,)) and not block:
        return
    if not -len(data) <= axis < len(data):
        refuse(program, node, f"data {data} and axis {axis}")
        return
    blocks = list(data)
    blocks[axis] = -(-data[axis] // block) if block else data[axis]
    if scale != (tuple(blocks) if block else (data[axis],)):
        refuse(program, node, f"data {data}, axis {axis} and scales {scale}")


LAYERS: Mapping[str, Check] = MappingProxyType(
    {
        "AveragePool": _pool,
        "Clip": _bounds,
        "Conv": _convolution(1, 2),
        "ConvInteger": _convolution(1, 4),
        "ConvTranspose": _transposed_convolution,
        "DepthToSpace": _squares,
        "DequantizeLinear": _quantized,
        "GRU": _recurrent,
        "Gemm": _gemm,
        "InstanceNormalization": _scaled_channels,
        "LSTM": _recurrent,
        "LayerNormalization": _layer_norm,
        "LpNormalization": _normalized,
        "LpPool": _pool,
        "MatMulInteger": _zero_points,
        "MaxPool": _pool,
        "PRelu": _slope,
        "QLinearConv": _convolution(3, 8),
        "QuantizeLinear": _quantized,
        "RNN": _recurrent,
        "RoiAlign": _regions,
        "SpaceToDepth": _squares,
    }
)
"""By operator: what ONNX's inference leaves to who computes it."""
