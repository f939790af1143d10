"""An SDK for tests: the stand-in, as a folder like the real one. And one store for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qaic_simulator.root import write_root
from QEfficient.devices.cloud_ai_100.sdk import ROOT_VARIABLE


@pytest.fixture(scope="module", autouse=True)
def _exports_are_shared(shared_store: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEFF_HOME", str(shared_store))
        yield


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
