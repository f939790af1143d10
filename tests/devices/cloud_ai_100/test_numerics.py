"""What the card's formats do to a model, and whether the proposed nodes help: the simulated card is the judge."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import planted_overflow as planted
import pytest
import yaml
from onnx import parser

from qaic_simulator import microscaling as simulated
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.artifacts import ArtifactStore
from QEfficient.devices import Batch, Row, get_device
from QEfficient.devices.cloud_ai_100.graph.prepared import for_half
from QEfficient.devices.cloud_ai_100.numerics import microscaling
from QEfficient.devices.cloud_ai_100.numerics.card_graph import Format
from QEfficient.devices.cloud_ai_100.numerics.flat import FlatGraph
from QEfficient.devices.cloud_ai_100.numerics.measures import Measure
from QEfficient.devices.cloud_ai_100.numerics.parts import find_parts
from QEfficient.devices.cloud_ai_100.numerics.precision_file import precision_text
from QEfficient.devices.cloud_ai_100.numerics.proposal import Advisor
from QEfficient.devices.cloud_ai_100.numerics.session import CardSession
from QEfficient.errors import OptionError
from QEfficient.program import ExportedProgram, load_compiled, load_exported
from QEfficient.specs import CompileSpec
from QEfficient.transformers.models.stages import compile_program
from QEfficient.verification.numerics import (
    FLOAT16,
    FLOAT32,
    WITH_FILE,
    Findings,
    compiled_perplexity,
    examine,
    perplexity_of,
    read_text,
)
from QEfficient.verification.tiny_models import tiny_model

SPEC = CompileSpec(1, 16, 64)
TOKENS = 128
NEAR = 0.01


def exported(model: Any, **options: Any) -> ExportedProgram:
    wrapped = model if isinstance(model, QEFFAutoModelForCausalLM) else QEFFAutoModelForCausalLM(model)
    return load_exported(Path(wrapped.export(**options)).parent)


def examined(program: ExportedProgram, spec: CompileSpec = SPEC) -> Findings:
    return examine(program, read_text(program, None, TOKENS), spec)


def flat_graph(program: ExportedProgram, folder: Path, spec: CompileSpec = SPEC) -> FlatGraph:
    entries = spec.specializations(program.graphs["lm"].spec.windows)
    return FlatGraph(for_half(program.onnx_path(), folder, entries), all_tokens=True)


def change(found: Findings, name: str) -> float:
    wanted = found.perplexities[FLOAT32]
    return abs(found.perplexities[name] - wanted) / wanted


def overflowing(found: Findings) -> set[str]:
    return {row.name for row in found.rows if row.overflows}


Plant = Callable[[Any], None]
IN_MLP: Plant = lambda model: planted.gated_product(model, 1)  # noqa: E731
IN_NORM: Plant = lambda model: planted.norm_before_mlp(model, 1)  # noqa: E731
STREAM: Plant = lambda model: planted.residual_stream(model, planted.LARGE)  # noqa: E731
SMALL: Plant = lambda model: planted.residual_stream(model, planted.SMALL)  # noqa: E731
LAYERS, ONE = {"layer 0", "layer 1"}, {"layer 1"}


@pytest.mark.parametrize(
    ("model_type", "plant", "where"),
    [
        pytest.param("llama", IN_MLP, ONE, id="llama-product"),
        pytest.param("llama", STREAM, LAYERS, id="llama-stream"),
        pytest.param("gpt2", IN_NORM, ONE, id="gpt2-norm"),
        pytest.param("gpt2", STREAM, LAYERS, id="gpt2-stream"),
        pytest.param("gemma2", IN_NORM, ONE, id="gemma2-norm"),
    ],
)
@pytest.mark.slow
def test_a_planted_overflow_is_found_and_the_file_cures_it(
    new_sdk: str, tmp_path: Path, model_type: str, plant: Plant, where: set[str]
) -> None:
    """On the compiled program too, which takes the file as `compile` does."""
    model = copy.deepcopy(tiny_model(model_type))
    plant(model)
    wrapped = QEFFAutoModelForCausalLM(model)
    program = exported(wrapped)
    found = examined(program)
    assert where <= overflowing(found) <= where | {"embedding", "head"}
    assert set(found.places.values()) & LAYERS == where
    without = found.perplexities[FLOAT16]
    assert math.isnan(without) or abs(without - model.config.vocab_size) < 1e-6  # no logit, or all of them the same
    assert found.helps and change(found, WITH_FILE) < NEAR

    file = tmp_path / "nodes.yaml"
    file.write_text(precision_text(found.proposal))
    compiled = load_compiled(
        wrapped.compile(
            device="cloud_ai_100",
            ctx_len=SPEC.ctx_len,
            prefill_seq_len=SPEC.prefill_seq_len,
            compile_dir=tmp_path / "compiled",
            node_precision_info=str(file),
        )
    )
    with get_device("cloud_ai_100").load(compiled) as session:
        on_card = perplexity_of(session, found.text)
    assert abs(on_card / found.perplexities[FLOAT32] - 1) < NEAR


@pytest.mark.parametrize(
    ("model_type", "plant", "layer"),
    [
        pytest.param("mamba2", planted.recurrent_norm, 1, id="mamba2"),
        pytest.param("falcon_h1", planted.recurrent_skip, 1, id="falcon_h1", marks=pytest.mark.slow),
    ],
)
def test_an_overflow_inside_a_recurrent_node_is_found_and_cured(
    new_sdk: str, tmp_path: Path, model_type: str, plant: Callable[[Any, int], None], layer: int
) -> None:
    """What the body makes is rounded and measured; the call as a whole is what a file can name."""
    model = copy.deepcopy(tiny_model(model_type))
    plant(model, layer)
    program = exported(model)
    found = examined(program)
    assert overflowing(found) == {f"layer {layer}"} and math.isnan(found.perplexities[FLOAT16])
    (node,) = found.proposal
    assert found.proposal[node].kind == "range" and node in {
        call.output[0]
        for call in onnx.load(program.onnx_path(), load_external_data=False).graph.node
        if call.op_type.startswith("Recurrent")
    }
    assert found.helps and change(found, WITH_FILE) < NEAR
    file = tmp_path / "nodes.yaml"
    file.write_text(precision_text(found.proposal))
    cured, _ = compiled_perplexity(program, found.text, SPEC, {"node_precision_info": str(file)})
    assert abs(cured / found.perplexities[FLOAT32] - 1) < NEAR


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"mxfp6_matmul": True}], ids=["half", "mxfp6"])
def test_logits_of_a_recurrent_model_are_those_of_the_simulated_card(
    new_sdk: str, tmp_path: Path, options: dict[str, bool]
) -> None:
    """Bit for bit, with one recurrent node in fp32 and one in float16."""
    program = exported(tiny_model("mamba2"))
    flat = flat_graph(program, tmp_path)
    assert_same_logits(program, flat, flat.owner(next(n for n in flat.nodes if n.op_type == "Scan")), tmp_path, options)


@pytest.mark.slow
def test_what_preparing_the_graph_changes_is_said() -> None:
    """Float32 is that of the program as exported."""
    model = copy.deepcopy(tiny_model("llama"))
    before = examined(exported(model)).perplexities[FLOAT32]
    SMALL(model)
    found = examined(exported(model))
    assert abs(found.perplexities[FLOAT32] / before - 1) < 0.001
    assert not found.helps and any("an epsilon is raised" in remark for remark in found.remarks)


@pytest.mark.slow
def test_what_no_file_changes_is_said() -> None:
    """A cache beyond float16; and weights, which stop the compiler. There is no file then that does not help."""
    model = copy.deepcopy(tiny_model("llama"))
    planted.values(model, 1)
    planted.gated_product(model, 0, 1e6)
    found = examined(exported(model))
    assert not found.helps and not found.proposal and WITH_FILE not in found.perplexities
    assert not any(row.kept for row in found.rows)
    said = "\n".join(found.remarks)
    assert "were tried in fp32, in vain" in said
    assert "past_value.1 reaches" in said and "past_value.0" not in said
    assert any("layers.0.mlp.up_proj.weight" in name and largest > 65504 for name, largest in found.beyond.items())


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_a_healthy_model_needs_nothing(model_type: str) -> None:
    found = examined(exported(tiny_model(model_type)))
    assert not found.proposal and found.helps and WITH_FILE not in found.perplexities
    assert [row.name for row in found.rows] == ["embedding", "layer 0", "layer 1", "head"]
    assert not overflowing(found) and not any(row.lost or row.kept for row in found.rows)
    for row in found.rows[1:]:
        assert 0 < row.errors[FLOAT16] < 0.02 < row.errors["MXFP6"] < 0.5
        assert (row.errors["MXINT8"] > 0) is (row.name != "embedding")


@pytest.mark.slow
def test_one_planted_layer_of_the_demo() -> None:
    """A trained model, whose perplexity means something."""
    from transformers import AutoModelForCausalLM

    from QEfficient.demo import demo_folder

    model = AutoModelForCausalLM.from_pretrained(demo_folder(), dtype="float32")
    planted.gated_product(model, 2, 1e5)
    program = exported(model)
    tokens = read_text(exported(QEFFAutoModelForCausalLM.from_pretrained("demo")), None, TOKENS)
    found = examine(program, tokens, SPEC)
    assert overflowing(found) == {"layer 2"} == set(found.places.values())
    assert math.isnan(found.perplexities[FLOAT16]) and 20 < found.perplexities[FLOAT32] < 60
    assert change(found, WITH_FILE) < 0.002


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"mxfp6_matmul": True, "mxint8_kv_cache": True}], ids=["half", "all"])
def test_logits_are_those_of_the_simulated_card(new_sdk: str, tmp_path: Path, options: dict[str, bool]) -> None:
    """Bit for bit, with a node in fp32 among the others."""
    program = exported(QEFFAutoModelForCausalLM.from_pretrained("demo"))
    flat = flat_graph(program, tmp_path)
    assert_same_logits(program, flat, next(flat.owner(n) for n in flat.nodes if n.op_type == "Pow"), tmp_path, options)


def assert_same_logits(
    program: ExportedProgram, flat: FlatGraph, pinned: str, tmp_path: Path, options: dict[str, bool]
) -> None:
    """Of four tokens, by the simulated card and by the session here, with one node in fp32."""
    file = tmp_path / "nodes.yaml"
    file.write_text(precision_text([pinned]))
    asked = Format(half=True, mxfp6=bool(options), mxint8="mxint8_kv_cache" in options, fp32=frozenset([pinned]))
    device = get_device("cloud_ai_100")
    spec = replace(SPEC, device_options={**options, "node_precision_info": str(file)})
    compiled = compile_program(program, spec, device, ArtifactStore(), tmp_path / "compiled")
    one_by_one = CompileSpec(1, 1, SPEC.ctx_len)
    with device.load(compiled) as card, CardSession(flat, program.graphs["lm"].spec, one_by_one, asked) as ours:
        for position, token in enumerate((5, 99, 7, 100)):
            batch = Batch((Row(0, (token,), position),))
            given, wanted = ours.run(batch), card.run(batch)
            assert np.isfinite(wanted).all() and np.array_equal(given, wanted)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("name", ["round_mxfp6", "round_mxint8"])
def test_block_formats_are_those_of_the_simulator(name: str, axis: int) -> None:
    chance = np.random.default_rng(0)
    values = (chance.standard_normal((70, 33)) * 2.0 ** chance.integers(-140, 60, (70, 33))).astype(np.float32)
    values[3] = 0
    values[4, 5], values[6, 7] = np.inf, np.nan
    values[8:40, 1] = np.linspace(-7.9, 7.9, 32)
    found, wanted = (getattr(module, name)(values, axis) for module in (microscaling, simulated))
    assert np.array_equal(found, wanted, equal_nan=True)
    numbers = ~np.isnan(wanted)
    assert np.array_equal(np.signbit(found[numbers]), np.signbit(wanted[numbers]))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["slots", "functions"])
def test_other_forms_of_the_program(new_sdk: str, shape: str) -> None:
    """The names are those of the graph that is compiled: of calls of layers, where layers are functions."""
    model = copy.deepcopy(tiny_model("llama"))
    planted.gated_product(model, 1)
    wrapped = QEFFAutoModelForCausalLM(model, continuous_batching=shape == "slots")
    program = exported(wrapped, use_onnx_subfunctions=shape == "functions")
    found = examined(program, replace(SPEC, full_batch_size=1 if shape == "slots" else None))
    assert found.helps and change(found, WITH_FILE) < NEAR
    outputs = {node.output[0] for node in onnx.load(program.onnx_path(), load_external_data=False).graph.node}
    assert set(found.proposal) <= outputs and (len(found.proposal) == 1) is (shape == "functions")


def test_only_float32_programs() -> None:
    program = exported(tiny_model("llama").half())
    with pytest.raises(OptionError, match="exported in float16(.|\n)*Leave dtype out"):
        examined(program)


# The rules, on small graphs


def graph_of(text: str, folder: Path) -> FlatGraph:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}')
    onnx.save(model, folder / "graph.onnx")
    return FlatGraph(folder / "graph.onnx", all_tokens=True)


def advised(flat: FlatGraph, largest: dict[str, float], lowest: dict[str, float] | None = None) -> Advisor:
    low = lowest or {}
    return Advisor(flat, {n: Measure(largest.get(n, 1.0), low.get(n, -1.0), 0.0, 0.0) for n in flat.computed})


CHAIN = """g (float[N] x) => (float[N] out) {
    a = Neg(x)
    b = Exp(a)
    c = Sqrt(b)
    d = Neg(c)
    out = Abs(d)
}"""


def test_what_does_not_fit_lies_between_nodes_in_fp32(tmp_path: Path) -> None:
    flat = graph_of(CHAIN, tmp_path)
    assert not advised(flat, {}).out_of_range()
    assert list(advised(flat, {"b": 1e5}).out_of_range()) == ["b", "c"]
    assert list(advised(flat, {"b": 1e10, "c": 1e5}).out_of_range()) == ["b", "c", "d"]
    assert list(advised(flat, {"b": 33_000.0}).out_of_range()) == ["b", "c"]  # another text may go further
    assert not advised(flat, {"b": 32_000.0}).out_of_range()


def test_low_scores_are_no_overflow(tmp_path: Path) -> None:
    """What a softmax reads may be as low as it likes, and is not to be high."""
    text = """g (float[N, M] x, float[N, M] mask) => (float[N, M] out) {
        scores = Neg(x)
        masked = Add(scores, mask)
        turned = Transpose<perm = [1, 0]>(masked)
        out = Softmax(turned)
    }"""
    flat = graph_of(text, tmp_path)
    low = dict.fromkeys(("scores", "masked", "turned"), -1e6)
    assert not advised(flat, {}, low).out_of_range()
    assert list(advised(flat, {"masked": 1e6}).out_of_range()) == ["masked", "turned"]


def test_squares_that_a_node_hides(tmp_path: Path) -> None:
    text = """g (float[N, 4] x, float[4] weight) => (float[N, 4] out) {
        a = Neg(x)
        out = LayerNormalization(a, weight)
    }"""
    flat = graph_of(text, tmp_path)
    assert not advised(flat, {"a": 100.0}).out_of_range()
    assert list(advised(flat, {"a": 300.0}).out_of_range()) == ["out"]
    assert advised(flat, {"a": 300.0}).squared() == {"a": 300.0}


def test_an_epsilon_that_is_lost(tmp_path: Path) -> None:
    text = """g (float[N] x) => (float[N] out) {
        mean = Abs(x)
        epsilon = Constant<value_float = 1e-9>()
        sum = Add(mean, epsilon)
        root = Sqrt(sum)
        out = Neg(root)
    }"""
    flat = graph_of(text, tmp_path)
    found = advised(flat, {}).too_small()
    assert list(found) == ["sum", "root"] and "epsilon loses 100%" in found["sum"].text


def test_parts_follow_the_stream(tmp_path: Path) -> None:
    """A norm is of the layer that it begins, though the weight comes last in it."""
    text = """g (int64[N] input_ids, float[9, 4] table) => (float[N, 4] out)
        <float[4] l0 = {1, 1, 1, 1}, float[4] l1 = {1, 1, 1, 1}, float[4] last = {1, 1, 1, 1}> {
        start = Gather(table, input_ids)
        norm0 = Abs(start)
        scaled0 = Mul(norm0, l0)
        stream0 = Add(start, scaled0)
        norm1 = Abs(stream0)
        scaled1 = Mul(norm1, l1)
        stream1 = Add(stream0, scaled1)
        norm = Abs(stream1)
        out = Mul(norm, last)
    }"""
    flat = graph_of(text, tmp_path)
    names = {"l0": "layers.0.weight", "l1": "layers.1.weight"}
    for tensor in flat.model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in flat.nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
    parts = find_parts(flat, {})
    of = {name: parts.name(number) for name, number in parts.of_node.items()}
    assert of == {
        "start": "embedding", "norm0": "layer 0", "scaled0": "layer 0", "stream0": "layer 0",
        "norm1": "layer 1", "scaled1": "layer 1", "stream1": "layer 1", "norm": "head", "out": "head",
    }  # fmt: skip
    assert [parts.last[number] for number in parts.numbers] == ["start", "stream0", "stream1", "out"]


def test_the_file_is_one_for_any_reader() -> None:
    names = ["val_1", "1e5", "a: b", "~", "ü"]
    assert yaml.safe_load(precision_text(names, ["of a model: #1"])) == {"FP32NodeInstanceNames": names}
