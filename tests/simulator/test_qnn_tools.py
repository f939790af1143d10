"""The stand-ins for QNN's tools let through what we tell them, and refuse for each of their rules."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from qaic_simulator.qnn.backend import SETTINGS
from qaic_simulator.qnn.converted import NETWORK, RECORD, read_converted
from qaic_simulator.qnn.rules import RULES
from qaic_simulator.qnn.tools import (
    CHECKS,
    CONTEXT_BINARY_NEEDS,
    CONVERTER_NEEDS,
    check_context_binary,
    check_converter,
    convert,
    generate,
    main_converter,
)
from qaic_simulator.rules import Refusal
from QEfficient.devices.cloud_ai_100.qnn import files as qnn_files
from QEfficient.devices.cloud_ai_100.qnn import tools

GOLDENS = sorted((Path(__file__).parents[1] / "devices" / "cloud_ai_100" / "qnn_goldens").glob("*.json"))
HOST = "x86_64-linux-clang"
LIBRARY = "{dir}/lib/x86_64-linux-clang/libQnnAic.so"
CONVERTER = (
    "--input_network {dir}/Tiny.onnx --output_path {dir}/model.dlc --config {dir}/custom_io_config.yaml"
    " --float_bias_bitwidth 32 --float_bitwidth 16 --preserve_io_datatype --onnx_skip_simplification"
    " --target_backend AIC"
)
CONTEXT = (
    "--binary_file qnngraph.serialized --backend_binary programqpc.bin --output_dir {dir}/qpc"
    " --backend {dir}/lib/x86_64-linux-clang/libQnnAic.so --dlc_path {dir}/model.dlc"
    " --config_file {dir}/qnn_compiler_config.json --data_format_config {dir}/formats.json --log_level error"
)
INPUTS, OUTPUTS, DESIRED = "Input Tensor Configuration", "Output Tensor Configuration", "Desired Model Parameters"
GRID = ("batch_size", "seq_len")
STATES = {"key": "past_key", "value": "past_value", "recurrent": "recurrent_state", "tokens": "past_tokens"}


def value(name: str, shape: tuple[str | int, ...], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def network(states: list[str], dtype: str = "float32", continuous_batching: bool = False) -> onnx.ModelProto:
    """A network with our inputs and outputs: logits that count tokens, and states that are one more each time."""
    real = TensorProto.FLOAT16 if dtype == "float16" else TensorProto.FLOAT
    inputs = [value(name, GRID, TensorProto.INT64) for name in ("input_ids", "position_ids")]
    inputs += [value("batch_index", ("batch_size", 1), TensorProto.INT64)] if continuous_batching else []
    outputs = [value("logits", ("batch_size", 1, 64), real)]
    constants = [helper.make_tensor("axes", TensorProto.INT64, [1], [1]), ones("head", real, (64,))]
    nodes = [
        helper.make_node("Add", ["input_ids", "position_ids"], ["tokens"]),
        helper.make_node("Cast", ["tokens"], ["numbers"], to=real),
        helper.make_node("ReduceMean", ["numbers"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Unsqueeze", ["mean", "axes"], ["column"]),
        helper.make_node("Mul", ["column", "head"], ["logits"]),
    ]
    slots = "full_batch_size" if continuous_batching else "batch_size"
    shapes: dict[str, tuple[str | int, ...]] = {"recurrent": (slots, 2, 4, 8), "tokens": (slots, "ctx_len")}
    for state in states:
        kind, _, layer = state.partition(".")
        shape, element = shapes.get(kind, (slots, 2, "ctx_len", 32)), TensorProto.INT64 if kind == "tokens" else real
        name = f"{STATES[kind]}.{layer}"
        inputs.append(value(name, shape, element))
        outputs.append(value(f"{name}_RetainedState", shape, element))
        constants.append(ones(f"one.{name}", element, (1,)))
        nodes.append(helper.make_node("Add", [name, f"one.{name}"], [f"{name}_RetainedState"]))
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def ones(name: str, kind: int, shape: tuple[int, ...]) -> onnx.TensorProto:
    return helper.make_tensor(name, kind, shape, [1] * shape[0])


def entry(name: str, dtype: str, shape: str | None = None) -> dict[str, Any]:
    return {"Name": name, DESIRED: {"DataType": dtype} | ({"Shape": shape} if shape else {})}


class Workplace:
    """Both commands and their files, all of them good until a case spoils them. `{dir}` is the folder."""

    def __init__(self) -> None:
        cache = "(1, 2, 64, 32), (1, 2, 64, 32)"
        self.network: bytes | None = network(["key.0", "value.0"]).SerializeToString()
        grid = [entry(name, "int64", "(1, 8), (1, 1)") for name in ("input_ids", "position_ids")]
        self.inputs = [*grid, entry("past_key.0", "uint8", cache), entry("past_value.0", "uint8", cache)]
        kept = [entry(f"past_{name}.0_RetainedState", "uint8") for name in ("key", "value")]
        self.outputs = [entry("logits", "float32"), *kept]
        self.io: Any = {INPUTS: self.inputs, OUTPUTS: self.outputs}
        self.settings: dict[str, Any] = {
            "graph_names": ["model_configuration_1", "model_configuration_2"],
            "compiler_compilation_target": "hardware",
            "compiler_hardware_version": "2.0",
            "compiler_convert_to_FP16": True,
            "compiler_retained_state": True,
            "compiler_num_of_cores": 8,
            "compiler_mdp_load_partition_config": "{dir}/tensor_slicing.json",
        }
        self.partitions: dict[str, Any] = {
            "connections": [{"devices": [0, 1], "type": "p2p"}],
            "partitions": [{"name": "Partition0", "devices": [{"deviceId": 0}, {"deviceId": 1}]}],
        }
        names = [name + end for name in ("past_key_0", "past_value_0") for end in ("", "_RetainedState")]
        tensors = [{"tensor_name": name, "dataFormat": "QNN_TENSOR_DATA_FORMAT_MX"} for name in names]
        self.formats: dict[str, Any] = {
            "graphs": [{"graph_name": name, "tensors": list(tensors)} for name in self.settings["graph_names"]]
        }
        self.extensions = {
            "config_file_path": "{dir}/qnn_compile_backend.json",
            "shared_library_path": "{dir}/lib/" + HOST + "/libQnnAicNetRunExtensions.so",
        }
        self.config: dict[str, Any] = {"backend_extensions": self.extensions}
        self.texts: dict[str, str] = {}
        """Files that a case writes itself."""
        self.converter, self.context = CONVERTER.split(), CONTEXT.split()

    def lay_out(self, folder: Path) -> None:
        """Write every file."""
        (folder / "qpc").mkdir(exist_ok=True)
        (folder / "lib" / HOST).mkdir(parents=True, exist_ok=True)
        for library in ("libQnnAic.so", "libQnnAicNetRunExtensions.so", "libQnnHtp.so"):
            (folder / "lib" / HOST / library).touch()
        if self.network is not None:
            (folder / "Tiny.onnx").write_bytes(self.network)
        records = {
            "custom_io_config.yaml": yaml.safe_dump(self.io),
            "qnn_compile_backend.json": json.dumps(self.settings),
            "tensor_slicing.json": json.dumps(self.partitions),
            "formats.json": json.dumps(self.formats),
            "qnn_compiler_config.json": json.dumps(self.config),
        }
        for name, text in {**records, **self.texts}.items():
            (folder / name).write_text(text.replace("{dir}", str(folder)))

    def tensors(self, graph: int) -> list[Any]:
        """The formats of one graph."""
        found: list[Any] = self.formats["graphs"][graph]["tensors"]
        return found

    def arguments(self, tool: str, folder: Path) -> list[str]:
        argv = self.converter if tool == "qairt-converter" else self.context
        return [argument.replace("{dir}", str(folder)) for argument in argv]


Spoil = Callable[[Workplace], Any]


def test_the_good_workplace_passes(tmp_path: Path) -> None:
    place = Workplace()
    place.lay_out(tmp_path)
    conversion = check_converter(place.arguments("qairt-converter", tmp_path))
    assert conversion.graph_names == place.settings["graph_names"]
    convert(conversion)
    assert read_converted(tmp_path / "model.dlc") == conversion
    asked = check_context_binary(place.arguments("qnn-context-binary-generator", tmp_path))
    assert (asked.binary, asked.devices) == (tmp_path / "qpc" / "programqpc.bin", 2)
    assert asked.settings["compiler_num_of_cores"] == 8


def replaced(old: str, new: str) -> Spoil:
    """Another argument, in either command."""

    def spoil(place: Workplace) -> None:
        for argv in (place.converter, place.context):
            argv[:] = [new if argument == old else argument for argument in argv]

    return spoil


def wants(index: int, **parameters: Any) -> Spoil:
    """Other parameters of an input."""
    return lambda place: place.inputs[index][DESIRED].update(parameters)


def tells(**settings: Any) -> Spoil:
    return lambda place: place.settings.update(settings)


def shapes_of_all(text: str) -> Spoil:
    def spoil(place: Workplace) -> None:
        for item in place.inputs:
            item[DESIRED]["Shape"] = text

    return spoil


def third_specialization(place: Workplace) -> None:
    for item in place.inputs:
        shape = item[DESIRED]["Shape"]
        item[DESIRED]["Shape"] = f"{shape}, {shape.partition('), ')[0]})"


def same_twice(place: Workplace) -> None:
    for item in place.inputs[:2]:
        item[DESIRED]["Shape"] = "(1, 8), (1, 8)"


CONVERTER_CASES: list[tuple[str, str, Spoil]] = [
    ("unknown option", "qnn.arguments.unknown", lambda p: p.converter.append("--quick")),
    ("shortened option", "qnn.arguments.unknown", replaced("--input_network", "--input_net")),
    ("option of the old tool", "qnn.arguments.unknown", lambda p: p.converter.append("--input_dim")),
    ("stray value", "qnn.arguments.stray", lambda p: p.converter.append("more")),
    ("two values for one", "qnn.arguments.stray", lambda p: p.converter.insert(2, "other.onnx")),
    ("joined value", "qnn.arguments.joined", lambda p: p.converter.append("--export_format=DLC_DEFAULT")),
    ("no value", "qnn.arguments.no-value", lambda p: p.converter.append("--package_name")),
    ("empty value", "qnn.arguments.no-value", lambda p: p.converter.extend(["--package_name", ""])),
    ("option twice", "qnn.arguments.duplicate", lambda p: p.converter.extend(["--float_bitwidth", "16"])),
    ("bitwidth of 8", "qnn.values", replaced("16", "8")),
    ("bitwidth of 32", "qnn.target", replaced("16", "32")),
    ("another backend", "qnn.target", replaced("AIC", "HTP")),
    (
        "types kept of some",
        "qnn.target",
        lambda p: p.converter.insert(p.converter.index("--onnx_skip_simplification"), "logits"),
    ),
    ("no dlc", "qnn.names", replaced("{dir}/model.dlc", "{dir}/model.bin")),
    ("no onnx", "qnn.names", replaced("{dir}/Tiny.onnx", "{dir}/custom_io_config.yaml")),
    ("no network", "qnn.files.absent", lambda p: setattr(p, "network", None)),
    ("no folder", "qnn.files.absent", replaced("{dir}/model.dlc", "{dir}/none/model.dlc")),
    ("no YAML file", "qnn.files.absent", replaced("{dir}/custom_io_config.yaml", "{dir}/other.yaml")),
    ("no YAML in it", "yaml.syntax", lambda p: p.texts.update({"custom_io_config.yaml": "a: [b"})),
    ("the native form", "qnn.io.sections", lambda p: setattr(p, "io", [{"IOName": "a", "Precision": "float16"}])),
    ("one section", "qnn.io.sections", lambda p: p.io.pop(OUTPUTS)),
    ("empty section", "qnn.io.sections", lambda p: p.outputs.clear()),
    ("third section", "qnn.io.sections", lambda p: p.io.update({"Weights": []})),
    ("no name", "qnn.io.item", lambda p: p.inputs[0].pop("Name")),
    ("no parameters", "qnn.io.item", lambda p: p.inputs[0].pop(DESIRED)),
    ("no shape", "qnn.io.key", lambda p: p.inputs[0][DESIRED].pop("Shape")),
    ("shape of an output", "qnn.io.key", lambda p: p.outputs[0][DESIRED].update(Shape="(1, 1, 64), (1, 1, 64)")),
    ("key of nobody", "qnn.io.key", lambda p: p.inputs[0].update(Precision="float16")),
    ("mxint8 by name", "qnn.io.type", wants(2, DataType="mxint8")),
    ("input twice", "qnn.io.twice", lambda p: p.inputs.append(p.inputs[0])),
    ("names that become one", "qnn.io.twice", lambda p: p.inputs.append(entry("past_key_0", "uint8", "(1), (1)"))),
    ("shape as a list", "qnn.io.shape", wants(0, Shape=[1, 8])),
    ("shape of symbols", "qnn.io.shape", wants(0, Shape="(batch_size, 8), (1, 1)")),
    ("shape of nothing", "qnn.io.shape", wants(0, Shape="(1, 0), (1, 1)")),
    ("shape without brackets", "qnn.io.shape", wants(0, Shape="1, 8")),
    ("shapes of two ranks", "qnn.io.shape", wants(0, Shape="(1, 8), (1)")),
    ("one shape among pairs", "qnn.io.specializations", wants(2, Shape="(1, 2, 64, 32)")),
    ("three specializations", "qnn.io.specializations", third_specialization),
    ("two that are one", "qnn.io.indistinguishable", same_twice),
    ("state with two types", "qnn.io.pair", wants(2, DataType="float16")),
    ("state without input", "qnn.io.pair", lambda p: p.inputs.pop()),
    ("uint8 that is no state", "qnn.io.uint8", lambda p: p.outputs[0][DESIRED].update(DataType="uint8")),
    ("no network in it", "qnn.network", lambda p: setattr(p, "network", b"\xff\xff no protobuf")),
    ("an empty network", "qnn.network", lambda p: setattr(p, "network", b"")),
    ("input that is not there", "qnn.graph.names", lambda p: p.inputs[0].update(Name="ids")),
    ("output left out", "qnn.graph.names", lambda p: p.outputs.pop(0)),
    ("another rank", "qnn.graph.shape", wants(0, Shape="(8), (1)")),
    ("another fixed size", "qnn.graph.shape", wants(2, Shape="(1, 4, 64, 32), (1, 4, 64, 32)")),
    ("a symbol with two sizes", "qnn.graph.shape", wants(1, Shape="(1, 4), (1, 1)")),
    ("whole numbers as floats", "qnn.graph.type", wants(0, DataType="float32")),
    ("floats as whole numbers", "qnn.graph.type", lambda p: p.outputs[0][DESIRED].update(DataType="int64")),
]

PARTITIONS: list[tuple[str, str, Spoil]] = [
    ("device gap", "qnn.partitions", lambda p: p.partitions["partitions"][0]["devices"][1].update(deviceId=2)),
    (
        "device that is true",
        "qnn.partitions",
        lambda p: p.partitions["partitions"][0]["devices"][1].update(deviceId=True),
    ),
    ("three devices", "qnn.partitions", lambda p: p.partitions["partitions"][0]["devices"].append({"deviceId": 2})),
    ("two partitions", "qnn.partitions", lambda p: p.partitions["partitions"].append(p.partitions["partitions"][0])),
    ("another connection", "qnn.partitions", lambda p: p.partitions["connections"][0].update(type="pcie")),
    ("cores of a device", "qnn.json.key", lambda p: p.partitions["partitions"][0]["devices"][0].update(numCores=8)),
    ("no partition", "qnn.json.type", lambda p: p.partitions["partitions"].clear()),
]
CONTEXT_CASES: list[tuple[str, str, Spoil]] = [
    ("unknown option", "qnn.arguments.unknown", lambda p: p.context.append("--fast")),
    ("old kind of model", "qnn.arguments.unknown", lambda p: p.context.extend(["--model", "libmodel.so"])),
    ("unknown log level", "qnn.values", replaced("error", "quiet")),
    ("library of another device", "qnn.target", replaced(LIBRARY, LIBRARY.replace("Aic", "Htp"))),
    ("no library", "qnn.files.absent", replaced(LIBRARY, "{dir}/libQnnAic.so")),
    ("another binary", "qnn.names", replaced("programqpc.bin", "program.bin")),
    ("serialized elsewhere", "qnn.names", replaced("qnngraph.serialized", "sub/qnngraph.serialized")),
    ("no folder", "qnn.files.absent", replaced("{dir}/qpc", "{dir}/other")),
    ("folder in use", "qnn.files.occupied", replaced("{dir}/qpc", "{dir}")),
    ("no dlc", "qnn.files.absent", replaced("{dir}/model.dlc", "{dir}/other.dlc")),
    ("a dlc of nobody", "qnn.dlc", lambda p: p.texts.update({"model.dlc": "{}"})),
    ("a dlc that is no JSON", "qnn.dlc", lambda p: p.texts.update({"model.dlc": "DLC\0"})),
    ("config that is no JSON", "json.syntax", lambda p: p.texts.update({"qnn_compiler_config.json": "{"})),
    ("config that is a list", "qnn.json.type", lambda p: p.texts.update({"qnn_compiler_config.json": "[]"})),
    ("settings in the outer file", "qnn.json.key", lambda p: p.config.update(graph_names=["model"])),
    ("no library for the settings", "qnn.json.key", lambda p: p.extensions.pop("shared_library_path")),
    ("settings that are not there", "qnn.files.absent", lambda p: p.extensions.update(config_file_path="none.json")),
    ("settings that are no object", "qnn.json.type", lambda p: p.texts.update({"qnn_compile_backend.json": "3"})),
    ("unknown setting", "qnn.backend.key", tells(compiler_num_cores=8)),
    ("setting of the native compiler", "qnn.backend.key", tells(aic_num_cores=8)),
    ("number as a text", "qnn.json.type", tells(compiler_num_of_cores="8")),
    ("truth as a number", "qnn.json.type", tells(compiler_time_passes=1)),
    ("splits as a number", "qnn.json.type", tells(compiler_max_out_channel_split=2)),
    ("empty text", "qnn.backend.value", tells(compiler_cluster_sizes="")),
    ("too many cores", "qnn.backend.value", tells(compiler_num_of_cores=17)),
    ("ratio beyond one", "qnn.backend.value", tells(compiler_VTCM_working_set_limit_ratio=1.5)),
    ("another target", "qnn.backend.value", tells(compiler_compilation_target="simulator")),
    ("native hardware version", "qnn.backend.value", tells(compiler_hardware_version="ai100")),
    ("no float16", "qnn.backend.value", tells(compiler_convert_to_FP16=False)),
    ("unknown recipe", "qnn.backend.value", tells(compiler_PMU_recipe_opt="HmxMacs")),
    ("cores not told", "qnn.backend.required", lambda p: p.settings.pop("compiler_num_of_cores")),
    ("one graph of two", "qnn.backend.graphs", tells(graph_names=["model"])),
    ("three graphs", "qnn.backend.graphs", tells(graph_names=[f"model_configuration_{n}" for n in (1, 2, 3)])),
    ("state not retained", "qnn.backend.state", tells(compiler_retained_state=False)),
    ("splits beyond cores", "qnn.backend.splits", tells(compiler_max_out_channel_split="16")),
    ("splits with commas", "qnn.backend.splits", tells(compiler_max_out_channel_split="2,4")),
    ("partitions that are not there", "qnn.files.absent", tells(compiler_mdp_load_partition_config="none.json")),
    *PARTITIONS,
    ("formats not given", "qnn.format", lambda p: p.context.__delitem__(slice(-4, -2))),
    ("another format", "qnn.format", lambda p: p.tensors(0)[0].update(dataFormat="MX")),
    ("format of one graph", "qnn.format", lambda p: p.formats["graphs"].pop()),
    ("format left out", "qnn.format", lambda p: p.tensors(1).pop()),
    ("format by the old name", "qnn.format", lambda p: p.tensors(0)[0].update(tensor_name="past_key.0")),
    ("format twice", "qnn.format", lambda p: p.tensors(0).append(p.tensors(0)[0])),
]  # fmt: skip
CASES = [
    pytest.param(tool, rule, spoil, id=f"{tool}: {name}")
    for tool, cases in (("qairt-converter", CONVERTER_CASES), ("qnn-context-binary-generator", CONTEXT_CASES))
    for name, rule, spoil in cases
]


def rule_of(tool: str, place: Workplace, folder: Path) -> str:
    """The rule that a command breaks."""
    with pytest.raises(Refusal) as caught:
        CHECKS[tool](place.arguments(tool, folder))
    assert caught.value.message
    assert caught.value.exit_code
    return caught.value.rule.id


@pytest.mark.parametrize(("tool", "rule", "spoil"), CASES)
def test_refused(tool: str, rule: str, spoil: Spoil, tmp_path: Path) -> None:
    place = Workplace()
    if tool != "qairt-converter":  # what it converts is good: only its own files are spoilt
        place.lay_out(tmp_path)
        convert(check_converter(place.arguments("qairt-converter", tmp_path)))
    spoil(place)
    place.lay_out(tmp_path)
    assert rule_of(tool, place, tmp_path) == rule


@pytest.mark.parametrize("name", CONVERTER_NEEDS)
def test_the_converter_needs(name: str, tmp_path: Path) -> None:
    place = Workplace()
    start = place.converter.index(name)
    takes = 1 if name in ("--preserve_io_datatype", "--onnx_skip_simplification") else 2
    del place.converter[start : start + takes]
    place.lay_out(tmp_path)
    assert rule_of("qairt-converter", place, tmp_path) == "qnn.required"


@pytest.mark.parametrize("name", CONTEXT_BINARY_NEEDS)
def test_the_generator_needs(name: str, tmp_path: Path) -> None:
    place = Workplace()
    start = place.context.index(name)
    del place.context[start : start + 2]
    place.lay_out(tmp_path)
    assert rule_of("qnn-context-binary-generator", place, tmp_path) == "qnn.required"


def test_every_rule_is_broken_by_a_case() -> None:
    broken = {parameter.values[1] for parameter in CASES} | {"qnn.required"}
    assert set(RULES) <= broken


def test_the_converter_s_file_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Workplace()
    place.lay_out(tmp_path)
    assert main_converter(place.arguments("qairt-converter", tmp_path)) == 0
    with zipfile.ZipFile(tmp_path / "model.dlc") as archive:
        record = json.loads(archive.read(RECORD))
        assert archive.read(NETWORK) == place.network
    assert record["made_by"] == "qairt-converter, simulated"
    assert (record["network"], len(record["sha256"])) == (str(tmp_path / "Tiny.onnx"), 64)
    assert main_converter(["--quick"]) == 1
    assert "unrecognized arguments: --quick [qnn.arguments.unknown]" in capsys.readouterr().err


# What we tell them


def moved(argument: str, folder: Path) -> str:
    """A golden path in a folder of this test."""
    for old in ("/models/tiny/qnn", "/models/tiny", "/opt/qairt"):
        argument = argument.replace(old, str(folder))
    return argument


def write_golden(record: dict[str, Any], folder: Path) -> None:
    graph = network(record["graph"], record["dtype"], "full_batch_size" in record["spec"])
    onnx.save(graph, folder / "Tiny.onnx")
    for name, content in record["files"].items():
        text = "\n".join(content) if isinstance(content, list) else json.dumps(content)
        (folder / name).write_text(moved(text, folder))
    for library in ("libQnnAic.so", "libQnnAicNetRunExtensions.so"):
        (folder / "lib" / HOST).mkdir(parents=True, exist_ok=True)
        (folder / "lib" / HOST / library).touch()
    slices = {"connections": [{"devices": [0, 1], "type": "p2p"}]}
    partitions = [{"name": "Partition0", "devices": [{"deviceId": 0}, {"deviceId": 1}]}]
    (folder / "mine.json").write_text(json.dumps({**slices, "partitions": partitions}))
    (folder / "our notice.txt").touch()
    (folder / "qpc").mkdir()


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_our_commands_pass(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tools stand where their files are, which name one another."""
    monkeypatch.chdir(tmp_path)
    record = json.loads(path.read_text(encoding="utf-8"))
    write_golden(record, tmp_path)
    program, *argv = [moved(argument, tmp_path) for argument in record["converter"]]
    assert Path(program).name == "qairt-converter"
    convert(check_converter(argv))
    program, *argv = [moved(argument, tmp_path) for argument in record["context_binary"]]
    assert Path(program).name == "qnn-context-binary-generator"
    asked = check_context_binary(argv)
    assert asked.devices == (2 if "compiler_mdp_load_partition_config" in asked.settings else 1)
    generate(asked)
    assert (tmp_path / "qpc" / "programqpc.bin").is_file()


def test_there_are_goldens() -> None:
    assert len(GOLDENS) >= 8


def test_both_sides_know_the_same() -> None:
    assert set(SETTINGS) == set(qnn_files.SETTINGS)
    ratio = "compiler_VTCM_working_set_limit_ratio"
    assert {k: v for k, v in SETTINGS.items() if k != ratio} == {
        k: v for k, v in qnn_files.SETTINGS.items() if k != ratio
    }
    assert set(CONVERTER_NEEDS) <= set(tools.FIXED_FOR_CONVERTER)
    assert set(CONTEXT_BINARY_NEEDS) <= set(tools.FIXED_FOR_CONTEXT_BINARY)
