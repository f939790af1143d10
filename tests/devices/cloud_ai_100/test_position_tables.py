"""What positions decide alone becomes a table, all else stays; and then float16 is good enough for long texts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import external_data_helper, parser

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices import Batch, Device, Row
from QEfficient.devices.cloud_ai_100 import CloudAI100
from QEfficient.devices.cloud_ai_100.graph import prepared
from QEfficient.devices.cloud_ai_100.graph.half_range import with_data
from QEfficient.devices.cloud_ai_100.graph.position_tables import Places, tabulate
from QEfficient.devices.cloud_ai_100.graph.prepared import for_half
from QEfficient.devices.reference import ReferenceDevice
from QEfficient.program import CompiledProgram, ExportedProgram, load_exported
from QEfficient.specs import CompileSpec, Specialization
from QEfficient.verification.tiny_models import tiny_model

CONTEXT = 3000
CLAMPED = ["Less", "Where", "Less", "Where"]
SYMBOLS = {"ctx_len": CONTEXT}
ANGLES = """
    zero = Constant<value_int = 0>()
    last = Constant<value_ints = [-1]>()
    clamped = Max(position_ids, zero)
    columns = Unsqueeze(clamped, last)
    floats = Cast<to = 1>(columns)
    angles = Mul(floats, frequencies)
"""


def graph(body: str, result: str = "float[batch_size, seq_len, d]") -> onnx.ModelProto:
    """`y` from positions, `x` [rows, tokens, 3] and a state, which has `ctx_len` slots."""
    return parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 18]>
        g (int64[batch_size, seq_len] position_ids, float[batch_size, seq_len, 3] x, float[batch_size, ctx_len] past)
        => ({result} y) <float[3] frequencies = {{1.0, 0.1, 0.01}}, float[3] slow = {{0.1, 0.01, 0.001}}>
        {{{body}}}""")


def run(model: onnx.ModelProto, folder: Path, positions: np.ndarray) -> np.ndarray:
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for tensor in whole.graph.initializer:
        tensor.CopyFrom(with_data(tensor, folder))
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    rows, tokens = positions.shape
    ones = {"x": np.ones((rows, tokens, 3), np.float32), "past": np.ones((rows, CONTEXT), np.float32)}
    fed = {value.name for value in session.get_inputs()}
    values: np.ndarray = session.run(None, {k: v for k, v in {"position_ids": positions, **ones}.items() if k in fed})[
        0
    ]
    return values


