"""Flags for other kinds of programs: how they are read, what they ask for, what tells requests apart, and what runs."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Cli, Home, Result
from safetensors.torch import save_file

from QEfficient.cloud import verify
from QEfficient.cloud._arguments import UsageError
from QEfficient.cloud._preparation import compile_spec, draft_program, qaic_config
from QEfficient.cloud.main import command_parser, load_command
from QEfficient.errors import OptionError
from QEfficient.program import COMPUTE_CONTEXT, KEPT_LOGITS, NEXT_TOKENS, CompiledProgram, load_compiled, load_exported
from QEfficient.transformers.projections import WEIGHTS
from QEfficient.verification import ladder

GEOMETRY = ("--device", "reference", "--ctx-len", "64", "--prompt-len", "8")
PROMPT = ("--prompt", "Hello", "--generation-len", "6", "--temperature", "0", "--ignore-eos", "--json")
COMMANDS = ("infer", "compile", "verify", "chat")
TARGET = {"speculative_model_type": "target"}


def read(command: str, *words: str) -> argparse.Namespace:
    return command_parser(command, load_command(command), f"qefficient {command}").read(words)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("flag", "value", "found"),
    [
        ("--comp-ctx-lengths-prefill", "256,512", [256, 512]),
        ("--comp-ctx-lengths-decode", "[512, 1024]", [512, 1024]),
        ("--num-speculative-tokens", "1,3,7", [1, 3, 7]),
        ("--num-speculative-tokens", "3", [3]),
        ("--kv-cache-batch-size", "8", 8),
        ("--max-top-k-ids", "64", 64),
        ("--ccl-enabled", None, True),
        ("--include-sampler", None, True),
        ("--replicate-kv-heads", None, True),
        ("--projections", None, True),
    ],
)
def test_both_spellings(command: str, flag: str, value: str | None, found: Any) -> None:
    name = flag[2:].replace("-", "_")
    after = [] if value is None else [value]
    dashes, underscores = read(command, flag, *after), read(command, f"--{name}", *after)
    assert getattr(dashes, name) == getattr(underscores, name) == found != getattr(read(command), name)


def test_one_phase() -> None:
    for command in ("compile", "verify"):
        for flag, value in (("--prefill-only", True), ("--decode_only", False)):
            assert read(command, flag).prefill_only is value
        assert read(command).prefill_only is None
    with pytest.raises(UsageError, match="not allowed with"):
        read("compile", "--prefill-only", "--decode-only")
    with pytest.raises(UsageError, match="such as 256,512 is expected, not '256;512'"):
        read("infer", "--comp-ctx-lengths-decode", "256;512")
    with pytest.raises(UsageError, match="such as 256,512 is expected"):
        read("infer", "--num-speculative-tokens", "[]")


def test_what_they_ask_for() -> None:
    words = ("--ctx-len", "64", "--prompt-len", "8")
    arguments = read("compile", *words, "--num-speculative-tokens", "3,1", "--replicate-kv-heads", "--decode-only")
    spec = compile_spec(arguments)
    assert (spec.num_speculative_tokens, spec.prefill_only) == ((1, 3), False)
    assert qaic_config(arguments) == {**TARGET, "replicate_kv_heads": True}
    arguments = read("compile", *words, "--comp-ctx-lengths-prefill", "16", "--comp-ctx-lengths-decode", "32,64")
    spec = compile_spec(arguments)
    assert (spec.comp_ctx_lengths_prefill, spec.comp_ctx_lengths_decode) == ((16,), (32, 64))
    assert qaic_config(arguments) == {"ccl_enabled": True}
    automatic = compile_spec(read("infer", "--ctx-len", "8000", "--ccl_enabled"))
    assert (automatic.ctx_len, automatic.comp_ctx_lengths_decode) == (8192, (4096, 8192))
    assert qaic_config(read("infer", "--include-sampler", "--max-top-k-ids", "9")) == {
        "include_sampler": True,
        "max_top_k_ids": 9,
    }


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--max-top-k-ids", "9"], UsageError, "goes with --include-sampler"),
        (["--num-speculative-tokens", "40"], OptionError, "too short to try 40 tokens ahead"),
        (["--num-speculative-tokens", "3", "--include-sampler"], OptionError, "does not choose tokens"),
        (["--comp-ctx-lengths-decode", "999"], OptionError, "more than ctx_len 128"),
        (["--num-speculative-tokens", "1,3", "--comp-ctx-lengths-decode", "64,128"], OptionError, "one number"),
    ],
)
def test_what_does_not_go_together(words: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compile_spec(read("infer", *words))


def test_a_draft_model_is_a_plain_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr("QEfficient.cloud._preparation.Preparation.__init__", lambda s, n, a, c: seen.append(a))
    monkeypatch.setattr("QEfficient.cloud._preparation.Preparation.compiled", lambda s: None)
    words = ("--draft-model", str(tmp_path), "--num-speculative-tokens", "3", "--ccl-enabled", "--replicate-kv-heads")
    draft_program(read("infer", *words), None)  # type: ignore[arg-type]
    assert qaic_config(seen[0]) == {} and seen[0].ctx_len == 128


def test_verify_takes_them(cli: Cli, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, Any] = {}

    class Passed:
        def raise_if_failed(self) -> None:
            pass

    monkeypatch.setattr(ladder, "verify", lambda name, **options: taken.update(options) or Passed())
    monkeypatch.setattr(verify, "_print", lambda *arguments: None)
    flags = ("--num-speculative-tokens", "2", "--decode-only", "--full-batch-size", "2")
    assert cli("verify", home.model, "--device", "reference", *flags).code == 0
    options = taken["options"]
    assert options["qaic_config"] == TARGET and options["num_speculative_tokens"] == [2]
    assert options["prefill_only"] is False and taken["continuous_batching"] is True


# With programs


def answer(result: Result) -> list[int]:
    assert result.code == 0, result.err
    ids: list[int] = result.json["outputs"][0]["generated_ids"]
    return ids


def compiled(result: Result) -> CompiledProgram:
    assert result.code == 0, result.err
    return load_compiled(Path(result.out.strip()))


def test_they_are_told_apart_and_say_the_same(cli: Cli, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same text from each, and a request of before is answered without loading torch."""
    plain = answer(cli("infer", home.model, *GEOMETRY, *PROMPT))
    kinds: dict[str, tuple[str, ...]] = {
        KEPT_LOGITS: ("--num-speculative-tokens", "1,3", "--prompt-lookup", "3"),
        COMPUTE_CONTEXT: ("--comp-ctx-lengths-prefill", "16", "--comp_ctx_lengths_decode", "32,64"),
        NEXT_TOKENS: ("--include-sampler", "--max-top-k-ids", "32"),
        "heads": ("--replicate-kv-heads", "--device-group", "[0,1,2,3]"),
    }
    folders = {}
    for name, flags in kinds.items():
        result = cli("infer", home.model, *GEOMETRY, *PROMPT, *flags)
        assert answer(result) == plain, name
        folders[name] = result.json["qpc_path"]
    assert len(set(folders.values())) == len(kinds)
    for name in (KEPT_LOGITS, COMPUTE_CONTEXT):
        graph = load_compiled(Path(folders[name])).program.graphs["lm"].spec
        assert name in {tensor.name for tensor in graph.inputs}
    assert load_compiled(Path(folders[NEXT_TOKENS])).program.graphs["lm"].spec.chooses_tokens
    monkeypatch.setattr("QEfficient.cloud._preparation.Preparation._open", lambda self: pytest.fail("it was opened"))
    for name, flags in kinds.items():
        assert cli("infer", home.model, *GEOMETRY, *PROMPT, *flags).json["qpc_path"] == folders[name]


