"""The numbers of the card: what is rounded, what overflows, which index is dropped; and what cannot be run at all."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import external_data_helper, helper, inliner, numpy_helper, parser
from onnxruntime.transformers.float16 import convert_float_to_float16

from qaic_simulator.microscaling import ROUNDINGS, round_mxfp6, round_mxint8
from qaic_simulator.network_descriptor import (
    Binding,
    NetworkDescriptor,
    Shape,
    decode_descriptor,
    encode_descriptor,
)
from qaic_simulator.runtime.execution import Network, card_model
from qaic_simulator.runtime.settings import ExecutionError, read_settings

TYPE_NUMBERS = {onnx.TensorProto.FLOAT: 0, onnx.TensorProto.FLOAT16: 1, onnx.TensorProto.INT64: 7}
FLOAT, HALF = 0, 1
INT32_MAX = 2**31 - 1
Step = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Logits of a call; states are kept behind it."""
SETTINGS = {"convert_to_fp16": True, "mxfp6": False, "retained_state": True, "devices": 1, "cores": 4}


def images_of(
    model: onnx.ModelProto,
    entries: Sequence[Mapping[str, int]] = ({},),
    types: Mapping[str, int] | None = None,
    constants: bytes = b"",
    **settings: Any,
) -> dict[str, bytes]:
    """The segments of a program for these values of the symbols."""
    values = [*model.graph.input, *model.graph.output]
    kinds = {value.name: TYPE_NUMBERS[value.type.tensor_type.elem_type] for value in values} | dict(types or {})
    allowed = [tuple(Shape(kinds[value.name], dims_of(value, entry)) for value in values) for entry in entries]
    bindings = []
    for index, value in enumerate(values):
        shapes = [shapes[index] for shapes in allowed]
        largest = max(shapes, key=lambda shape: np.prod(shape.dims))
        is_partial = index < len(model.graph.input) and len(set(shapes)) > 1
        bindings.append(Binding(value.name, largest, is_partial))
    count = len(model.graph.input)
    descriptor = NetworkDescriptor("test", tuple(bindings[:count]), tuple(bindings[count:]), 4, 1, tuple(allowed))
    return {
        "network.elf": b"\x7fELF, qaic simulator",
        "networkdesc.bin": encode_descriptor(descriptor),
        "constantsdesc.bin": b"",
        "constants.bin": constants,
        "sim.onnx": model.SerializeToString(),
        "sim.json": json.dumps({**SETTINGS, **settings}).encode(),
    }


def dims_of(value: onnx.ValueInfoProto, entry: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(entry[dim.dim_param] if dim.dim_param else dim.dim_value for dim in value.type.tensor_type.shape.dim)


def parsed(text: str, opset: int = 18, functions: str = "") -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "own" : 1]>\n{text}\n{functions}')


def with_constants(model: onnx.ModelProto, **constants: np.ndarray) -> onnx.ModelProto:
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def run(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray], **settings: Any) -> np.ndarray:
    """The first output."""
    found = Network(images_of(model, **settings)).run(inputs)
    return found[model.graph.output[0].name]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[onnx.ModelProto, bytes]]:
    """A tiny llama with and without slots, and its constants."""
    return export(tmp_path_factory.getbasetemp())


@functools.cache
def export(folder: Path) -> dict[bool, tuple[onnx.ModelProto, bytes]]:
    """Done once for all modules that use the fixture."""
    from QEfficient import QEFFAutoModelForCausalLM
    from QEfficient.verification.tiny_models import tiny_model

    found = {}
    for has_slots in (False, True):
        model = QEFFAutoModelForCausalLM(tiny_model("llama"), continuous_batching=has_slots)
        found[has_slots] = relocated(Path(model.export(folder / f"llama_{has_slots}" / "exported")))
    return found


def relocated(path: Path) -> tuple[onnx.ModelProto, bytes]:
    """A model whose external data are where a container has them."""
    model = onnx.load(path, load_external_data=False)
    names = set()
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                names.add(entry.value)
                entry.value = "constants.bin"
    (name,) = names
    return model, (path.parent / name).read_bytes()


# Generation by a model


