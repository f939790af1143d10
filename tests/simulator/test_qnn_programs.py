"""What the stand-ins for QNN's tools make: a converted file that needs nothing else, and a program like any other."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from qaic_simulator.container import read_container
from qaic_simulator.network_descriptor import decode_descriptor
from qaic_simulator.qnn.tools import FAULT_VARIABLES, main_converter, main_generator
from qaic_simulator.root import QNN_FILES, QNN_HOST, write_root
from qaic_simulator.runtime.qaicrt import Qpc

GRID, STATE = ("batch_size", "seq_len"), ("batch_size", 2, "ctx_len", 32)
CONVERTER, GENERATOR = FAULT_VARIABLES
MAINS = {CONVERTER: main_converter, GENERATOR: main_generator}


def network(weights: Path | None = None, reshaped: bool = False) -> onnx.ModelProto:
    """Logits by a table, and one state; with external data where a file is named."""
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, GRID)]
    inputs.append(helper.make_tensor_value_info("past_key.0", TensorProto.FLOAT, STATE))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (*GRID, 64))]
    outputs.append(helper.make_tensor_value_info("past_key.0_RetainedState", TensorProto.FLOAT, STATE))
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["logits"]),
        helper.make_node("Add", ["past_key.0", "one"], ["past_key.0_RetainedState"]),
    ]
    if reshaped:  # by what is only known when it runs
        nodes.append(helper.make_node("Reshape", ["input_ids", "input_ids"], ["reshaped"]))
    table = helper.make_tensor("table", TensorProto.FLOAT, [16, 64], [0.5] * 16 * 64)
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    if weights is not None:
        weights.write_bytes(onnx.numpy_helper.to_array(table).tobytes())
        table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[16, 64], data_location=1)
        table.external_data.add(key="location", value=weights.name)
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, [table, one])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tuples(*shapes: tuple[int, ...]) -> str:
    return ", ".join(str(shape) for shape in shapes)


def io_text(dtype: str, width: int = 32) -> str:
    lines = ["Input Tensor Configuration:"]
    for name, kind, shapes in (
        ("input_ids", "int64", tuples((1, 8), (1, 1))),
        ("past_key.0", dtype, tuples((1, 2, 64, width), (1, 2, 64, width))),
    ):
        lines += [
            f"  - Name: {name}",
            "    Desired Model Parameters:",
            f"      DataType: {kind}",
            f"      Shape: {shapes}",
        ]
    lines.append("Output Tensor Configuration:")
    for name, kind in (("logits", "float32"), ("past_key.0_RetainedState", dtype)):
        lines += [f"  - Name: {name}", "    Desired Model Parameters:", f"      DataType: {kind}"]
    return "\n".join(lines) + "\n"


class Place:
    """A folder with an SDK, a network, and both commands."""

    def __init__(self, folder: Path, dtype: str = "float16", **settings: Any) -> None:
        self.folder = folder
        self.root = write_root(folder / "sdk", qnn=True)
        (folder / "qpc").mkdir()
        onnx.save(network(folder / "weights.bin"), folder / "Tiny.onnx")
        (folder / "io.yaml").write_text(io_text(dtype))
        names = ["model_configuration_1", "model_configuration_2"]
        own = {
            "compiler_compilation_target": "hardware", "compiler_hardware_version": "2.0", "graph_names": names,
            "compiler_convert_to_FP16": True, "compiler_retained_state": True, "compiler_num_of_cores": 4,
        }  # fmt: skip
        library = self.root / "lib" / QNN_HOST / "libQnnAicNetRunExtensions.so"
        paths = {"config_file_path": str(folder / "backend.json"), "shared_library_path": str(library)}
        states = [{"tensor_name": f"past_key_0{end}", "dataFormat": "QNN_TENSOR_DATA_FORMAT_MX"}
                  for end in ("", "_RetainedState")]  # fmt: skip
        formats = {"graphs": [{"graph_name": name, "tensors": states} for name in names]}
        slices = [{"name": "Partition0", "devices": [{"deviceId": 0}, {"deviceId": 1}]}]
        self.write("backend.json", {**own, **settings})
        self.write("config.json", {"backend_extensions": paths})
        self.write("formats.json", formats)
        self.write("slices.json", {"connections": [{"devices": [0, 1], "type": "p2p"}], "partitions": slices})
        self.formats = ["--data_format_config", str(folder / "formats.json")] if dtype == "uint8" else []

    def write(self, name: str, content: Any) -> None:
        (self.folder / name).write_text(json.dumps(content))

    def arguments(self, tool: str) -> list[str]:
        folder = self.folder
        if tool == CONVERTER:
            return [
                "--input_network", f"{folder}/Tiny.onnx", "--output_path", f"{folder}/model.dlc", "--config",
                f"{folder}/io.yaml", "--float_bias_bitwidth", "32", "--float_bitwidth", "16", "--preserve_io_datatype",
                "--onnx_skip_simplification", "--target_backend", "AIC",
            ]  # fmt: skip
        return [
            "--binary_file", "qnngraph.serialized", "--backend_binary", "programqpc.bin", "--output_dir",
            f"{folder}/qpc", "--backend", f"{self.root}/lib/{QNN_HOST}/libQnnAic.so", "--dlc_path",
            f"{folder}/model.dlc", "--config_file", f"{folder}/config.json", *self.formats,
        ]  # fmt: skip

    def run(self, tool: str) -> int:
        return MAINS[tool](self.arguments(tool))

    def compile(self) -> dict[str, bytes]:
        assert [self.run(tool) for tool in MAINS] == [0, 0]
        return read_container((self.folder / "qpc" / "programqpc.bin").read_bytes())


@pytest.mark.parametrize(("dtype", "precision"), [("float16", "float16"), ("uint8", "mxint8"), ("float32", "float")])
def test_the_program_is_what_was_asked_for(tmp_path: Path, dtype: str, precision: str) -> None:
    images = Place(tmp_path, dtype, compiler_mxfp6_matmul_weights=True).compile()
    descriptor, settings = decode_descriptor(images["networkdesc.bin"]), json.loads(images["sim.json"])
    assert [binding.name for binding in descriptor.inputs] == ["input_ids", "past_key.0"]
    assert [entry[0].dims for entry in descriptor.allowed_shapes] == [(1, 8), (1, 1)]
    assert descriptor.inputs[1].shape.type == (0 if dtype == "float32" else 1)
    assert (descriptor.num_cores, settings["cores"], settings["devices"]) == (4, 4, 1)
    assert settings["custom_io"]["past_key.0"] == settings["custom_io"]["past_key.0_RetainedState"] == precision
    assert (settings["mxfp6"], settings["convert_to_fp16"]) == (True, True)
    symbols = {"batch_size": 1, "seq_len": 8, "ctx_len": 64}
    assert settings["specializations"][0] == {"name": "model_configuration_1", "symbols": symbols}
    assert sorted(path.name for path in (tmp_path / "qpc").iterdir()) == ["programqpc.bin", "qnngraph.serialized.bin"]
    Qpc(str(tmp_path / "qpc"))  # the runtime takes it


def test_several_devices(tmp_path: Path) -> None:
    slices = str(tmp_path / "slices.json")
    settings = json.loads(Place(tmp_path, compiler_mdp_load_partition_config=slices).compile()["sim.json"])
    assert settings["devices"] == 2 and (tmp_path / "qpc" / "QAicGraph_slice01").is_file()


def test_the_converted_file_needs_nothing_else(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert place.run(CONVERTER) == 0
    whole = (tmp_path / "model.dlc").read_bytes()
    assert place.run(CONVERTER) == 0 and (tmp_path / "model.dlc").read_bytes() == whole
    for name in ("Tiny.onnx", "weights.bin", "io.yaml"):
        (tmp_path / name).unlink()
    assert place.run(GENERATOR) == 0
    assert (tmp_path / "qpc" / "programqpc.bin").stat().st_size > 16 * 64 * 4


@pytest.mark.parametrize("at", [0.3, 0.9])
def test_a_damaged_converted_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], at: float) -> None:
    place, path = Place(tmp_path), tmp_path / "model.dlc"
    assert place.run(CONVERTER) == 0
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * at)] ^= 0xFF
    path.write_bytes(raw)
    assert place.run(GENERATOR) == 1
    assert "[qnn.dlc]" in capsys.readouterr().err and not any((tmp_path / "qpc").iterdir())


def test_the_graph_is_held_to_the_compiler_s_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Place(tmp_path)
    onnx.save(network(reshaped=True), tmp_path / "Tiny.onnx")
    assert place.run(CONVERTER) == 1
    assert "Non-constant shape tensor not supported. [constancy.reshape]" in capsys.readouterr().err
    assert not (tmp_path / "model.dlc").exists()


def test_states_in_mxint8_are_whole_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Place(tmp_path, "uint8")
    model = network()
    for value in (model.graph.input[1], model.graph.output[1]):
        value.type.tensor_type.shape.dim[3].dim_value = 8
    onnx.save(model, tmp_path / "Tiny.onnx")
    (tmp_path / "io.yaml").write_text(io_text("uint8", 8))
    assert place.run(CONVERTER) == 1
    assert "[custom-io.blocks]" in capsys.readouterr().err


@pytest.mark.parametrize("tool", MAINS)
@pytest.mark.parametrize(("fault", "code"), [("exit255", 255), ("nothing", 0), ("nonsense", 1), ("slow:x", 1)])
def test_faults_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, fault: str, code: int
) -> None:
    place = Place(tmp_path)
    if tool == GENERATOR:
        assert place.run(CONVERTER) == 0
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv(FAULT_VARIABLES[tool], fault)
    assert place.run(tool) == code
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_the_folder_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    assert place.run(CONVERTER) == 0
    monkeypatch.setenv(FAULT_VARIABLES[GENERATOR], "full")
    assert place.run(GENERATOR) == 1 and not any((tmp_path / "qpc").iterdir())


def test_the_tools_of_a_root_run(tmp_path: Path) -> None:
    place = Place(tmp_path)
    environment = {name: text for name, text in os.environ.items() if not name.startswith("QAIC_SIM_")}
    for tool in MAINS:
        path = place.root / "bin" / QNN_HOST / tool
        done = subprocess.run([path, *place.arguments(tool)], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("qaic simulator: ")
        refused = subprocess.run([path, "--quick"], capture_output=True, text=True, env=environment)
        assert refused.returncode == 1 and "unrecognized arguments: --quick" in refused.stderr
    assert (tmp_path / "qpc" / "programqpc.bin").is_file()


def test_a_root_has_all_its_files(tmp_path: Path) -> None:
    root = write_root(tmp_path / "a root", qnn=True)
    for place in QNN_FILES:
        assert os.access(root / place, os.X_OK) == place.startswith("bin/"), place