def tables(model: onnx.ModelProto) -> dict[str, list[int]]:
    found = (tensor for tensor in model.graph.initializer if tensor.name.startswith("position_table."))
    return {tensor.name: list(tensor.dims) for tensor in found if tensor.dims}


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def rewritten(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """A copy with tables, which computes the same."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    assert tabulate(copy, Places(folder, folder), SYMBOLS)
    positions = np.array([[2999, 0, 7, 7, -1], [0, 1, 2, 2998, 2049]])
    np.testing.assert_allclose(run(copy, folder, positions), run(model, folder, positions), rtol=1e-5, atol=1e-6)
    return copy


def test_cosines_and_sines(tmp_path: Path) -> None:
    """Each once, behind what was done to it; nothing of what made them is left."""
    body = f"""{ANGLES}
        c = Cos(angles)
        s = Sin(angles)
        scale = Constant<value_float = 1.5>()
        scaled = Mul(c, scale)
        a = Mul(x, scaled)
        b = Mul(x, s)
        y = Add(a, b)"""
    model = rewritten(graph(body), tmp_path)
    assert tables(model) == {"position_table.0": [CONTEXT, 3], "position_table.1": [CONTEXT, 3]}
    assert operators(model) == [*CLAMPED, "Gather", "Identity", "Gather", "Identity", "Mul", "Mul", "Add"]
    assert not {"frequencies", "scale"} & {t.name for t in model.graph.initializer}
    assert (tmp_path / "position_tables.data").stat().st_size == 2 * 4 * 3 * CONTEXT


def test_positions_beyond_the_context_run(tmp_path: Path) -> None:
    """They get the numbers of the last one: a table has no more."""
    model = graph(f"{ANGLES} c = Cos(angles)  y = Mul(x, c)")
    assert tabulate(model, Places(tmp_path, tmp_path), SYMBOLS)
    beyond, last = (run(model, tmp_path, np.array([[5, place]])) for place in (CONTEXT + 7, CONTEXT - 1))
    assert np.array_equal(beyond, last)


def test_a_table_serves_all_that_have_its_numbers(tmp_path: Path) -> None:
    body = f"{ANGLES} c = Cos(angles)  again = Cos(angles)  a = Mul(x, c)  y = Mul(a, again)"
    assert list(tables(rewritten(graph(body), tmp_path))) == ["position_table.0"]


def test_tokens_along_another_axis(tmp_path: Path) -> None:
    """[rows, d, tokens], and heads that are written out behind the table."""
    body = f"""{ANGLES}
        c = Cos(angles)
        scale = Constant<value_float = 1.5>()
        turned = Transpose<perm = [0, 2, 1]>(c)
        scaled = Mul(turned, scale)
        shape = Constant<value_ints = [5, 1, 1, 1]>()
        heads = Expand(scaled, shape)
        back = Transpose<perm = [0, 1, 3, 2]>(heads)
        y = Mul(back, x)"""
    model = rewritten(graph(body, "float[5, batch_size, seq_len, 3]"), tmp_path)
    assert tables(model) == {"position_table.0": [CONTEXT, 3]}
    assert operators(model)[4:6] == ["Gather", "Transpose"] and "Expand" in operators(model)


def test_frequencies_that_the_context_chooses(tmp_path: Path) -> None:
    body = f"""{ANGLES.replace("floats, frequencies", "floats, chosen")}
        c = Cos(angles)
        y = Mul(x, c)"""
    choice = """
        length = Shape<start = 1, end = 2>(past)
        trained = Constant<value_int = 2999>()
        is_long = Greater(length, trained)
        chosen = Where(is_long, slow, frequencies)"""
    model = rewritten(graph(choice + body), tmp_path)
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "position_table.0")
    table = with_data(stored, tmp_path)
    expected = np.cos(np.arange(CONTEXT)[:, None] * np.array([0.1, 0.01, 0.001], np.float32))
    np.testing.assert_allclose(onnx.numpy_helper.to_array(table), expected, atol=1e-4)


def test_what_depends_on_other_tokens_is_made_from_a_table(tmp_path: Path) -> None:
    body = f"{ANGLES} axis = Constant<value_int = 1>()  c = Cos(angles)  sums = CumSum(c, axis)  y = Mul(x, sums)"
    model = rewritten(graph(body), tmp_path)
    assert "CumSum" in operators(model) and "Cos" not in operators(model)


@pytest.mark.parametrize(
    ("body", "result"),
    [
        # a mask: as many numbers as the context has
        (
            """zero = Constant<value_int = 0>()  one = Constant<value_int = 1>()  last = Constant<value_ints = [-1]>()
            shape = Shape<start = 1, end = 2>(past)  length = Squeeze(shape)  keys = Range(zero, length, one)
            queries = Unsqueeze(position_ids, last)  seen = LessOrEqual(keys, queries)  number = Cast<to = 1>(seen)
            low = Constant<value_float = -60000.0>()  mask = Mul(number, low)
            axis = Constant<value_ints = [1]>()  pasts = Unsqueeze(past, axis)  y = Add(mask, pasts)""",
            "float[batch_size, seq_len, ctx_len]",
        ),
        # beyond float16
        (f"{ANGLES} square = Mul(floats, floats)  y = Mul(x, square)", "float[batch_size, seq_len, 3]"),
        # no better in a table
        (f"{ANGLES} y = Mul(x, floats)", "float[batch_size, seq_len, 3]"),
    ],
    ids=["mask", "large", "position"],
)
def test_what_stays(tmp_path: Path, body: str, result: str) -> None:
    model = graph(body, result)
    before = model.SerializeToString()
    assert not tabulate(model, Places(tmp_path, tmp_path), SYMBOLS)
    assert model.SerializeToString() == before


def test_positions_that_the_graph_has_no_numbers_for(tmp_path: Path) -> None:
    """A lookup that ends before the context does: no request gets there, but no table can be made."""
    rows = "{" + ", ".join(["1.0"] * 64) + "}"
    model = parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 18]>
        g (int64[batch_size, seq_len] position_ids, float[batch_size, seq_len] x) => (float[batch_size, seq_len] y)
        <float[64] weights = {rows}> {{ found = Gather(weights, position_ids) root = Sqrt(found) y = Mul(x, root) }}""")
    assert not tabulate(model, Places(tmp_path, tmp_path), SYMBOLS)


