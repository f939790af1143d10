"""The command as a whole: what it writes, says and ends with; exported programs compile."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from qaic_simulator import compiler
from qaic_simulator.compiler import SIMULATOR_LINE, main
from qaic_simulator.container import read_container
from qaic_simulator.network_descriptor import Binding, Shape, decode_descriptor
from qaic_simulator.profiles import SDKS
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.verification.tiny_models import tiny_model

ROOT = Path(__file__).parents[2]
SMALL = """
<ir_version: 8, opset_import: ["" : 18]>
program (float[batch, length, 4] x, float[2, 8, 32] past)
    => (float[a, b, c] y, float[d, 8, 32] past_RetainedState) {
    scaled = MatMul(x, weight)
    bias = Constant<value = float[4] {1, 2, 3, 4}>()
    y = Add(scaled, bias)
    top = ReduceMax<keepdims = 1>(x)
    past_RetainedState = Add(past, top)
}
"""
ENTRIES = ({"batch": 1, "length": 6}, {"batch": 2, "length": 1})
WEIGHT = np.arange(16, dtype=np.float32).reshape(4, 4)
LINES = ["Compile started ...", "Compiling model with FP16 precision."]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("QAIC_SIM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def write_small(folder: Path) -> Path:
    """A graph with a retained state, whose weight is in a file of its own."""
    model = onnx.parser.parse_model(SMALL)
    (folder / "weights.data").write_bytes(b"skipped!" + WEIGHT.tobytes())
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "weights.data", "offset": "8", "length": "64"}.items():
        weight.external_data.add(key=key, value=value)
    model.graph.initializer.append(weight)
    path = folder / "small.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def write_entries(folder: Path, entries: tuple[Mapping[str, int], ...], sdk: str = "1.22") -> Path:
    texts: list[dict[str, object]] = [{name: str(size) for name, size in entry.items()} for entry in entries]
    if sdk != "1.21":
        texts = [{"name": f"Graph_{number}", "symbols": text} for number, text in enumerate(texts)]
    path = folder / "specializations.json"
    path.write_text(json.dumps({"specializations": texts}), encoding="utf-8")
    return path


def command(model: Path, entries: Path, output: Path, *more: str) -> list[str]:
    named = [f"-m={model}", f"-network-specialization-config={entries}", f"-aic-binary-dir={output}"]
    return ["-aic-hw", "-aic-hw-version=ai100", "-convert-to-fp16", "-retained-state", *named, *more]


def small_command(folder: Path, *more: str) -> list[str]:
    return command(write_small(folder), write_entries(folder, ENTRIES), folder / "qpc", *more)


def in_another_process(argv: list[str], code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tool there, after some lines of Python."""
    text = f"import sys\n{code}\nfrom qaic_simulator.compiler import main\nsys.exit(main())"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", text, *argv], capture_output=True, text=True, env=variables)


def test_what_is_said_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small_command(tmp_path)) == 0
    said, complaints = capsys.readouterr()
    first = [SIMULATOR_LINE, f"Reading ONNX Model from {tmp_path / 'small.onnx'}"]
    assert said.splitlines() == [*first, *LINES, f"Generated binary is present at {tmp_path / 'qpc'}"]
    assert not complaints and [path.name for path in (tmp_path / "qpc").iterdir()] == ["programqpc.bin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "qpc",
        "small.onnx",
        "specializations.json",
        "weights.data",
    ]


def compiled(folder: Path, *more: str) -> dict[str, bytes]:
    """The segments of the small program."""
    assert main(small_command(folder, *more)) == 0
    return read_container((folder / "qpc" / "programqpc.bin").read_bytes())


def test_descriptor_agrees_with_the_graph(tmp_path: Path) -> None:
    descriptor = decode_descriptor(compiled(tmp_path, "-aic-num-cores=8")["networkdesc.bin"])
    assert (descriptor.name, descriptor.num_cores) == ("small", 8)
    assert descriptor.inputs == (
        Binding("x", Shape(0, (1, 6, 4)), partial_allowed=True),
        Binding("past", Shape(1, (2, 8, 32))),
    )
    assert descriptor.outputs == (
        Binding("y", Shape(0, (1, 6, 4))),
        Binding("past_RetainedState", Shape(1, (2, 8, 32))),
    )
    prefill = (Shape(0, (1, 6, 4)), Shape(1, (2, 8, 32)))
    decode = (Shape(0, (2, 1, 4)), Shape(1, (2, 8, 32)))
    assert descriptor.allowed_shapes == (prefill * 2, decode * 2)


