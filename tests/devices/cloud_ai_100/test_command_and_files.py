"""What Qualcomm's compiler is told, byte for byte.

The files in `goldens/` are the judge: they were written from the description of the compiler's interface, not by the
code under test. Where they differ, the description decides.
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from QEfficient.devices.cloud_ai_100 import CloudAI100, options
from QEfficient.devices.cloud_ai_100.command import Compilation, Files, command, legacy_command
from QEfficient.devices.cloud_ai_100.custom_io import custom_io_text
from QEfficient.devices.cloud_ai_100.options import CompilerOptions, read_options, render
from QEfficient.devices.cloud_ai_100.partitions import (
    layers_per_partition,
    pipeline_text,
    slices_text,
)
from QEfficient.devices.cloud_ai_100.qconfig import Origin, compiler_config, qconfig
from QEfficient.devices.cloud_ai_100.sdk import (
    DEFAULT_ROOT,
    ROOT_VARIABLE,
    Sdk,
    find_sdk,
    hardware_version,
    query_tool,
    sdk_root,
)
from QEfficient.devices.cloud_ai_100.specializations_file import check_told_apart, specializations_text
from QEfficient.errors import DeviceError, OptionError
from QEfficient.program import GraphSpec, StateSpec, TensorSpec
from QEfficient.specs import CompileSpec, Specialization

GOLDENS = sorted((Path(__file__).parent / "goldens").glob("*.json"))
FOLDER = Path("/models/tiny/qpc-0123456789abcdef")
ONNX = Path("/models/tiny/Tiny.onnx")
NEW = Sdk(DEFAULT_ROOT, DEFAULT_ROOT / "exec/qaic-compile", "1.22.0")
OLD = replace(NEW, version="1.21.6")


def state(kind: str, layer: int = 0, dtype: str = "float32") -> StateSpec:
    names = {"key": "past_key", "value": "past_value", "recurrent": "recurrent_state", "tokens": "past_tokens"}
    return StateSpec(TensorSpec(f"{names[kind]}.{layer}", dtype, ("batch_size", 2, "ctx_len", 8)), kind, layer)


def graph_of(*states: StateSpec) -> GraphSpec:
    return GraphSpec((), (), states)


class Case:
    """A golden file, and what the code makes of its first half."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        compiler = DEFAULT_ROOT / "exec" / record["sdk"]["compiler"]
        self.sdk = Sdk(DEFAULT_ROOT, compiler, record["sdk"]["version"])
        self.spec = CompileSpec(**record["spec"])
        self.options = read_options(record["options"])
        layers = range(record["layers"])
        self.graph = graph_of(*(state(kind, layer) for layer in layers for kind in ("key", "value")))
        self.custom_io = custom_io_text(self.graph, record["dtype"], self.options.mxint8_kv_cache)

    def argv(self) -> list[str]:
        legacy = self.record.get("legacy")
        asked = Compilation(
            self.sdk,
            self._files(),
            self.options,
            dtype=self.record["dtype"],
            retained_state=bool(self.graph.states),
            sub_functions=self.record.get("sub_functions", False),
        )
        return legacy_command(asked) if legacy else command(asked)

    def _files(self) -> Files:
        legacy = self.record.get("legacy")
        if legacy:
            return Files.legacy(Path(legacy["folder"]), ONNX, Path(legacy["custom_io"]))
        files = Files.within(FOLDER, ONNX, self.options.num_devices, custom_io_written=self.custom_io is not None)
        return files.with_pipeline(self.options) if self.options.is_pipeline else files

    def texts(self) -> dict[str, str | None]:
        entries = self.record.get("specializations") or self.spec.specializations(self.record.get("windows"))
        texts = {
            "specializations.json": specializations_text(entries, self.sdk),
            "custom_io.yaml": self.custom_io,
        }
        files = self._files()
        if files.pipeline is not None:
            lists = self.record["node_lists"]
            texts[files.pipeline.name] = pipeline_text(lists, self.options.num_devices, self.options.num_cores)
        elif self.options.slices_tensors:
            assert files.slices is not None
            texts[files.slices.name] = slices_text(self.options.num_devices, self.options.num_cores)
        return texts


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    case = Case(json.loads(path.read_text(encoding="utf-8")))
    assert case.argv() == case.record["argv"]
    expected = {n: None if lines is None else "\n".join(lines) for n, lines in case.record["files"].items()}
    assert case.texts() == expected


