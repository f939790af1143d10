"""The reference device on a graph made by hand: the next token is the sum of all tokens so far.

The graph follows the contract: writes at -1 are dropped, slots beyond a row's last position are not read.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from QEfficient.devices import Batch, Row
from QEfficient.devices.reference import ReferenceDevice
from QEfficient.errors import ArtifactError, DeviceError, OptionError
from QEfficient.generation.engine import Engine
from QEfficient.generation.request import Request
from QEfficient.program import CompiledProgram, ExportedProgram, Graph, GraphSpec, ModelFacts, StateSpec, TensorSpec
from QEfficient.specs import CompileSpec, SamplingParams

VOCAB = 50
STATIC = CompileSpec(batch_size=2, prefill_seq_len=4, ctx_len=12)
CONTINUOUS = CompileSpec(full_batch_size=3, prefill_seq_len=4, ctx_len=12)
ORT_NAMES = {"float32": "float", "float16": "float16"}

TEMPLATE = """<ir_version: 10, opset_import: ["" : 18]>
sum_of_tokens (int64[batch_size,seq_len] input_ids, int64[batch_size,seq_len] position_ids, {inputs}
               {type}[{slots},1,ctx_len,1] "past_key.0")
  => ({type}[batch_size,1,{vocab}] logits, {type}[{slots},1,ctx_len,1] "past_key.0_RetainedState")
