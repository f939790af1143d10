"""What QNN's two tools are told, argument for argument, and every file beside them.

The files in `qnn_goldens/` are the judge: they were written from the description of the tools' interface, not by the
code under test. Where they differ, the description decides.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from QEfficient.devices.cloud_ai_100.options import read_options
from QEfficient.devices.cloud_ai_100.qnn import files as qnn_files
from QEfficient.devices.cloud_ai_100.qnn import tools
from QEfficient.devices.cloud_ai_100.qnn.tools import QnnCompilation, QnnConfig, QnnFiles, QnnSdk
from QEfficient.errors import DeviceError, OptionError
from QEfficient.program import GraphSpec, StateSpec, TensorSpec, state_name
from QEfficient.specs import CompileSpec, Specialization

GOLDENS = sorted((Path(__file__).parent / "qnn_goldens").glob("*.json"))
SDK = QnnSdk(Path("/opt/qairt"), "2.34.0")
FILES = QnnFiles(Path("/models/tiny/qnn"), Path("/models/tiny/Tiny.onnx"))
TWO = tuple(
    Specialization(name, {"batch_size": 1, "seq_len": length}) for name, length in (("Prefill", 8), ("Decode", 1))
)


def state(name: str, dtype: str, slots: str) -> StateSpec:
    kind, _, layer = name.partition(".")
    shapes = {"recurrent": (slots, 2, 4, 8), "tokens": (slots, "ctx_len")}
    dtype = "int64" if kind == "tokens" else dtype
    shape = shapes.get(kind, (slots, 2, "ctx_len", 32))
    return StateSpec(TensorSpec(state_name(kind, int(layer)), dtype, shape), kind, int(layer))


def graph_of(states: list[str], dtype: str = "float32", continuous_batching: bool = False) -> GraphSpec:
    grid = ("batch_size", "seq_len")
    inputs = [TensorSpec(name, "int64", grid) for name in ("input_ids", "position_ids")]
    if continuous_batching:
        inputs.append(TensorSpec("batch_index", "int64", ("batch_size", 1)))
    slots = "full_batch_size" if continuous_batching else "batch_size"
    logits = TensorSpec("logits", dtype, ("batch_size", 1, 64))
    return GraphSpec(tuple(inputs), (logits,), tuple(state(name, dtype, slots) for name in states))


def asked_for(record: dict[str, Any]) -> QnnCompilation:
    """What a golden file asks for."""
    spec = CompileSpec(**record["spec"])
    graph = graph_of(record["graph"], record["dtype"], spec.continuous_batching)
    options, config = read_options(record["options"]), tools.qnn_config(record["qnn_config"])
    return QnnCompilation(SDK, FILES, graph, spec.specializations(), options, config, record["dtype"])


PLAIN = QnnCompilation(SDK, FILES, graph_of([]), TWO)


def backend_of(asked: QnnCompilation) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tools.texts(asked)[FILES.backend])
    return found


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    asked = asked_for(record)
    assert tools.converter_command(asked) == record["converter"]
    assert tools.context_binary_command(asked) == record["context_binary"]
    texts = {path.name: text for path, text in tools.texts(asked).items()}
    assert all(path.parent == FILES.folder for path in tools.texts(asked))
    found = {name: json.loads(t) if name.endswith(".json") else t.split("\n") for name, t in texts.items()}
    assert found == record["files"]


def test_there_are_goldens() -> None:
    assert len(GOLDENS) >= 8


# The SDK


@pytest.fixture
def sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QnnSdk:
    """One that is complete, on a machine that it is for."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("QEFF_QAIC_SIMULATOR", raising=False)
    monkeypatch.setenv("QNN_SDK_ROOT", str(tmp_path))
    installed = QnnSdk(tmp_path)
    for path in (installed.converter, installed.context_binary_generator, installed.backend, installed.extensions):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o755)
    (tmp_path / "sdk.yaml").write_text("product: qairt\nversion: 2.34.0.250424\n")
    return installed


def test_the_sdk_is_found(sdk: QnnSdk) -> None:
    assert tools.find_qnn_sdk() == replace(sdk, version="2.34.0.250424")
    assert sdk.converter == sdk.root / "bin/x86_64-linux-clang/qairt-converter"
    assert sdk.extensions == sdk.root / "lib/x86_64-linux-clang/libQnnAicNetRunExtensions.so"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('version: "v2.31.0"', "2.31.0"),
        ("sdk:\n  sdk_version : '2.20'", "2.20"),
        ("Version: 2.34.0.250424153241_118\n", "2.34.0.250424153241"),
        ("product: qairt", None),
        ("version: [", None),
        ("", None),
    ],
)
def test_the_version_is_read_tolerantly(sdk: QnnSdk, text: str, version: str | None) -> None:
    (sdk.root / "sdk.yaml").write_text(text)
    assert tools.find_qnn_sdk().version == version


