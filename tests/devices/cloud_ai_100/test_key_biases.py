"""Biases that grow with a key's position become differences, whatever form they have; all else stays as it is."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from qaic_simulator.root import write_root
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices import Batch, Device, Row
from QEfficient.devices.cloud_ai_100 import CloudAI100
from QEfficient.devices.cloud_ai_100.graph import prepared
from QEfficient.devices.cloud_ai_100.graph.key_biases import TRIAL, center_key_biases
from QEfficient.devices.cloud_ai_100.graph.prepared import for_half
from QEfficient.devices.reference import ReferenceDevice
from QEfficient.program import CompiledProgram, ExportedProgram, load_exported
from QEfficient.specs import CompileSpec, Specialization
from QEfficient.verification.tiny_models import prompts, tiny_model
from QEfficient.verification.tiny_overrides import OVERRIDES

SLOTS = 4096
SYMBOLS = {"ctx_len": SLOTS}
POSITIONS = np.array([[3000, 2047, 5], [4095, 0, -1]])
BIASED: dict[str, dict[str, Any]] = {"bloom": {}, "mpt": {"max_seq_len": SLOTS}, "falcon": {"alibi": True}}
"""Model types that add biases by position, each in its own form, and what makes them do so."""

COUNTED = """
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    length = Shape<start = 2, end = 3>(past)
    end = Squeeze(length)
    counted = Range(zero, end, one)
    numbers = Cast<to = 1>(counted)
    bias = Mul(slopes, numbers)
"""
FLAT = """
    rows = Shape<start = 0, end = 1>(past)
    ones = Constant<value_ints = [1, 1]>()
    repeats = Concat<axis = 0>(rows, ones)
    repeated = Tile(bias, repeats)
    tokens = Shape<start = 1, end = 2>(position_ids)
    rest = Constant<value_ints = [-1]>()
    flat_shape = Concat<axis = 0>(rest, tokens, length)
    flat_scores = Reshape(scores, flat_shape)
    flat_sum = Add(flat_scores, repeated)
    heads = Constant<value_ints = [2]>()
    shape = Concat<axis = 0>(rows, heads, tokens, rest)
    sum = Reshape(flat_sum, shape)
    y = Softmax<axis = -1>(sum)
"""
PLAIN = "sum = Add(scores, bias) y = Softmax<axis = -1>(sum)"
MASKED = """
    one_row = Constant<value_ints = [0]>()
    four = Constant<value_float = 4.0>()
    low = Constant<value_float = LOW>()
    whole = Unsqueeze(bias, one_row)
    divided = Div(whole, four)
    masked = Where(seen, divided, low)
    product = Mul(scores, four)
    sum = Add(masked, product)
    turned = Sub(sum, bias)
    kept = Where(seen, turned, low)
    y = Softmax(kept)
"""


def graph(body: str, slopes: tuple[float, float] = (0.25, 0.3)) -> onnx.ModelProto:
    """`y` from scores [rows, 2 heads, tokens, slots], what is seen, and biases that slopes and slots decide."""
    whole = COUNTED + body.replace("LOW", "-3.4e38")
    return parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 18]>
        g (int64[batch_size, seq_len] position_ids, float[batch_size, 2, seq_len, ctx_len] scores,
           bool[batch_size, 1, seq_len, ctx_len] seen, float[batch_size, 2, ctx_len, 4] past)
        => (float[batch_size, 2, seq_len, ctx_len] y) <float[2, 1, 1] slopes = {{{slopes[0]}, {slopes[1]}}}>
        {{{whole}}}""")


