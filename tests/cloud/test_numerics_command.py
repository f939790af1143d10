"""`qefficient numerics` on a tiny model, healthy and with an overflow in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Cli

TOP = Path(__file__).parents[2]
FLAGS = ("--ctx-len", 32, "--prompt-len", 16, "--tokens", 64)


@pytest.fixture(scope="module")
def overflowing_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a factor between two projections of its second layer."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("models") / "overflowing"
    shutil.copytree(model_folder, folder)
    weights = load_file(folder / "model.safetensors")
    for name, factor in (("up_proj", 3e4), ("down_proj", 1 / 3e4)):
        weights[f"model.layers.1.mlp.{name}.weight"] *= factor
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def rows(out: str, first: str) -> dict[str, list[str]]:
    """The lines of the table whose first column is called so, by their first cell."""
    tables: dict[str, dict[str, list[str]]] = {}
    for line in out.splitlines():
        cells = line.split("\t")
        if cells[0] in ("part", "format"):
            current = tables[cells[0]] = {}
        current[cells[0]] = cells[1:]
    return tables[first]


def test_a_healthy_model(cli: Cli, scratch: Path, model_folder: Path, tmp_path: Path) -> None:
    """There is nothing to write, and that is said."""
    file, text = tmp_path / "nodes.yaml", tmp_path / "text.txt"
    text.write_text("What is said here is read, a letter at a time, and that is all there is to it. " * 2)
    result = cli("numerics", model_folder, *FLAGS, "--text", text, "--output", file)
    assert result.code == 0, result.err
    assert not file.exists() and "no node needs fp32, and no file was written" in result.err
    assert "64 tokens of the given text, in windows of 32" in result.err
    parts, formats = rows(result.out, "part"), rows(result.out, "format")
    assert [name for name in parts if name != "part"] == ["embedding", "layer 0", "layer 1", "head"]
    assert {cells[-1] for name, cells in parts.items() if name != "part"} == {"0"}
    assert formats["float32"][1] == "+0.00%" and "float16 + MXFP6 + MXINT8" in formats
    assert abs(float(formats["float16"][0]) / float(formats["float32"][0]) - 1) < 0.01


def test_an_overflow_is_named_and_a_file_written(
    cli: Cli, scratch: Path, overflowing_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default where the command stands."""
    monkeypatch.chdir(tmp_path)
    result = cli("numerics", overflowing_folder, *FLAGS)
    assert result.code == 0, result.err
    parts, formats = rows(result.out, "part"), rows(result.out, "format")
    column = parts["part"].index("overflows")
    assert [name for name, cells in parts.items() if cells[column] not in ("0", "overflows")] == ["layer 1"]
    assert formats["float16"][0] == "nan" and formats["float16"][1] == "-"
    names = yaml.safe_load((tmp_path / "fp32_nodes.yaml").read_text())["FP32NodeInstanceNames"]
    assert parts["layer 1"][-1] == str(len(names)) and f"{len(names)} nodes to keep in fp32 are in" in result.err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["fp32_nodes.yaml"]