@pytest.mark.parametrize(("precision", "number"), [("float", 0), ("float16", 1), ("mxint8", 1), ("int8", 8)])
def test_custom_precisions_are_in_the_descriptor(tmp_path: Path, precision: str, number: int) -> None:
    names = ("past", "past_RetainedState")
    listed = "".join(f" - IOName: {name}\n   Precision: {precision}\n\n" for name in names)
    (tmp_path / "io.yaml").write_text(listed, encoding="utf-8")
    images = compiled(tmp_path, f"-custom-IO-list-file={tmp_path / 'io.yaml'}")
    descriptor = decode_descriptor(images["networkdesc.bin"])
    assert [binding.shape.type for binding in (*descriptor.inputs, *descriptor.outputs)] == [0, number, 0, number]
    assert json.loads(images["sim.json"])["custom_io"] == dict.fromkeys(names, precision)


def test_graph_runs_with_its_constants(tmp_path: Path) -> None:
    images = compiled(tmp_path)
    extracted = tmp_path / "extracted"
    extracted.mkdir()
    for name, image in images.items():
        (extracted / name).write_bytes(image)
    session = onnxruntime.InferenceSession(extracted / "sim.onnx", providers=["CPUExecutionProvider"])
    x, past = np.ones((2, 1, 4), np.float32), np.zeros((2, 8, 32), np.float32)
    y, state = session.run(None, {"x": x, "past": past})
    assert np.array_equal(y, x @ WEIGHT + np.array([1, 2, 3, 4])) and np.array_equal(state, past + 1)
    assert images["network.elf"].startswith(b"\x7fELF") and b"qaic simulator" in images["network.elf"]


def test_constants_of_several_files_become_one_segment(tmp_path: Path) -> None:
    argv = small_command(tmp_path)
    model = onnx.load(tmp_path / "small.onnx", load_external_data=False)
    other = TensorProto(name="other", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    other.external_data.add(key="location", value="more.data")
    model.graph.initializer.append(other)
    model.graph.node[2].input[1] = "other"
    (tmp_path / "more.data").write_bytes(np.full(4, 7, np.float32).tobytes())
    (tmp_path / "small.onnx").write_bytes(model.SerializeToString())
    assert main(argv) == 0
    images = read_container((tmp_path / "qpc" / "programqpc.bin").read_bytes())
    assert len(images["constants.bin"]) == 8 + 64 + 16
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.ModelProto.FromString(images["sim.onnx"]).graph.initializer
        if tensor.external_data
    }
    assert places == {
        "weight": {"location": "constants.bin", "offset": "8", "length": "64"},
        "other": {"location": "constants.bin", "offset": "72", "length": "16"},
    }


def test_settings(tmp_path: Path) -> None:
    (tmp_path / "nodes.yaml").write_text("FP32NodeInstanceNames:\n  - y\n", encoding="utf-8")
    settings = json.loads(
        compiled(tmp_path, "-mxfp6-matmul", f"-node-precision-info={tmp_path / 'nodes.yaml'}")["sim.json"]
    )
    assert set(settings.pop("sha256")) == {"sim.onnx", "constants.bin"}
    state, ends, weight = 2 * 8 * 32 * 4, 2 * 6 * 4 * 4, 16 * 6.25 / 8
    assert settings.pop("bytes_per_device") == math.ceil(state + ends + weight)
    assert settings == {
        "sdk": "1.22",
        "hardware": "ai100",
        "cores": 1,
        "devices": 1,
        "convert_to_fp16": True,
        "mxfp6": True,
        "retained_state": True,
        "specializations": [{"name": f"Graph_{i}", "symbols": dict(entry)} for i, entry in enumerate(ENTRIES)],
        "custom_io": {},
        "node_precision": {"fp16": [], "fp32": ["y"]},
        "live_inputs": ["x", "past"],
    }


