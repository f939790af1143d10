"""The runtime: a model through the whole call sequence, and every call that a device would not take."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import test_execution
from test_execution import HALF, Case, Step, generate, images_of, parsed, reference, with_constants

from qaic_simulator.container import write_container
from qaic_simulator.microscaling import round_mxint8
from qaic_simulator.network_descriptor import decode_descriptor, encode_descriptor
from qaic_simulator.runtime import QAicApi_pb2, qaicrt

exported = test_execution.exported
STATUS = qaicrt.QStatus
SUCCESS, INVALID, ERROR = STATUS.QS_SUCCESS, STATUS.QS_INVAL, STATUS.QS_ERROR
NUMPY = {0: np.float32, 1: np.float16, 7: np.int64}
ADDING = "g (float[N] x, float[4] past) => (float[N] y, float[4] past_RetainedState)"
BODY = "{ past_RetainedState = Add(past, one) s = ReduceSum<keepdims = 0>(past_RetainedState) y = Add(x, s) }"
STATES = {"past": HALF, "past_RetainedState": HALF}
ENTRIES = ({"N": 4}, {"N": 2})


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIC_SIM_STATE", str(tmp_path / "cards.json"))
    for name in ("QAIC_SIM_CARDS", "QAIC_SIM_FAULT", "QAIC_SIM_DELAY_MS", "QAIC_SIM_ROUNDING"):
        monkeypatch.delenv(name, raising=False)


def write(folder: Path, images: Mapping[str, bytes]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "programqpc.bin").write_bytes(write_container(images))
    return str(folder)


def adding_images(entries: Sequence[Mapping[str, int]] = ENTRIES, **settings: Any) -> dict[str, bytes]:
    """A program that adds 1 to its state, and the sum of the state to its input."""
    model = with_constants(parsed(f"{ADDING} {BODY}"), one=np.ones(1, np.float32))
    return images_of(model, entries, STATES, **settings)


@pytest.fixture
def adding(tmp_path: Path) -> str:
    return write(tmp_path / "adding", adding_images())


@dataclass
class Host:
    """What a program needs around it."""

    context: qaicrt.Context
    queue: qaicrt.Queue
    program: qaicrt.Program
    description: Any

    @property
    def bindings(self) -> Any:
        return self.description.selected_set.bindings

    def exec_obj(self) -> qaicrt.ExecObj:
        return qaicrt.ExecObj(self.context, self.program)

    def buffers(self, arrays: Mapping[str, np.ndarray]) -> tuple[list[qaicrt.QBuffer], qaicrt.BufferDimensionsVecRef]:
        """Buffers of all bindings, those without an array skipped as hosts do it."""
        given = [arrays.get(binding.name, np.array([])) for binding in self.bindings]
        dims = qaicrt.BufferDimensionsVecRef([(array.itemsize, array.shape or (1,)) for array in given])
        return [qaicrt.QBuffer(array.tobytes()) for array in given], dims

    def run(self, exec_obj: qaicrt.ExecObj, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs for which an array was given."""
        assert exec_obj.setData(*self.buffers(arrays)) is SUCCESS
        assert self.queue.enqueue(exec_obj) is SUCCESS
        assert exec_obj.waitForCompletion() is SUCCESS
        status, found = exec_obj.getData()
        assert status is SUCCESS
        outputs = {b.name: bytes(found[b.index]) for b in self.bindings if b.dir == QAicApi_pb2.BUFFER_IO_TYPE_OUTPUT}
        types = {b.name: NUMPY[b.type] for b in self.bindings}
        return {n: np.frombuffer(raw, types[n]).reshape(arrays[n].shape) for n, raw in outputs.items() if raw}


