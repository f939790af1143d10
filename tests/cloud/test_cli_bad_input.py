"""Bad input: one sentence, the right exit code, no traceback, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import GEOMETRY, Cli, Home, Result

from QEfficient.program import MANIFEST

LLAMA = {"model_type": "llama", "hidden_size": 64}
REMOTE = {"model_type": "own", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}


def folder(path: Path, config: object = None, weights: bool = True) -> Path:
    path.mkdir()
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    if weights:
        (path / "model.safetensors").touch()
    return path


def sharded(path: Path, shards: int, missing: int) -> Path:
    """Only an index, and the first of the files that it names."""
    files = [f"{number}.safetensors" for number in range(shards)]
    folder(path, LLAMA, weights=False)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: name for name in files}}))
    for name in files[: shards - missing]:
        (path / name).touch()
    return path


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda path: path, "there is no folder"),
    "an empty folder": (folder, "has no config.json"),
    "no weights": (lambda path: folder(path, LLAMA, weights=False), "has no weights"),
    "a shard is missing": (lambda path: sharded(path, 2, 1), "lacks 1 of its 2 weight files: 1.safetensors. Fetch the"),
    "shards are missing": (
        lambda path: sharded(path, 5, 4),
        "lacks 4 of its 5 weight files: 1.safetensors, 2.safetensors, 3.safetensors, …. Fetch the model again.",
    ),
    "remote code": (lambda path: folder(path, REMOTE), "pass --trust-remote-code if you trust it"),
    "an unknown type": (lambda path: folder(path, {"model_type": "zzz"}), "is of type 'zzz'"),
    "an encoder": (
        lambda path: folder(path, {"model_type": "distilbert", "architectures": ["DistilBertModel"]}),
        "is no causal language model",
    ),
    "a quantized checkpoint": (
        lambda path: folder(path, {**LLAMA, "quantization_config": {"quant_method": "own"}}),
        "quantized with 'own'",
    ),
}


def leftovers(home: Path) -> list[Path]:
    """Any file below a store that was empty."""
    return [path for path in home.rglob("*") if path.is_file()] if home.exists() else []


def refused(result: Result, code: int = 1) -> str:
    assert result.code == code and result.out == "", result
    error: str = result.error
    return error


def test_a_plan_needs_the_files_that_an_index_names(cli: Cli, scratch: Path, tmp_path: Path) -> None:
    """What is missing of them would be missing of the sizes."""
    assert "lacks 1 of its 2 weight files: 1.safetensors." in refused(cli("plan", sharded(tmp_path / "model", 2, 1)))


@pytest.mark.parametrize("command", ["export", "compile", "infer"])
@pytest.mark.parametrize("model", MODELS)
def test_models_that_cannot_be(cli: Cli, scratch: Path, tmp_path: Path, command: str, model: str) -> None:
    make, message = MODELS[model]
    prompt = ["--prompt", "x"] if command == "infer" else []
    assert message in refused(cli(command, make(tmp_path / "model"), *prompt))
    assert leftovers(scratch) == []


def test_a_name_that_nobody_knows(cli: Cli, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # else it is tried for half a minute
    assert "no-one/no-model" in refused(cli("infer", "no-one/no-model", "--prompt", "x"))
    assert leftovers(scratch) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ctx-len", "8", "--prompt", "a prompt of many bytes"], "prompt has 22 tokens, but"),
        (["--ctx-len", "16", "--prompt-len", "32"], "prefill_seq_len 32 is larger than ctx_len 16"),
        (["--ctx-len", "0"], "ctx_len must be a positive whole number"),
        (["--kv-cache-batch-size", "4"], "needs continuous batching"),
        (["--full-batch-size", "4", "--kv-cache-batch-size", "2"], "is smaller than full_batch_size 4"),
        (["--temperature", "-1"], "temperature must not be negative"),
        (["--generation-len", "0"], "must be at least 1"),
        (["--top-p", "nan"], "top_p must be a finite number"),
        (["--n", "0"], "n must lie in"),
        (["--logprobs", "1000"], "logprobs must lie in"),
        (["--logit-bias=-3=1"], "must not be negative"),
        (["--device", "refrence"], "Did you mean 'reference'?"),
        (["--num-threads", "true"], "takes a whole number"),
        (["--some-option", "3"], "does not know the option 'some_option'"),
        (["--kv-cache-prefix", "a.b"], "letters and digits only"),
        (["--prompt", " | "], "there is no prompt"),
        (["--prompts-txt-file-path", "/no/such/file"], "/no/such/file cannot be read: No such file"),
        (["--image-url", "x"], "not supported by this release"),
        (["--num-speculative-tokens", "40"], "too short to try 40 tokens ahead"),
        (["--model-name", "another"], "two models are named"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be(cli: Cli, scratch: Path, model_folder: Path, words: list[str], message: str) -> None:
    prompt = [] if "--prompt" in words else ["--prompt", "x"]
    usage = {"--num-threads", "--model-name"} & set(words)
    assert message in refused(cli("infer", model_folder, *prompt, *words), 2 if usage else 1)
    assert leftovers(scratch) == []


@pytest.mark.parametrize(
    "words",
    [
        ["infer", "demo", "--prompt"],
        ["execute", "--prompt", "x", "--qpc-path"],
        ["chat", "--system"],
        ["verify"],
        ["compile", "--compile-dir"],
        ["export", "--hf-token"],
        ["plan"],
        ["numerics"],
        ["models"],
        ["cache", "info"],
        ["doctor"],
    ],
    ids=" ".join,
)
def test_words_that_are_no_text(cli: Cli, scratch: Path, words: list[str]) -> None:
    """Bytes of another encoding, as Python hands them on."""
    word = os.fsdecode(b"caf\xe9")
    error = refused(cli(*words, word), 2)
    assert error.startswith(f"word {len(words)} of these is no text in utf-8: 'caf\\xe9'.")
    assert leftovers(scratch) == []


def test_no_prompt(cli: Cli, scratch: Path, model_folder: Path, tmp_path: Path) -> None:
    assert "there is no prompt" in refused(cli("infer", model_folder))
    (tmp_path / "empty.txt").write_text("\n \n")
    words = ("--prompts-txt-file-path", tmp_path / "empty.txt")
    assert "holds no prompt" in refused(cli("infer", model_folder, *words))


def test_no_tokenizer(cli: Cli, scratch: Path, model_folder: Path, tmp_path: Path) -> None:
    """Said before the export, which would be for nothing."""
    bare = folder(tmp_path / "bare", weights=False)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model_folder / name, bare / name)
    assert "has no tokenizer" in refused(cli("infer", bare, "--prompt", "x"))
    assert leftovers(scratch) == []


def test_a_prompt_that_does_not_fit_a_compiled_program(cli: Cli, home: Home) -> None:
    error = refused(cli("execute", "--qpc-path", home.compiled, "--prompt", "x" * 40))
    assert error.startswith("prompt has 40 tokens, but the program was compiled for ctx_len 32.")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/no/such/folder", "there is no folder /no/such/folder"),
        ("no-such-name", "starts with 'no-such-name'"),
        ("the model", "is not an artifact of QEfficient"),
    ],
)
def test_folders_that_are_no_programs(cli: Cli, home: Home, path: str, message: str) -> None:
    where = home.model if path == "the model" else path
    assert message in refused(cli("execute", "--qpc-path", where, "--prompt", "x"))


def test_several_programs_in_one_folder(cli: Cli, home: Home, tmp_path: Path) -> None:
    for name in ("qpc-1", "qpc-2"):
        shutil.copytree(home.compiled, tmp_path / name)
    assert "2 compiled programs (qpc-1, qpc-2)" in refused(cli("execute", "--qpc-path", tmp_path, "--prompt", "x"))


def test_onnx_files_that_are_no_programs(cli: Cli, scratch: Path, tmp_path: Path) -> None:
    assert "there is no file" in refused(cli("compile", "--onnx-path", tmp_path / "model.onnx"))
    (tmp_path / "model.onnx").touch()
    assert "is not an artifact" in refused(cli("compile", "--onnx-path", tmp_path / "model.onnx"))
    assert "contradict" in refused(cli("compile", "demo", "--onnx-path", tmp_path / "model.onnx"), 2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / MANIFEST).write_text('{"format": 99}'), "format version 99"),
        (lambda path: (path / MANIFEST).write_text("{"), "is damaged"),
        (lambda path: next(path.glob("*.data")).write_bytes(b"short"), "is truncated (5 bytes found"),
        (lambda path: next(path.glob("*.onnx")).unlink(), "is missing"),
    ],
    ids=["another version", "no manifest", "truncated", "a file gone"],
)
def test_spoilt_artifacts(cli: Cli, home: Home, tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    copy = shutil.copytree(home.exported, tmp_path / "copy")
    spoil(copy)
    assert message in refused(cli("compile", "--onnx-path", copy, "--compile-dir", tmp_path / "out", *GEOMETRY))
    assert not (tmp_path / "out").exists()


def test_a_batch_that_the_program_was_not_exported_for(cli: Cli, home: Home, tmp_path: Path) -> None:
    words = ("--full-batch-size", 2, "--compile-dir", tmp_path / "out")
    error = refused(cli("compile", "--onnx-path", home.exported, *words, *GEOMETRY))
    assert "without continuous batching" in error and "--continuous-batching" in error
    assert not list((tmp_path / "out").glob("[!.]*"))  # a lock's file may stay


def test_a_store_that_cannot_be_written(
    cli: Cli, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "file"))
    assert "a file is where a folder should be" in refused(cli("export", model_folder))