def in_parts(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph for as many of the slots as a run reads."""
    text = onnx.printer.to_text(model).replace("ctx_len] seen", "read] seen").replace("ctx_len] scores", "read] scores")
    text = text.replace("ctx_len] y", "read] y").replace("<start: int = 2, end: int = 3> (past)", " (comp_ctx_lengths)")
    text = text.replace(
        "[batch_size,seq_len] position_ids", "[batch_size,seq_len] position_ids, int64[read] comp_ctx_lengths"
    )
    return parser.parse_model(text.replace("read]", "comp_ctx_lengths]"))


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def run(model: onnx.ModelProto, slots: int = SLOTS) -> np.ndarray:
    rows, tokens = POSITIONS.shape
    random = np.random.default_rng(0)
    positions = np.minimum(POSITIONS, slots - 1)
    feeds = {
        "position_ids": positions,
        "comp_ctx_lengths": np.zeros(slots, np.int64),
        "scores": random.normal(0, 3, (rows, 2, tokens, slots)).astype(np.float32),
        "seen": np.arange(slots) <= np.maximum(positions, 0)[:, None, :, None],
        "past": np.zeros((rows, 2, SLOTS, 4), np.float32),
    }
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    used = {value.name for value in session.get_inputs()}
    found: np.ndarray = session.run(None, {name: value for name, value in feeds.items() if name in used})[0]
    return found


def rewritten(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """A copy with differences, which computes the same."""
    changed = copy.deepcopy(model)
    assert center_key_biases(changed, folder, SYMBOLS)
    onnx.checker.check_model(changed, full_check=True)
    np.testing.assert_allclose(run(changed), run(model), atol=2e-4)  # float32 has 1e-4 at a bias of 1,000
    return changed


@pytest.mark.parametrize("body", [PLAIN, FLAT, MASKED], ids=["plain", "flat", "masked"])
def test_forms(tmp_path: Path, body: str) -> None:
    """Nothing of what made the bias is left, and the queries' own numbers are looked up."""
    model = rewritten(graph(body), tmp_path)
    made = {name for node in model.graph.node for name in node.output}
    assert not made & {"numbers", "bias", "repeated", "whole", "divided"}
    assert {"Gather", "Sub"} <= set(operators(model)) and not {"Range", "Tile"} & set(operators(model))


@pytest.mark.parametrize("body", [PLAIN, FLAT, MASKED], ids=["plain", "flat", "masked"])
def test_parts_of_the_context(tmp_path: Path, body: str) -> None:
    """However many slots a run reads, it gets the first ones of the tables."""
    model = in_parts(graph(body))
    changed = rewritten(model, tmp_path)
    assert "Slice" in operators(changed)
    np.testing.assert_allclose(run(changed, 2500), run(model, 2500), atol=2e-4)


def test_what_the_number_of_slots_decides_stays(tmp_path: Path) -> None:
    """A bias that is another one, and not only shifted, where fewer slots are read."""
    share = "count = Cast<to = 1>(end) share = Div(bias, count) sum = Add(scores, share) y = Softmax(sum)"
    assert center_key_biases(graph(share), tmp_path, SYMBOLS)
    assert not center_key_biases(in_parts(graph(share)), tmp_path, SYMBOLS)


def test_numbers_as_they_were_before_float16(tmp_path: Path) -> None:
    """Where the graph itself rounds them to float16, the tables are of what it rounds."""
    body = """half = Cast<to = 10>(bias) half_scores = Cast<to = 10>(scores) sum = Add(half_scores, half)
        shares = Softmax(sum) y = Cast<to = 1>(shares)"""
    model = graph(body, (0.25, 0.125))
    assert center_key_biases(model, tmp_path, SYMBOLS)
    tables = [t for t in model.graph.initializer if t.name.startswith("key_bias_")]
    assert [t.data_type for t in tables] == [onnx.TensorProto.FLOAT16] * 2
    coarse, fine = (onnx.numpy_helper.to_array(table)[:, 0].astype(np.float32) for table in tables)
    np.testing.assert_array_equal(coarse + fine, np.multiply.outer([0.25, 0.125], np.arange(SLOTS)))


def test_one_difference_serves_all_that_add_the_same(tmp_path: Path) -> None:
    body = """sum = Add(scores, bias) first = Softmax(sum) again = Mul(slopes, numbers)
        other = Add(again, first) second = Softmax(other) y = Add(first, second)"""
    model = rewritten(graph(body, (0.25, 0.5)), tmp_path)
    assert operators(model).count("Gather") == 2  # of the coarse table and the fine one


@pytest.mark.parametrize("slopes", [(0.25, 0.00390625), (0.7071, 0.0043)])
def test_differences_in_float16(tmp_path: Path, slopes: tuple[float, float]) -> None:
    """Every step rounded: as near as float16 can hold the difference itself, where the bias itself is off by units."""
    model = rewritten(graph(PLAIN, slopes), tmp_path)
    tensors = [tensor for tensor in model.graph.initializer if tensor.name.startswith("key_bias_")]
    tables = [onnx.numpy_helper.to_array(tensor)[:, 0].astype(np.float16) for tensor in tensors]
    query = 3001
    coarse, fine = (table - table[:, query : query + 1] for table in tables)
    found = coarse + fine
    exact = np.multiply.outer(np.array(slopes), np.arange(SLOTS) - query)
    assert found.dtype == np.float16
    assert (np.abs(found - exact) <= np.abs(exact) * 2.0**-10 + 1e-4).all()
    bias = np.multiply.outer(np.array(slopes), np.arange(SLOTS)).astype(np.float16)
    assert np.abs((bias - bias[:, query : query + 1]) - exact)[:, query - 8 : query].max() > 0.05 * max(slopes)


@pytest.mark.parametrize(
    "body",
    [
        "sum = Add(scores, bias) bent = Tanh(sum) y = Softmax(bent)",
        "sum = Add(scores, bias) y = Softmax<axis = 2>(sum)",
        "y = Add(scores, bias)",
        "sum = Add(scores, bias) shares = Softmax(sum) y = Add(sum, shares)",
        "sum = Add(scores, bias) product = Mul(sum, scores) y = Softmax(product)",
        "sum = Add(scores, bias) product = Div(scores, sum) y = Softmax(product)",
        "two = Constant<value_float = 2.0>() sum = Add(scores, bias) part = Div(two, sum) y = Softmax(part)",
        "sum = Add(scores, bias) square = Mul(sum, sum) y = Softmax(square)",
        "sum = Add(scores, bias) turned = Transpose<perm = [0, 1, 3, 2]>(sum) y = Softmax(turned)",
        "sum = Add(scores, bias) number = Cast<to = 6>(sum) float = Cast<to = 1>(number) y = Softmax(float)",
        MASKED.replace("LOW", "-100.0"),
        MASKED.replace("Where(seen, turned, low)", "Where(seen, turned, scores)"),
        # sinks, which are no keys, stand beside the scores
        """first = Constant<value_ints = [0]>() last = Constant<value_ints = [1]>() axis = Constant<value_ints = [3]>()
        sum = Add(scores, bias) sinks = Slice(scores, first, last, axis) both = Concat<axis = 3>(sum, sinks)
        shares = Softmax(both) y = Slice(shares, first, length, axis)""",
        # measured from the query already
        """axis = Constant<value_ints = [1, 3]>() columns = Unsqueeze(position_ids, axis) far = Cast<to = 1>(columns)
        distances = Sub(numbers, far) product = Mul(distances, slopes) sum = Add(scores, product) y = Softmax(sum)""",
        # the same for all keys
        "flat = Mul(bias, zeros) sum = Add(scores, flat) y = Softmax(sum)",
        # a mask
        "endless = Div(bias, zeros) sum = Add(scores, endless) y = Softmax(sum)",
        "much = Constant<value_float = 1000.0>() wide = Mul(bias, much) sum = Add(scores, wide) y = Softmax(sum)",
        # a body may do anything with it
        """sum = Add(scores, bias) yes = Constant<value = bool {1}>()
        y = If(yes) <then_branch = a () => (float[b, 2, t, c] u) {u = Softmax(sum)},
                     else_branch = e () => (float[b, 2, t, c] v) {v = Tanh(sum)}>""",
    ],
)
def test_what_stays(tmp_path: Path, body: str) -> None:
    model = graph("nothing = Constant<value_float = 0.0>() zeros = Mul(slopes, nothing)" + body)
    onnx.checker.check_model(model, full_check=True)
    before = model.SerializeToString()
    assert not center_key_biases(model, tmp_path, SYMBOLS)
    assert model.SerializeToString() == before


def test_a_sum_that_is_a_result_too(tmp_path: Path) -> None:
    model = graph(PLAIN)
    model.graph.output.append(onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, None))
    assert not center_key_biases(model, tmp_path, SYMBOLS)