def test_a_file_that_is_no_text_has_no_version(sdk: QnnSdk, caplog: pytest.LogCaptureFixture) -> None:
    """Which is told, once."""
    (sdk.root / "sdk.yaml").write_bytes(b"\xff\xfe\x00")
    assert tools.find_qnn_sdk().version is tools.find_qnn_sdk().version is None
    (said,) = caplog.messages
    assert said.startswith(f"the version of QNN's SDK cannot be read from {sdk.root / 'sdk.yaml'}.")


def test_an_sdk_that_nobody_named(sdk: QnnSdk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QNN_SDK_ROOT")
    with pytest.raises(
        DeviceError, match="QNN_SDK_ROOT is not set. Install the SDK and set QNN_SDK_ROOT to the folder"
    ):
        tools.find_qnn_sdk()


def test_the_simulator_goes_before_an_installed_sdk(
    sdk: QnnSdk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QEFF_QAIC_SIMULATOR", "1")
    found = tools.find_qnn_sdk()
    assert found.root.is_relative_to(tmp_path / "home") and found.version
    assert (found.root / "SIMULATED").is_file()


def test_the_tools_find_their_own_libraries(sdk: QnnSdk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    environment = sdk.environment()
    assert environment["PYTHONPATH"] == f"{sdk.root}/lib/python:/mine"
    assert environment["LD_LIBRARY_PATH"] == f"{sdk.root}/lib/x86_64-linux-clang"
    assert environment["QNN_SDK_ROOT"] == str(sdk.root)


@pytest.mark.parametrize(
    "part", ["sdk.yaml", "bin/x86_64-linux-clang/qairt-converter", "lib/x86_64-linux-clang/libQnnAic.so"]
)
def test_an_sdk_that_lacks_a_part(sdk: QnnSdk, part: str) -> None:
    (sdk.root / part).unlink()
    with pytest.raises(DeviceError, match=f"which holds no {part}"):
        tools.find_qnn_sdk()


@pytest.mark.parametrize("tool", ["qairt-converter", "qnn-context-binary-generator"])
def test_a_tool_that_cannot_be_executed(sdk: QnnSdk, tool: str) -> None:
    (sdk.converter.parent / tool).chmod(0o644)
    with pytest.raises(DeviceError, match=f"{tool} cannot be executed by this user. Check its permissions"):
        tools.find_qnn_sdk()


def test_a_machine_that_the_tools_are_not_for(sdk: QnnSdk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(DeviceError, match="on x86-64 only, but this is linux on aarch64"):
        tools.find_qnn_sdk()


# The user's file


def test_a_user_s_file(tmp_path: Path) -> None:
    path = tmp_path / "qnn.json"
    path.write_text('{"converter_args_extension": "--onnx_defer_loading --copyright_file \'a b\'"}')
    assert tools.read_qnn_config(path).converter_arguments == ("--onnx_defer_loading", "--copyright_file", "a b")
    assert tools.read_qnn_config(None) == QnnConfig()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "must hold an object with some of converter_args_extension"),
    ],
)
def test_a_file_that_says_nothing(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "qnn.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(OptionError, match=said):
        tools.read_qnn_config(path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"converter_arg_extension": ""}, "Did you mean 'converter_args_extension'"),
        ({"SKIP_QNN_CONVERTER_STEP": "no"}, "must be true or false, not 'no'"),
        ({"converter_args_extension": 3}, "a text or a list of texts, not 3"),
        ({"converter_args_extension": ["-x", ""]}, "a text or a list of texts"),
        ({"converter_args_extension": "--dry_run 'open"}, "cannot be split into arguments"),
        ({"converter_args_extension": "stray"}, "must begin with an option, not with 'stray'"),
        ({"qnn_compilation_backend": []}, "settings by name"),
        ({"qnn_compilation_backend": {"compiler_num_cores": 4}}, "Did you mean 'compiler_num_of_cores'"),
        ({"qnn_compilation_backend": {"compiler_num_of_cores": "4"}}, "must be a whole number, not '4'"),
        ({"qnn_compilation_backend": {"compiler_num_of_cores": True}}, "must be a whole number, not True"),
        ({"qnn_compilation_backend": {"compiler_time_passes": 1}}, "must be true or false, not 1"),
        ({"qnn_compilation_backend": {"compiler_VTCM_working_set_limit_ratio": "1"}}, "must be a number"),
        ({"qnn_compilation_backend": {"graph_names": "model"}}, "must be a list"),
    ],
)
def test_what_a_user_s_file_may_not_say(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        tools.qnn_config(given)


@pytest.mark.parametrize(
    "argument",
    ["--input_network m", "-i m", "-im", "--output_path=d", "--out d", "--config c", "--float_bitwidth 32",
     "--float_bias_bitwidth 16", "--preserve_io_datatype", "-oss", "--onnx_skip_simplification",
     "--target_backend HTP"],
)  # fmt: skip
def test_arguments_of_the_converter_that_are_not_the_user_s(argument: str) -> None:
    with pytest.raises(OptionError, match="which the program and its options decide. Leave it out"):
        tools.qnn_config({"converter_args_extension": f"--onnx_defer_loading {argument}"})


@pytest.mark.parametrize(
    "argument",
    ["--binary_file b", "--backend_binary=p", "--backend b", "--output_dir d", "--model m", "--dlc_path d", "--dlc d",
     "--config_file c", "--data_format_config f"],
)  # fmt: skip
def test_arguments_of_the_generator_that_are_not_the_user_s(argument: str) -> None:
    with pytest.raises(OptionError, match="which the program and its options decide. Leave it out"):
        tools.qnn_config({"context_binary_generator_args_extension": f"--log_level debug {argument}"})


def test_arguments_that_look_like_fixed_ones_but_are_free() -> None:
    free = ("-opc", "ops.xml", "--onnx_define_symbol", "height", "4", "--target_soc_model", "AIC100")
    assert tools.qnn_config({"converter_args_extension": list(free)}).converter_arguments == free


@pytest.mark.parametrize(
    ("key", "value"),
    [("compiler_retained_state", True), ("graph_names", ["a", "b"]), ("compiler_hardware_version", "3.0")],
)
def test_settings_that_the_program_decides(key: str, value: Any) -> None:
    own = backend_of(PLAIN)[key]
    assert backend_of(replace(PLAIN, config=QnnConfig(backend={key: own})))[key] == own
    with pytest.raises(OptionError, match=f"sets '{key}' to .*, but the program and its options ask for"):
        tools.texts(replace(PLAIN, config=QnnConfig(backend={key: value})))


def test_a_user_s_partitions_go_without_ours_only() -> None:
    config = QnnConfig(backend={"compiler_mdp_load_partition_config": "mine.json"})
    told = backend_of(replace(PLAIN, config=config))["compiler_mdp_load_partition_config"]
    assert told == str(Path("mine.json").absolute())  # the tools run elsewhere
    with pytest.raises(OptionError, match="sets 'compiler_mdp_load_partition_config' to 'mine.json'"):
        tools.texts(replace(PLAIN, options=read_options({"num_devices": 2}), config=config))


def test_skipping_the_converter_has_no_effect_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """There is never a converted graph to take: each compilation starts in an empty folder."""
    with caplog.at_level(logging.WARNING):
        asked = replace(PLAIN, config=QnnConfig(skips_converter=True))
    assert "SKIP_QNN_CONVERTER_STEP has no effect" in caplog.text
    assert tools.converter_command(asked) == tools.converter_command(PLAIN)


def test_the_converted_graph_lies_where_nothing_is_kept() -> None:
    asked = replace(PLAIN, files=replace(FILES, scratch=Path("/scratch")))
    for command in (tools.converter_command(asked), tools.context_binary_command(asked)):
        assert "/scratch/model.dlc" in command


@pytest.mark.parametrize(
    ("backend", "options", "said"),
    [
        ({"compiler_hardware_version": "3.0"}, {}, "ask for '2.0'"),
        ({"compiler_convert_to_FP16": False}, {}, "ask for True"),
        ({"compiler_mdp_load_partition_config": "a"}, {"num_devices": 2}, "ask for 'a file for 2 devices'"),
        ({"compiler_mdp_load_partition_config": "a"}, {"mdp_load_partition_config": "b"}, "ask for 'b'"),
    ],
)
def test_settings_that_are_refused_before_there_is_a_program(
    backend: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    QnnConfig(backend={"compiler_hardware_version": "2.0", "compiler_num_of_cores": 4}).check(read_options(options))
    with pytest.raises(OptionError, match=f"sets 'compiler_.*{said}. Leave it out"):
        QnnConfig(backend=backend).check(read_options(options))


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ('{"partitions": [{"devices": [{"deviceId": 0}, {"deviceId": 1}]}, {"devices": [{"deviceId": 2}]}]}', 3),
        ("{", None),
        ("{}", None),
        ('{"partitions": [{"devices": [3]}]}', None),
        ('{"partitions": [{"devices": []}]}', None),
        (None, None),
    ],
)
def test_devices_of_partitions(tmp_path: Path, text: str | None, devices: int | None) -> None:
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_text(text)
    if devices:
        assert qnn_files.partition_devices(path) == devices
        return
    with pytest.raises(OptionError, match="mine.json is no file of partitions: an object is expected"):
        qnn_files.partition_devices(path)


