"""Reading command lines: both spellings, device options, misspelt flags."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from QEfficient.cloud._arguments import UsageError
from QEfficient.cloud._preparation import device_options
from QEfficient.cloud.main import command_names, command_parser, load_command
from QEfficient.errors import OptionError
from QEfficient.specs import SamplingParams

# The flags of Qualcomm's library, with a value where they take one.
QUALCOMM: dict[str, dict[str, str | None]] = {
    "infer": {
        "--model-name": "m", "--local-model-dir": "d", "--cache-dir": "d", "--hf-token": "t", "--batch-size": "2",
        "--prompt-len": "8", "--ctx-len": "64", "--mxfp6": None, "--mxfp6-matmul": None, "--mxint8": None,
        "--mxint8-kv-cache": None, "--trust-remote-code": None, "--use-onnx-subfunctions": None, "--dynamo": None,
        "--num-cores": "16", "--device-group": "[0,1]", "--prompt": "a|b", "--prompts-txt-file-path": "f",
        "--generation-len": "5", "--aic-enable-depth-first": None, "--mos": "1", "--full-batch-size": "4",
        "--allow-mxint8-mdp-io": None, "--enable-qnn": None, "--verbose": None, "--aic-hw-version": "ai100",
        "--node-precision-info": "p.yaml", "--iteration": "1", "--automation": None,
    },
    "export": {
        "--model-name": "m", "--local-model-dir": "d", "--cache-dir": "d", "--hf-token": "t",
        "--full-batch-size": "4", "--mxint8-kv-cache": "true",
    },
    "compile": {
        "--onnx-path": "m.onnx", "--qpc-path": "d", "--batch-size": "2", "--prompt-len": "16", "--ctx-len": "64",
        "--mxfp6": None, "--mxint8": None, "--num-cores": "16", "--custom-io-file-path": "f", "--device-group": "[0]",
        "--aic-enable-depth-first": None, "--mos": "-1", "--full-batch-size": "4", "--allow-mxint8-mdp-io": None,
        "--enable-qnn": "c.json",
    },
    "execute": {
        "--model-name": "m", "--device-group": "[0]", "--prompt": "x", "--prompts-txt-file-path": "f",
        "--generation-len": "5", "--local-model-dir": "d", "--cache-dir": "d", "--full-batch-size": "4",
        "--hf-token": "t",
    },
}  # fmt: skip
NEEDED: dict[str, list[str]] = {"execute": ["--qpc-path", "d"]}
FLAGS = [(command, flag, value) for command, flags in QUALCOMM.items() for flag, value in flags.items()]


def read(command: str, *words: str) -> argparse.Namespace:
    return command_parser(command, load_command(command), f"qefficient {command}").read(words)


@pytest.mark.parametrize(("command", "flag", "value"), FLAGS)
def test_flags_of_qualcomms_library_in_both_spellings(command: str, flag: str, value: str | None) -> None:
    needed, after = NEEDED.get(command, []), [] if value is None else [value]
    dashes = vars(read(command, *needed, flag, *after))
    underscores = vars(read(command, *needed, "--" + flag[2:].replace("-", "_"), *after))
    joined = vars(read(command, *needed, *([f"{flag}={value}"] if value else [flag])))
    assert dashes == underscores == joined != vars(read(command, *needed))


def test_arguments_for_the_compiler_alone() -> None:
    words = ["--compiler-arg=-stats-level=20", "--compiler_arg=-time-passes", "--extra-compiler-args=-x=a_b"]
    told = device_options(read("infer", "model", *words))
    assert told == {"extra_compiler_args": ["-stats-level=20", "-time-passes", "-x=a_b"]}


def test_values_keep_their_underscores() -> None:
    arguments = read("infer", "some_model", "--prompt", "-- a_b --c_d", "--model_name=other_model")
    assert (arguments.model, arguments.prompt, arguments.model_name) == ("some_model", "-- a_b --c_d", "other_model")


def test_names_may_stand_anywhere() -> None:
    assert read("cache", "remove", "a", "--json", "b").names == ["a", "b"]
    assert read("infer", "--ctx-len", "4", "model", "--json").model == "model"


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--num-threads", "4"], {"num_threads": 4}),
        (["--aic_hw_version", "ai100"], {"aic_hw_version": "ai100"}),
        (["--aic-hw-version=ai100"], {"aic_hw_version": "ai100"}),
        (["--compile-only", "model"], {"compile_only": True}),
        (["--compile-only", "false"], {"compile_only": False}),
        (["--io-encrypt"], {"io_encrypt": True}),
        (["--io_encrypt", "true", "model"], {"io_encrypt": True}),
        (["--io-encrypt=false"], {"io_encrypt": False}),
        (["--vtcm-working-set-limit-ratio", "0.5"], {"vtcm_working_set_limit_ratio": 0.5}),
        (["--percentile_calibration_value=99"], {"percentile_calibration_value": 99.0}),
        (["--some-new-option", "-3"], {"some_new_option": -3}),
        (["--some-new-switch", "--another", "x"], {"some_new_switch": True, "another": "x"}),
    ],
)
def test_other_pairs_go_to_the_device(words: list[str], options: dict[str, object]) -> None:
    arguments = read("infer", *words)
    assert arguments.device_options == options
    assert arguments.model == ("model" if "model" in words else None)


@pytest.mark.parametrize(
    ("command", "wrong", "meant"),
    [
        ("infer", "--ctx-ln", "--ctx-len"),
        ("infer", "--promt", "--prompt"),
        ("infer", "--batch", "--batch-size"),
        ("infer", "--mxfp6_matmull", "--mxfp6-matmul"),
        ("infer", "--num_thread", "--num-threads"),
        ("compile", "--aic_hw_versoin", "--aic-hw-version"),
        ("export", "--model-nam", "--model-name"),
        ("execute", "--generation-length", "--generation-len"),
        ("cache", "--jsn", "--json"),
    ],
)
def test_a_misspelt_flag_is_refused_with_a_suggestion(command: str, wrong: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"{wrong.replace('_', '-')}. Did you mean {meant}\\?"):
        read(command, *NEEDED.get(command, []), wrong, "4")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "--num-threads", "4"], "does not know the flag --num-threads"),
        (["infer", "--num-threads"], "--num-threads needs a value"),
        (["infer", "--num-threads", "many"], "takes a whole number, not 'many'"),
        (["infer", "--vtcm-working-set-limit-ratio", "half"], "takes a number, not 'half'"),
        (["infer", "--ctx-len", "many"], "invalid int value: 'many'"),
        (["infer", "--device-group", "x"], "a list of numbers"),
        (["infer", "--logit-bias", "5"], "a token id and a number such as 15=-2.5 is expected, not '5'"),
        (["infer", "--stop-token-ids", "a"], "token ids such as 2,7 are expected, not 'a'"),
        (["infer", "--dtype", "float8"], "invalid choice: 'float8'"),
        (["infer", "model", "another"], "unrecognized arguments: another"),
        (["execute"], "required: --qpc-path"),
    ],
)
def test_wrong_usage(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        read(*words)


@pytest.mark.parametrize("flag", ["--image-url", "--img_size"])
def test_what_is_not_supported_yet_is_refused(flag: str) -> None:
    with pytest.raises(OptionError, match="is not supported by this release"):
        read("infer", flag, "x")


@pytest.mark.parametrize("command", command_names())
def test_examples_can_be_typed(command: str) -> None:
    lines = [line.strip() for line in load_command(command).EXAMPLES.splitlines()]
    assert lines
    for line in lines:
        program, name, *words = shlex.split(re.split(r"\s{3,}", line)[0])
        assert (program, name) == ("qefficient", command)
        read(command, *words)


DOCUMENTS = [
    "README.md", "docs/chat.md", "docs/command_line.md", "docs/decodings.md", "docs/programs.md", "docs/sampling.md",
]  # fmt: skip


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documented_commands_can_be_typed(document: str) -> None:
    text = (Path(__file__).parents[2] / document).read_text(encoding="utf-8")
    lines = re.findall(r"^(?: {4})?qefficient (?!.* \| )(.*?)(?:\s{3,}.*|\s+#.*)?$", text, re.M)
    assert lines
    for line in lines:
        name, *words = shlex.split(line)
        read(name, *words)


def test_the_table_of_options_is_complete() -> None:
    text = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(--[\w-]+)", text, re.M)
    assert {option for option, _ in rows} == {field.name for field in fields(SamplingParams)} | {"do_sample"}
    flags = command_parser("infer", load_command("infer"), "qefficient infer")._option_string_actions
    assert {flag for _, flag in rows} <= set(flags)


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in command_names())], ids=" ".join)
def test_help_loads_no_library(words: list[str]) -> None:
    code = f"""
import sys
from QEfficient.cloud.main import main
try:
    main({words!r})
except SystemExit as end:
    assert not end.code
assert not {{"numpy", "rich", "torch", "transformers", "onnx"}} & set(sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name in shown for name in (command_names() if len(words) == 1 else ["examples:", "--json"]))