def open_program(folder: str, qids: Sequence[int] | None = (0,), qid: int | None = None, mapping: str = "") -> Host:
    """The call sequence up to the program."""
    context = qaicrt.Context() if qids is None else qaicrt.Context(qaicrt.QIDList(qids))
    queue = qaicrt.Queue(context, qids[0] if qids else 0)
    qpc = qaicrt.Qpc(folder)
    status, raw = qpc.getIoDescriptor()
    description = QAicApi_pb2.IoDesc()
    description.ParseFromString(bytes(raw))
    properties = qaicrt.QAicProgramProperties()
    properties.dataPathTimeoutMs = 200
    properties.devMapping = mapping
    assert status is SUCCESS
    return Host(context, queue, qaicrt.Program(context, qid, qpc, properties), description)


def activated(folder: str, **options: Any) -> Host:
    host = open_program(folder, **options)
    assert (host.program.load(), host.program.activate()) == (SUCCESS, SUCCESS)
    return host


def inputs(size: int = 4, **more: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": np.arange(size, dtype=np.float32), "y": np.zeros(size, np.float32), **more}


ZEROS = np.zeros(4, np.float16)


# A model


def device(host: Host) -> Step:
    """One ExecObj, its states on the device."""
    exec_obj = host.exec_obj()

    def step(arrays: dict[str, np.ndarray]) -> np.ndarray:
        logits = np.zeros((len(arrays["input_ids"]), 1, 256), np.float32)
        return host.run(exec_obj, {**arrays, "logits": logits})["logits"]

    return step


@pytest.mark.parametrize("case", [Case(True, 4), Case(False, 2)], ids=["slots", "static"])
def test_a_model_gives_the_tokens_of_its_float16_graph(
    case: Case,
    exported: dict[bool, tuple[onnx.ModelProto, bytes]],
    tmp_path: Path,
) -> None:
    model, constants = exported[case.has_slots]
    states = {value.name: HALF for value in [*model.graph.input, *model.graph.output] if "past" in value.name}
    folder = write(tmp_path / "qpc", images_of(model, case.entries, states, constants))
    host = activated(folder, qids=None)
    found, logits = generate(case, device(host))
    wanted, wanted_logits = generate(case, reference(model, constants, case))
    assert (found == wanted).all() and len(set(found.reshape(-1).tolist())) > 3
    for ours, theirs in zip(logits, wanted_logits, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.05)
    assert host.program.deactivate() is SUCCESS


# The descriptor


def test_the_descriptor_tells_of_bindings_and_specializations(adding: str) -> None:
    description = open_program(adding).description
    found = [(b.name, b.index, b.dir, b.type, list(b.dims), b.size) for b in description.selected_set.bindings]
    assert found == [
        ("x", 0, QAicApi_pb2.BUFFER_IO_TYPE_INPUT, QAicApi_pb2.FLOAT_TYPE, [4], 16),
        ("past", 1, QAicApi_pb2.BUFFER_IO_TYPE_INPUT, QAicApi_pb2.FLOAT_16_TYPE, [4], 8),
        ("y", 2, QAicApi_pb2.BUFFER_IO_TYPE_OUTPUT, QAicApi_pb2.FLOAT_TYPE, [4], 16),
        ("past_RetainedState", 3, QAicApi_pb2.BUFFER_IO_TYPE_OUTPUT, QAicApi_pb2.FLOAT_16_TYPE, [4], 8),
    ]
    assert [b.is_partial_buf_allowed for b in description.selected_set.bindings] == [True, False, False, False]
    shapes = [[(shape.type, list(shape.dims)) for shape in entry.shapes] for entry in description.allowed_shapes]
    assert shapes[1] == [(0, [2]), (1, [4]), (0, [2]), (1, [4])] and len(shapes) == 2


def test_the_cpp_view_of_the_bindings(adding: str) -> None:
    found = qaicrt.Qpc(adding).getBufferMappings()
    assert [(m.bufferName, m.ioType, m.size) for m in found][:3] == [("x", 1, 16), ("past", 1, 8), ("y", 2, 16)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network.elf": b"\x7fELF with a program"}, "only a card"),
        ({"network.elf": b"qaic simulator"}, "only a card"),
        ({"networkdesc.bin": b"\xff"}, "descriptor"),
        ({"sim.json": b""}, "not what the stand-in compiler writes"),
    ],
)
def test_a_foreign_program(change: dict[str, bytes], words: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "qpc", {**adding_images(), **change})
    with pytest.raises(RuntimeError, match=f"Failed to open QPC.*{words}"):
        qaicrt.Qpc(folder)