def test_a_context_as_long_as_other_axes(tmp_path: Path) -> None:
    """Rows that become columns are seen where both are equally long."""
    turned = "sum = Add(scores, bias) turned = Transpose<perm = [0, 1, 3, 2]>(sum) y = Softmax(turned)"
    assert center_key_biases(graph(PLAIN), tmp_path, {"ctx_len": TRIAL[1]})
    assert not center_key_biases(graph(turned), tmp_path, {"ctx_len": TRIAL[1]})


def test_a_context_that_differs_between_specializations(tmp_path: Path) -> None:
    assert not center_key_biases(graph(PLAIN), tmp_path, {})


@pytest.fixture(scope="module", params=BIASED)
def program(request: pytest.FixtureRequest) -> ExportedProgram:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OVERRIDES, request.param, OVERRIDES.get(request.param, {}) | BIASED[request.param])
        model = tiny_model(request.param)
    return load_exported(Path(QEFFAutoModelForCausalLM(model).export()).parent)


def entries(context: int) -> list[Specialization]:
    shapes = ((1, 16), (2, 1))
    sizes = [{"batch_size": rows, "seq_len": tokens, "ctx_len": context} for rows, tokens in shapes]
    return [Specialization(f"e{number}", each) for number, each in enumerate(sizes)]


def test_models(program: ExportedProgram, tmp_path: Path) -> None:
    """Each sum in each layer reads a difference, and a table serves all layers."""
    model = onnx.load(for_half(program.onnx_path("lm"), tmp_path, entries(SLOTS)), load_external_data=False)
    readers = [n for n in model.graph.node if any(name.startswith("key_bias_") for name in n.input)]
    sums = [node.output[0] for node in readers if not node.output[0].startswith("key_bias_")]
    tables = [tensor for tensor in model.graph.initializer if tensor.name.startswith("key_bias_")]
    assert len(sums) >= operators(model).count("Softmax") == 2
    assert 1 <= len(tables) <= 2 and all(list(table.dims) == [4, 1, SLOTS] for table in tables)