def test_there_are_goldens() -> None:
    assert len(GOLDENS) >= 20


# Options


def test_an_unknown_option_gets_a_suggestion() -> None:
    with pytest.raises(OptionError, match="does not know the option 'mxfp6_matmull'. Did you mean 'mxfp6_matmul'?"):
        read_options({"mxfp6_matmull": True})
    with pytest.raises(OptionError, match="Did you mean 'aic_enable_depth_first'.*extra_compiler_args"):
        read_options({"aic_enable_depthfirst": True})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mxfp6_matmul", 1),
        ("mxfp6_matmul", "True"),
        ("num_cores", "16"),
        ("num_cores", True),
        ("num_cores", 0),
        ("num_cores", 17),
        ("num_devices", -1),
        ("num_devices", False),
        ("mos", 0),
        ("mos", []),
        ("mos", "1,x"),
        ("mdts_mos", 1.5),
        ("aic_depth_first_mem", 7),
        ("vtcm_working_set_limit_ratio", 1.01),
        ("vtcm_working_set_limit_ratio", float("nan")),
        ("percentile_calibration_value", "99"),
        ("node_precision_info", ""),
        ("node_precision_info", True),
        ("io_encrypt", 3),
        ("execute_nodes_in_fp16", [1]),
        ("aic_pmu_events", [str(event) for event in range(9)]),
        ("extra_compiler_args", "-v"),
        ("extra_compiler_args", [3]),
    ],
)
def test_values_of_another_kind_are_refused(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"option '{name}' must be .*, not "):
        read_options({name: value})


def test_a_choice_is_refused_with_what_there_is() -> None:
    with pytest.raises(OptionError, match=r"'aic_hw_version' is 'ai20', which is not one of ai100, ai200\. Did you"):
        read_options({"aic_hw_version": "ai20"})
    with pytest.raises(OptionError, match="which is not one of ai100, ai200"):
        read_options({"aic_hw_version": 2.0})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"aic_depth_first_mem": 8}, "'aic_depth_first_mem' has a meaning with 'aic_enable_depth_first' only"),
        ({"aic_depth_first_mem": 8, "aic_enable_depth_first": False}, "has a meaning with"),
        ({"io_crc_stride": 256}, "Give io_crc too"),
        ({"qnn_config": "q.json"}, "Give enable_qnn too"),
        ({"host_preproc": True, "aic_preproc": True}, "exclude each other"),
        ({"convert_to_quantize": True, "dump_profile": "p"}, "exclude each other"),
        ({"convert_to_quantize": True, "load_profile": "p"}, "exclude each other"),
        ({"mdp_load_partition_config": "m.json", "mdp_num_partitions": 2}, "mdp_num_partitions 2 was asked for too"),
        ({"mdp_num_partitions": 4, "num_devices": 2}, "mdp_num_partitions 4 needs as many devices"),
        ({"mdp_strategy": "intersection"}, "needs mdp_compiler_dump_path"),
        ({"mos": [1, 8], "num_cores": 4}, "mos 8 is larger than num_cores 4"),
        ({"mos": [1, 2]}, "mos has 2 numbers, one for each cluster of cores, but sdp_cluster_sizes has 0. Give as"),
        ({"mos": "1,2", "sdp_cluster_sizes": [2, 2, 2]}, "mos has 2 numbers.*sdp_cluster_sizes has 3"),
        ({"aic_num_of_instances": 2}, "needs 32 cores, but a device has 16"),
        ({"mdts-mos": 1, "mdts_mos": 2}, "given twice"),
        ({"convert_to_fp16": True}, "the dtype of the export decides it"),
        ({"aic_num_cores": 8}, "it is called num_cores here"),
        ({"custom_IO_list_file": "c.yaml"}, "mxint8_kv_cache"),
        ({"extra_compiler_args": ["-name", "value"]}, "'value', but the compiler takes '-name' and '-name=value' only"),
    ],
)
def test_what_cannot_go_together_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        read_options(given)