def test_a_program_that_was_changed(tmp_path: Path) -> None:
    images = adding_images(sha256={"sim.onnx": "0" * 64})
    with pytest.raises(RuntimeError, match="sim.onnx is not what"):
        qaicrt.Qpc(write(tmp_path / "qpc", images))


def test_a_type_without_arrays(tmp_path: Path) -> None:
    images = adding_images()
    descriptor = decode_descriptor(images["networkdesc.bin"])
    first = replace(descriptor.inputs[0], shape=replace(descriptor.inputs[0].shape, type=11))
    changed = replace(descriptor, inputs=(first, *descriptor.inputs[1:]))
    folder = write(tmp_path / "qpc", {**images, "networkdesc.bin": encode_descriptor(changed)})
    with pytest.raises(RuntimeError, match="x is of type 11"):
        qaicrt.Qpc(folder)


@pytest.mark.parametrize("keep", [None, 0, 100])
def test_an_absent_or_truncated_program(keep: int | None, adding: str) -> None:
    path = Path(adding) / "programqpc.bin"
    raw = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(raw[:keep])
    with pytest.raises(RuntimeError, match="Failed to open QPC"):
        qaicrt.Qpc(adding)


# Retained states


def test_a_state_is_undefined_until_it_is_given_and_survives_specializations(adding: str) -> None:
    host = activated(adding)
    exec_obj = host.exec_obj()
    assert np.isnan(host.run(exec_obj, inputs())["y"]).all()
    given = host.run(exec_obj, inputs(past=ZEROS, past_RetainedState=ZEROS))
    assert given["past_RetainedState"].tolist() == [1] * 4 and given["y"].tolist() == [4, 5, 6, 7]
    assert host.run(exec_obj, inputs(2))["y"].tolist() == [8, 9]
    assert host.run(host.exec_obj(), inputs(4))["y"].tolist() == [12, 13, 14, 15]


def test_a_state_belongs_to_one_activation(adding: str) -> None:
    host = activated(adding)
    host.run(host.exec_obj(), inputs(past=ZEROS))
    other = Host(host.context, host.queue, open_program(adding).program, host.description)
    assert (host.program.deactivate(), host.program.activate()) == (SUCCESS, SUCCESS)
    assert np.isnan(host.run(host.exec_obj(), inputs())["y"]).all()
    assert other.program.load() is SUCCESS


def test_what_is_skipped_comes_back_empty(adding: str) -> None:
    host = activated(adding)
    exec_obj = host.exec_obj()
    host.run(exec_obj, {"x": np.zeros(4, np.float32), "past": ZEROS})
    assert [buffer.size for buffer in exec_obj.getData()[1]] == [16, 8, 0, 0]


def test_states_in_mxint8_are_rounded_when_given_and_when_made(tmp_path: Path) -> None:
    text = "g (float[2,32] past) => (float[2,32] past_RetainedState) { past_RetainedState = Add(past, past) }"
    precisions = dict.fromkeys(STATES, "mxint8")
    host = activated(write(tmp_path / "qpc", images_of(parsed(text), types=STATES, custom_io=precisions)))
    values = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float16)
    found = host.run(host.exec_obj(), {"past": values, "past_RetainedState": values})
    assert (found["past_RetainedState"] == 2 * round_mxint8(values, -1)).all()


# Buffers


@pytest.mark.parametrize(("size", "out"), [(4, 2), (2, 4), (3, 4)])
def test_shapes_of_no_specialization_are_found_out_by_the_run(
    size: int, out: int, adding: str, capfd: pytest.CaptureFixture[str]
) -> None:
    host = activated(adding)
    exec_obj = host.exec_obj()
    arrays = {**inputs(size, past=ZEROS), "y": np.zeros(out, np.float32)}
    assert (exec_obj.setData(*host.buffers(arrays)), host.queue.enqueue(exec_obj)) == (SUCCESS, SUCCESS)
    status = exec_obj.waitForCompletion()
    assert status is STATUS.QS_DEV_ERROR and int(status) == 300
    assert "No matching specialization found" in capfd.readouterr().err
    assert exec_obj.getData() == (ERROR, [])
    assert host.run(exec_obj, inputs(past=ZEROS))["y"].tolist() == [4, 5, 6, 7]