def test_several_devices_have_a_slice_each(tmp_path: Path) -> None:
    devices = [{"deviceId": number, "numCores": 16} for number in range(2)]
    content = {"connections": [], "partitions": [{"name": "P", "devices": devices}]}
    (tmp_path / "mdp.json").write_text(json.dumps(content), encoding="utf-8")
    settings = json.loads(compiled(tmp_path, f"-mdp-load-partition-config={tmp_path / 'mdp.json'}")["sim.json"])
    names = sorted(path.name for path in (tmp_path / "qpc").iterdir())
    assert names == ["QAicGraph_slice00", "QAicGraph_slice01", "programqpc.bin"]
    assert (settings["devices"], settings["cores"]) == (2, 16)


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    programs = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        compiled(folder)
        programs.append((folder / "qpc" / "programqpc.bin").read_bytes())
    assert programs[0] == programs[1]


def test_refusals_of_each_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = small_command(tmp_path)
    assert main([*argv, "-no-such-option"]) == 1
    line = "Invalid option -no-such-option. Use -h, -help, or --help for list of options."
    assert capsys.readouterr().err.splitlines() == [line, "simulator rule: arguments.unknown (known, ISS-2)"]
    (tmp_path / "specializations.json").write_text('{"specializations": [{"name": "a", "symbols": {"a": 1}}]}')
    assert main(argv) == 255
    assert capsys.readouterr().err.startswith("[json.exception.type_error.302] type must be string, but is number\n")
    write_entries(tmp_path, ({"batch": 1},))
    assert main(argv) == 1
    assert capsys.readouterr().err.splitlines() == [
        "QAIC_ERROR:",
        "Error message:  Symbol length of input x has no value in specialization Graph_0",
        "QAICException:Unable to AddNodesToGraphFromModel",
        "simulator rule: graph.unbound (known, SPEC)",
    ]
    assert not (tmp_path / "qpc").exists()


def test_a_fault_that_no_rule_foresaw_is_told_like_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside files, and beside the graph."""
    argv = small_command(tmp_path)
    for step in ("check", "check_graph"):
        monkeypatch.undo()
        monkeypatch.setattr(compiler, step, Mock(side_effect=MemoryError("no room for 256 GiB")))
        assert main(argv) == 1 and not (tmp_path / "qpc").exists()
        assert capsys.readouterr().err.splitlines() == [
            "QAIC_ERROR:",
            "Error message:  Internal compiler error: MemoryError: no room for 256 GiB",
            "Unable to Compile",
        ]


@pytest.mark.filterwarnings("error")
def test_infinities_are_no_reason_to_say_anything(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither as a constant nor as what becomes of constants."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]> program (float[2, 4] x) => (float[2, 4] y)
            <float[1] one = {-1}, float[1] zero = {0}> {
            less = Add(x, far)
            least = Div(one, zero)
            y = Max(less, least)
        }
    """)
    far = onnx.numpy_helper.from_array(np.full(4, -np.inf, np.float32), "far")
    model.graph.initializer.append(far)
    (tmp_path / "far.onnx").write_bytes(model.SerializeToString())
    argv = [f"-m={tmp_path / 'far.onnx'}", f"-aic-binary-dir={tmp_path / 'qpc'}"]
    assert main(["-aic-hw", "-aic-hw-version=ai100", "-convert-to-fp16", *argv]) == 0
    assert not capfd.readouterr().err


def test_older_release_and_lenience_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = small_command(tmp_path)
    monkeypatch.setenv("QAIC_SIM_SDK", "1.21")
    assert main(argv) == 255
    write_entries(tmp_path, ENTRIES, "1.21")
    assert main([*argv, "-aic-num-cores=15"]) == 0
    (tmp_path / "qpc" / "programqpc.bin").rename(tmp_path / "qpc" / "older")
    assert main(argv) == 1
    monkeypatch.setenv("QAIC_SIM_LENIENT", "1")
    assert main(argv) == 0 and (tmp_path / "qpc" / "programqpc.bin").is_file()
    monkeypatch.setenv("QAIC_SIM_SKU", "standard")
    assert main([*argv, "-aic-num-cores=15"]) == 1
    monkeypatch.setenv("QAIC_SIM_SDK", "0.1")
    assert main(argv) == 1


