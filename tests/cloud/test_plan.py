"""`qefficient plan` on tiny checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

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
    tables = 64 * 2 * 16  # cosines and sines of each position, as wide as a head
    assert found["exported_bytes"] == pytest.approx(4 * (stored(model_folder) + tables), rel=0.001)
    assert found["bytes_per_soc"]["tables"] == tables * 2 / 4
    of_weights = found["program_bytes"] - tables * 2
    assert of_weights / 4 == pytest.approx(found["bytes_per_soc"]["weights"], rel=0.01)
    assert found["files"]["numbers"] == stored(model_folder) and found["remarks"] == []
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


def changed(folder: Path, source: Path, **changes: Any) -> Path:
    """A copy with another config."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", -80),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 0),
        ("vocab_size", 0),
        ("vocab_size", -7),
    ],
)
def test_numbers_that_no_model_has(cli: Cli, model_folder: Path, tmp_path: Path, name: str, value: int) -> None:
    result = cli("plan", changed(tmp_path / "model", model_folder, **{name: value}))
    assert (result.code, result.out) == (1, "") and f"{name} is {value}: no model has that" in result.error


def test_heads_that_no_model_has(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    """Some configs look at their heads themselves when they are read."""
    from QEfficient.verification.tiny_models import tiny_model

    result = cli("plan", changed(tmp_path / "read", model_folder, num_attention_heads=0))
    assert (result.code, result.out) == (1, "") and "a number of it is 0 that is divided by" in result.error
    uneven = cli("plan", changed(tmp_path / "uneven", model_folder, num_attention_heads=3))
    assert (uneven.code, uneven.out) == (1, "") and "multiple of the number of attention heads" in uneven.error
    tiny_model("qwen2").save_pretrained(tmp_path / "unread")
    result = cli("plan", changed(tmp_path / "model", tmp_path / "unread", num_attention_heads=0))
    assert (result.code, result.out) == (1, "") and "num_attention_heads is 0: no model has that" in result.error


def test_a_config_that_is_no_object(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, folder := tmp_path / "model")
    (folder / "config.json").write_text("[1, 2]")
    result = cli("plan", folder)
    assert (result.code, result.out) == (1, "") and "it is no JSON object" in result.error


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "vit", "architectures": None},
        {"num_attention_heads": 4, "num_key_value_heads": 3, "head_dim": 16},
        {"rope_parameters": {"rope_type": "magic", "rope_theta": 10000.0}},
        {"hidden_act": "foo"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_cannot_be_exported_is_not_said_to_fit(
    cli: Cli, model_folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = changed(tmp_path / "model", model_folder, **changes)
    result = cli("plan", folder)
    assert result.code == 0 and rows(result.out)["fits"] == "unknown" and "tokens per second" not in result.out
    assert f"Whether {folder} fits is not known, since it cannot be exported: " in result.err
    document = cli("plan", folder, "--json").json
    assert [document[name] for name in ("fits", "tight", "tokens_per_second", "seconds_to_first_token")] == [None] * 4
    (folder / "model.safetensors").unlink()
    nothing = cli("plan", folder)
    assert (nothing.code, nothing.out) == (1, "") and "Nor do headers of weight files tell" in nothing.error


def test_files_that_are_not_the_models_are_told_apart(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    """By the headers alone: damaged files, too few of them, another model's."""
    from QEfficient.verification.tiny_models import tiny_model

    more = cli("plan", changed(tmp_path / "more", model_folder, num_hidden_layers=9))
    found = rows(more.out)
    missing = int(found["weights by the config"].replace(",", "")) - stored(model_folder)
    assert found["fits"] == "yes" and found["weights in the files"] == f"{stored(model_folder):,}"
    assert missing > 0 and f"{missing:,} fewer than the model by its config has" in more.err
    folder = tmp_path / "foreign"
    tiny_model("mixtral").save_pretrained(folder)
    shutil.copy(model_folder / "config.json", folder)
    assert "or they are another model's" in cli("plan", folder).err
    for content, said in ((b"\xff" * 100, "is truncated"), (b"", "the file is empty")):
        (folder / "model.safetensors").write_bytes(content)
        result = cli("plan", folder)
        assert rows(result.out)["weights in the files"] == "unreadable" and said in result.err
        assert result.err.count("Fetch ") == 1
        assert said in cli("plan", folder, "--json").json["files"]["unreadable"]


def test_a_config_is_enough(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    """Before anything is downloaded: the same plan, with a word that there was nothing to compare with."""
    (tmp_path / "config.json").write_text((model_folder / "config.json").read_text())
    alone, whole = cli("plan", tmp_path, "--ctx-len", 64), cli("plan", model_folder, "--ctx-len", 64)
    assert alone.code == 0 and "there are no weight files here to compare with" in alone.err
    assert "to compare with" not in whole.err
    assert {**rows(alone.out), "weights in the files": ""} == {**rows(whole.out), "weights in the files": ""}
    assert rows(alone.out)["weights in the files"] == "no files here"
    assert cli("plan", tmp_path, "--json").json["files"] is None


def test_a_config_in_the_hubs_cache_is_enough(
    cli: Cli, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a first plan leaves it there."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    commit, folder = "0" * 40, tmp_path / "models--somebody--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    shutil.copy(model_folder / "config.json", folder / "snapshots" / commit)
    result = cli("plan", "somebody/tiny", "--cache-dir", tmp_path)
    assert result.code == 0 and rows(result.out)["fits"] == "yes", result.err
    assert "there are no weight files here to compare with" in result.err


def test_a_tied_head_that_is_stored_twice_is_no_difference(cli: Cli, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from QEfficient.verification.tiny_models import tiny_model

    tiny_model("gemma2").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    table = next(tensor for name, tensor in weights.items() if "embed_tokens" in name)
    assert "But its weight files" not in cli("plan", tmp_path).err
    save_file({**weights, "lm_head.weight": table.clone()}, file, {"format": "pt"})
    assert "But its weight files" not in cli("plan", tmp_path).err


def test_positions_that_a_model_does_not_have(cli: Cli, tmp_path: Path) -> None:
    from QEfficient.verification.tiny_models import tiny_model

    tiny_model("opt").save_pretrained(tmp_path)
    longer, shorter = (cli("plan", tmp_path, "--ctx-len", length) for length in (513, 512))
    said = "But the model has positions for 512 tokens only"
    assert longer.code == 0 and said in longer.err and said not in shorter.err
    assert "positions for 512" in cli("plan", tmp_path, "--ctx-len", 513, "--json").json["remarks"][0]


def test_absorbed_attention_has_other_weights_than_the_files(cli: Cli, tmp_path: Path) -> None:
    from QEfficient.verification.tiny_models import tiny_model

    model = tiny_model("deepseek_v3")
    model.save_pretrained(tmp_path)
    config, attentions = model.config, [layer.self_attn for layer in model.model.layers]
    wider = config.num_attention_heads * (config.kv_lora_rank + config.qk_rope_head_dim) * config.q_lora_rank
    fused = wider - attentions[0].q_b_proj.weight.numel() - attentions[0].kv_b_proj.weight.numel()
    fused += config.num_attention_heads * config.kv_lora_rank * config.v_head_dim
    for how, more in (("online", 0), ("fused", fused * len(attentions))):
        found = cli("plan", tmp_path, "--ctx-len", 64, "--mla-absorption", how, "--json").json
        assert (found["weights"]["absorbed"], found["weights"]["stored"]) == (more, stored(tmp_path)), how
        assert found["fits"] and found["remarks"] == []


def test_nothing_to_absorb(cli: Cli, model_folder: Path) -> None:
    result = cli("plan", model_folder, "--mla-absorption", "fused")
    assert result.code == 1 and "has no latent attention, which mla_absorption is for" in result.error


def test_a_context_that_the_model_does_not_run_with(cli: Cli, tmp_path: Path) -> None:
    """Not for lack of memory: more SoCs are not tried. What it tripped over is said in one line."""
    from QEfficient.verification.tiny_models import tiny_model

    tiny_model("mpt").save_pretrained(tmp_path)
    longest = json.loads((tmp_path / "config.json").read_text())["max_seq_len"]
    assert rows(cli("plan", tmp_path, "--ctx-len", longest).out)["fits"] == "yes"
    result = cli("plan", tmp_path, "--ctx-len", longest + 1)
    assert (rows(result.out)["fits"], rows(result.out)["SoCs"]) == ("no", "1")
    assert f"with a ctx_len of {longest + 1:,} the model does not run: " in result.err and "Traceback" not in result.err


def test_what_is_computed_again_is_not_said_to_fit(cli: Cli, tmp_path: Path) -> None:
    """Compilers take such programs or not, and only the program itself would tell."""
    from QEfficient.verification.tiny_models import tiny_model

    tiny_model("cpmant").save_pretrained(tmp_path)
    result = cli("plan", tmp_path, "--ctx-len", 64)
    found = rows(result.out)
    assert found["fits"] == "unknown" and found["weights by the config"] == found["weights in the files"] != "unknown"
    assert "is not known, since it computes its whole context again, with operators" in result.err
    assert cli("plan", tmp_path, "--ctx-len", 64, "--json").json["fits"] is None


def test_very_large_figures_have_units_that_suit_them(cli: Cli, model_folder: Path) -> None:
    result = cli("plan", model_folder, "--ctx-len", 2**31, "--full-batch-size", 10**6)
    assert "PB of 32.2 GB" in rows(result.out)["needed of usable per SoC"]


def test_what_does_not_fit_is_said_with_what_would_help(cli: Cli, model_folder: Path) -> None:
    flags = ("--ctx-len", 4_000_000, "--full-batch-size", 70, "--num-devices", 1)
    result = cli("plan", model_folder, *flags)
    assert result.code == 0 and rows(result.out)["fits"] == "no" and "tokens per second" not in result.out
    assert "does not fit on 1 SoC (ultra): it needs 71." in result.err and "are missing" in result.err
    assert "--num-devices 4" not in result.err  # two heads cannot be cut into four
    assert "--ctx-len 5" in result.err
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