def test_options_are_spelt_as_the_compiler_spells_them() -> None:
    given = {
        "use_producer_dma": True,
        "io_crc": False,
        "io_encrypt": "chacha",
        "dump_custom_IO_config_template": Path("t.yaml"),
        "vtcm_working_set_limit_ratio": 0.5,
        "execute_nodes_in_fp16": ["Add", "Mul"],
        "aic_pmu_events": "12,13",
        "vv": True,
    }
    assert render(read_options(given).passed) == [
        "-use-producer-dma",
        "-io-encrypt=chacha",
        "-dump-custom-IO-config-template=t.yaml",
        "-vtcm-working-set-limit-ratio=0.5",
        "-execute-nodes-in-fp16=Add,Mul",
        "-aic-pmu-events=12,13",
        "-vv",
    ]


@pytest.mark.parametrize(("given", "told"), [("true", ["-io-encrypt"]), (True, ["-io-encrypt"]), ("False", [])])
def test_yes_and_no_as_texts(given: bool | str, told: list[str]) -> None:
    """Where a text may stand in place of a flag."""
    assert render(read_options({"io_encrypt": given}).passed) == told


def test_none_means_not_given() -> None:
    assert read_options({"aic_hw_version": None, "qnn_config": None, "node_precision_info": None}) == CompilerOptions()


def test_no_devices_are_the_usual_one() -> None:
    """What scripts give where nobody named any."""
    assert read_options({"num_devices": 0}) == read_options({"num-devices": 0}) == CompilerOptions()
    assert CloudAI100().own_options({"num_devices": 0}) == {}


def test_what_is_so_anyway_makes_no_other_compilation() -> None:
    plain = {"mxfp6_matmul": False, "num-devices": 1, "mos": -1, "time_passes": False, "mxint8_kv_cache": None}
    assert CloudAI100().own_options({**plain, "num_cores": 14, "ols": 2}) == {"num_cores": 14, "ols": 2}


def test_compile_only_is_dropped_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    options._say_dropped.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):  # a program's options are read at several places
            assert read_options({"compile_only": True}) == CompilerOptions()
    assert [message.count("compile_only") for message in caplog.messages] == [1]


def test_files_that_options_name_must_exist(tmp_path: Path) -> None:
    present = tmp_path / "nodes.yaml"
    present.touch()
    read_options({"node_precision_info": present}).check_files()
    with pytest.raises(OptionError, match="'mdp_load_partition_config' names the file absent.json, which does not"):
        read_options({"mdp_load_partition_config": "absent.json"}).check_files()


# The command


def asked(options: dict[str, Any], **more: Any) -> Compilation:
    return Compilation(NEW, Files.within(FOLDER, ONNX), read_options(options), **more)


def test_an_option_asked_for_wins_over_the_hardware_found() -> None:
    assert "-aic-hw-version=ai200" in command(asked({}, hardware="ai200"))
    assert "-aic-hw-version=ai100" in command(asked({"aic_hw_version": "ai100"}, hardware="ai200"))


@pytest.mark.parametrize("extra", ["-aic-binary-dir=/elsewhere", "-convert-to-fp16", "-aic-num-cores=2"])
def test_nothing_is_said_twice(extra: str) -> None:
    for write in (command, legacy_command):
        with pytest.raises(OptionError, match=f"told '{extra.partition('=')[0]}' twice"):
            write(asked({"extra_compiler_args": [extra]}))


def test_what_may_be_repeated_is() -> None:
    repeated = ["-register-custom-op=a.yaml", "-register-custom-op=b.yaml"]
    assert command(asked({"extra_compiler_args": repeated}))[7:9] == repeated


