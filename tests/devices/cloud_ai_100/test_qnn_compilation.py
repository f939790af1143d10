"""From an exported program to tokens by QNN's two tools, which are stand-ins; the native route is the judge."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qaic_simulator.root import write_root
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices import get_device
from QEfficient.devices.cloud_ai_100 import CloudAI100
from QEfficient.devices.cloud_ai_100.container import read_description
from QEfficient.errors import DeviceError, OptionError
from QEfficient.legacy import compile as legacy_compile
from QEfficient.program import ExportedProgram, load_compiled, load_exported
from QEfficient.specs import CompileSpec, Specialization
from QEfficient.verification.tiny_models import prompts, tiny_config, tiny_model

GEOMETRY: dict[str, Any] = {"prefill_seq_len": 8, "ctx_len": 64}
SLOTS = {"full_batch_size": 4, "batch_size": 1}


@pytest.fixture(autouse=True)
def qnn_sdk(new_sdk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both SDKs are there."""
    root = write_root(tmp_path / "qairt", qnn=True)
    monkeypatch.setenv("QNN_SDK_ROOT", str(root))
    return root


@pytest.fixture(scope="module")
def wide() -> Any:
    """Heads of whole blocks of MXINT8; exported."""
    config = tiny_config("llama")
    config.head_dim, config.initializer_range = 32, 0.2
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    return QEFFAutoModelForCausalLM(model, continuous_batching=True)


@pytest.fixture(scope="module")
def program(wide: Any) -> ExportedProgram:
    return load_exported(Path(wide.export()).parent)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "compiled"
    folder.mkdir()
    return folder


def spec(**options: Any) -> CompileSpec:
    return CompileSpec(full_batch_size=4, **GEOMETRY, device_options={"enable_qnn": True, **options})


def config_file(folder: Path, **content: Any) -> str:
    path = folder / "qnn.json"
    path.write_text(json.dumps(content))
    return str(path)


def tokens(model: Any, ids: list[list[int]]) -> list[list[int]]:
    return [list(found) for found in model.generate(input_ids=ids, generation_len=10, ignore_eos=True).generated_ids]


# What is written


def test_the_program_and_its_files(program: ExportedProgram, folder: Path, tmp_path: Path) -> None:
    told = config_file(tmp_path, qnn_compilation_backend={"compiler_stat_level": 20})
    report = CloudAI100().compile(program, spec(mxint8_kv_cache=True, num_cores=14, qnn_config=told), folder)
    assert (report["simulated"], report["specializations"], report["devices"]) == (True, 2, 1)
    assert report["hardware"] == "ai100" and report["qnn_sdk"]
    assert {path.name for path in folder.iterdir()} == {
        "custom_io_config.yaml", "qnn_compiler_config.json", "qnn_compile_backend.json", "qnn_data_format_config.json",
        "specializations.json", "qconfig.json", "compiler.log", "qpc",
    }  # fmt: skip
    description = read_description(folder / "qpc" / "programqpc.bin")
    assert [entry["input_ids"] for entry in description.sizes()] == [(1, 8), (4, 1)]
    assert description.cores == 14
    named = json.loads((folder / "qnn_compiler_config.json").read_text())["backend_extensions"]["config_file_path"]
    settings = json.loads((folder / named).read_text())
    assert (settings["compiler_num_of_cores"], settings["compiler_stat_level"]) == (14, 20)
    log = (folder / "compiler.log").read_text()
    assert "qairt-converter --input_network" in log and "qnn-context-binary-generator --binary_file" in log
    recorded = json.loads((folder / "qconfig.json").read_text())["qpc_config"]
    assert recorded["compiler_config"]["enable_qnn"] is True
    assert recorded["qnn_config"]["qnn_compilation_backend"] == {"compiler_stat_level": 20}


