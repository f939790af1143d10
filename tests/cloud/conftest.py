"""A tiny model in a folder, a store that it was compiled into once, and command lines run in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import GEOMETRY, Cli, Home, run_words

from QEfficient.devices.cloud_ai_100.sdk import ROOT_VARIABLE, SIMULATOR_VARIABLE, simulated_root


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    own = logging.getLogger("QEfficient")
    handlers, level = own.handlers[:], own.level
    yield
    own.handlers[:] = handlers
    own.setLevel(level)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from QEfficient.verification.tiny_models import tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("llama").save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def made(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The store, filled by `qefficient compile`."""
    path = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEFF_HOME", str(path))
        result = run_words("compile", model_folder, *GEOMETRY)
    assert result.code == 0, result.err
    return Home(path, model_folder, Path(result.out.strip()), result.err)


@pytest.fixture
def home(made: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The filled store as the one that commands use."""
    monkeypatch.setenv("QEFF_HOME", str(made.path))
    return made


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store as the one that commands use."""
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("QEFF_DEVICE", raising=False)
    return run_words


@pytest.fixture
def without_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nor cards that others use; and the warning comes again, as it does in each process."""
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "nothing"))
    monkeypatch.setenv("QAIC_SIM_STATE", str(tmp_path / "cards.json"))
    monkeypatch.delenv(SIMULATOR_VARIABLE, raising=False)
    simulated_root.cache_clear()
    yield
    simulated_root.cache_clear()
