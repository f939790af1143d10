"""What cannot be is refused before anything is exported or compiled for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli, Home, Result
from transformers import AutoModelForCausalLM

from qaic_simulator.profiles import SDKS
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.artifacts import ArtifactStore
from QEfficient.cloud import infer
from QEfficient.cloud._generation import sampling
from QEfficient.cloud._preparation import compile_spec
from QEfficient.cloud.main import command_parser
from QEfficient.devices.cloud_ai_100.qnn.tools import ROOT_VARIABLE as QNN_VARIABLE
from QEfficient.devices.cloud_ai_100.sdk import (
    ROOT_VARIABLE,
    SIMULATED_VERSION,
    SIMULATED_VERSIONS,
    SIMULATOR_VARIABLE,
    simulated_root,
)
from QEfficient.errors import OptionError
from QEfficient.verification.tiny_models import tiny_config, tiny_model

SHAPE = ("--ctx-len", 32, "--prompt-len", 8)


@pytest.fixture(autouse=True)
def _no_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "nothing"))
    monkeypatch.setenv("QAIC_SIM_STATE", str(tmp_path / "cards.json"))
    for name in (SIMULATOR_VARIABLE, QNN_VARIABLE, "QAIC_SIM_FAULT"):
        monkeypatch.delenv(name, raising=False)
    simulated_root.cache_clear()
    yield
    simulated_root.cache_clear()


def refused(result: Result, code: int) -> str:
    assert result.code == code and result.out == "", result
    error: str = result.error
    return error


def nothing_made(home: Path) -> bool:
    return not list(home.rglob("*.onnx")) and not list(home.rglob("*.bin"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--num-cores", "0"], 1, "'num_cores' must be a whole number from 1 to 16, not 0"),
        (["--mos", "-7"], 1, "'mos' must be a whole number from 1 to 16, not -7"),
        (["--mos", "0"], 1, "'mos' must be a whole number from 1 to 16, not 0"),
        (["--batch-size", "0"], 1, "batch_size must be a positive whole number, not 0"),
        (["--full-batch-size", "0"], 1, "full_batch_size must be a positive whole number, not 0"),
        (["--device-group", "[]"], 2, "a list of numbers such as [0,1] is expected, not '[]'"),
        (["--device-group", "[0,0]"], 2, "each card can be named once, but '[0,0]' has one twice"),
        (["--device-group=[-1]"], 2, "cards have numbers from 0 on, but '[-1]' has -1"),
        (["--device-group", "[0,1]", "--num-devices", "4"], 2, "--num-devices is 4, but --device-group names 2 (0, 1)"),
        (["--device-group", "[0,1,2]", "--mdp-num-partitions", "2"], 1, "the program is compiled for 2. Give as many"),
        (["--device-group", "[0,1,2]"], 1, "num_devices is 3, but a layer is shared by 1, 2, 4, 8 or 16 devices"),
        (["--num-devices", "3", "--enable-qnn"], 1, "num_devices is 3, but a layer is shared by 1, 2, 4, 8 or 16"),
        (["--num-devices", "6", "--mdp-num-partitions", "2"], 1, "6, which gives 3 to each of 2 mdp_num_partitions"),
        (["--num-devices", "3", "--mdp-num-partitions", "3"], 1, "2 layers cannot be spread over 3 partitions. Choose"),
        (["--dump-profile", "p.yaml"], 1, "dump_profile does not go with a program exported in float32"),
        (
            ["--batch-size", "2", "--full-batch-size", "4"],
            2,
            "--batch-size 2 and --full-batch-size 4 both say",
        ),
        (["--logit-bias", "99999=1"], 1, "--logit-bias names the token 99999, but the model has 256 tokens (0 to 255)"),
        (["--stop-token-ids", "2,256"], 1, "--stop-token-ids names the token 256, but the model has"),
        (["--stop", ""], 2, "a text is expected, but it is empty"),
        (["--comp-ctx-lengths-decode", "999"], 1, "comp_ctx_lengths_decode has 999, which is more than ctx_len 32"),
        (["--comp-ctx-lengths-prefill", "99"], 1, "comp_ctx_lengths_prefill has 99, which is more than ctx_len 32"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_on_a_card(cli: Cli, scratch: Path, model_folder: Path, words: list[str], code: int, message: str) -> None:
    result = cli("infer", model_folder, *SHAPE, "--simulate", "--prompt", "x", *words)
    assert message in refused(result, code)
    assert nothing_made(scratch)


def test_a_batch_of_one_beside_continuous_batching() -> None:
    """Scripts of Qualcomm's library give it, and it contradicts nothing; nor does the same number twice."""
    for rows in ("1", "4"):
        arguments = command_parser("infer", infer, "infer").read(["--batch_size", rows, "--full_batch_size", "4"])
        assert compile_spec(arguments).decode_rows == 4
    with pytest.raises(OptionError, match="--batch-size 2 and --full-batch-size 4 both say"):
        infer.main("demo", 16, prompt="x", batch_size=2, full_batch_size=4)