def test_what_is_skipped_does_not_take_part_in_the_match(adding: str) -> None:
    host = activated(adding)
    assert host.run(host.exec_obj(), {"x": np.zeros(2, np.float32), "past": ZEROS}) == {}


def changed_lists(host: Host) -> dict[str, tuple[list[qaicrt.QBuffer], Any]]:
    buffers, dims = host.buffers(inputs(past=ZEROS))

    def other(index: int, data: bytes, entry: tuple[int, Sequence[int]]) -> tuple[list[qaicrt.QBuffer], Any]:
        return (
            [*buffers[:index], qaicrt.QBuffer(data), *buffers[index + 1 :]],
            qaicrt.BufferDimensionsVecRef([*dims[:index], entry, *dims[index + 1 :]]),
        )

    return {
        "a buffer too few": (buffers[:-1], dims[:-1]),
        "dimensions too few": (buffers, dims[:-1]),
        "a buffer too many": ([*buffers, qaicrt.QBuffer()], [*dims, (8, (0,))]),
        "bytes that are not the dimensions'": other(0, bytes(16), (4, (3,))),
        "elements of another size": other(0, bytes(16), (8, (2,))),
        "more than the binding": other(0, bytes(20), (4, (5,))),
        "an output of no specialization": other(2, bytes(12), (4, (3,))),
        "more than an output": other(2, bytes(20), (4, (5,))),
        "a part of what is whole": other(1, bytes(4), (2, (2,))),
        "two dimensions below zero": other(0, bytes(16), (4, (-2, -2))),
        "no input": other(0, b"", (8, (0,))),
    }


def test_buffers_that_are_refused(adding: str) -> None:
    host = activated(adding)
    exec_obj = host.exec_obj()
    taken = [name for name, given in changed_lists(host).items() if exec_obj.setData(*given) is not ERROR]
    assert not taken and host.queue.enqueue(exec_obj) is ERROR


def test_a_part_of_an_input_is_followed_by_what_memory_held(tmp_path: Path) -> None:
    images = images_of(parsed("g (float[4] x) => (float[4] y) { y = Identity(x) }"))
    descriptor = decode_descriptor(images["networkdesc.bin"])
    entry = replace(descriptor.inputs[0], partial_allowed=True)
    partial = replace(descriptor, inputs=(entry,), allowed_shapes=())
    host = activated(write(tmp_path / "qpc", {**images, "networkdesc.bin": encode_descriptor(partial)}))
    found = host.run(host.exec_obj(), {"x": np.ones(2, np.float32), "y": np.zeros(4, np.float32)})
    assert found["y"][:2].tolist() == [1, 1] and not np.isfinite(found["y"][2:]).any()


def test_without_dimensions_buffers_have_those_of_the_bindings(adding: str) -> None:
    host = activated(adding)
    exec_obj = host.exec_obj()
    buffers, _ = host.buffers(inputs(past=ZEROS))
    assert exec_obj.run(buffers) is SUCCESS
    assert np.frombuffer(bytes(exec_obj.getData()[1][2]), np.float32).tolist() == [4, 5, 6, 7]
    assert exec_obj.run(buffers[:-1]) is ERROR


def test_scalars_have_one_element(tmp_path: Path) -> None:
    images = images_of(parsed("g (float x) => (float y) { y = Add(x, x) }"))
    host = activated(write(tmp_path / "qpc", images))
    one = np.ones(1, np.float32)
    assert host.run(host.exec_obj(), {"x": one, "y": one})["y"].tolist() == [2]


# Arrays without a copy


