"""Compressed programs are held against the reference device with their own weights; faults of the computation show."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from QEfficient.devices import Session
from QEfficient.devices.cpu import CpuDevice
from QEfficient.devices.cpu.opening import MODEL_FILE
from QEfficient.devices.weight_file import FILE as WEIGHTS
from QEfficient.errors import VerificationError
from QEfficient.program import CompiledProgram
from QEfficient.verification import ladder
from QEfficient.verification.ladder import EXACTLY, EXPORTED, MODULE, verify
from QEfficient.verification.report import HUGGING_FACE, Report
from QEfficient.verification.tiny_models import tiny_model
from QEfficient.verification.truth import STORED

PROGRAM = "program on cpu"
EXACT = f"{PROGRAM} ({EXACTLY})"


def verified(model_type: str = "llama", new_tokens: int = 8, **options: Any) -> Report:
    return verify(tiny_model(model_type), device="cpu", new_tokens=new_tokens, options={"num_threads": 1, **options})


def test_the_report_says_what_each_stage_was_compared_with() -> None:
    report = verified(weight_format="int4")
    report.raise_if_failed()
    against = {(r.stage, r.against, r.allowed is not None) for r in report.results}
    assert against == {
        (MODULE, HUGGING_FACE, True),
        (EXPORTED, HUGGING_FACE, True),
        (EXACT, STORED, True),
        (PROGRAM, STORED, True),
        (PROGRAM, HUGGING_FACE, False),
    }
    assert {(c.stage, c.against) for c in report.checks} >= {(MODULE, HUGGING_FACE), (PROGRAM, STORED)}
    text = report.to_text()
    assert f"{PROGRAM} against {HUGGING_FACE}, for information" in text
    assert f"{EXACT} is as {STORED}, up to 8.1 % of the spread, half of the steps up to 1.1 %; " in text
    assert f"; {PROGRAM} is as {STORED}, up to 28 % of the spread, half of the steps up to 6.1 %." in text
    assert max(r.comparison.typical_error for r in report.results if r.stage == EXACT) < 1e-5
    distances = [r.comparison.typical_error for r in report.results if r.stage == PROGRAM]
    assert min(distances[3:]) > max(distances[:3])  # rounding weights costs more than computing with them


def test_a_cache_in_8_bits_over_exact_weights() -> None:
    report = verified(weight_format="f32", kv_cache="u8")
    report.raise_if_failed()
    assert {r.against for r in report.results} == {HUGGING_FACE}
    assert [r.allowed.largest for r in report.results if r.allowed][-1] == pytest.approx(0.051)


def test_small_faults_are_found_where_nothing_else_is_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step more in a twentieth of the weights of a layer: less than what a cache in 8 bits does."""

    def spoil(values: np.ndarray) -> np.ndarray:
        spoilt = values.reshape(-1).copy()
        spoilt[::20] ^= 1
        return spoilt.reshape(values.shape)

    monkeypatch.setattr(ladder, "get_device", lambda name: Faulty(tmp_path / "faulty", ".q8", spoil))
    report = verified(weight_format="int8")
    assert {failure.stage for failure in report.failures} == {EXACT}


class Faulty(CpuDevice):
    """Computes with other bytes than the artifact holds: what `spoil` makes of the first tensor with this ending."""

    def __init__(self, folder: Path, ending: str, spoil: Callable[[np.ndarray], np.ndarray]) -> None:
        self._folder, self._ending, self._spoil = folder, ending, spoil

    def load(self, compiled: CompiledProgram) -> Session:
        twin = self._folder / compiled.folder.name
        if not twin.exists():
            shutil.copytree(compiled.folder, twin)
            self._spoil_one(twin)
        return super().load(replace(compiled, folder=twin))

    def _spoil_one(self, folder: Path) -> None:
        initializers = ir.load(folder / MODEL_FILE).graph.initializers
        tensor = next(v.const_value for n, v in initializers.items() if n.endswith(self._ending))
        assert isinstance(tensor, ir.ExternalTensor) and tensor.offset is not None
        spoilt = self._spoil(tensor.numpy().copy())
        path = folder / WEIGHTS
        path.chmod(0o644)
        with open(path, "r+b") as file:
            file.seek(tensor.offset)
            file.write(spoilt.tobytes())


FAULTS = {
    "a layer's scales doubled": (".scale4", lambda scales: scales * np.float16(2)),
    "zero points off by one": (".zero4", lambda zeros: zeros + np.uint8(1)),
    "embedding's rows swapped": (".rows", lambda rows: rows[::-1]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_device_alone_are_found(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "get_device", lambda name: Faulty(tmp_path / "faulty", *FAULTS[fault]))
    report = verified(weight_format="int4", symmetric=False)
    assert {EXACT} <= {failure.stage for failure in report.failures} <= {EXACT, PROGRAM}
    with pytest.raises(VerificationError, match=re.escape(f"{EXACT} parts from {STORED}")):
        report.raise_if_failed()
