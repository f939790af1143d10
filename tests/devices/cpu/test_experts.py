"""Experts of mixtures: found in every form in which models write them, compressed, and computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Exported
from test_restoration import IDS, in_format, logits, matrices, restored

from QEfficient.devices import get_device
from QEfficient.devices.cpu import compilation
from QEfficient.devices.reference import ReferenceDevice
from QEfficient.errors import OptionError
from QEfficient.verification.tiny_models import tiny_model

FORMS = {  # model type → its products with experts
    "mixtral": 4,  # the matrix first, then a column of activations
    "gpt_oss": 4,  # rows of activations first, and the matrix lies [in, out]
    "dbrx": 6,  # a matrix of matrices, whose choices share their activations
    "llama4_text": 2,  # every expert for every token
}
ONLY_EXPERTS = {"weight_format": "f32", "kv_cache": "f32", "group_size": 32}


@pytest.fixture(scope="module", params=FORMS)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tiny_model(request.param), tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("expert_format", ["int4", "int8", "bf16", "f16"])
def test_computes_what_the_reference_device_does_with_the_stored_experts(
    mixture: Exported, tmp_path: Path, expert_format: str
) -> None:
    device, compiled = get_device("cpu"), mixture.compile(expert_format=expert_format, **ONLY_EXPERTS)
    assert compiled.report["expert_layers"] == FORMS[mixture.model.config.model_type]
    program = restored(compiled, tmp_path)
    expected = logits(ReferenceDevice(), replace(compiled, program=program))
    errors = np.abs(logits(device, compiled) - expected).max(1) / np.ptp(expected, axis=1)
    assert np.median(errors) < (1e-4 if expert_format in ("bf16", "f16") else 0.03)
    assert np.abs(expected - logits(ReferenceDevice(), compiled)).max() > 1e-4  # other weights are other logits


@pytest.mark.parametrize("options", [{}, {"symmetric": False}], ids=str)
def test_stored_experts_are_those_that_were_rounded(mixture: Exported, tmp_path: Path, options: dict[str, Any]) -> None:
    compiled = mixture.compile(expert_format="int4", **ONLY_EXPERTS, **options)
    found = [array for array in matrices(restored(compiled, tmp_path)).values() if array.ndim == 3]
    parameters = [
        p.detach().numpy() for n, p in mixture.model.named_parameters() if ".experts." in n and "bias" not in n
    ]
    stacks = [p if p.ndim == 3 else p.reshape(4, -1, p.shape[-1]) for p in parameters if p.ndim == 3 or p.shape[0] > 64]
    assert stacks and len(found) == len(stacks)
    for stack in stacks:
        ways = [stack, stack.swapaxes(1, 2)]
        wanted = [
            np.stack([in_format(np.ascontiguousarray(m), "int4", {**ONLY_EXPERTS, **options}) for m in way])
            for way in ways
        ]
        wanted += [way.swapaxes(1, 2) for way in wanted]
        assert any(np.array_equal(array, way) for array in found for way in wanted)


def test_openvino_computes_them_too(mixture: Exported) -> None:
    device = get_device("cpu")
    own, theirs = (
        logits(device, mixture.compile(expert_format="int8", linear_kernel=kernel, **ONLY_EXPERTS))
        for kernel in ("native", "openvino")
    )
    assert np.median(np.abs(own - theirs).max(1) / np.ptp(theirs, axis=1)) < 0.03


def test_a_run_has_fewer_tokens_where_experts_are_copied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The largest matrix of this mixture has 57,344 bytes in float32, and a token has two experts."""
    mixtral = Exported(tiny_model("mixtral"), tmp_path)
    monkeypatch.setattr(compilation, "GATHERED", 5 * 2 * 57_344)
    compiled = mixtral.compile(weight_format="f32", max_tokens=100)
    with get_device("cpu").load(compiled) as session:
        assert session.limits.tokens == session.limits.chunk == 5
    assert "max_tokens is 5 in place of 100" in caplog.text
    with get_device("cpu").load(mixtral.compile(expert_format="int8", max_tokens=100)) as session:
        assert session.limits.tokens == 100


def test_mixtures_are_invariant_too(tmp_path: Path) -> None:
    mixtral = Exported(tiny_model("mixtral"), tmp_path)
    with pytest.raises(OptionError, match="batch_invariant is for"):
        mixtral.compile(weight_format="int8", expert_format="f32", batch_invariant=True)
    compiled = mixtral.compile(weight_format="int8", batch_invariant=True)
    together, alone = (logits_of_chunks(compiled, size) for size in (len(IDS), 1))
    assert np.array_equal(together, alone)


def logits_of_chunks(compiled: Any, size: int) -> np.ndarray:
    from QEfficient.devices import Batch, Row

    found = []
    with get_device("cpu").load(compiled) as session:
        for start in range(0, len(IDS), size):
            tokens = tuple(IDS[start : start + size])
            found.append(session.run(Batch((Row(0, tokens, start, len(tokens), (0,)),))).copy())
    return np.concatenate(found)