def test_a_log_level_of_the_user_replaces_ours() -> None:
    for given in (("--log_level=debug",), ("--log_level", "debug")):
        command = tools.context_binary_command(replace(PLAIN, config=QnnConfig(context_binary_arguments=given)))
        assert sum("log_level" in argument for argument in command) == 1


# What the tools cannot do


def test_at_most_two_specializations() -> None:
    third = Specialization("Middle", {"batch_size": 1, "seq_len": 4})
    with pytest.raises(OptionError, match="take 1 or 2 specializations, but there are 3"):
        replace(PLAIN, specializations=(*TWO, third))
    with pytest.raises(OptionError, match="there are 0"):
        replace(PLAIN, specializations=())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"aic_hw_version": "ai200"}, "for ai100 only, not for ai200"),
        ({"mdp_num_partitions": 2, "num_devices": 2}, "mdp_num_partitions does not go with enable_qnn"),
    ],
)
def test_options_that_the_tools_cannot_do(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        replace(PLAIN, options=read_options(options))


def test_no_bfloat16() -> None:
    with pytest.raises(OptionError, match="float16 only, but the program has bfloat16"):
        replace(PLAIN, dtype="bfloat16")


def test_options_without_a_counterpart_are_said(caplog: pytest.LogCaptureFixture) -> None:
    given = read_options({"mos": 2, "node_precision_info": "n.yaml", "extra_compiler_args": ["-x"]})
    with caplog.at_level(logging.WARNING):
        asked = replace(PLAIN, options=given)
    assert "no option for node_precision_info, extra_compiler_args: no effect" in caplog.text
    assert backend_of(asked)["compiler_max_out_channel_split"] == "2"


# The files


def test_every_spelling_is_a_setting() -> None:
    assert set(qnn_files.SPELT.values()) | set(qnn_files.DECIDED) | set(qnn_files.QUIET) <= set(qnn_files.SETTINGS)


def test_the_settings_are_those_of_the_description() -> None:
    compiler = """
        compilation_target hardware_version convert_to_FP16 mxfp6_matmul_weights exclude_mxfp6_matmul mxint8_mdp_io
        retained_state num_of_cores max_out_channel_split overlap_split_factor do_DDR_to_multicast enable_depth_first
        size_split_granularity VTCM_working_set_limit_ratio buffer_dealloc_delay stat_level stats_batch_size
        perfWarnings printPerfMetrics printDDRStats time_passes PMU_events PMU_recipe_opt genCRC crc_stride
        cluster_sizes combine_inputs combine_outputs userDMAProducerDMAEnabled directApi compileThreads
        force_VTCM_spill mdp_load_partition_config mdp_dump_partition_config"""
    runtime = "device_ids num_activations submit_timeout submit_num_retries threads_per_queue"
    expected = {f"compiler_{n}" for n in compiler.split()} | {f"runtime_{n}" for n in runtime.split()} | {"graph_names"}
    assert set(qnn_files.SETTINGS) == expected


def test_settings_have_the_type_that_the_backend_expects() -> None:
    given = {"mos": [2, 4], "sdp_cluster_sizes": "8,8", "vtcm_working_set_limit_ratio": 1, "aic_pmu_events": ["1", "2"]}
    settings = backend_of(replace(PLAIN, options=read_options(given)))
    assert qnn_files.check_settings(settings) == settings
    assert settings["compiler_max_out_channel_split"] == "2 4"


def test_names_are_quoted_where_yaml_would_read_something_else() -> None:
    names = ("1", "null", "Yes", "a: b", "#1", "/layer/out", "past_key.0", "é")
    graph = GraphSpec(tuple(TensorSpec(name, "int64", (1,)) for name in names), ())
    read = yaml.safe_load(qnn_files.custom_io_text(graph, TWO))
    assert [item["Name"] for item in read["Input Tensor Configuration"]] == list(names)


def test_mxint8_without_a_cache_needs_no_file_of_formats() -> None:
    asked = replace(PLAIN, options=read_options({"mxint8_kv_cache": True}))
    assert not asked.holds_block_floats
    assert FILES.data_format not in tools.texts(asked)
