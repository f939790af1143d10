"""Programs in MXFP6 are held against the same rounded weights, which are those that the simulated card rounds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser
from transformers import AutoModelForCausalLM

from qaic_simulator.container import CONSTANTS, read_container
from qaic_simulator.microscaling import round_mxfp6
from qaic_simulator.runtime import execution
from qaic_simulator.runtime.constants import take_constants
from qaic_simulator.runtime.functions import flatten
from qaic_simulator.runtime.matrices import round_matrices
from qaic_simulator.runtime.settings import MODEL
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices import get_device
from QEfficient.devices.cloud_ai_100 import CloudAI100, stored_program
from QEfficient.devices.cloud_ai_100.numerics.matrices import Products
from QEfficient.errors import DeviceError
from QEfficient.program import (
    CompiledProgram,
    ExportedProgram,
    Graph,
    GraphSpec,
    ModelFacts,
    TensorSpec,
    load_compiled,
)
from QEfficient.specs import CompileSpec
from QEfficient.transformers.loading import open_source
from QEfficient.verification.comparison import compare
from QEfficient.verification.eager import expect
from QEfficient.verification.forced import forced_logits
from QEfficient.verification.ladder import EXPORTED, MODULE, verify
from QEfficient.verification.narrow_reference import SAME_WEIGHTS, Original, narrow_reference, reference_in
from QEfficient.verification.report import HUGGING_FACE
from QEfficient.verification.tiny_models import prompts, tiny_model
from QEfficient.verification.truth import STORED, Truth, hugging_face, stored_weights

PROGRAM = "program on cloud_ai_100"
MXFP6 = {"mxfp6_matmul": True}
SHAPE = {"batch_size": 3, "ctx_len": 48, "prefill_seq_len": 6}


def compiled(model_type: str, folder: Path, subfunctions: bool = False) -> CompiledProgram:
    wrapped = QEFFAutoModelForCausalLM(tiny_model(model_type))
    wrapped.export(use_onnx_subfunctions=subfunctions)
    made = wrapped.compile(device="cloud_ai_100", compile_dir=folder / "compiled", num_cores=2, **SHAPE, **MXFP6)
    return load_compiled(made)


def for_card(model_type: str, folder: Path, **options: Any) -> CompiledProgram:
    """As if it was compiled: what is stored follows from the exported program and what was asked for."""
    wrapped = QEFFAutoModelForCausalLM(tiny_model(model_type))
    found = load_compiled(wrapped.compile(device="reference", compile_dir=folder / "compiled", **SHAPE))
    return replace(found, spec=replace(found.spec, device_options=options), device="cloud_ai_100")


def stored(program: CompiledProgram, folder: Path) -> ExportedProgram:
    folder.mkdir()
    found = CloudAI100().stored_program(program, folder)
    assert found is not None and found.folder == folder
    return found


def constants_of(program: ExportedProgram) -> dict[str, np.ndarray]:
    values = ir.load(program.onnx_path()).graph.initializers
    return {name: value.const_value.numpy() for name, value in values.items() if value.const_value is not None}


def digests(matrices: Iterator[np.ndarray]) -> set[tuple[tuple[int, ...], str]]:
    return {(m.shape, hashlib.sha256(np.ascontiguousarray(m).tobytes()).hexdigest()) for m in matrices}


def of_simulator(program: CompiledProgram) -> dict[str, np.ndarray]:
    """The matrices that the simulated card rounds when it opens a program, rounded."""
    images = read_container((program.folder / "qpc" / "programqpc.bin").read_bytes())
    model, _ = flatten(onnx.ModelProto.FromString(images[MODEL]), [])
    constants = take_constants(model, images[CONSTANTS])
    before = set(constants)
    round_matrices(model.graph, constants)
    return {name: value for name, value in constants.items() if name not in before}


# Which, and as what


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "llama as functions"])
def test_the_matrices_are_those_of_the_simulated_card(new_sdk: str, tmp_path: Path, model_type: str) -> None:
    name, _, as_functions = model_type.partition(" ")
    program = compiled(name, tmp_path, bool(as_functions))
    wanted = of_simulator(program)
    found = {n: value for n, value in constants_of(stored(program, tmp_path / "stored")).items() if "~mxfp6" in n}
    assert len(found) >= 9 and digests(iter(found.values())) == digests(iter(wanted.values()))


BODIES = {
    "plain": "y = MatMul(x, w)",
    "left": "t = Transpose<perm = [1, 0]>(x) z = MatMul(w, t) y = Transpose<perm = [1, 0]>(z)",
    "turned": "t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)",
    "turned twice": "t = Transpose(w) i = Identity(t) s = Transpose<perm = [1, 0]>(i) y = MatMul(x, s)",
    "Gemm": "y = Gemm(x, w, b)",
    "Gemm, turned": "y = Gemm<transB = 1>(x, w, b)",
    "bank": "m = Gather<axis = 0>(bank, i) y = MatMul(x, m)",
    "turned bank": "m = Gather(bank, i) t = Transpose<perm = [0, 2, 1]>(m) y = MatMul(x, t)",
    "chosen along another axis": "m = Gather<axis = 1>(bank, i) y = MatMul(x, m)",
    "rows of a table": "e = Gather(w, i) y = MatMul(x, e)",
    "a bias": "y = Add(x, w)",
    "a vector": "y = MatMul(x, b)",
    "computed": "a = Abs(w) y = MatMul(x, a)",
    "branches": "y = If (c) <then_branch = t () => (float[N, 48] p) { p = MatMul(x, w) },"
    " else_branch = e () => (float[N, 48] q) { v = Transpose<perm = [1, 0]>(w) q = MatMul(x, v) }>",
    "loop": "z, y = Scan <num_scan_inputs = 1, body = step (float[48] h, float[48] r) => (float[48] k, float[48] o)"
    " { g = Gather(bank, n) u = MatMul(r, g) o = MatMul(u, w) k = Identity(h) }>(b, x)",
}
FEW = {"chosen along another axis", "rows of a table", "a bias", "a vector", "computed"}
WITH_W = {"w": (48, 48), "b": (48,), "bank": (4, 48, 48)}


def parsed(body: str) -> onnx.ModelProto:
    inputs = "float[N, 48] x, int64[2] i, int64 n, bool c"
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]>\ng ({inputs}) => (float[N, 48] y) {{ {body} }}'
    )
    chance = np.random.default_rng(0)
    for name, shape in WITH_W.items():
        values = chance.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


@pytest.mark.parametrize("name", BODIES)
def test_what_counts_as_a_matrix_is_what_does_for_the_simulator(name: str) -> None:
    model = parsed(BODIES[name])
    theirs = onnx.ModelProto.FromString(model.SerializeToString())
    constants = take_constants(theirs, b"")
    round_matrices(theirs.graph, constants)
    wanted = {tuple(n.split(".mxfp6.")) for n in constants if ".mxfp6." in n}
    products = Products(model.graph)
    for node in model.graph.node:
        products.rewritten(node)
    assert {(m.tensor.name, str(m.axis)) for m in products.taken.values()} == wanted
    assert bool(wanted) is (name not in FEW)


POSITIONAL = """<ir_version: 8, opset_import: ["" : 18]>
g (int64[batch_size, seq_len] input_ids, int64[batch_size, seq_len] position_ids)
=> (float[batch_size, seq_len, 8] logits) <int64[1] last = {-1}> {
    numbers = Cast<to = 1>(position_ids)
    columns = Unsqueeze(numbers, last)
    angles = MatMul(columns, frequencies)
    cosines = Cos(angles)
    embedded = Gather(table, input_ids)
    turned = Mul(embedded, cosines)
    logits = MatMul(turned, weight)
}"""


def test_what_a_table_replaces_is_not_rounded(tmp_path: Path) -> None:
    """Frequencies may be a constant factor of a product too; the compiler is not given that."""
    model = parser.parse_model(POSITIONAL)
    for name, shape in {"frequencies": (1, 8), "table": (9, 8), "weight": (8, 8)}.items():
        values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, tmp_path / "g.onnx")
    products = Products(model.graph)
    for node in model.graph.node:
        products.rewritten(node)
    assert products.taken.keys() == {"frequencies~mxfp6-2", "weight~mxfp6-2"}

    size = ("batch_size", "seq_len")
    inputs = tuple(TensorSpec(name, "int64", size) for name in ("input_ids", "position_ids"))
    graph = Graph("g.onnx", GraphSpec(inputs, (TensorSpec("logits", "float32", (*size, 8)),)))
    facts = ModelFacts("g", "g", "g", "causal-lm", 9)
    program = ExportedProgram(tmp_path, {"lm": graph}, facts, "float32", "")
    spec = CompileSpec(1, 4, 16, device_options=MXFP6)
    found = constants_of(stored(CompiledProgram(tmp_path, "cloud_ai_100", spec, program, ""), tmp_path / "stored"))
    assert found.keys() == {"last", "frequencies", "table", "weight~mxfp6-2"}


def test_tensors_are_rounded_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are as a whole, whichever way they lie; what is not rounded is what was exported."""
    program = for_card("gpt2", tmp_path, **MXFP6)
    whole = constants_of(stored(program, tmp_path / "whole"))
    monkeypatch.setattr(stored_program, "SLICE", 100)
    parts = constants_of(stored(program, tmp_path / "parts"))
    assert whole.keys() == parts.keys()
    assert {name[-2:] for name in whole if "~mxfp6" in name} == {"-1", "-2"}
    exported = constants_of(program.program)
    for name, values in parts.items():
        source, _, axis = name.partition("~mxfp6")
        wanted = round_mxfp6(exported[source], int(axis)) if axis else exported[source]
        assert np.array_equal(values, wanted) and np.array_equal(whole[name], wanted), name