def test_sub_functions_are_named_once() -> None:
    arguments = command(asked({"sub_functions": True, "ols": 2}, sub_functions=True))
    assert arguments.index("-sub-functions") == arguments.index("-ols=2") + 1


def test_profiling_does_not_go_with_half_precision() -> None:
    with pytest.raises(OptionError, match="dump_profile does not go with a program exported in float32"):
        asked({"dump_profile": "p"})
    asked({"dump_profile": "p"}, dtype="bfloat16")


def test_partitions_asked_for_cannot_be_forgotten() -> None:
    with pytest.raises(ValueError, match="mdp_num_partitions"):
        asked({"num_devices": 4, "mdp_num_partitions": 2})


# Specializations


def names(*entries: Any, module: str | None = None) -> list[str]:
    listed = json.loads(specializations_text(entries, NEW, module))["specializations"]
    assert all(isinstance(value, str) for entry in listed for value in entry["symbols"].values())
    assert not any("_graph_name" in entry["symbols"] for entry in listed)
    return [entry["name"] for entry in listed]


def test_names_come_from_shapes() -> None:
    shapes = [{"seq_len": 32}, {"seq_len": "1"}, {"encoder_ctx_len": 9}, {"sequence_length": 9}, {"height": 9}]
    assert names(*shapes) == ["Prefill", "Decode", "Encoder", "Embedding", "Graph_4"]
    assert names({"seq_len": 1, "encoder_ctx_len": 9}) == ["Decode"]


def test_names_that_are_given_go_first() -> None:
    assert names({"_graph_name": "Vision", "seq_len": 1}) == ["Vision"]
    assert names({"_graph_name": "Vision"}, {"size": 1}, module="vae") == ["Vision", "vae"]
    assert names({"model_type": 1}, {"model_type": 2}, module="transformer") == [
        "transformer_model_type_1",
        "transformer_model_type_2",
    ]


def test_names_are_made_unique() -> None:
    decode, named = {"seq_len": 1}, {"name": "Decode", "symbols": {"seq_len": 2}}
    assert names(decode, decode, {"seq_len": 8}, decode) == ["Decode_0", "Decode_1", "Prefill", "Decode_2"]
    assert names(named, decode, {"name": "Decode_0", "symbols": {}}) == ["Decode", "Decode_1", "Decode_0"]
    assert names(Specialization("Decode", {"seq_len": 1}), Specialization("Decode", {"seq_len": 2})) == [
        "Decode_0",
        "Decode_1",
    ]


def test_impossible_lists_are_refused() -> None:
    named = {"name": "Decode", "symbols": {}}
    with pytest.raises(OptionError, match="two specializations are called 'Decode'"):
        names(named, named)
    with pytest.raises(OptionError, match="specialization 0 must have a name and a mapping of symbols"):
        names({"name": "Decode", "symbols": {}, "seq_len": 1})
    with pytest.raises(OptionError, match="is empty"):
        names()


@pytest.mark.parametrize(
    ("asked", "together"),
    [
        (CompileSpec(1, 4, 16, num_speculative_tokens=(0, 3)), True),  # 4 tokens twice, 1 logit twice
        (CompileSpec(1, 4, 16, num_speculative_tokens=(3,)), False),
        (CompileSpec(1, 8, 16, num_speculative_tokens=(0, 3)), False),
        (CompileSpec(1, 4, 16, full_batch_size=2, num_speculative_tokens=(0, 3)), False),  # rows differ
        (CompileSpec(1, 4, 16, comp_ctx_lengths_prefill=(8,), comp_ctx_lengths_decode=(8, 16)), True),
        (CompileSpec(1, 4, 16, comp_ctx_lengths_prefill=(4,), comp_ctx_lengths_decode=(8, 16)), False),
        (CompileSpec(1, 1, 16), False),
    ],
)
def test_one_input_tells_shapes_apart(asked: CompileSpec, together: bool) -> None:
    refused = pytest.raises(OptionError, match="needs one input whose shape is another in each of the 3 shapes")
    with refused if together else contextlib.nullcontext():
        check_told_apart(asked.specializations())


