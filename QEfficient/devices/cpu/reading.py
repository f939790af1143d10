"""The compiled artifact → a model that OpenVINO compiles: ONNX in which a few nodes are ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from QEfficient.devices.cpu.compression import COMPRESSED_LINEAR, EXPERT_LINEAR
from QEfficient.devices.cpu.lowering import DOMAIN, PAGED_ATTENTION
from QEfficient.devices.cpu.packing import unpack, unpack_groups

UNUSED = (
    (np.int32, (0,)),
    (np.int32, (0,)),
    (np.int32, (0,)),
    (np.float32, (0,)),
    (np.float32, (0,)),
    (np.int32, ()),
    (np.int32, ()),
)
"""PagedAttention's inputs for scores, cache rotation and cross attention: empty."""
UNUSED_AFTER_SINKS = (
    (np.int32, ()),
    (np.int32, (0,)),
    (np.int32, (0,)),
    (np.int32, (0,)),
    (np.int32, (0,)),
    (np.uint8, (0,)),
    (np.int32, (0,)),
)
"""And those for cache eviction and other forms of its mask."""
INPUTS = 10
"""Query, key, value, two caches, five about the sequences."""


def read_model(path: Path, native: Path | None) -> Any:
    """An `openvino.Model`; its caches have whatever type and shape the device gives them. `native`: the library with
    our kernel for compressed layers; without it they become what OpenVINO has kernels for."""
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.onnx import ConversionExtension

    frontend = FrontEndManager().load_by_framework("onnx")
    frontend.add_extension(ConversionExtension(PAGED_ATTENTION, DOMAIN, _paged_attention))
    if native is not None:
        frontend.add_extension(str(native))
    else:
        frontend.add_extension(ConversionExtension(COMPRESSED_LINEAR, DOMAIN, _compressed_linear))
        frontend.add_extension(ConversionExtension(EXPERT_LINEAR, DOMAIN, _expert_linear))
    model = frontend.convert(frontend.load(str(path)))
    for parameter in model.get_parameters():
        if "_cache." in parameter.get_friendly_name():
            parameter.set_element_type(openvino.Type.dynamic)
            parameter.set_partial_shape(openvino.PartialShape([-1, -1, -1, -1]))
    model.validate_nodes_and_infer_types()
    return model


def _paged_attention(node: Any) -> list[Any]:
    """Our node as OpenVINO's operator, whose inputs that we have no use for are empty constants."""
    from openvino import op, opset13

    def constant(dtype: Any, shape: tuple[int, ...]) -> Any:
        return opset13.constant(np.zeros(shape, dtype)).output(0)

    given = [node.get_input(i) for i in range(node.get_input_size())]
    given = [value if hasattr(value, "get_node") else value.output(0) for value in given]
    query, key, value, key_cache, value_cache, lengths, begins, blocks, block_begins, longest = given[:INPUTS]
    scale = opset13.constant(np.float32(node.get_attribute("scale"))).output(0)
    window = opset13.constant(np.int32(node.get_attribute("window"))).output(0)
    alibi = constant(np.float32, (0,))
    sinks = _sinks(given[INPUTS]) if len(given) > INPUTS else constant(np.float32, (0, 0, 0, 0))
    inputs = [query, key, value, key_cache, value_cache, lengths, begins, blocks, block_begins]
    inputs += [scale, window, alibi, longest, *(constant(*unused) for unused in UNUSED), sinks]
    attention = op._PagedAttentionExtension([*inputs, *(constant(*unused) for unused in UNUSED_AFTER_SINKS)])
    info, heads = attention.get_rt_info(), node.get_attribute("kv_heads")
    info["num_k_heads"], info["k_head_size"] = heads, node.get_attribute("key_size")
    info["num_v_heads"], info["v_head_size"] = heads, node.get_attribute("value_size")
    return [attention.output(0)]


