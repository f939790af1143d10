"""`qefficient plan` on tiny checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Cli


def rows(out: str) -> dict[str, str]:
    return dict(line.split("\t") for line in out.splitlines())


def test_the_plan_of_a_folder(cli: Cli, model_folder: Path) -> None:
    result = cli("plan", model_folder, "--ctx-len", 64, "--full-batch-size", 4)
    found = rows(result.out)
    assert (
        result.code == 0
        and found["fits"] == "yes"
        and found["SoCs"] == "1"
        and found["cards"] == "1 ultra, 16 cores per SoC"
    )
    assert found["KV bytes per token"] == str(2 * 2 * 2 * 16 * 2)  # layers, keys and values, heads, their size, bytes
    assert found["cache per SoC (users: 4)"] == "65.5 kB"
    assert f"{model_folder} fits on 1 SoC (ultra)" in result.err
    assert "- a SoC reads 90 GB/s" in result.err and "64 tokens of every user" in result.err


def test_json_says_the_same(cli: Cli, model_folder: Path) -> None:
    """With what went in."""
    flags = ("--ctx-len", 64, "--num-devices", 4, "--mxfp6", "--card", "pro", "--prompt-len", 50)
    found = cli("plan", model_folder, *flags, "--json").json
    assert (found["card"], found["devices"], found["fits"], found["tight"]) == ("pro", 4, True, False)
    assert found["workload"] == {
        "ctx_len": 64, "prompt_len": 50, "batch_size": 1, "full_batch_size": None, "chunk": 64,
    }  # fmt: skip
    assert found["precision"] == {"mxfp6": True, "mxint8": False}
    assert found["kv_bytes_per_token"] == 128 * 2 and found["refusals"] == []
    assert found["exported_bytes"] == pytest.approx(4 * stored(model_folder), rel=0.01)
    assert found["program_bytes"] / 4 == pytest.approx(found["bytes_per_soc"]["weights"], rel=0.01)
    assert found["bytes_per_soc"]["needed"] < found["bytes_per_soc"]["usable"] and not found["bytes_per_soc"]["missing"]
    assert found["tokens_per_second"] > 0 and found["seconds_to_first_token"] > 0
    assert any("several cards" in line for line in found["assumptions"])
    assert found["weights"]["stored"] == stored(model_folder)


def test_what_cannot_be_compiled_is_said_with_what_would_help(cli: Cli, model_folder: Path) -> None:
    result = cli("plan", model_folder, "--ctx-len", 64, "--mxint8-kv-cache", "--num-devices", 2)
    assert rows(result.out)["fits"] == "no" and "first token" not in result.out
    assert "cannot be compiled for 2 SoCs (ultra): MXINT8 keeps whole blocks of 32 numbers" in result.err
    assert "leaving --mxint8-kv-cache out makes it fit" in result.err


def stored(folder: Path) -> int:
    """The numbers of a float32 file, by its size."""
    with open(folder / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    end: int = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    return end // 4


def test_what_does_not_fit_is_said_with_what_would_help(cli: Cli, model_folder: Path) -> None:
    flags = ("--ctx-len", 4_000_000, "--full-batch-size", 70, "--num-devices", 1)
    result = cli("plan", model_folder, *flags)
    assert result.code == 0 and rows(result.out)["fits"] == "no" and "tokens per second" not in result.out
    assert "does not fit on 1 SoC (ultra): it needs 71." in result.err and "are missing" in result.err
    assert "--num-devices 4" not in result.err  # two heads cannot be cut into four
    assert "--ctx-len 4" in result.err
    document = cli("plan", model_folder, *flags, "--json").json
    assert not document["fits"] and document["bytes_per_soc"]["missing"] > 0


def test_what_fits_nowhere(cli: Cli, model_folder: Path) -> None:
    flags = ("--ctx-len", 4_000_000, "--prompt-len", 4_000_000, "--full-batch-size", 7000)
    result = cli("plan", model_folder, *flags)
    assert result.code == 0 and "does not fit on 16 SoCs" in result.err
    assert "Nothing that this command knows makes it fit." in result.err


def test_the_demo_is_a_model(cli: Cli) -> None:
    result = cli("plan", "--ctx-len", 1024)
    assert result.code == 0 and "no model named" in result.err and "demo fits on 1 SoC" in result.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("./not-there",), 1, "there is no folder ./not-there"),
        (("nobody/has-this-model",), 1, "neither a local folder nor in the local cache"),
        (("demo", "--num-devices", 3), 2, "--num-devices is one of 1, 2, 4, 8, 16, not 3"),
        (("demo", "--ctx-len", 64, "--prompt-len", 65), 1, "a prompt of 65 tokens does not fit into a ctx_len of 64"),
        (("demo", "--batch-size", 0), 2, "a positive whole number is expected"),
        (("demo", "--card", "ultr"), 2, "invalid choice"),
    ],
)
def test_mistakes(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[object, ...], code: int, said: str
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    result = cli("plan", *words)
    assert (result.code, result.out) == (code, "") and said in result.error