def test_old_compilers_get_symbols_only() -> None:
    entries = [{"name": "Decode", "symbols": {"seq_len": 1}}, {"_graph_name": "Prefill", "seq_len": 8}]
    assert json.loads(specializations_text(entries, OLD)) == {"specializations": [{"seq_len": "1"}, {"seq_len": "8"}]}


# Precision of the state


def test_only_the_cache_is_compressed_and_whole_numbers_stay() -> None:
    graph = graph_of(state("recurrent"), state("key", 1), state("tokens", dtype="int64"))
    expected = [("recurrent_state.0", "float16"), ("past_key.1", "mxint8")]
    text = custom_io_text(graph, "float16", mxint8=True)
    assert text == "".join(
        f" - IOName: {name}{suffix}\n   Precision: {precision}\n\n"
        for name, precision in expected
        for suffix in ("", "_RetainedState")
    )


def test_no_file_where_it_would_say_nothing() -> None:
    assert custom_io_text(graph_of(), "float32") is None
    assert custom_io_text(graph_of(state("key")), "bfloat16") is None


# Devices


@pytest.mark.parametrize(
    ("layers", "partitions", "expected"),
    [
        (8, 3, (3, 3, 2)),
        (10, 4, (2, 3, 3, 2)),
        (5, 2, (3, 2)),
        (12, 4, (3, 3, 3, 3)),
        (11, 4, (3, 3, 3, 2)),
        (9, 4, (2, 3, 2, 2)),
        (7, 1, (7,)),
        (2, 2, (1, 1)),
    ],
)
def test_layers_are_split(layers: int, partitions: int, expected: tuple[int, ...]) -> None:
    assert layers_per_partition(layers, partitions) == expected


def test_every_split_is_complete() -> None:
    for layers in range(1, 40):
        for partitions in range(1, layers + 1):
            split = layers_per_partition(layers, partitions)
            assert sum(split) == layers and split[-1] == layers // partitions and max(split) - min(split) <= 1


@pytest.mark.parametrize(("layers", "partitions"), [(2, 3), (4, 0)])
def test_impossible_splits_are_refused(layers: int, partitions: int) -> None:
    with pytest.raises(OptionError, match=f"{layers} layers cannot be spread over {partitions} partitions"):
        layers_per_partition(layers, partitions)


def test_every_partition_needs_devices_and_nodes() -> None:
    for lists in ([["a"], ["b"], ["c"]], []):
        with pytest.raises(OptionError, match="cannot be spread over 2 devices"):
            pipeline_text(lists, 2, 16)
    with pytest.raises(OptionError, match="has no nodes"):
        pipeline_text([["a"], []], 2, 16)


# The SDK


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An SDK's folder with both compilers and version 1.22.0."""
    (tmp_path / "exec").mkdir()
    (tmp_path / "versions").mkdir()
    for tool in ("qaic-compile", "qaic-exec"):
        (tmp_path / "exec" / tool).write_text("#!/bin/sh\n")
        (tmp_path / "exec" / tool).chmod(0o755)
    for part, version in (("apps", "1.22.0"), ("platform", "1.21.6.0")):
        text = f'<?xml version="1.0"?><versions><ci_build><base_version>{version}</base_version></ci_build></versions>'
        (tmp_path / "versions" / f"{part}.xml").write_text(text)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    return tmp_path


def test_an_sdk_is_found(installed: Path) -> None:
    sdk = find_sdk()
    assert (sdk.tool, sdk.version, sdk.platform_version) == ("qaic-compile", "1.22.0", "1.21.6.0")
    assert sdk.reads_named_specializations and not sdk.runs_after_compiling
    assert query_tool() == installed / "tools/qaic-util"


