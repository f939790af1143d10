"""The weights of an artifact in the exported graph: those that were stored, and the reference device runs them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import Exported

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices import Batch, Row, get_device
from QEfficient.devices.cpu.quantization import Grid, restore, round_rows
from QEfficient.devices.reference import ReferenceDevice
from QEfficient.errors import ArtifactError
from QEfficient.program import CompiledProgram, ExportedProgram, load_compiled
from QEfficient.verification.tiny_models import tiny_model

IDS = [7, 150, 33, 2, 90, 211, 5, 64]
OPTIONS: list[dict[str, Any]] = [
    {"weight_format": "int8"},
    {"weight_format": "int4", "head_format": "int8", "group_size": 32},
    {"weight_format": "int4", "symmetric": False, "group_size": 64, "head_format": "bf16"},
    {"weight_format": "int4", "calibration": "self"},
    {"weight_format": "bf16"},
    {"weight_format": "f16", "head_format": "f32"},
]


def restored(compiled: CompiledProgram, folder: Path) -> ExportedProgram:
    program = get_device("cpu").stored_program(compiled, folder)
    assert program is not None
    return program


def logits(device: Any, compiled: CompiledProgram) -> np.ndarray:
    """After each token of IDS."""
    rows = [Row(0, (token,), position, blocks=(0,)) for position, token in enumerate(IDS)]
    with device.load(compiled) as session:
        return np.concatenate([session.run(Batch((row,))).copy() for row in rows])


def worst(found: np.ndarray, wanted: np.ndarray) -> float:
    spread = wanted.max(1) - wanted.min(1)
    return float((np.abs(found - wanted).max(1) / spread).max())


def matrices(program: ExportedProgram) -> dict[str, np.ndarray]:
    initializers = ir.load(program.onnx_path()).graph.initializers
    return {name: value.const_value.numpy() for name, value in initializers.items() if value.const_value is not None}


def in_format(weight: np.ndarray, wanted: str, options: dict[str, Any]) -> np.ndarray:
    if wanted in ("int4", "int8"):
        grid = Grid(int(wanted[3:]), options.get("group_size", 128), options.get("symmetric", True))
        return restore(round_rows(weight, grid), grid)
    dtypes = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    return torch.from_numpy(weight).to(dtypes[wanted]).float().numpy()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_matrices_are_those_that_were_rounded(llama: Exported, tmp_path: Path, options: dict[str, Any]) -> None:
    compiled = llama.compile(**options)
    found = [array for array in matrices(restored(compiled, tmp_path)).values() if array.ndim == 2]
    parameters, wanted = dict(llama.model.named_parameters()), options["weight_format"]
    tied = parameters["model.embed_tokens.weight"].detach().numpy()
    down = parameters["model.layers.1.mlp.down_proj.weight"].detach().numpy()
    pairs = ((tied, options.get("head_format", wanted)), (down, wanted))
    there = [any(np.array_equal(array, in_format(*pair, options)) for array in found) for pair in pairs]
    assert there == ([False, False] if "calibration" in options else [True, True])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_reference_device_computes_what_the_device_does(
    llama: Exported, tmp_path: Path, options: dict[str, Any]
) -> None:
    device, compiled = get_device("cpu"), llama.compile(kv_cache="auto", **options)
    program = restored(compiled, tmp_path)
    assert program.dtype == "float32"
    expected = logits(ReferenceDevice(), replace(compiled, program=program))
    found, exported = logits(device, compiled), logits(ReferenceDevice(), compiled)
    assert worst(found, expected) < device.accuracy(compiled).largest
    if options["weight_format"] == "int4":
        assert worst(expected, exported) > 2 * worst(found, expected)  # rounding weights is what costs


def test_exact_programs_need_no_other(llama: Exported, tmp_path: Path) -> None:
    device, compiled = get_device("cpu"), llama.compile(weight_format="f32")
    assert device.stored_program(compiled, tmp_path) is None
    assert ReferenceDevice().stored_program(compiled, tmp_path) is None
    assert device.accuracy(compiled).largest == ReferenceDevice().accuracy(compiled).largest


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("weight_format", ["f32", "int4"])
def test_half_precision_programs(tmp_path: Path, dtype: str, weight_format: str) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    wrapped = QEFFAutoModelForCausalLM.from_pretrained(str(tmp_path / "model"), dtype=dtype)
    check_compiled(wrapped, tmp_path, weight_format=weight_format, kv_cache="f32")


def check_compiled(wrapped: Any, folder: Path, **options: Any) -> None:
    """The device computes what the reference device does with the stored weights."""
    compiled = load_compiled(wrapped.compile(device="cpu", compile_dir=folder / "compiled", ctx_len=32, **options))
    (folder / "stored").mkdir()
    expected = logits(ReferenceDevice(), replace(compiled, program=restored(compiled, folder / "stored")))
    device = get_device("cpu")
    errors = np.abs(logits(device, compiled) - expected).max(1) / np.ptp(expected, axis=1)
    assert np.median(errors) < device.accuracy(compiled).typical


@pytest.mark.parametrize("model_type", ["qwen3_next", "gpt2", "mixtral"])
def test_other_layers(tmp_path: Path, model_type: str) -> None:
    """Recurrent mixers, matrices with bias that lie the other way round, experts."""
    check_compiled(QEFFAutoModelForCausalLM(tiny_model(model_type)), tmp_path, weight_format="bf16")


def test_sub_functions(tmp_path: Path) -> None:
    wrapped = QEFFAutoModelForCausalLM(tiny_model("llama"))
    wrapped.export(tmp_path / "exported", use_onnx_subfunctions=True)
    check_compiled(wrapped, tmp_path, weight_format="int4", kv_cache="f32")


def test_an_artifact_of_other_layers_is_refused(llama: Exported, tmp_path: Path) -> None:
    compiled = llama.compile(weight_format="int4")
    with pytest.raises(ArtifactError, match="has 3 linear layers, the program 15"):
        restored(replace(compiled, report={**compiled.report, "linear_layers": 3}), tmp_path)