def test_float32_stays(program: ExportedProgram, tmp_path: Path) -> None:
    """The same logits on a device that computes in float32: prefill, several rows, decoding."""
    shutil.copytree(program.folder, tmp_path / "changed")
    changed = load_exported(tmp_path / "changed")
    model = onnx.load(changed.onnx_path("lm"), load_external_data=False)
    assert center_key_biases(model, program.folder, {"ctx_len": 64})
    onnx.save(model, changed.onnx_path("lm"))
    tokens = np.random.default_rng(0).integers(3, 250, (2, 22)).tolist()
    pieces = ((0, 8), (8, 16), (16, 20), (20, 21), (21, 22))
    calls = [tuple(Row(row, tokens[row][start:end], start) for row in (0, 1)) for start, end in pieces]
    found = [logits(ReferenceDevice(), each, tmp_path / name, calls) for name, each in (("a", program), ("b", changed))]
    np.testing.assert_allclose(found[1], found[0], atol=1e-5 * np.ptp(found[0]))


def logits(device: Device, program: ExportedProgram, folder: Path, calls: list[tuple[Row, ...]]) -> np.ndarray:
    folder.mkdir()
    spec = CompileSpec(prefill_seq_len=8, ctx_len=64, batch_size=2)
    compiled = CompiledProgram(folder, device.name, spec, program, "made here", device.compile(program, spec, folder))
    with device.load(compiled) as session:
        return np.stack([session.run(Batch(rows)) for rows in calls])


@pytest.mark.parametrize(
    "options",
    [
        {"num_devices": 2, "mdp_num_partitions": 2},
        {"mxfp6_matmul": True},
        {"enable_qnn": True},
        {"comp_ctx_lengths_prefill": [16, 64], "comp_ctx_lengths_decode": [32, 64]},
    ],
    ids=["pipeline", "mxfp6", "qnn", "parts"],
)
def test_other_ways_to_compile(
    new_sdk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """All of them take the changed graph; the tokens are those of a plain program where the weights are the same."""
    monkeypatch.setenv("QNN_SDK_ROOT", str(write_root(tmp_path / "qairt", qnn=True)))
    done: list[bool] = []

    def recorded(*given: Any) -> bool:
        done.append(center_key_biases(*given))
        return done[-1]

    monkeypatch.setattr(prepared, "center_key_biases", recorded)
    config = {"ccl_enabled": "comp_ctx_lengths_decode" in options}
    wrapped = QEFFAutoModelForCausalLM(tiny_model("bloom"), continuous_batching=True, qaic_config=config)
    geometry = {"device": "cloud_ai_100", "ctx_len": 64, "prefill_seq_len": 8, "full_batch_size": 2}
    given = prompts(wrapped.model)

    def answers(**more: Any) -> list[list[int]]:
        wrapped.compile(**geometry, **more)
        info = wrapped.generate(input_ids=given, generation_len=10, ignore_eos=True)
        return [list(found) for found in info.generated_ids]

    found = answers(**options)
    assert [len(each) for each in found] == [10] * len(given)
    assert "mxfp6_matmul" in options or found == answers()
    assert done and all(done)


LATE: dict[str, Callable[..., bool]] = {"with": center_key_biases, "without": lambda *_: False}


@pytest.mark.slow
def test_long_texts_in_float16(
    new_sdk: str, program: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps from position 3,000 on are about as near to float32 as early ones are; as the graph was they are not."""
    right = late_logits(ReferenceDevice(), program, tmp_path / "reference")
    errors = {}
    for name, change in LATE.items():
        monkeypatch.setattr(prepared, "center_key_biases", change)
        found = late_logits(CloudAI100(), program, tmp_path / name)
        errors[name] = np.abs(found - right).max(axis=1) / np.ptp(right, axis=1)
    assert errors["with"].max() < 0.03 and np.median(errors["with"]) < 0.01
    assert np.median(errors["without"]) > 2 * np.median(errors["with"])


def late_logits(device: Device, program: ExportedProgram, folder: Path) -> np.ndarray:
    folder.mkdir()
    spec = CompileSpec(prefill_seq_len=1000, ctx_len=SLOTS)
    compiled = CompiledProgram(folder, device.name, spec, program, "made here", device.compile(program, spec, folder))
    tokens = np.random.default_rng(0).integers(3, 250, 3012).tolist()
    with device.load(compiled) as session:
        for start in (0, 1000, 2000):
            session.run(Batch((Row(0, tokens[start : start + 1000], start),)))
        return np.stack([session.run(Batch((Row(0, [tokens[p]], p),)))[-1] for p in range(3000, 3012)])