def test_help_and_the_list_of_operators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-h"]) == 0 and "  -aic-binary-dir=<value>" in capsys.readouterr().out
    assert main(["-operators-supported=onnx"]) == 0
    assert "MatMul" in (tmp_path / "OnnxSupportedOperators.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(("fault", "code"), [("exit255", 255), ("full", 1), ("nonsense", 1), ("slow:nonsense", 1)])
def test_faults_leave_nothing_unless_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, code: int
) -> None:
    argv = small_command(tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setenv("QAIC_SIM_COMPILER_FAULT", fault)
    assert main(argv) == code and sorted(tmp_path.iterdir()) == before
    if "nonsense" not in fault:
        monkeypatch.setenv("QAIC_SIM_LEAVE_PARTIAL", "1")
        assert main(argv) == code
        assert (tmp_path / "qpc").is_dir() and not (tmp_path / "qpc" / "programqpc.bin").exists()


def test_slow_compilers_and_aborting_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = small_command(tmp_path)
    aborted = in_another_process(argv, QAIC_SIM_COMPILER_FAULT="abort")
    assert aborted.returncode == -signal.SIGABRT and not (tmp_path / "qpc").exists()
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setenv("QAIC_SIM_COMPILER_FAULT", "slow:12.5")
    assert main(argv) == 0 and slept == [12.5]


def test_a_kill_in_the_middle_of_writing_leaves_no_program(tmp_path: Path) -> None:
    argv = small_command(tmp_path)
    dying = """
import os, qaic_simulator.program_file as program_file
def dying(file, images):
    file.write(b"half"), file.flush(), os.kill(os.getpid(), 9)
program_file.write_container_to = dying
"""
    assert in_another_process(argv, dying).returncode == -signal.SIGKILL
    assert not (tmp_path / "qpc").exists() and len(list(tmp_path.glob(".qpc.*"))) == 1
    assert main(argv) == 0
    assert not list(tmp_path.glob(".qpc.*"))


# What we export.

CONTINUOUS = {"batch_size": 4, "seq_len": 1, "ctx_len": 64, "full_batch_size": 4}
PREFILL = {**CONTINUOUS, "batch_size": 1, "seq_len": 8, "full_batch_exec_size": 1}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a tiny model's program, exported once."""
    done: dict[str, Path] = {}

    def export(model_type: str) -> Path:
        if model_type not in done:
            folder = tmp_path_factory.mktemp(model_type)
            wrapped = QEFFAutoModelForCausalLM(tiny_model(model_type), continuous_batching=True)
            done[model_type] = Path(wrapped.export(folder / "exported"))
        return done[model_type]

    return export


def write_custom_io(model: onnx.ModelProto, folder: Path) -> Path:
    outputs = [value.name for value in model.graph.output if value.name.endswith("_RetainedState")]
    names = [name for output in outputs for name in (output.removesuffix("_RetainedState"), output)]
    path = folder / "io.yaml"
    path.write_text("".join(f" - IOName: {name}\n   Precision: float16\n\n" for name in names), encoding="utf-8")
    return path


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gemma2", "qwen3_next"])
def test_exports_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exports: Callable[[str], Path], model_type: str, sdk: str
) -> None:
    path = exports(model_type)
    window = {"sliding_window": 32} if model_type == "gemma2" else {}
    entries = write_entries(tmp_path, ({**PREFILL, **window}, {**CONTINUOUS, **window}), sdk)
    model = onnx.load(path, load_external_data=False)
    monkeypatch.setenv("QAIC_SIM_SDK", sdk)
    argv = command(path, entries, tmp_path / "qpc", f"-custom-IO-list-file={write_custom_io(model, tmp_path)}")
    assert main(argv) == 0
    images = read_container((tmp_path / "qpc" / "programqpc.bin").read_bytes())
    descriptor = decode_descriptor(images["networkdesc.bin"])
    assert [binding.name for binding in descriptor.inputs] == [value.name for value in model.graph.input]
    assert descriptor.allowed_shapes[0][0].dims == (1, 8) and descriptor.allowed_shapes[1][0].dims == (4, 1)
    states = [binding for binding in descriptor.inputs if "position" not in binding.name and "." in binding.name]
    assert states and all(binding.shape.type == 1 for binding in states)


@pytest.mark.filterwarnings("ignore:Ignoring unknown external data key")
def test_bytes_that_are_no_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is changed in the file, the tool ends with a program or with a rule."""
    argv = small_command(tmp_path)
    good = (tmp_path / "small.onnx").read_bytes()
    for seed in range(300):
        chance, raw = random.Random(seed), bytearray(good)
        for _ in range(chance.randint(1, 3)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        (tmp_path / "small.onnx").write_bytes(raw)
        code = main([*argv[:-1], f"-aic-binary-dir={tmp_path / str(seed)}"])
        assert code == 0 or "simulator rule: " in capsys.readouterr().err
