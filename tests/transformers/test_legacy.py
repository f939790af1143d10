"""The functional interface, from a model to a compiled program."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from small_models import small_llama

import QEfficient
from QEfficient.errors import OptionError
from QEfficient.program import load_compiled


def test_transform_changes_the_model_itself() -> None:
    model = small_llama().train()
    model.config._attn_implementation = "sdpa"
    ids = torch.tensor([[5, 9, 33]])
    wanted = small_llama()(ids).logits
    assert QEfficient.transform(model) is model
    assert not model.training and model.config._attn_implementation != "sdpa"
    torch.testing.assert_close(model(ids).logits, wanted)


@pytest.mark.parametrize("model", ["a name", torch.nn.Linear(2, 2)])
def test_transform_takes_models_only(model: object) -> None:
    with pytest.raises(TypeError, match="transform takes a transformers model"):
        QEfficient.transform(model)


def test_there_is_one_form_factor() -> None:
    with pytest.raises(OptionError, match="form_factor 'edge'"):
        QEfficient.transform(small_llama(), form_factor="edge")


def test_from_a_model_to_a_compiled_program(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, path = QEfficient.export("any name", model_kv=QEfficient.transform(small_llama()))
    assert Path(path).parent == Path(folder) and Path(path).is_file()
    with caplog.at_level(logging.INFO, "QEfficient.devices"):
        compiled = QEfficient.compile(path, tmp_path, 16, device_group=[0, 1], prompt_len=8, ctx_len=64, mxfp6=True)
    assert Path(compiled).parent == tmp_path
    spec = load_compiled(Path(compiled)).spec
    assert (spec.prefill_seq_len, spec.ctx_len, spec.batch_size) == (8, 64, 1)
    assert "no use for num_cores, num_devices, mxfp6_matmul:" in caplog.text


def test_export_of_a_folder_for_continuous_batching(tmp_path: Path) -> None:
    small_llama().save_pretrained(tmp_path / "model")
    options = {"local_model_dir": str(tmp_path / "model"), "onnx_dir_path": str(tmp_path / "onnx")}
    folder, path = QEfficient.qualcomm_efficient_converter("any name", full_batch_size=4, **options)
    assert Path(folder).name.startswith("onnx-")
    with pytest.raises(TypeError, match="full_batch_size is needed"):
        QEfficient.compile(path, tmp_path, 16)


def test_a_program_always_keeps_its_state() -> None:
    with pytest.raises(OptionError, match="kv=False"):
        QEfficient.export("any name", kv=False)


def test_a_model_that_was_loaded_without_continuous_batching(tmp_path: Path) -> None:
    """Said before the export: the compilation behind it could only fail."""
    model = QEfficient.QEFFAutoModelForCausalLM(small_llama())
    with pytest.raises(OptionError, match="full_batch_size 3 was asked for, but the model in model_kv"):
        QEfficient.export("any name", model_kv=model, onnx_dir_path=str(tmp_path / "onnx"), full_batch_size=3)
    with pytest.raises(OptionError, match="full_batch_size must be a positive whole number, not 0"):
        QEfficient.export("any name", model_kv=small_llama(), onnx_dir_path=str(tmp_path / "onnx"), full_batch_size=0)
    assert not list(tmp_path.iterdir())