@dataclass(frozen=True)
class Case:
    """How a model is called."""

    has_slots: bool
    rows: int

    @property
    def entries(self) -> list[dict[str, int]]:
        sizes = {"ctx_len": 32, "full_batch_size": 4}
        prefill = {**sizes, "batch_size": 1 if self.has_slots else self.rows, "seq_len": 8}
        return [prefill, {**sizes, "batch_size": self.rows, "seq_len": 1}]

    def prefills(self) -> list[dict[str, np.ndarray]]:
        """8 tokens for each row; with slots, a row at a time."""
        ids = np.random.default_rng(2).integers(1, 200, (self.rows, 8))
        positions = np.arange(8)[None]
        if not self.has_slots:
            return [{"input_ids": ids, "position_ids": np.repeat(positions, self.rows, 0)}]
        rows = range(self.rows)
        return [{"input_ids": ids[[r]], "position_ids": positions, "batch_index": np.array([[r]])} for r in rows]

    def decode(self, tokens: np.ndarray, position: int) -> dict[str, np.ndarray]:
        found = {"input_ids": tokens[:, None], "position_ids": np.full((self.rows, 1), position)}
        return found | ({"batch_index": np.arange(self.rows)[:, None]} if self.has_slots else {})


def generate(case: Case, step: Step) -> tuple[np.ndarray, list[np.ndarray]]:
    """Greedy tokens `[steps, rows]` and all logits."""
    logits = [np.concatenate([step(arrays) for arrays in case.prefills()])]
    tokens = [logits[0].argmax(-1).reshape(-1)]
    for position in range(8, 14):
        logits.append(step(case.decode(tokens[-1], position)))
        tokens.append(logits[-1].argmax(-1).reshape(-1))
    return np.stack(tokens), logits