def test_arrays_are_written_in_place(adding: str) -> None:
    host = activated(adding)
    exec_obj = host.exec_obj()
    x, y = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    assert exec_obj.setData([(0, x), (1, ZEROS), (2, y)]) is SUCCESS
    for expected in ([4, 5, 6, 7], [4, 5, 6, 7]):
        assert (host.queue.enqueue(exec_obj), exec_obj.waitForCompletion()) == (SUCCESS, SUCCESS)
        assert y.tolist() == expected
    assert exec_obj.setData([(0, x), (2, y)]) is SUCCESS
    assert (host.queue.enqueue(exec_obj), exec_obj.waitForCompletion()) == (SUCCESS, SUCCESS)
    assert y.tolist() == [8, 9, 10, 11]


def test_arrays_in_flight_are_nobodys(
    adding: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QAIC_SIM_DELAY_MS", "100")
    host = activated(adding)
    exec_obj = host.exec_obj()
    x, y = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    exec_obj.setData([(0, x), (1, ZEROS), (2, y)])
    assert host.queue.enqueue(exec_obj) is SUCCESS
    assert np.isnan(y).all()
    x[0] = 9
    assert exec_obj.waitForCompletion() is ERROR
    assert "buffer modified while in flight" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arrays",
    [
        *([(index, np.zeros(4, np.float32))] for index in (4, -1, False, np.bool_(False))),
        [(0, np.zeros(4, np.float32)), (0, np.zeros(4, np.float32))],
        [(0, np.zeros(4, np.int32))],
        [(0, np.zeros(8, np.float32)[::2])],
        [(0, np.zeros(4, np.float32)), (2, np.frombuffer(bytes(16), np.float32))],
        [(0, np.zeros(5, np.float32))],
        [(2, np.zeros(4, np.float32))],
    ],
)
def test_arrays_that_are_refused(arrays: list[tuple[int, np.ndarray]], adding: str) -> None:
    assert activated(adding).exec_obj().setData(arrays) is ERROR


# Order


