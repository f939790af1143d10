"""An SDK for tests: the stand-in, as a folder like the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from qaic_simulator.root import write_root
from QEfficient.devices.cloud_ai_100.sdk import ROOT_VARIABLE


def use_simulator(version: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device finds it by the environment; its cards are nobody else's."""
    monkeypatch.setenv(ROOT_VARIABLE, str(write_root(folder / "sdk", version)))
    monkeypatch.setenv("QAIC_SIM_STATE", str(folder / "cards.json"))
    return version


@pytest.fixture(params=["1.21", "1.22"])
def sdk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both versions."""
    return use_simulator(str(request.param), tmp_path, monkeypatch)


@pytest.fixture
def new_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return use_simulator("1.22", tmp_path, monkeypatch)