def test_devices_are_those_of_the_partitions(program: ExportedProgram, folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    devices = [{"deviceId": number} for number in range(4)]
    connections = [{"devices": [0, 1, 2, 3], "type": "p2p"}]
    mine.write_text(json.dumps({"connections": connections, "partitions": [{"name": "P", "devices": devices}]}))
    told = config_file(tmp_path, qnn_compilation_backend={"compiler_mdp_load_partition_config": str(mine)})
    assert CloudAI100().compile(program, spec(qnn_config=told), folder)["devices"] == 4


def test_what_a_compiled_form_is_named_by(tmp_path: Path, qnn_sdk: Path) -> None:
    device = CloudAI100()
    plain = device.ingredients({"enable_qnn": True})
    assert plain["qnn"]["sdk"] and plain["qnn"]["root"] == str(qnn_sdk)
    assert "qnn" not in device.ingredients({})
    told = config_file(tmp_path, converter_args_extension="--onnx_defer_loading")
    named = device.ingredients({"enable_qnn": True, "qnn_config": told})
    assert named["qnn"]["config"] == {"converter_args_extension": "--onnx_defer_loading"}
    (qnn_sdk / "sdk.yaml").write_text("version: 2.99.1\n")
    assert device.ingredients({"enable_qnn": True})["qnn"]["sdk"] == "2.99.1"


def test_files_that_others_name_are_those_that_are_kept(
    program: ExportedProgram, folder: Path, tmp_path: Path, qnn_sdk: Path
) -> None:
    """The second tool does the same again where the folder lies now, with what is kept of the first: plain names."""
    CloudAI100().compile(program, spec(num_devices=2), folder)
    told = json.loads((folder / "qnn_compile_backend.json").read_text())["compiler_mdp_load_partition_config"]
    assert told == "tensor_slicing.json" and (folder / told).is_file()
    log = (folder / "compiler.log").read_text().splitlines()
    converting, generating = (next(line.split() for line in log if f"{tool} --" in line) for tool in ("ter", "tor"))
    moved = folder.rename(tmp_path / "moved")
    graph, scratch = str(program.onnx_path("lm")), tmp_path / "again"
    (scratch / "qpc").mkdir(parents=True)
    given = {"--input_network": graph, "--output_path": f"{scratch}/model.dlc", "--dlc_path": f"{scratch}/model.dlc"}
    given |= {"--output_dir": f"{scratch}/qpc", "--config": str(moved / "custom_io_config.yaml")}
    given |= {"--config_file": str(moved / "qnn_compiler_config.json")}
    for command in (converting, generating):
        words = [given.get(before, word) for before, word in zip(["", *command], command, strict=False)]
        subprocess.run(words, cwd=moved, check=True, capture_output=True)
    assert (scratch / "qpc" / "programqpc.bin").is_file()


# Refused before any work


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"converter_arg_extension": ""}, "Did you mean 'converter_args_extension'"),
        ({"converter_args_extension": "--target_backend HTP"}, "sets '--target_backend', which the program"),
        ({"qnn_compilation_backend": {"compiler_num_cores": 4}}, "Did you mean 'compiler_num_of_cores'"),
        ({"qnn_compilation_backend": {"compiler_hardware_version": "3.0"}}, "ask for '2.0'. Leave it out"),
        ({"qnn_compilation_backend": {"compiler_mdp_load_partition_config": "none.json"}}, "is no file of partitions"),
    ],
)
def test_a_bad_file_is_refused_before_anything_is_done(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    wrapped = QEFFAutoModelForCausalLM(tiny_model("llama"))
    told = config_file(tmp_path, **content)
    with pytest.raises(OptionError, match=said):
        get_device("cloud_ai_100").own_options({"enable_qnn": True, "qnn_config": told})
    with pytest.raises(OptionError, match=said):
        wrapped.compile(device="cloud_ai_100", compile_dir=tmp_path / "c", enable_qnn=True, qnn_config=told, **GEOMETRY)
    assert not (tmp_path / "c").exists()


def test_newer_cards_are_refused_before_anything_is_done() -> None:
    with pytest.raises(OptionError, match="for ai100 only, not for ai200. Compile without enable_qnn"):
        CloudAI100().own_options({"enable_qnn": True, "aic_hw_version": "ai200"})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'qnn_config' names the file .*none.json, which does not exist"):
        CloudAI100().own_options({"enable_qnn": True, "qnn_config": str(tmp_path / "none.json")})


def test_without_qnn_s_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QNN_SDK_ROOT")
    with pytest.raises(DeviceError, match="QNN_SDK_ROOT is not set.* QEFF_QAIC_SIMULATOR=1.* takes the simulator"):
        CloudAI100().own_options({"enable_qnn": True})


def test_three_shapes_are_one_too_many(program: ExportedProgram, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = CompileSpec.specializations

    def one_more(asked: CompileSpec, windows: Any = None) -> tuple[Specialization, ...]:
        found = own(asked, windows)
        return (*found, Specialization("Third", {**found[0].symbols, "seq_len": 4}))

    monkeypatch.setattr(CompileSpec, "specializations", one_more)
    with pytest.raises(OptionError, match="take 1 or 2 specializations, but there are 3"):
        CloudAI100().compile(program, spec(), folder)
    assert not list(folder.iterdir())


def test_the_user_sees_what_the_tools_warn_about(
    program: ExportedProgram, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    CloudAI100().compile(program, spec(num_devices=4), folder)
    (told,) = [message for message in caplog.messages if "the compiler warns" in message]
    assert "qnn-context-binary-generator (simulated): Warning: past_key.0 has 2 heads, which 4 devices" in told


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"speculative_model_type": "target"}, {"num_speculative_tokens": [0, 3]}),
        ({"ccl_enabled": True}, {"comp_ctx_lengths_prefill": [32], "comp_ctx_lengths_decode": [16, 64]}),
        ({"ccl_enabled": True}, {"comp_ctx_lengths_decode": [16, 32, 64], "prefill_only": False}),
    ],
)
def test_too_many_shapes_are_refused_before_the_export(
    config: dict[str, Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = QEFFAutoModelForCausalLM(tiny_model("llama"), True, config)
    monkeypatch.setattr(wrapped, "_export", lambda *_: pytest.fail("the export began"))
    asked = {**GEOMETRY, **options, "full_batch_size": 4, "enable_qnn": True}
    with pytest.raises(OptionError, match=r"there are 3 \(.*Decode.*\)\. Ask for fewer numbers"):
        wrapped.compile(device="cloud_ai_100", **asked)
    with pytest.raises(pytest.fail.Exception, match="the export began"):  # elsewhere the option has no effect
        wrapped.compile(device="reference", **asked)


def test_options_without_a_counterpart_are_named(
    program: ExportedProgram, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        CloudAI100().compile(program, spec(mos=1, mdts_mos=1, extra_compiler_args=["-v"]), folder)
    assert "no option for mdts_mos, extra_compiler_args: no effect" in caplog.text


# Tools that fail


@pytest.mark.parametrize(
    ("variable", "tool", "missing"),
    [
        ("QAIC_SIM_CONVERTER_FAULT", "qairt-converter", r"wrote no model\.dlc"),
        ("QAIC_SIM_GENERATOR_FAULT", "qnn-context-binary-generator", r"wrote no programqpc\.bin"),
    ],
)
def test_faults_of_the_tools(
    wide: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, tool: str, missing: str
) -> None:
    asked = {"device": "cloud_ai_100", "compile_dir": tmp_path / "compiled", "enable_qnn": True, **GEOMETRY, **SLOTS}
    for fault, said in (
        ("exit255", rf"{tool} ended with exit code 255:\n(.|\n)*\ncommand: .*{tool} --"),
        ("abort", f"{tool} ended with the signal SIGABRT"),
        ("nothing", rf"^{tool} {missing}\. It ended without an error(.|\n)*\ncommand: .*{tool} --"),
    ):
        monkeypatch.setenv(variable, fault)
        with pytest.raises(DeviceError, match=said):
            wide.compile(**asked)
        left = [path.name for path in (tmp_path / "compiled").rglob("*")]
        assert not [name for name in left if not name.startswith(".lock-")]
    monkeypatch.delenv(variable)
    assert wide.compile(**asked)


def test_a_tool_that_cannot_be_started(program: ExportedProgram, folder: Path, qnn_sdk: Path) -> None:
    (qnn_sdk / "bin" / "x86_64-linux-clang" / "qairt-converter").chmod(0o644)
    with pytest.raises(DeviceError, match=r"qairt-converter cannot be executed by this user\. Check its permissions"):
        CloudAI100().compile(program, spec(), folder)
    with pytest.raises(DeviceError, match=r"qairt-converter cannot be executed by this user"):
        CloudAI100().own_options({"enable_qnn": True})  # which is asked before the export


def test_a_program_that_is_another_one(program: ExportedProgram, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from QEfficient.devices.cloud_ai_100 import compilation

    monkeypatch.setattr(compilation, "_sizes", lambda graph, entry: {"input_ids": (7, 7)})
    with pytest.raises(DeviceError, match=r"input_ids should be \[7, 7\] and is \["):
        CloudAI100().compile(program, spec(), folder)


# Tokens


@pytest.mark.parametrize("options", [{}, {"mxfp6_matmul": True, "mxint8_kv_cache": True}, {"num_devices": 2}], ids=str)
def test_the_tokens_of_the_native_route(wide: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    ids, found = [[5, 9, 200, 17], [3], [250, 8, 8, 1, 77, 30, 12, 6, 99, 101], [64, 65], [7, 7, 7]], []
    for enable_qnn in (False, True):
        where = {"device": "cloud_ai_100", "compile_dir": tmp_path / str(enable_qnn)}
        wide.compile(**where, enable_qnn=enable_qnn, **GEOMETRY, **SLOTS, **options)
        found.append(tokens(wide, ids))
    assert found[0] == found[1] and len({tuple(one) for one in found[0]}) > 1


def test_the_tokens_of_a_model_with_windows(tmp_path: Path) -> None:
    """Without continuous batching."""
    model = tiny_model("gemma2")
    wrapped = QEFFAutoModelForCausalLM(model)
    found = []
    for device, options in (("reference", {}), ("cloud_ai_100", {"enable_qnn": True})):
        wrapped.compile(device=device, compile_dir=tmp_path / device, **GEOMETRY, **options)
        found.append(tokens(wrapped, prompts(model)))
    assert found[0] == found[1]


# From scripts and from the command line


def test_the_old_function(program: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QEFF_DEVICE", "cloud_ai_100")
    made = legacy_compile(
        program.onnx_path("lm"), tmp_path / "qpc", 16, [0], mos=1, prompt_len=8, ctx_len=64, full_batch_size=4,
        enable_qnn=True, qnn_config=config_file(tmp_path, context_binary_generator_args_extension="--log_level warn"),
    )  # fmt: skip
    root = Path(made) if (Path(made) / "qconfig.json").is_file() else Path(made).parent
    assert load_compiled(root).report["qnn_sdk"]
    assert "--log_level warn" in (root / "compiler.log").read_text()


COMMAND = (
    "-m QEfficient.cloud.infer --model_name demo --batch_size 1 --prompt_len 32 --ctx_len 128 --mxfp6 --num_cores 16"
    " --mos 1 --aic_enable_depth_first --generation_len 8 --prompt"
)


def run_command(folder: Path, *more: str, simulator: str = "1") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "QEFF_HOME": str(folder / "home"), "QEFF_QAIC_SIMULATOR": simulator}
    environment |= {"QEFF_DEVICE": "cloud_ai_100", "QNN_SDK_ROOT": ""}
    command = [sys.executable, *COMMAND.split(), "My name is", *more]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)


def test_the_command_of_existing_scripts(tmp_path: Path) -> None:
    told = config_file(tmp_path, qnn_compilation_backend={"compiler_printPerfMetrics": True})
    for more in (
        ["--device_group", "[0]", "--enable_qnn"],
        ["--enable-qnn", told],
        ["--device_group", "[0,1]", "--enable_qnn", "--mxint8", "--full_batch_size", "4"],
    ):
        done = run_command(tmp_path, *more)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("My name is ") and "Decode is=" in done.stdout + done.stderr
    backends = [json.loads(path.read_text()) for path in (tmp_path / "home").rglob("qnn_compile_backend.json")]
    assert len(backends) == 3
    assert sum(backend["compiler_printPerfMetrics"] for backend in backends) == 1
    for backend in backends:
        assert backend["compiler_enable_depth_first"] and backend["compiler_mxfp6_matmul_weights"]
        assert backend["compiler_max_out_channel_split"] == "1"


def test_the_command_without_qnn_s_sdk(tmp_path: Path) -> None:
    done = run_command(tmp_path, "--enable_qnn", simulator="0")
    assert done.returncode == 1 and done.stdout == ""
    assert "QNN_SDK_ROOT is not set" in done.stderr and "QEFF_QAIC_SIMULATOR=1" in done.stderr
    assert "Traceback" not in done.stderr