def test_without_mxfp6_there_is_no_other_program(tmp_path: Path) -> None:
    program = for_card("llama", tmp_path, mxint8_kv_cache=True)
    assert CloudAI100().stored_program(program, tmp_path) is None


def test_programs_that_nobody_can_judge_are_refused(tmp_path: Path) -> None:
    program = for_card("llama", tmp_path, **MXFP6)
    narrow = replace(program, program=replace(program.program, dtype="bfloat16"))
    with pytest.raises(DeviceError, match="exported in bfloat16, which the reference device does not run"):
        CloudAI100().stored_program(narrow, tmp_path)


# What it is for


def test_the_reference_in_float16_has_the_same_weights(tmp_path: Path) -> None:
    """Those that were rounded from float32: from float16, some would come to the other side of a border."""
    model = tiny_model("llama")
    program, device = for_card("llama", tmp_path, **MXFP6), CloudAI100()
    expected = [expect(model, list(range(3, 10)), 6)]
    original = Original(open_source(model, AutoModelForCausalLM, {}), model)
    with (
        stored_weights(device, program, expected) as wide,
        narrow_reference(device, program.spec, original, expected, 1, program) as narrow,
    ):
        assert isinstance(narrow, Truth) and isinstance(wide, Truth)
        assert narrow.name == "program on reference in float16 with the same stored weights"
        (e,) = narrow.expected
        positions = list(range(len(e.prompt) - 1, len(e.fed)))
        errors = [compare(e.logits, truth.logits(e.fed, positions)) for truth in (wide, hugging_face(model, [], 0))]
    assert errors[0].relative_error < 0.01 < 0.05 < errors[1].relative_error