def test_calls_out_of_order(adding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIC_SIM_DELAY_MS", "20")
    host = open_program(adding)
    assert (host.program.activate(), host.program.deactivate()) == (INVALID, INVALID)
    with pytest.raises(RuntimeError, match="Failed to create ExecObj"):
        host.exec_obj()
    assert (host.program.load(), host.program.load()) == (SUCCESS, INVALID)
    assert (host.program.activate(), host.program.activate()) == (SUCCESS, INVALID)
    exec_obj = host.exec_obj()
    assert (host.queue.enqueue(exec_obj), exec_obj.waitForCompletion()) == (ERROR, ERROR)
    buffers = host.buffers(inputs(past=ZEROS))
    assert exec_obj.setData(*buffers) is SUCCESS and exec_obj.getData() == (ERROR, [])
    assert (host.queue.enqueue(exec_obj), host.queue.enqueue(exec_obj)) == (SUCCESS, ERROR)
    assert exec_obj.setData(*buffers) is ERROR and exec_obj.getData() == (ERROR, [])
    assert (exec_obj.waitForCompletion(), exec_obj.waitForCompletion()) == (SUCCESS, ERROR)
    assert exec_obj.getData()[0] is SUCCESS
    assert host.program.deactivate() is INVALID
    del exec_obj
    gc.collect()
    assert (host.program.deactivate(), host.program.deactivate()) == (SUCCESS, INVALID)
    with pytest.raises(RuntimeError, match="Failed to create ExecObj"):
        host.exec_obj()


def test_queues_and_contexts_of_others(adding: str) -> None:
    host = activated(adding, qids=(0, 1), qid=1)
    exec_obj = host.exec_obj()
    exec_obj.setData(*host.buffers(inputs(past=ZEROS)))
    other = qaicrt.Context(qaicrt.QIDList([1]))
    assert qaicrt.Queue(other, 1).enqueue(exec_obj) is ERROR
    assert qaicrt.Queue(host.context, 0).enqueue(exec_obj) is ERROR
    assert qaicrt.Queue(host.context, 1).enqueue(exec_obj) is SUCCESS
    with pytest.raises(RuntimeError, match="Failed to create ExecObj"):
        qaicrt.ExecObj(other, host.program)


def test_a_queue_runs_in_order_and_while_the_host_goes_on(adding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIC_SIM_DELAY_MS", "100")
    host = activated(adding)
    first, second = host.exec_obj(), host.exec_obj()
    first.setData(*host.buffers(inputs(past=ZEROS)))
    second.setData(*host.buffers(inputs()))
    start = time.monotonic()
    assert (host.queue.enqueue(first), host.queue.enqueue(second)) == (SUCCESS, SUCCESS)
    assert time.monotonic() - start < 0.1
    assert (second.waitForCompletion(), first.waitForCompletion()) == (SUCCESS, SUCCESS)
    assert np.frombuffer(bytes(second.getData()[1][2]), np.float32).tolist() == [8, 9, 10, 11]


def test_data_may_be_run_again(adding: str) -> None:
    host = activated(adding)
    exec_obj = host.exec_obj()
    host.run(exec_obj, inputs(past=ZEROS))
    assert (host.queue.enqueue(exec_obj), exec_obj.waitForCompletion()) == (SUCCESS, SUCCESS)


# Names


def test_numbers_of_statuses() -> None:
    numbers = [int(status) for status in STATUS]
    assert numbers == [*range(13), 300, 500]
    assert STATUS.QS_SUCCESS != 0


@pytest.mark.parametrize("name", ["SubmitNumRetries", "dataPathTimeoutMS", "devmapping"])
def test_properties_that_do_not_exist(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(qaicrt.QAicProgramProperties(), name, 1)


@pytest.mark.parametrize(("name", "value"), [("devMapping", 0), ("dataPathTimeoutMs", "60000")])
def test_properties_of_the_wrong_type(name: str, value: object) -> None:
    with pytest.raises(TypeError):
        setattr(qaicrt.QAicProgramProperties(), name, value)


def test_nothing_takes_keywords_or_new_attributes(adding: str) -> None:
    host = activated(adding)
    exec_obj = host.exec_obj()
    with pytest.raises(TypeError):
        qaicrt.Qpc(folder=adding)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        exec_obj.setData(buffers=[])  # type: ignore[call-arg]
    for thing in (host.context, host.queue, host.program, exec_obj, qaicrt.QBuffer(), qaicrt.Util()):
        with pytest.raises(AttributeError):
            thing.unknown = 1  # type: ignore[attr-defined]
        with pytest.raises(AttributeError):
            thing.unknown  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError):
        qaicrt.InferenceSet  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    "make", [lambda: qaicrt.QIDList(["0"]), lambda: qaicrt.QBuffer([1]), lambda: qaicrt.QIDList([True])]
)
def test_values_of_the_wrong_type(make: Callable[[], object]) -> None:
    with pytest.raises(TypeError):
        make()


def test_arrays_are_no_buffers(adding: str) -> None:
    with pytest.raises(TypeError, match="QBuffers"):
        activated(adding).exec_obj().setData([np.zeros(4, np.float32)])  # type: ignore[list-item]


def test_the_log_level_is_one_of_its_kind() -> None:
    context = qaicrt.Context()
    assert context.setLogLevel(qaicrt.QLogLevel.QL_DEBUG) is SUCCESS
    assert context.setLogLevel(0) is INVALID  # type: ignore[arg-type]


def test_types_and_directions_have_the_numbers_of_the_sdk() -> None:
    api = QAicApi_pb2
    names = ["FLOAT_TYPE", "FLOAT_16_TYPE", "INT8_Q_TYPE", "UINT8_Q_TYPE", "INT16_Q_TYPE", "INT32_Q_TYPE"]
    names += ["INT32_I_TYPE", "INT64_I_TYPE", "INT8_TYPE"]
    assert [getattr(api, name) for name in names] == list(range(9))
    assert (api.TYPE_INVALID, api.BUFFER_IO_TYPE_INPUT, api.BUFFER_IO_TYPE_OUTPUT) == (255, 0, 1)