def test_json_and_the_simulated_card(
    cli: Cli, scratch: Path, overflowing_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated_sdk(tmp_path, monkeypatch)
    file = tmp_path / "nodes.yaml"
    result = cli("numerics", overflowing_folder, *FLAGS, "--compile", "--json", "--output", file)
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    perplexity = found["perplexity"]
    assert perplexity["float16"] is None and found["recovered"] and found["file"] == str(file)
    for name in ("float16 + file", "float16 + file, compiled"):
        assert abs(perplexity[name] / perplexity["float32"] - 1) < 0.01
    assert any("on a simulated card" in remark for remark in found["remarks"])
    assert {node["part"] for node in found["proposal"]} == {"layer 1"}
    assert yaml.safe_load(file.read_text())["FP32NodeInstanceNames"] == [node["node"] for node in found["proposal"]]


def test_a_compiler_that_refuses_takes_nothing_back(
    cli: Cli, scratch: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight beyond float16 is named, with and without a compiler that says so; all that was found is told first."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model_folder, folder := tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][5, 3] = 7e4
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    simulated_sdk(tmp_path, monkeypatch)
    flags = (*FLAGS, "--output", tmp_path / "nodes.yaml")
    plain, asked, document = (
        cli("numerics", folder, *flags, *more) for more in ((), ("--compile",), ("--compile", "--json"))
    )
    assert (plain.code, asked.code, document.code) == (0, 1, 1)
    assert rows(asked.out, "part") == rows(plain.out, "part") and len(rows(asked.out, "format")) > 5
    for result in (plain, asked):
        assert "The compiler refuses this model: float16 ends at 65,504" in result.err and "(70,000)" in result.err
    assert "beyond the +-65504 of fp16" in asked.error and "beyond the" not in plain.err.replace("beyond it", "")
    (name,) = document.json["beyond_float16"]
    assert "embed_tokens" in name and document.json["beyond_float16"][name] == 7e4
    assert "of fp16" in document.json["refusal"] and document.json["parts"]


def test_a_compiled_program_that_is_worse_is_named(
    cli: Cli, scratch: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the formats by themselves do."""
    from QEfficient.verification import numerics

    simulated_sdk(tmp_path, monkeypatch)
    monkeypatch.setattr(numerics, "compiled_perplexity", lambda *given: (float("nan"), True))
    result = cli("numerics", model_folder, *FLAGS, "--compile", "--json", "--output", tmp_path / "nodes.yaml")
    assert result.code == 0, result.err
    found = result.json
    assert "the compiled program has nan" in found["verdict"] and "holds this model" not in found["verdict"]
    assert found["recovered"] is False and found["perplexity"]["float16, compiled"] is None
    assert found["file"] is None and not (tmp_path / "nodes.yaml").exists()


def test_few_tokens_prove_nothing_and_that_is_said(cli: Cli, scratch: Path, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Hi, you")
    flags = ("--ctx-len", 32, "--prompt-len", 16, "--output", tmp_path / "nodes.yaml")
    short = cli("numerics", model_folder, *flags, "--text", tmp_path / "short.txt")
    assert short.code == 0 and "so few tokens prove nothing" in short.err and "Read at least 256" in short.err
    assert short.err.strip().splitlines()[-1].startswith("As far as ")
    enough = cli("numerics", model_folder, *flags, "--tokens", 256)
    assert enough.code == 0 and "few tokens" not in enough.err and "As far as" not in enough.err


def simulated_sdk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process of its own: here a folder of tests may stand before the simulator."""
    root = folder / "sdk"
    subprocess.run([sys.executable, "-m", "qaic_simulator.root", str(root), "--sdk", "1.22"], check=True, cwd=TOP)
    monkeypatch.setenv("QEFF_QAIC_ROOT", str(root))
    monkeypatch.delenv("QEFF_QAIC_SIMULATOR", raising=False)
    monkeypatch.setenv("QAIC_SIM_STATE", str(folder / "cards.json"))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--text", "./not-there.txt"), 2, "--text ./not-there.txt cannot be read"),
        (("--output", "./no-folder/nodes.yaml"), 2, "name a file in a folder that exists"),
        (("--tokens", 0), 2, "a positive whole number is expected"),
        (("--tokens", 1), 1, "1 token is to be read (--tokens), but a perplexity needs at least 2"),
        (("--compile",), 1, "pip install 'qefficient[simulator]'"),
        (("--dtype", "float16"), 1, "Leave dtype out"),
        (("--text", "{empty}"), 1, "the text has 0 tokens"),
    ],
)
def test_mistakes(
    cli: Cli,
    scratch: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: tuple[object, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.setenv("QEFF_QAIC_ROOT", str(tmp_path / "none"))
    monkeypatch.delenv("QEFF_QAIC_SIMULATOR", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    result = cli("numerics", model_folder, *(str(word).replace("{empty}", "empty.txt") for word in words))
    assert (result.code, result.out) == (code, "") and said in result.error