<int64 zero = {{0}}, int64 one = {{1}}, int64[1] first = {{1}}, int64[1] second = {{2}}, int64[2] inner = {{1, 3}},
 int64[2] outer = {{1, 2}}, int64 vocabulary = {{{vocab}}}, float nothing = {{0.0}}>
{{
  {gather}
  state = Cast<to = 1>(typed)
  past = Squeeze(state, inner)
  shape = Shape<start = 1, end = 2>(past)
  context = Squeeze(shape)
  slot = Range(zero, context, one)
  position = Unsqueeze(position_ids, second)
  equal = Equal(position, slot)
  hit = Cast<to = 1>(equal)
  token = Unsqueeze(input_ids, second)
  number = Cast<to = 1>(token)
  spread = Mul(hit, number)
  values = ReduceSum<keepdims = 0>(spread, first)
  hits = ReduceMax<keepdims = 0>(hit, first)
  written = Cast<to = 9>(hits)
  now = Where(written, values, past)
  wide = Unsqueeze(now, inner)
  next = CastLike(wide, typed)
  {scatter}
  last = ReduceMax<keepdims = 1>(position_ids, first)
  readable = LessOrEqual(slot, last)
  read = Where(readable, now, nothing)
  sum = ReduceSum(read, first)
  whole = Cast<to = 7>(sum)
  best = Mod(whole, vocabulary)
  ids = Range(zero, vocabulary, one)
  match = Equal(best, ids)
  line = CastLike(match, typed)
  logits = Unsqueeze(line, first)
}}"""
STATIC_PARTS = {
    "inputs": "",
    "slots": "batch_size",
    "gather": 'typed = Identity("past_key.0")',
    "scatter": '"past_key.0_RetainedState" = Identity(next)',
}
CONTINUOUS_PARTS = {
    "inputs": "int64[batch_size,1] batch_index,",
    "slots": "full_batch_size",
    "gather": 'index = Squeeze(batch_index, first) typed = Gather("past_key.0", index)',
    "scatter": '"past_key.0_RetainedState" = ScatterND("past_key.0", batch_index, next)',
}


def exported(folder: Path, continuous: bool = False, dtype: str = "float32") -> ExportedProgram:
    parts = CONTINUOUS_PARTS if continuous else STATIC_PARTS
    model = onnx.parser.parse_model(TEMPLATE.format(**parts, type=ORT_NAMES[dtype], vocab=VOCAB))
    onnx.checker.check_model(model)
    onnx.save(model, folder / "sum.onnx")
    tokens = tuple(TensorSpec(name, "int64", ("batch_size", "seq_len")) for name in ("input_ids", "position_ids"))
    index = (TensorSpec("batch_index", "int64", ("batch_size", 1)),) if continuous else ()
    logits = TensorSpec("logits", dtype, ("batch_size", 1, VOCAB))
    state = StateSpec(TensorSpec("past_key.0", dtype, (parts["slots"], 1, "ctx_len", 1)), "key", 0)
    graph = Graph("sum.onnx", GraphSpec(tokens + index, (logits,), (state,)))
    facts = ModelFacts("sum", "Sum", "sum", "causal-lm", VOCAB)
    return ExportedProgram(folder, {"lm": graph}, facts, dtype, "0" * 16)


def compiled(folder: Path, spec: CompileSpec, dtype: str = "float32") -> CompiledProgram:
    program = exported(folder, spec.continuous_batching, dtype)
    target = folder / "compiled"
    target.mkdir()
    report = ReferenceDevice().compile(program, spec, target)
    return CompiledProgram(target, "reference", spec, program, "0" * 16, report)


def expected(prompt: list[int], count: int) -> list[int]:
    history = list(prompt)
    for _ in range(count):
        history.append(sum(history) % VOCAB)
    return history[len(prompt) :]


@pytest.mark.parametrize("poison", [False, True], ids=["garbage", "nan"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("spec", [STATIC, CONTINUOUS], ids=["static", "continuous"])
def test_engine_on_the_reference(tmp_path: Path, spec: CompileSpec, dtype: str, poison: bool) -> None:
    prompts = [[3], [1, 2, 3, 4], [1, 2, 3, 4, 5], [9, 8, 7, 6, 5, 4, 3, 2, 1], [2, 2]]
    with ReferenceDevice(poison).load(compiled(tmp_path, spec, dtype)) as session:
        outputs = Engine(session).generate([Request(tuple(p), SamplingParams(max_new_tokens=3)) for p in prompts])
    assert [list(output.generated_ids) for output in outputs] == [expected(p, 3) for p in prompts]


def test_run_returns_float32(tmp_path: Path) -> None:
    session = ReferenceDevice().load(compiled(tmp_path, STATIC, "float16"))
    logits = session.run(Batch((Row(1, [3, 4], 0),)))
    assert logits.dtype == np.float32 and logits.shape == (1, VOCAB) and logits.argmax() == 7


def test_closed_session_says_so(tmp_path: Path) -> None:
    session = ReferenceDevice().load(compiled(tmp_path, STATIC))
    session.close()
    session.close()
    with pytest.raises(DeviceError, match="closed"):
        session.run(Batch((Row(0, [1], 0),)))


def test_compile_writes_specializations(tmp_path: Path) -> None:
    program = compiled(tmp_path, CONTINUOUS)
    entries = json.loads((program.folder / "specializations.json").read_text())["specializations"]
    assert [entry["name"] for entry in entries] == ["Prefill", "Decode"]
    assert entries[1]["symbols"] == {"batch_size": "3", "seq_len": "1", "ctx_len": "12", "full_batch_size": "3"}


def test_bfloat16_is_refused(tmp_path: Path) -> None:
    program = dataclasses.replace(exported(tmp_path), dtype="bfloat16")
    with pytest.raises(DeviceError, match="bfloat16.*float32"):
        ReferenceDevice().compile(program, STATIC, tmp_path)


@pytest.mark.parametrize("options", [{"num_thread": 1}, {"num_threads": True}])
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    spec = dataclasses.replace(STATIC, device_options=options)
    with pytest.raises(OptionError, match="num_threads"):
        ReferenceDevice().compile(exported(tmp_path), spec, tmp_path)


def test_geometry_must_suit_the_graph(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="continuous batching"):
        ReferenceDevice().compile(exported(tmp_path), CONTINUOUS, tmp_path)


def with_spec(program: CompiledProgram, **changes: Any) -> CompiledProgram:
    graph = program.program.graphs["lm"]
    changed = dataclasses.replace(graph, spec=dataclasses.replace(graph.spec, **changes))
    return dataclasses.replace(program, program=dataclasses.replace(program.program, graphs={"lm": changed}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": ()}, r"'past_key.0' is .* in the file, absent in the manifest"),
        ({"outputs": (TensorSpec("logits", "float16", ("batch_size", 1, VOCAB)),)}, "output 'logits'.*float16"),
        ({"outputs": (TensorSpec("logits", "float32", ("batch_size", 1, VOCAB + 1)),)}, "output 'logits'.*51"),
        (
            {"outputs": (TensorSpec("scores", "float32", ("batch_size", 1, VOCAB)),)},
            "output 'logits'.*absent in the manifest",
        ),
        ({"inputs": (TensorSpec("input_ids", "int64", ("batch_size", "seq_len")),)}, "input 'position_ids'"),
    ],
)
def test_broken_contract_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    program = with_spec(compiled(tmp_path, STATIC), **changes)
    with pytest.raises(ArtifactError, match=message):
        ReferenceDevice().load(program)


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    program = compiled(tmp_path, STATIC)
    program.program.onnx_path().write_bytes(b"no graph")
    with pytest.raises(DeviceError, match="cannot open .*sum.onnx"):
        ReferenceDevice().load(program)