def entries() -> list[Specialization]:
    shapes = ((1, 8), (4, 1))
    symbols = [{"batch_size": rows, "seq_len": tokens, "ctx_len": CONTEXT} for rows, tokens in shapes]
    return [Specialization(f"e{index}", each) for index, each in enumerate(symbols)]


@pytest.mark.parametrize("can_link", [True, False])
def test_weights_are_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_link: bool) -> None:
    """Where that can be; small ones stand in the copy itself, which anything can read then."""
    model = graph(f"{ANGLES} c = Cos(angles)  d = Mul(x, c)  e = MatMul(d, weight)  y = Add(e, bias)")
    weight = np.arange(3 * 900, dtype=np.float32).reshape(3, 900)
    for name, values in (("weight", weight), ("bias", weight[0])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=16)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    if not can_link:
        monkeypatch.setattr(os, "link", _refuse)
    before = (tmp_path / "m.onnx").read_bytes()
    copy = for_half(tmp_path / "m.onnx", scratch, entries())
    assert copy == scratch / "m.onnx" and (tmp_path / "m.onnx").read_bytes() == before
    assert (scratch / "m.data").samefile(tmp_path / "m.data") == can_link
    made = onnx.load(copy, load_external_data=False)
    assert tables(made) == {"position_table.0": [CONTEXT, 3]}
    external = {t.name for t in made.graph.initializer if external_data_helper.uses_external_data(t)}
    assert external == {"weight", "position_table.0"}
    session = onnxruntime.InferenceSession(copy, providers=["CPUExecutionProvider"])
    feeds = {"position_ids": np.array([[2500]]), "x": np.ones((1, 1, 3), np.float32), "past": np.ones((1, 1), "f")}
    expected = np.cos(np.float32(2500) * np.array([1.0, 0.1, 0.01], np.float32)) @ weight + weight[0]
    np.testing.assert_allclose(session.run(None, feeds)[0][0, 0], expected, rtol=1e-4)


def _refuse(*_: Any) -> None:
    raise OSError("another file system")


def test_a_size_that_differs_is_not_known() -> None:
    assert prepared._shared(entries()) == SYMBOLS


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    return load_exported(Path(QEFFAutoModelForCausalLM(tiny_model("llama")).export()).parent)


def late_logits(device: Device, program: ExportedProgram, folder: Path) -> np.ndarray:
    """Logits of tokens at the positions 3,071 to 3,075."""
    folder.mkdir()
    spec = CompileSpec(prefill_seq_len=1024, ctx_len=4096)
    report = device.compile(program, spec, folder)
    compiled = CompiledProgram(folder, device.name, spec, program, "made here", report)
    tokens = np.random.default_rng(0).integers(3, 250, 3076).tolist()
    found = []
    with device.load(compiled) as session:
        for start, end in ((0, 1024), (1024, 2048), (2048, 3072), *((p, p + 1) for p in range(3072, 3076))):
            found.append(session.run(Batch((Row(0, tokens[start:end], start),)))[-1])
    return np.stack(found[2:])


@pytest.mark.slow
def test_long_texts_in_float16(
    new_sdk: str, program: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As near to float32 as float16 is elsewhere; without tables far from it."""
    right = late_logits(ReferenceDevice(), program, tmp_path / "reference")
    spread = np.ptp(right, axis=1)
    with_tables = np.abs(late_logits(CloudAI100(), program, tmp_path / "with") - right).max(axis=1) / spread
    monkeypatch.setattr(prepared, "tabulate", lambda *_: False)
    without = np.abs(late_logits(CloudAI100(), program, tmp_path / "without") - right).max(axis=1) / spread
    assert with_tables.max() < 0.01 and without.min() > 0.05