@pytest.mark.parametrize("verb", ["compile", "verify", "chat"])
def test_every_command_refuses(cli: Cli, scratch: Path, model_folder: Path, verb: str) -> None:
    three = cli(verb, model_folder, "--simulate", "--device-group", "[0,1,2]")
    assert "num_devices is 3, but a layer is shared by" in refused(three, 1)
    batches = cli(verb, model_folder, "--simulate", "--batch-size", 3, "--full-batch-size", 2)
    assert "--batch-size 3 and --full-batch-size 2 both say" in refused(batches, 2)
    assert nothing_made(scratch)


def partition(*devices: int, **more: Any) -> dict[str, Any]:
    return {"name": "P", "devices": [{"deviceId": number, "numCores": 16} for number in devices], **more}


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ({"partitions": [partition(0, 1, 2)]}, ["--mdp-load-partition-config"], "gives 3 devices to the partition 'P'"),
        (
            {},
            ["--mdp-strategy", "intersection", "--mdp-compiler-dump-path"],
            "is no file of partitions: an object",
        ),
        (
            {"qnn_compilation_backend": {"graph_names": ["mine"]}},
            ["--enable-qnn"],
            "'graph_names' to ['mine'], but the program and its options ask for ['model_configuration_1', 'model_con",
        ),
        (
            {"qnn_compilation_backend": {"compiler_retained_state": False}},
            ["--enable-qnn"],
            "'compiler_retained_state' to False, but the program and its options ask for True",
        ),
        (
            {"partitions": [partition(0, 1, 2)]},
            ["--enable-qnn", "--mdp-load-partition-config"],
            "gives 3 devices to one partition, but a layer is shared by",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_files_say(
    cli: Cli, scratch: Path, model_folder: Path, tmp_path: Path, content: Any, words: list[str], message: str
) -> None:
    (tmp_path / "file.json").write_text(json.dumps(content))
    result = cli("infer", model_folder, *SHAPE, "--simulate", "--prompt", "x", *words, tmp_path / "file.json")
    assert message in refused(result, 1)
    assert nothing_made(scratch)


@pytest.mark.parametrize(
    ("argument", "more"),
    [
        ("-aic-num-cores=4", {}),
        ("-convert-to-fp16", {}),
        ("-retained-state", {}),
        ("-custom-IO-list-file=mine.yaml", {}),
        ("-mdp-load-partition-config=mine.json", {"num_devices": 2}),
        ("-mos=2", {"mos": 1}),
    ],
)
def test_what_the_compiler_would_be_told_twice(
    scratch: Path, argument: str, more: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SIMULATOR_VARIABLE, "1")
    model = QEFFAutoModelForCausalLM(tiny_model("llama"))
    said = f"would be told '{argument.partition('=')[0]}' twice. Leave it out of extra_compiler_args"
    with pytest.raises(OptionError, match=said):
        model.compile(device="cloud_ai_100", ctx_len=32, prefill_seq_len=8, extra_compiler_args=[argument], **more)
    assert nothing_made(scratch)


def test_tokens_of_a_program_that_is_there(cli: Cli, home: Home) -> None:
    words = ("execute", "--qpc-path", home.compiled, "--prompt", "x")
    assert "--stop-token-ids names the token 9999" in refused(cli(*words, "--stop-token-ids", "2,9999"), 1)
    assert cli(*words, "--generation-len", 2, "--stop-token-ids", "2,255", "--logit-bias", "255=-1").code == 0


def test_a_file_of_partitions_names_the_number_of_devices(
    cli: Cli, scratch: Path, model_folder: Path, tmp_path: Path
) -> None:
    devices = [{"deviceId": number, "numCores": 4} for number in (0, 1)]
    content = {"connections": [{"devices": [0, 1], "type": "p2p"}], "partitions": [{"name": "P", "devices": devices}]}
    (tmp_path / "two.json").write_text(json.dumps(content))
    words = ("infer", model_folder, *SHAPE, "--simulate", "--prompt", "x", "--generation-len", 2, "--num-cores", 4)
    file = ("--mdp-load-partition-config", tmp_path / "two.json")
    assert "1 device id(s) were given (3), but with these options" in refused(
        cli(*words, *file, "--device-group", "[3]"), 1
    )
    assert nothing_made(scratch)
    done = cli(*words, *file, "--device-group", "[2,3]")
    assert done.code == 0, done.err


def test_a_cache_that_is_no_whole_blocks(cli: Cli, scratch: Path, model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "narrow"
    config = tiny_config("llama")
    config.head_dim = 12
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in model_folder.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    words = ("compile", folder, *SHAPE, "--simulate")
    error = refused(cli(*words, "--mxint8-kv-cache"), 1)
    assert "in blocks of 32, but past_key.0 of this model has 12" in error and nothing_made(scratch)
    onnx_path = cli("export", folder).out.strip()
    error = refused(cli("compile", "--onnx-path", onnx_path, *SHAPE, "--simulate", "--mxint8-kv-cache"), 1)
    assert "in blocks of 32, but past_key.0 of this model has 12" in error
    assert cli(*words).code == 0, "a refusal is forgotten"


def test_versions_of_the_simulator(cli: Cli, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SIMULATED_VERSIONS == SDKS and SDKS[-1] == SIMULATED_VERSION
    known = " or ".join(SDKS)
    assert f"the version of an SDK, {known}, or nothing is expected, not '1.20'" in refused(
        cli("infer", "--simulate", "1.20", "--prompt", "x"), 2
    )
    monkeypatch.setenv(SIMULATOR_VARIABLE, "1.20")
    error = refused(cli("infer", "--device", "cloud_ai_100", "--prompt", "x"), 1)
    assert error.endswith(f"{SIMULATOR_VARIABLE} is '1.20': give 1, or the version of the SDK to simulate, {known}.")


@pytest.mark.parametrize("wish", ["bogus", "again:0", "again:x", "timeout:2"])
def test_a_fault_that_is_none(
    cli: Cli, scratch: Path, model_folder: Path, wish: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QAIC_SIM_FAULT", wish)
    words = ("infer", model_folder, *SHAPE, "--simulate", "--prompt", "x", "--generation-len", 2)
    error = refused(cli(*words), 1)
    assert f"QAIC_SIM_FAULT is '{wish}'; it can be timeout, lost, memory or again:N" in error


def test_qnn_without_any_sdk(cli: Cli, scratch: Path, model_folder: Path) -> None:
    """Both that are missing are named, and what stands in for them."""
    words = ("infer", model_folder, *SHAPE, "--prompt", "x", "--generation-len", 2, "--enable-qnn")
    named = refused(cli(*words, "--device", "cloud_ai_100"), 1)
    elsewhere = cli(*words)
    verified = refused(cli("verify", model_folder, "--enable-qnn", "--device", "cloud_ai_100"), 1)
    assert elsewhere.code == 0
    for said in (named, elsewhere.err, verified):
        for part in ("Install the Apps SDK", "QAIRT SDK", f"{QNN_VARIABLE} is not set", "--simulate"):
            assert part in said
    assert "QAIRT" not in cli(*words[:-1], "--device", "cloud_ai_100").error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", ""], "there is no prompt"),
        (["--prompt", "x", "--generation-len", "0"], "max_new_tokens must be at least 1"),
    ],
)
def test_verify(cli: Cli, scratch: Path, model_folder: Path, words: list[str], message: str) -> None:
    assert message in refused(cli("verify", model_folder, *words), 1)
    assert nothing_made(scratch)


def test_export_and_plan(cli: Cli, scratch: Path, model_folder: Path) -> None:
    assert "a positive whole number is expected, not '0'" in refused(
        cli("export", model_folder, "--full-batch-size", 0), 2
    )
    both = cli("plan", model_folder, "--full-batch-size", 2, "--batch-size", 3)
    assert "--full-batch-size 2 and --batch-size 3 both say" in refused(both, 2)
    assert nothing_made(scratch)


def test_a_folder_that_takes_no_files(cli: Cli, scratch: Path, model_folder: Path) -> None:
    error = refused(cli("export", model_folder, "--export-dir", "/proc/x"), 1)
    assert error == "/proc takes no files: choose another folder."


def test_a_store_without_the_right_to_write(
    cli: Cli, scratch: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir / "file"))

    ArtifactStore().check_writable()
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    error = refused(cli("export", model_folder), 1)
    assert "cannot be written: permission is denied. Set QEFF_HOME to another folder, or allow writing" in error


def test_flags_of_scripts(cli: Cli, home: Home) -> None:
    """`--automation` goes on behind the end of an answer; `--iteration` says that it does nothing."""
    for flags, ignored in (([], None), (["--automation"], True), (["--automation", "false"], None)):
        arguments = command_parser("infer", infer, "infer").read(["--json", *flags])
        assert sampling(arguments).get("ignore_eos") is ignored
    words = ("execute", "--qpc-path", home.compiled, "--prompt", "x", "--generation-len", 2)
    repeated = cli(*words, "--iteration", 3)
    assert "--iteration 3 has no effect: the prompts run once" in repeated.err
    assert "--iteration" not in cli(*words, "--iteration", 1).err
    assert "positive whole number" in refused(cli(*words, "--iteration", 0), 2)


@pytest.mark.parametrize("verb", ["compile", "verify"])
def test_more_shapes_than_qnn_takes(cli: Cli, scratch: Path, model_folder: Path, verb: str) -> None:
    words = (verb, model_folder, *SHAPE, "--simulate", "--enable-qnn", "--num-speculative-tokens", "1,3")
    assert "QNN's tools take 1 or 2 specializations, but there are 3" in refused(cli(*words), 1)
    assert nothing_made(scratch)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--include-sampler", "--prompt-lookup"], 1, "with --include-sampler the program chooses them itself"),
        (["--include-sampler", "--frequency-penalty", "1"], 1, "which frequency_penalty is not part of"),
        (["--include-sampler", "--top-k", "600"], 1, "top_k is 600, but the program chooses among 512 tokens"),
        (["--prompt-lookup"], 1, "needs a program of its own: add --num-speculative-tokens 3"),
        (["--draft-model", "{model}", "--num-cores", "16"], 2, "for the model (--num-cores) and its draft model"),
        (["--draft-num-cores", "4"], 2, "--draft-num-cores goes with --draft-model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_how_tokens_are_found(
    cli: Cli, scratch: Path, model_folder: Path, words: list[str], code: int, message: str
) -> None:
    named = [word.format(model=model_folder) for word in words]
    result = cli("infer", model_folder, *SHAPE, "--simulate", "--prompt", "x", *named)
    assert message in refused(result, code)
    assert nothing_made(scratch)


def test_a_draft_model_has_cores_of_its_own(cli: Cli, scratch: Path, model_folder: Path) -> None:
    words = ("infer", model_folder, *SHAPE, "--simulate", "--prompt", "x", "--generation-len", 6, "--draft-model")
    result = cli(*words, model_folder, "--num-speculative-tokens", 2)
    assert result.code == 0 and "of the card's 16 cores the model has 11, the draft model 5" in result.err, result.err