def test_an_exported_file_is_compiled_for_them(cli: Cli, home: Home) -> None:
    exported = cli("export", home.model, "--speculative-target", "--kv-head-copies", "2", "--json").json
    spec = load_exported(Path(exported["folder"])).graphs["lm"].spec
    assert KEPT_LOGITS in {tensor.name for tensor in spec.inputs}
    path = exported["onnx_path"]
    made = compiled(cli("compile", "--onnx-path", path, *GEOMETRY, "--num-speculative-tokens", "1,3"))
    assert made.spec.num_speculative_tokens == (1, 3)
    assert "compile it with num_speculative_tokens" in cli("compile", "--onnx-path", path, *GEOMETRY).error
    refused = cli("compile", "--onnx-path", path, *GEOMETRY, "--include-sampler", "--replicate-kv-heads")
    assert refused.code == 2
    assert "--include-sampler, --replicate-kv-heads shapes the graph, which --onnx-path names" in refused.error


def test_two_programs_that_hand_over(cli: Cli, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = answer(cli("infer", home.model, *GEOMETRY, *PROMPT))
    prefill, decode = (
        compiled(cli("compile", home.model, *GEOMETRY, flag)) for flag in ("--prefill-only", "--decode-only")
    )
    assert (prefill.spec.prefill_only, decode.spec.prefill_only) == (True, False)
    both = ("--qpc-path", decode.folder, "--prefill-qpc-path", prefill.folder)
    assert answer(cli("execute", *both, *PROMPT)) == plain
    other = compiled(
        cli("compile", home.model, *GEOMETRY[:2], "--ctx-len", "32", "--prompt-len", "8", "--prefill-only")
    )
    monkeypatch.setattr("QEfficient.cloud.execute._tokenizer", lambda *_: pytest.fail("it is refused before"))
    refused = cli("execute", "--qpc-path", decode.folder, "--prefill-qpc-path", other.folder, *PROMPT)
    assert "compiled for ctx_len 32, that for decoding for 64" in refused.error


def test_a_model_that_cannot_is_refused_in_one_line(cli: Cli, home: Home, tmp_path: Path) -> None:
    from QEfficient.verification.tiny_models import tiny_model

    tiny_model("mamba").save_pretrained(tmp_path / "mamba")
    result = cli("compile", tmp_path / "mamba", *GEOMETRY, "--num-speculative-tokens", "3")
    assert "recurrent states cannot go back" in result.error
    assert "Leave include_sampler out" in cli("compile", home.model, "--device", "cpu", "--include-sampler").error


def test_projections(cli: Cli, scratch: Path, model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "projected"
    shutil.copytree(model_folder, folder)
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    (folder / "speculator_config.json").write_text('{"turbo_num_heads": 1, "turbo_num_layers": 1}')
    sizes = {"weight": (width, width), "bias": (width,)}
    save_file({f"projections.0.0.linear.{kind}": torch.zeros(size) for kind, size in sizes.items()}, folder / WEIGHTS)
    guessing, plain = (cli("infer", folder, *GEOMETRY, *PROMPT, *flag) for flag in (["--projections"], []))
    assert guessing.code == plain.code == 0, guessing.err
    said, expected = json.loads(guessing.out), json.loads(plain.out)
    assert said["outputs"][0]["text"] == expected["outputs"][0]["text"]
    assert said["metrics"]["drafted_tokens"] > expected["metrics"]["drafted_tokens"] == 0
    assert "has no speculator_config.json" in cli("verify", model_folder, *GEOMETRY, "--projections").error