def test_the_older_compiler_is_taken_where_there_is_no_other(installed: Path) -> None:
    (installed / "exec/qaic-compile").unlink()
    assert find_sdk().tool == "qaic-exec" and find_sdk().runs_after_compiling


@pytest.mark.parametrize(
    ("version", "named"), [("1.21.6", False), ("1.22", True), ("1.22.1.5", True), ("2.0.0", True), (None, False)]
)
def test_named_specializations_need_a_known_version(version: str | None, named: bool) -> None:
    assert replace(NEW, version=version).reads_named_specializations is named


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<versions><base>",
        "<versions>unknown</versions>",
        '<!DOCTYPE v [<!ENTITY a "1.22.0">]><v>&a;</v>',
        "<v>1.22.0</v>" + " " * 70_000,
    ],
)
def test_odd_version_files_are_no_version(installed: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (installed / "versions/apps.xml").write_text(text)
    (installed / "versions/platform.xml").unlink()
    assert (find_sdk().version, find_sdk().platform_version) == (None, None)
    (said,) = caplog.messages
    assert f"the version of the SDK in {installed} cannot be read" in said and "one before 1.22" in said


def test_a_version_that_is_read_needs_no_word(installed: Path, caplog: pytest.LogCaptureFixture) -> None:
    find_sdk()
    assert not caplog.messages


def test_an_absent_sdk_is_said(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("qaic-compile", "qaic-exec"):
        (installed / "exec" / tool).unlink()
    with pytest.raises(DeviceError, match=r"holds no exec/qaic-compile and no exec/qaic-exec\. Install .*QEFF_QAIC_"):
        find_sdk()
    monkeypatch.setenv(ROOT_VARIABLE, str(installed / "absent"))
    with pytest.raises(DeviceError, match=r"there is no folder .*absent\. Install the Apps SDK"):
        find_sdk()
    monkeypatch.delenv(ROOT_VARIABLE)
    assert sdk_root() == DEFAULT_ROOT


def test_a_compiler_that_cannot_be_executed_is_said(installed: Path) -> None:
    (installed / "exec/qaic-compile").chmod(0o644)
    with pytest.raises(DeviceError, match="cannot be executed"):
        find_sdk()


def test_hardware_is_read_from_the_query() -> None:
    assert hardware_version("QID 0\n\tFW IMAGE_VARIANT:AIC200.FOO\n") == "ai200"
    assert hardware_version("QID 0\n\tFW IMAGE_VARIANT:AIC100.FOO\n\tSKU:AIC200\n") == "ai100"
    assert hardware_version("") == "ai100"


# qconfig.json


def test_qconfig_says_what_the_program_was_made_from() -> None:
    given = {"num_devices": 2, "mos": 4, "sdp_cluster_sizes": [2, 2], "extra_compiler_args": ["-v"]}
    compiler = compiler_config(CompileSpec(ctx_len=256), read_options(given))
    origin = Origin("/models/tiny/Tiny.onnx", ["A"], ["B"], {"fingerprint": "0123"})
    written = json.loads(json.dumps(qconfig({"model_type": "tiny"}, origin, compiler, NEW)))
    assert set(written) == {"huggingface_config", "qpc_config"}
    assert written["qpc_config"]["QEff_config"] == {
        "pytorch_transforms": ["A"],
        "onnx_transforms": ["B"],
        "onnx_path": "/models/tiny/Tiny.onnx",
        "fingerprint": "0123",
    }
    assert written["qpc_config"]["aic_sdk_config"] == {"qaic_apps_version": "1.22.0", "qaic_platform_version": None}
    shown = written["qpc_config"]["compiler_config"]
    assert (shown["ctx_len"], shown["num_devices"], shown["mos"]) == (256, 2, 4)
    assert shown["sdp_cluster_sizes"] == [2, 2]
    assert (shown["mdp_num_partitions"], shown["mdp_strategy"], shown["extra_compiler_args"]) == (1, "onnx", ["-v"])
    assert "qnn_config" in qconfig({}, origin, compiler, NEW, {"converter_args_extension": ""})["qpc_config"]