def test_the_report_says_what_each_stage_was_compared_with(new_sdk: str) -> None:
    options = {"num_cores": 2, **MXFP6}
    given = [list(range(3, 10))]
    report = verify(tiny_model("llama"), device="cloud_ai_100", prompts=given, new_tokens=6, options=options)
    report.raise_if_failed()
    against = {(r.stage, r.against, r.allowed is not None) for r in report.results}
    assert against == {
        (MODULE, HUGGING_FACE, True),
        (EXPORTED, HUGGING_FACE, True),
        (PROGRAM, STORED, True),
        (PROGRAM, HUGGING_FACE, False),
        (PROGRAM, reference_in("float16") + SAME_WEIGHTS, True),
    }
    errors = {r.against: r.comparison.relative_error for r in report.results if r.stage == PROGRAM}
    assert errors[STORED] < 0.02 and errors[HUGGING_FACE] > 0.05, "rounding weights is what costs"


def along_other_axes(matrix: str, constants: dict[str, np.ndarray]) -> None:
    for name in [name for name in constants if matrix in name and ".mxfp6." in name]:
        constants[name] = round_mxfp6(constants[name.partition(".mxfp6.")[0]], -2)


FAULTS: dict[str, Callable[[dict[str, np.ndarray]], None]] = {
    "one matrix is rounded along the wrong axis": lambda found: along_other_axes("layers.0.self_attn.q_proj", found),
    "all are": lambda found: along_other_axes("", found),
    "the weights of the checkpoint": lambda found: found.update(
        {name: found[name.partition(".mxfp6.")[0]] for name in found if ".mxfp6." in name}
    ),
}


def test_faults_of_the_weights_on_the_card_are_found(
    new_sdk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, device = compiled("llama", tmp_path), get_device("cloud_ai_100")
    spoil = list[Callable[[dict[str, np.ndarray]], None]]()

    def spoilt(graph: onnx.GraphProto, constants: dict[str, np.ndarray]) -> list[str]:
        made = round_matrices(graph, constants)
        for change in spoil:
            change(constants)
        return made

    monkeypatch.setattr(execution, "round_matrices", spoilt)
    expected = [expect(tiny_model("llama"), prompt, 12) for prompt in prompts(tiny_model("llama"))]
    with stored_weights(device, program, expected) as truth:
        assert truth is not None
        truth = truth.allowing(device.accuracy(program))

        def passed() -> bool:
            with device.load(program) as session:
                found = forced_logits(session, truth.expected)
            return all(truth.compare(e.logits, own).passed for e, own in zip(truth.expected, found, strict=True))

        assert passed()
        for name, fault in FAULTS.items():
            spoil[:] = [fault]
            assert not passed(), name
        spoil.clear()
        monkeypatch.setenv("QAIC_SIM_ROUNDING", "nearest")
        assert passed(), "no weight is a tie"
        monkeypatch.setenv("QAIC_SIM_ROUNDING", "floor")
        assert not passed(), "what cuts off has other weights"