def _compressed_linear(node: Any) -> list[Any]:
    """Compressed layers as the pattern of operators that OpenVINO has compressed kernels for. Their weights are
    unpacked in memory."""
    from openvino import opset13

    bits, group, inputs = (node.get_attribute(name) for name in ("bits", "group", "in_features"))
    layers = node.get_attribute("out_features")
    groups, each = -(-inputs // group), (node.get_input_size() - 1) // len(layers)
    arrays = [node.get_input(i).get_node().data for i in range(1, node.get_input_size())]
    given = _padded(node.get_input(0), groups * group - inputs)
    results = []
    for number, outputs in enumerate(layers):
        packed, scales, *zeros = arrays[number * each : (number + 1) * each]
        levels = unpack(packed, bits, group, outputs, groups * group).reshape(outputs, groups, group)
        zero = unpack_groups(zeros[0], outputs) if zeros else np.full((outputs, groups), 1 << (bits - 1), np.uint8)
        rows = _rows_of(levels, zero, unpack_groups(scales, outputs), bits)
        results.append(opset13.matmul(given, opset13.convert(rows, "f32"), False, True).output(0))
    return results


def _expert_linear(node: Any) -> list[Any]:
    """The matrices of the experts, in 8 bits in memory, of which each place gathers and widens its own."""
    from openvino import opset13

    names = ("bits", "group", "in_features", "out_features", "experts")
    bits, group, inputs, outputs, experts = (node.get_attribute(name) for name in names)
    groups = -(-inputs // group)
    packed, scales, *zeros = (node.get_input(i).get_node().data for i in range(2, node.get_input_size()))
    choice, grid = node.get_input(1), [experts, outputs, groups, 1]

    def chosen(stack: np.ndarray) -> Any:
        gathered = opset13.gather(opset13.constant(np.ascontiguousarray(stack)), choice, np.int64(0))
        return opset13.convert(gathered, "f32")

    levels = chosen(unpack(packed, bits, group, experts * outputs, groups * group).reshape(*grid[:-1], group))
    zero = chosen(unpack_groups(zeros[0], experts * outputs).reshape(grid)) if zeros else np.float32(1 << (bits - 1))
    centred = opset13.subtract(levels, zero)
    wide = opset13.multiply(centred, chosen(unpack_groups(scales, experts * outputs).reshape(grid)))
    rows = opset13.reshape(wide, np.array([0] * _rank(choice) + [outputs, groups * group]), True)
    return [opset13.matmul(_padded(node.get_input(0), groups * group - inputs), rows, False, True).output(0)]


def _rank(value: Any) -> int:
    rank: int = value.get_partial_shape().rank.get_length()
    return rank


def _rows_of(levels: np.ndarray, zero: np.ndarray, scales: np.ndarray, bits: int) -> Any:
    """The matrix `[out, in]` in half precision, of levels `[out, groups, group]`."""
    import openvino
    from openvino import opset13

    outputs, groups, group = levels.shape
    weight = _constant_of(levels, openvino.Type.u4 if bits == 4 else openvino.Type.u8)
    zero_point = opset13.convert(_constant_of(zero.reshape(outputs, groups, 1), weight.get_element_type()), "f16")
    centred = opset13.subtract(opset13.convert(weight, "f16"), zero_point)
    scaled = opset13.multiply(centred, opset13.constant(scales.reshape(outputs, groups, 1)))
    return opset13.reshape(scaled, np.array([outputs, groups * group]), False)


def _constant_of(levels: np.ndarray, kind: Any) -> Any:
    import openvino
    from openvino import opset13

    if kind == openvino.Type.u8:
        return opset13.constant(np.ascontiguousarray(levels))
    pairs = levels.reshape(-1, 2) if levels.size % 2 == 0 else np.append(levels.reshape(-1), 0).reshape(-1, 2)
    tensor = openvino.Tensor(kind, openvino.Shape(list(levels.shape)))  # of its own: constants do not copy an array
    tensor.data.reshape(-1)[...] = pairs[:, 0] | pairs[:, 1] << 4
    return opset13.constant(tensor)


def _padded(value: Any, count: int) -> Any:
    """With zeros behind, for the inputs that the last group has and the layer has not."""
    from openvino import opset13

    if not count:
        return value
    rank = _rank(value)
    ends = np.array([0] * (rank - 1) + [count])
    return opset13.pad(value, np.zeros(rank, np.int64), ends, "constant", opset13.constant(np.float32(0)))


def _sinks(value: Any) -> Any:
    from openvino import opset13

    shaped = opset13.reshape(value, np.array([1, -1, 1, 1]), False)
    return opset13.convert(shaped, "f32").output(0)