def reference(model: onnx.ModelProto, constants: bytes, case: Case) -> Step:
    """onnxruntime on the float16 graph of its own conversion, states handed around by the caller, zero at first."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for tensor in whole.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            info = external_data_helper.ExternalDataInfo(tensor)
            tensor.raw_data = constants[info.offset : info.offset + info.length]
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    whole = inliner.inline_local_functions(whole)
    for node in whole.graph.node:
        # The converter does not know this way to write a constant.
        for given in node.attribute:
            if given.name == "value_float":
                given.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(np.float32(given.f).reshape(()))))
    half = convert_float_to_float16(whole, op_block_list=[])
    session = onnxruntime.InferenceSession(half.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = 4 if case.has_slots else case.rows
    names = [entry.name for entry in session.get_inputs() if entry.name.startswith("past")]
    states = {name: np.zeros((rows, 2, 32, 16), np.float16) for name in names}

    def step(arrays: dict[str, np.ndarray]) -> np.ndarray:
        outputs = ["logits", *(f"{name}_RetainedState" for name in names)]
        logits, *found = session.run(outputs, arrays | states)
        states.update(zip(names, found, strict=True))
        return np.asarray(logits)

    return step


# Precision

DOUBLED = "g (float[2] x) => (float[2] y) <float c = {2.0}, float q = {0.25}> { a = Mul(x, c) y = Mul(a, q) }"


def test_each_operator_rounds_and_overflows() -> None:
    found = run(parsed(DOUBLED), {"x": np.array([60000, 1.0001], np.float32)})
    assert found.dtype == np.float16 and found.tolist() == [np.inf, 0.5]


def test_neighbours_that_keep_float32_do_not_round_between_them() -> None:
    pinned = {"fp32": ["a", "y"], "fp16": []}
    found = run(parsed(DOUBLED), {"x": np.array([60000, 1.0001], np.float32)}, node_precision=pinned)
    assert found.dtype == np.float32 and found.tolist() == [30000, np.float32(1.0001) * np.float32(0.5)]


def test_a_node_among_float16_ones_takes_float16_and_gives_it_back() -> None:
    pinned = {"fp32": ["a"], "fp16": []}
    found = run(parsed(DOUBLED), {"x": np.array([60000, 1.0001], np.float32)}, node_precision=pinned)
    assert found.dtype == np.float16 and found.tolist() == [np.inf, 0.5]


def test_a_pinned_call_keeps_the_whole_body() -> None:
    function = '<domain: "own", opset_import: ["" : 18]> Twice (x) => (z) { a = Add(x, x) h = Constant<value_float = 0.25>() z = Mul(a, h) }'  # noqa: E501
    model = parsed("g (float[1] x) => (float[1] y) { y = own.Twice(x) }", functions=function)
    inputs = {"x": np.array([60000], np.float32)}
    assert run(model, inputs).tolist() == [np.inf]
    assert run(model, inputs, node_precision={"fp32": ["y"], "fp16": []}).tolist() == [30000]


def test_single_nodes_may_be_float16_where_the_rest_is_not() -> None:
    inputs = {"x": np.array([60000, 1.0001], np.float32)}
    assert run(parsed(DOUBLED), inputs, convert_to_fp16=False).tolist() == [30000, np.float32(1.0001) / 2]
    found = run(parsed(DOUBLED), inputs, convert_to_fp16=False, node_precision={"fp16": ["a"], "fp32": []})
    assert found.tolist() == [np.inf, 0.5]


def test_constants_of_every_kind_and_casts_become_float16() -> None:
    body = """
        one = Constant<value_float = 100000.0>()
        two = Constant<value = float[1] {2.0}>()
        shape = Constant<value = int64[1] {1}>()
        three = ConstantOfShape<value = float[1] {1.0001}>(shape)
        whole = Cast<to = 1>(i)
        t = CastLike(i, three)
        y = Concat<axis = 0>(two, three, whole, t)
        z = Reciprocal(one)
    """
    found = run(parsed(f"g (int64[1] i) => (float[4] y, float z) {{ {body} }}"), {"i": np.array([2049])})
    assert found.dtype == np.float16 and found.tolist() == [2, 1, 2048, 2048]
    network = Network(images_of(parsed(f"g (int64[1] i) => (float[4] y, float z) {{ {body} }}")))
    assert network.run({"i": np.array([1])})["z"] == 0


def test_the_scales_of_resize_stay_float32() -> None:
    model = parsed('g (float[1,1,1,300] x) => (float[1,1,1,331] y) { y = Resize<mode = "nearest">(x, none, s) }')
    model.graph.node[0].input[1] = ""
    scale = np.array([1, 1, 1, np.float32(331.9 / 300)], np.float32)
    values = np.arange(300, dtype=np.float32).reshape(1, 1, 1, -1)
    assert run(with_constants(model, s=scale), {"x": values}).shape == (1, 1, 1, 331)


def test_onnxruntime_adds_no_casts_of_its_own(
    exported: dict[bool, tuple[onnx.ModelProto, bytes]], tmp_path: Path
) -> None:
    """Its casts come and go in pairs, so that values between would not be rounded; casts of casts may go."""
    model, constants = exported[True]
    entry = {"batch_size": 1, "full_batch_size": 4, "ctx_len": 32, "seq_len": 8}
    images = images_of(model, [entry], constants=constants)
    ours = card_model(images, decode_descriptor(images["networkdesc.bin"]), read_settings(images["sim.json"]))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(tmp_path / "as_run.onnx")
    onnxruntime.InferenceSession(ours.SerializeToString(), options, providers=["CPUExecutionProvider"])
    theirs = onnx.load(tmp_path / "as_run.onnx")
    before, after = ({n.output[0] for n in m.graph.node if n.op_type == "Cast"} for m in (ours, theirs))
    readers = {node.op_type for node in ours.graph.node if (before - after) & set(node.input)}
    assert after < before and readers <= {"Cast"}


# Block formats


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    half = x.astype(np.float16).astype(np.float32) @ w.astype(np.float16).astype(np.float32)
    return half.astype(np.float16)


MATRICES = {
    "direct": ("y = MatMul(x, w)", (48, 8), -2),
    "transposed": ("t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)", (8, 48), -1),
    "gemm": ("y = Gemm(x, w)", (48, 8), -2),
    "gemm transposed": ("y = Gemm<transB = 1>(x, w)", (8, 48), -1),
    "bank": ("i = Constant<value = int64 {1}>() c = Gather<axis = 0>(w, i) y = MatMul(x, c)", (3, 48, 8), -2),
}


@pytest.mark.parametrize("rounding", ["even", "floor"])
@pytest.mark.parametrize("name", MATRICES)
def test_constant_matrices_are_rounded_along_what_is_summed(
    name: str, rounding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QAIC_SIM_ROUNDING", rounding)
    body, shape, axis = MATRICES[name]
    w, x = weights(*shape), weights(2, 48)
    rounded = round_mxfp6(w, axis, rounding)
    matrix = rounded[1] if name == "bank" else rounded if axis == -2 else rounded.T
    model = with_constants(parsed(f"g (float[2,48] x) => (float[2,8] y) {{ {body} }}"), w=w)
    np.testing.assert_allclose(run(model, {"x": x}, mxfp6=True), product(x, matrix), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", MATRICES)
def test_so_are_those_of_programs_in_float16(name: str) -> None:
    body, shape, axis = MATRICES[name]
    w, x = weights(*shape).astype(np.float16), weights(2, 48).astype(np.float16)
    rounded = round_mxfp6(w.astype(np.float32), axis)
    matrix = rounded[1] if name == "bank" else rounded if axis == -2 else rounded.T
    model = with_constants(parsed(f"g (float16[2,48] x) => (float16[2,8] y) {{ {body} }}"), w=w)
    np.testing.assert_allclose(run(model, {"x": x}, mxfp6=True), x @ matrix, rtol=5e-3, atol=5e-3)


def test_a_left_factor_is_rounded_too_and_a_bias_is_not() -> None:
    w, b = weights(8, 48), weights(48)
    model = with_constants(parsed("g (float[48,1] x) => (float[8,1] y) { y = MatMul(w, x) }"), w=w)
    x = np.eye(48, 1, dtype=np.float32)
    assert (run(model, {"x": x}, mxfp6=True) == round_mxfp6(w, 1)[:, :1].astype(np.float16)).all()
    model = with_constants(parsed("g (float[48] x) => (float[48] y) { y = Add(x, b) }"), b=b)
    assert (run(model, {"x": np.zeros(48, np.float32)}, mxfp6=True) == b.astype(np.float16)).all()


def test_an_embedding_that_is_also_a_matrix_stays_exact_where_it_is_read() -> None:
    w = weights(6, 48)
    body = "e = Gather<axis = 0>(w, i) t = Transpose<perm = [1, 0]>(w) z = MatMul(e, t) y = Identity(e)"
    model = with_constants(parsed(f"g (int64[2] i) => (float[2,48] y, float[2,6] z) {{ {body} }}"), w=w)
    found = Network(images_of(model, mxfp6=True)).run({"i": np.array([1, 4])})
    assert (found["y"] == w[[1, 4]].astype(np.float16)).all()
    np.testing.assert_allclose(found["z"], product(w[[1, 4]], round_mxfp6(w, 1).T), rtol=2e-3, atol=2e-3)


def test_all_matrices_of_a_model_are_found(exported: dict[bool, tuple[onnx.ModelProto, bytes]]) -> None:
    """The same numbers as from a checkpoint whose matrices were rounded beforehand."""
    model, constants = exported[False]
    entry = {"batch_size": 1, "ctx_len": 32, "seq_len": 8}
    beforehand = bytearray(constants)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(("_proj.weight", "lm_head.weight")):
            places = {entry.key: entry.value for entry in tensor.external_data}
            start, length = int(places["offset"]), int(places["length"])
            values = np.frombuffer(constants[start : start + length], np.float32).reshape(tensor.dims)
            beforehand[start : start + length] = round_mxfp6(values, 1).tobytes()
    networks = [
        Network(images_of(model, [entry], constants=constants, mxfp6=True)),
        Network(images_of(model, [entry], constants=bytes(beforehand))),
        Network(images_of(model, [entry], constants=constants)),
    ]
    inputs = {name: networks[0].garbage(name) for name in networks[0].states}
    inputs |= {"input_ids": np.arange(8)[None] + 3, "position_ids": np.arange(8)[None]}
    ours, theirs, exact = (network.run(inputs)["logits"] for network in networks)
    assert np.isfinite(ours).all() and (ours == theirs).all() and (ours != exact).any()


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_rounding_a_state_again_changes_nothing(rounding: str, kind: type) -> None:
    draw = np.random.default_rng(1)
    values = draw.standard_normal((200, 80)) * np.exp2(draw.integers(-24, 15, (200, 80)))
    once = round_mxint8(values.astype(kind), -1, rounding).astype(kind)
    assert (round_mxint8(once, -1, rounding).astype(kind) == once).all()
    assert (once != values.astype(kind)).any()


def test_states_in_mxint8_are_rounded() -> None:
    text = (
        "g (float[4,32] past, float[4,32] x) => (float[4,32] past_RetainedState) { past_RetainedState = Add(past, x) }"
    )
    precisions = {"past": "mxint8", "past_RetainedState": "mxint8"}
    images = images_of(parsed(text), types={"past": HALF, "past_RetainedState": HALF}, custom_io=precisions)
    network, x = Network(images), weights(4, 32)
    assert network.states == {"past": "past_RetainedState"}
    found = network.run({"past": np.zeros((4, 32), np.float16), "x": x})["past_RetainedState"]
    assert (found == round_mxint8(x.astype(np.float16), -1).astype(np.float16)).all()


def test_memory_is_not_a_number_at_first() -> None:
    text = "g (float[2,4] past) => (float[2,4] past_RetainedState) { past_RetainedState = Add(past, past) }"
    network = Network(images_of(parsed(text), types={"past": HALF, "past_RetainedState": HALF}))
    assert np.isnan(network.garbage("past")).all() and network.garbage("past").shape == (2, 4)


# Indices


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("outside", [3, INT32_MAX, -4])
def test_what_is_scattered_out_of_range_is_dropped(opset: int, outside: int) -> None:
    model = parsed("g (float[3,2] d, int64[3,1] i, float[3,2] u) => (float[3,2] y) { y = ScatterND(d, i, u) }", opset)
    data, updates = np.zeros((3, 2), np.float32), np.array([[1, 1], [2, 2], [3, 3]], np.float32)
    found = run(model, {"d": data, "i": np.array([[1], [outside], [-1]]), "u": updates})
    assert found.tolist() == [[0, 0], [1, 1], [3, 3]]


def test_an_index_is_dropped_for_any_of_its_parts() -> None:
    model = parsed("g (float[2,2] d, int64[3,2] i, float[3] u) => (float[2,2] y) { y = ScatterND(d, i, u) }")
    index = np.array([[0, INT32_MAX], [INT32_MAX, 0], [1, 1]])
    data = np.zeros((2, 2), np.float32)
    assert run(model, {"d": data, "i": index, "u": np.ones(3, np.float32)}).tolist() == [[0, 0], [0, 1]]


def test_sums_are_scattered_by_the_same_rule() -> None:
    text = 'g (float[2] d, int64[3,1] i, float[3] u) => (float[2] y) { y = ScatterND<reduction = "add">(d, i, u) }'
    inputs = {"d": np.ones(2, np.float32), "i": np.array([[0], [0], [2]]), "u": np.ones(3, np.float32)}
    assert run(parsed(text), inputs).tolist() == [3, 1]


@pytest.mark.parametrize("opset", [12, 18])
def test_what_is_gathered_from_out_of_range_is_at_index_0(opset: int) -> None:
    plain = parsed("g (float[3] d, int64[4,1] i) => (float[4] y) { y = GatherND(d, i) }", opset)
    data, index = np.array([5, 6, 7], np.float32), np.array([[2], [3], [INT32_MAX], [-1]])
    assert run(plain, {"d": data, "i": index}).tolist() == [7, 5, 5, 7]
    rows = parsed("g (float[2,3] d, int64[2,2,1] i) => (float[2,2] y) { y = GatherND<batch_dims = 1>(d, i) }", opset)
    index = np.array([[[2], [INT32_MAX]], [[1], [3]]])
    assert run(rows, {"d": np.arange(6, dtype=np.float32).reshape(2, 3), "i": index}).tolist() == [[2, 0], [4, 3]]


# What cannot be run

PLAIN = "g (float[2] x) => (float[2] y) { y = Abs(x) }"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sim.onnx": b"\xff" * 9}, "no model"),
        ({"sim.json": b"["}, "not what the stand-in compiler writes"),
        ({"sim.json": b"[]"}, "not what the stand-in compiler writes"),
        ({"sim.json": b'{"mxfp6": true}'}, "not what the stand-in compiler writes"),
    ],
)
def test_segments_that_the_compiler_did_not_write(change: dict[str, bytes], words: str) -> None:
    with pytest.raises(ExecutionError, match=words):
        Network({**images_of(parsed(PLAIN)), **change})


@pytest.mark.parametrize("name", ["sim.onnx", "sim.json"])
def test_a_segment_is_absent(name: str) -> None:
    images = images_of(parsed(PLAIN))
    del images[name]
    with pytest.raises(ExecutionError, match=f"no {name}"):
        Network(images)


def test_constants_are_outside_their_segment(exported: dict[bool, tuple[onnx.ModelProto, bytes]]) -> None:
    model, constants = exported[False]
    entry = {"batch_size": 1, "ctx_len": 32, "seq_len": 8}
    with pytest.raises(ExecutionError, match="not among the"):
        Network(images_of(model, [entry], constants=constants[:-1]))


def test_a_float_that_the_host_has_as_something_else() -> None:
    with pytest.raises(ExecutionError, match="no float for the host"):
        Network(images_of(parsed(PLAIN), types={"x": 8}))


def test_an_input_that_the_descriptor_lacks() -> None:
    images = images_of(parsed(PLAIN))
    descriptor = decode_descriptor(images["networkdesc.bin"])
    bare = NetworkDescriptor("test", (), descriptor.outputs)
    with pytest.raises(ExecutionError, match="x is no float|lacks the input x"):
        Network({**images, "networkdesc.bin": encode_descriptor(bare)})
