"""The CPU device from compile to logits, against Hugging Face."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import Exported

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices import Batch, Row, Session, get_device
from QEfficient.devices.cpu.native import library_path
from QEfficient.devices.cpu.options import OPTION_TYPES
from QEfficient.devices.cpu.packed import rounded_up
from QEfficient.errors import DeviceError, OptionError
from QEfficient.generation.engine import Engine
from QEfficient.generation.request import Request
from QEfficient.program import load_compiled
from QEfficient.specs import SamplingParams
from QEfficient.verification.tiny_models import tiny_model

PROMPT = [7, 150, 33, 2, 90, 211, 5, 64, 17, 120, 8]
PROMPTS = [PROMPT, PROMPT[:3], [250, 1], PROMPT + PROMPT + PROMPT + PROMPT]
FORMATS = [("f32", 1e-6), ("bf16", 0.02), ("f16", 0.02), ("int8", 0.03), ("int4", 0.4)]
"""Weight format, and the error of the logits as a part of their spread. Random weights are the worst case."""


with_native_library = pytest.mark.skipif(
    library_path() is None and not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="there is no compiler, so there is no library",
)


def all_logits(session: Session, ids: Sequence[int], chunk: int) -> np.ndarray:
    found = []
    for start in range(0, len(ids), chunk):
        part = ids[start : start + chunk]
        found.append(session.run(Batch((Row(0, part, start, len(part), (2, 0, 1)),))).copy())
    return np.concatenate(found)


def error(found: np.ndarray, wanted: torch.Tensor) -> float:
    """Root mean square, as a part of the spread."""
    return float(np.sqrt(np.square(found - wanted.numpy()).mean()) / wanted.std())


@pytest.mark.parametrize(("weight_format", "largest"), FORMATS)
def test_logits_in_every_weight_format(llama: Exported, weight_format: str, largest: float) -> None:
    with get_device("cpu").load(llama.compile(weight_format=weight_format)) as session:
        found = all_logits(session, PROMPT, 4)
    off = error(found, llama.logits(PROMPT))
    assert off < largest


def test_values_smaller_than_their_keys_in_8_bits(tmp_path: Path) -> None:
    """OpenVINO mixes them up."""
    model = Exported(tiny_model("mimo_v2_flash"), tmp_path)
    assert model.model.config.v_head_dim < model.model.config.head_dim
    with get_device("cpu").load(model.compile(weight_format="f32", kv_cache="u8")) as session:
        found = all_logits(session, PROMPT, 4)
    assert error(found, model.logits(PROMPT)) < 0.02


@pytest.mark.parametrize(("kv_cache", "largest"), [("f32", 1e-6), ("f16", 1e-3), ("u8", 0.02)])
def test_logits_with_every_cache_format(llama: Exported, kv_cache: str, largest: float) -> None:
    with get_device("cpu").load(llama.compile(weight_format="f32", kv_cache=kv_cache)) as session:
        found = all_logits(session, PROMPT * 4, 7)
    off = error(found, llama.logits(PROMPT * 4))
    assert off < largest


@with_native_library
@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"group_size": 32}], ids=str)
@pytest.mark.parametrize("weight_format", ["int8", "int4"])
def test_both_kernels_compute_the_same(llama: Exported, weight_format: str, options: dict[str, object]) -> None:
    found = []
    for kernel in ("native", "openvino"):
        compiled = llama.compile(weight_format=weight_format, linear_kernel=kernel, kv_cache="f32", **options)
        with get_device("cpu").load(compiled) as session:
            found.append(all_logits(session, PROMPT, 5))
    off = error(found[0], torch.from_numpy(found[1]))
    assert off < 0.04  # they round activations in different groups


def test_layers_fed_alike_are_one_node(llama: Exported) -> None:
    model = ir.load(llama.compile(weight_format="int4").folder / "model.onnx")
    compressed = [node for node in model.graph if node.op_type == "CompressedLinear"]
    names = {str(value.name) for node in compressed for value in node.inputs[1:] if value is not None}
    assert [len(node.outputs) for node in compressed] == [3, 1, 2, 1] * 2 + [1]
    assert len(names) == 2 * 15  # values and scales of each matrix


def test_a_matrix_in_two_formats(llama: Exported) -> None:
    compiled = llama.compile(weight_format="int4", head_format="int8", kv_cache="f32")
    with get_device("cpu").load(compiled) as session:
        assert error(all_logits(session, PROMPT, 4), llama.logits(PROMPT)) < 0.4


@pytest.mark.parametrize("weight_format", ["f32", "int4"])
def test_a_token_alone_as_in_company(llama: Exported, weight_format: str) -> None:
    with get_device("cpu").load(llama.compile(weight_format=weight_format, kv_cache="f32")) as session:
        rows = [Row(slot, PROMPT, 0, 1, (slot,)) for slot in (0, 1)]
        session.run(Batch(tuple(rows)))
        after = [Row(slot, [9], len(PROMPT), 1, (slot,)) for slot in (0, 1)]
        together = session.run(Batch(tuple(after))).copy()
        alone = session.run(Batch((after[1],)))
    np.testing.assert_allclose(alone[0], together[1], rtol=1e-4, atol=1e-4)


def test_few_numbers_of_tokens_meet_layers_of_openvino() -> None:
    counts = set()
    for count in range(1, 513):
        batch = rounded_up(Batch((Row(0, (1,) * count, 0, 1),)), spare=7)
        counts.add(sum(len(row.tokens) for row in batch.rows))
        assert batch.rows[0].tokens == (1,) * count and len(batch.rows) <= 2
        assert all(row.blocks == (7,) and not row.logits and len(row.tokens) <= 32 for row in batch.rows[1:])
    assert len(counts) < 32 and max(counts) == 512


@with_native_library
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("options", [{"weight_format": "int4"}, {"weight_format": "int8", "kv_cache": "f32"}], ids=str)
def test_the_same_bits_in_every_company(llama: Exported, options: dict[str, object], threads: int) -> None:
    compiled = llama.compile(**options, batch_invariant=True, num_threads=threads)
    ids, blocks = PROMPT * 6, (2, 0, 1)
    with get_device("cpu").load(compiled) as session:
        alone = all_logits(session, ids, 1)
        for size, others in ((7, 1), (len(ids), 0), (13, 2)):
            found = []
            for start in range(0, len(ids), size):
                own = Row(0, part := ids[start : start + size], start, len(part), blocks)
                company = [Row(n, ids[:size], 0, 1, (2 + n,)) for n in range(1, others + 1)]
                found.append(session.run(Batch((own, *company)))[: len(part)].copy())
            np.testing.assert_array_equal(np.concatenate(found), alone)


def test_tokens_of_a_batch_that_shares_and_gives_way(llama: Exported) -> None:
    compiled = llama.compile(weight_format="f32", batch_size=2, kv_cache_tokens=128, max_tokens=16)
    prompts = [*PROMPTS, PROMPTS[3] + [9], PROMPTS[0]]
    with get_device("cpu").load(compiled) as session:
        engine = Engine(session)
        outputs = engine.generate([Request(tuple(ids), SamplingParams(max_new_tokens=30)) for ids in prompts])
        counts = engine.statistics.cache
    assert [list(o.generated_ids) for o in outputs] == [llama.greedy(ids, 30) for ids in prompts]
    assert counts.hit_tokens > 0


def test_samples_of_a_prompt_copy_what_they_write(llama: Exported) -> None:
    params = SamplingParams(max_new_tokens=8, temperature=1.0, seed=3)
    alone = []
    for sample in range(3):
        with get_device("cpu").load(llama.compile(weight_format="f32")) as session:
            request = Request(tuple(PROMPTS[3]), params, sample=sample)
            alone.append(Engine(session).generate([request])[0].generated_ids)
    with get_device("cpu").load(llama.compile(weight_format="f32")) as session:
        first = Request(tuple(PROMPTS[3]), params)
        others = [Request(tuple(PROMPTS[3]), params, sample=n, like=first) for n in (1, 2)]
        together = [output.generated_ids for output in Engine(session).generate([first, *others])]
    assert together == alone and len(set(alone)) == 3


def test_log_probabilities_of_a_prompt(llama: Exported) -> None:
    with get_device("cpu").load(llama.compile(weight_format="f32", max_tokens=4)) as session:
        params = SamplingParams(max_new_tokens=1, prompt_logprobs=2)
        output = Engine(session).generate([Request(tuple(PROMPT), params)])[0]
    wanted = llama.logits(PROMPT).log_softmax(-1)
    found = [record.logprob for record in output.prompt_logprobs if record is not None]
    assert output.prompt_logprobs[0] is None
    np.testing.assert_allclose(found, [float(wanted[n, t]) for n, t in enumerate(PROMPT[1:])], atol=1e-4)


def test_calibration_brings_int4_nearer(llama: Exported, tmp_path: Path) -> None:
    errors = []
    for calibration in ("", "self"):
        compiled = llama.compile(weight_format="int4", linear_kernel="auto", kv_cache="f32", calibration=calibration)
        with get_device("cpu").load(compiled) as session:
            found = all_logits(session, [1, *PROMPT * 4], 50)
        wanted = llama.logits([1, *PROMPT * 4]).numpy()
        errors.append(float(np.square(found - wanted).mean()))
    assert errors[1] < errors[0]


def test_the_folder_is_all_that_is_needed(llama: Exported, tmp_path: Path) -> None:
    compiled = llama.compile(weight_format="int8")
    with get_device("cpu").load(compiled) as session:
        wanted = all_logits(session, PROMPT, 11)
    moved = tmp_path / "elsewhere"
    shutil.copytree(compiled.folder, moved)
    with get_device("cpu").load(load_compiled(moved)) as session:
        np.testing.assert_array_equal(all_logits(session, PROMPT, 11), wanted)
    names = {path.name for path in moved.iterdir()}
    assert {"model.onnx", "weights.bin", "manifest.json"} <= names
    assert not [name for name in names if name.startswith("tmp")]


def test_a_layer_with_recurrent_state_lies_beside_one_in_blocks(hybrid: Exported) -> None:
    compiled = hybrid.compile(weight_format="f32", batch_size=2)
    assert sorted(way.split(":")[0] for way in compiled.report["layers"].values()) == ["blocks", "slots"]
    prompts = [[3, 9, 4, 11, 6, 2, 5], [8, 8, 1], [5, 4, 3, 2]]
    with get_device("cpu").load(compiled) as session:
        assert session.limits.paging is not None and not session.limits.paging.shareable
        requests = [Request(tuple(ids), SamplingParams(max_new_tokens=12)) for ids in prompts]
        outputs = Engine(session).generate(requests)
    assert [list(o.generated_ids) for o in outputs] == [hybrid.greedy(ids, 12) for ids in prompts]


def test_a_layer_of_two_kinds_says_both(tmp_path: Path) -> None:
    compiled = Exported(tiny_model("falcon_h1"), tmp_path).compile(weight_format="f32", batch_size=2)
    assert set(compiled.report["layers"].values()) == {"blocks and slots: its state is recurrent"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weight_format": "int5"}, "'int5' is not one of .* Did you mean"),
        ({"weight_format": 8}, "must be str"),
        ({"wieght_format": "int4"}, "does not know the option 'wieght_format'"),
        ({"weight_format": "int4", "group_size": 48}, "group_size 48"),
        ({"weight_format": "bf16", "kv_cache": "f16"}, "does not go with"),
        ({"weight_format": "f32", "kv_cache_tokens": -1}, "kv_cache_tokens"),
        ({"weight_format": "int4", "calibration": "no/such/file.txt"}, "neither 'self' nor a text file"),
        ({"weight_format": "bf16", "calibration": "self"}, "not for 'bf16'"),
        ({"calibration": "self"}, "not for 'f32'"),
        ({"weight_format": "int8", "batch_invariant": True, "kv_cache": "u8"}, "does not go with kv_cache 'u8'"),
        ({"weight_format": "int8", "batch_invariant": True, "linear_kernel": "openvino"}, "linear_kernel 'openvino'"),
        ({"weight_format": "bf16", "batch_invariant": True}, "not for 'bf16'"),
    ],
)
def test_options_are_refused(llama: Exported, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        llama.compile(**options)


def test_options_are_refused_before_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = QEFFAutoModelForCausalLM(tiny_model("llama"))
    monkeypatch.setattr(model, "export", lambda **_: pytest.fail("exported"))
    for options in ({"weight_format": "int5"}, {"calibration": str(tmp_path / "none.txt"), "weight_format": "int4"}):
        with pytest.raises(OptionError):
            model.compile(device="cpu", **options)


def test_another_text_is_another_calibration(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    device, given = get_device("cpu"), {"weight_format": "int4", "calibration": str(text)}
    text.write_text("one", encoding="utf-8")
    first = device.ingredients(given)
    text.write_text("two", encoding="utf-8")
    assert device.ingredients(given) != first


def test_a_closed_session_says_so(llama: Exported) -> None:
    session = get_device("cpu").load(llama.compile(weight_format="f32"))
    session.close()
    session.close()
    with pytest.raises(DeviceError, match="closed"):
        session.run(Batch((Row(0, [1], 0, 1, (0,)),)))


def test_the_document_knows_every_option() -> None:
    document = (Path(__file__).parents[3] / "docs" / "cpu.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", document, re.M) == list(OPTION_TYPES)
