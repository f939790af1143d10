"""`QAICInferenceSession`: buffers in, buffers out, over the runtime of Qualcomm's SDK; what scripts drive directly."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import platform
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from QEfficient.devices.cloud_ai_100 import faults
from QEfficient.devices.cloud_ai_100.container import BINARY, FILE
from QEfficient.devices.cloud_ai_100.sdk import ROOT_VARIABLE, sdk_root
from QEfficient.devices.cloud_ai_100.shares import Share
from QEfficient.errors import SessionLostError, first_line

logger = logging.getLogger(__name__)

RUNTIME, MESSAGES = "qaicrt", "QAicApi_pb2"
USED = {
    RUNTIME: (
        "Context", "Queue", "Qpc", "Program", "QAicProgramProperties", "ExecObj", "QBuffer", "BufferDimensionsVecRef",
        "QStatus",
    ),
    MESSAGES: ("IoDesc", "BUFFER_IO_TYPE_INPUT", "BUFFER_IO_TYPE_OUTPUT"),
}  # fmt: skip
"""The SDK's modules, and what every session takes of them."""
REPAIR = f"Install the Apps SDK again, or set {ROOT_VARIABLE} to the folder that it lies in."
TIMEOUT_MS = 60_000
NUMPY_TYPES = {
    "FLOAT_TYPE": np.float32,
    "FLOAT_16_TYPE": np.float16,
    "INT8_Q_TYPE": np.int8,
    "UINT8_Q_TYPE": np.uint8,
    "INT16_Q_TYPE": np.int16,
    "INT32_Q_TYPE": np.int32,
    "INT32_I_TYPE": np.int32,
    "INT64_I_TYPE": np.int64,
    "INT8_TYPE": np.int8,
}
WHOLE_KINDS = frozenset("iub")
"""Of numpy's: types with the same bytes for the numbers that both have."""
INTERNAL, PUBLIC = "_InternalRetainedState", "_RetainedState"

Array = np.ndarray
Shape = tuple[int, tuple[int, ...]]
"""Bytes of an item, and sizes."""


def load_runtime() -> tuple[Any, Any]:
    """The SDK's modules. Raises `ImportError` that says where they were looked for, or why they cannot be used."""
    folders = [sdk_root() / "dev" / "lib" / platform.machine(), sdk_root() / "dev" / "python"]
    if not all(map(_is_there, USED)):
        sys.path += [str(folder) for folder in folders if str(folder) not in sys.path]
    missing = [name for name in USED if not _is_there(name)]
    if missing:
        raise ImportError(
            f"running on the Cloud AI 100 needs the modules {RUNTIME} and {MESSAGES} of Qualcomm's Apps SDK, but"
            f" {' and '.join(missing)} cannot be found, neither in {' nor in '.join(map(str, folders))}. {REPAIR}"
        )
    return _module(RUNTIME), _module(MESSAGES)


def runtime_lacks() -> str:
    """A sentence that says why nothing can run on a card here; empty if the runtime can be used."""
    try:
        load_runtime()
    except ImportError as error:
        return str(error)
    return ""


def _is_there(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _module(name: str) -> Any:
    """A module of the SDK. One that breaks on its import, or lacks what a session needs, is refused with its place."""
    spec = importlib.util.find_spec(name) if name not in sys.modules else sys.modules[name].__spec__
    place = f", {spec.origin}," if spec else ""
    unusable = f"the module {name} of Qualcomm's Apps SDK{place} cannot be used"
    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever code of others does
        raise ImportError(f"{unusable}: {first_line(error)}. {REPAIR}") from error
    lacking = [used for used in USED[name] if not hasattr(module, used)]
    if lacking:
        raise ImportError(f"{unusable}: it has no {', '.join(lacking)}. {REPAIR}")
    return module


class QAICInferenceSession:
    """One program on one device, or on several that share it.

    Errors are of the kinds that scripts expect: `RuntimeError` while a program is brought onto a device, `MemoryError`
    for buffers and for what is refused before a run, `ValueError` for a run that fails. Where it is known what is the
    matter with the device, their cause says so by name (`QEfficient.errors`). A device that fails, or does not end in
    time, is given up: the session is inactive then, and its state gone. An interrupt waits for the run that it came in.
    """

    def __init__(
        self,
        qpc_path: str | Path,
        device_ids: Sequence[int] | None = None,
        activate: bool = True,
        enable_debug_logs: bool = False,
        data_path_timeout_ms: int = TIMEOUT_MS,
    ) -> None:
        """`qpc_path`: the folder with programqpc.bin, or the one around it. Without `device_ids` the runtime chooses a
        device."""
        folder = program_folder(Path(qpc_path))
        self._runtime, self._messages = load_runtime()
        self._types = _numpy_types(self._messages)
        ids = list(device_ids or [])
        self._ids = ids
        self._placement = faults.Placement(folder, tuple(ids or [0]), data_path_timeout_ms)
        self.share = Share(folder, tuple(ids))
        self._context = self._runtime.Context(self._runtime.QIDList(ids)) if ids else self._runtime.Context()
        self._queue = self._runtime.Queue(self._context, ids[0] if ids else 0)
        if enable_debug_logs:
            self._check(self._context.setLogLevel(self._runtime.QLogLevel.QL_DEBUG), "set the level of the log")
        self._qpc: Any = self._runtime.Qpc(str(folder))
        self._describe(self._qpc)
        self.program: Any = None
        self.execObj: Any = None
        self._active = self._in_flight = False
        self.qbuffers = [self._runtime.QBuffer(bytes(binding.size)) for binding in self.bindings]
        self._shapes: list[Shape] = [self._shape(binding.type, binding.dims) for binding in self.bindings]
        if activate:
            self.activate()
        else:
            self.share.take(self._load)
            self.share.held = True

    @property
    def active(self) -> bool:
        """Whether it has the device's cores."""
        return self._active

    @property
    def input_names(self) -> list[str]:
        return [b.name for b in self.bindings if b.dir == self._messages.BUFFER_IO_TYPE_INPUT]

    @property
    def output_names(self) -> list[str]:
        return [b.name for b in self.bindings if b.dir == self._messages.BUFFER_IO_TYPE_OUTPUT]

    @property
    def buffer_types(self) -> dict[str, Any]:
        """The type of the numbers in each buffer."""
        return {binding.name: self._types[binding.type] for binding in self.bindings}

    def activate(self) -> None:
        """Take the device's cores; nothing happens if they are taken already. Idle sessions of this process that come
        back by themselves make room, if need be."""
        if not self._active:
            self.share.held = False  # an error is to say who else holds something
            self.share.take(self._open)
            self._active = self.share.held = True

    def _open(self) -> None:
        try:
            self._load()
            self._take_cores()
        except BaseException:  # what was taken of a device must not stay with who cannot use it
            self.execObj = None
            if self.program is not None:
                self.program.deactivate()
            self._forget_program()
            raise

    def _load(self) -> None:
        if self.program is None:
            program = self._program(self._qpc or self._runtime.Qpc(str(self._placement.program)))
            self._check_opened(program.load(), "load the program")
            self.program = program
            self._qpc = None  # read again if need be: it may hold all of the file

    def _take_cores(self) -> None:
        status = self.program.activate()
        try:  # also where that failed: it is the constructor that says what is short
            self.execObj = self._runtime.ExecObj(self._context, self.program)
        except RuntimeError as error:
            fault = faults.opening_fault(status, str(error), self._placement)
            raise RuntimeError(str(fault or error)) from fault or error
        self._check_opened(status, "activate the program")

    def deactivate(self) -> None:
        """Give the cores back; the state of the program is lost. Idempotent."""
        if not self._active:
            return
        self.execObj = None  # before the program: the runtime refuses otherwise
        self._active = False
        self._check(self.program.deactivate(), "deactivate the program")

    def unload(self) -> None:
        """Give the device's memory back too; `activate` brings the program there again. Idempotent."""
        try:
            self.deactivate()
        finally:
            self._forget_program()

    def _forget_program(self) -> None:
        """The runtime takes the memory back when nobody refers to the program."""
        self.program, self.share.held = None, False

    def set_buffers(self, buffers: Mapping[str, Array]) -> None:
        """Say what inputs hold, and how large outputs will be. Numbers of another type are refused, not converted."""
        for name, array in buffers.items():
            if name not in self.binding_index_map:
                warnings.warn(f"the program has no buffer '{name}': it is left out.", stacklevel=2)
                continue
            self._set(self.binding_index_map[name], np.ascontiguousarray(array))

    def skip_buffers(self, names: Iterable[str]) -> None:
        """Leave these on the device: nothing is copied, and the state stays what it is."""
        self.set_buffers({name: np.array([]) for name in names})

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; the outputs that were not skipped, as views that cannot be written."""
        if not self._active:
            self.activate()
        self.share.touch()
        self.set_buffers(inputs)
        try:
            return self._outputs(self._computed())
        except (MemoryError, ValueError):  # a status that is told as the error that scripts know
            raise
        except BaseException as interrupt:
            # Its frames may hold the runtime's objects, which give nothing back as long as somebody holds them.
            interrupt.__traceback__ = None
            self._settle()
            raise interrupt.with_traceback(None) from None

    def _computed(self) -> Sequence[Any]:
        dims = self._runtime.BufferDimensionsVecRef(self._shapes)
        status = self.execObj.setData(self.qbuffers, dims)
        if status != self._success:
            refused = self._with_shapes("the runtime refused the buffers (setData).")
            raise self._failure(status, MemoryError(refused))
        self._in_flight = True
        status = self._enqueue()
        if status != self._success:
            self._in_flight = False
            raise self._failure(status, MemoryError(f"the runtime did not take the run (enqueue): status {status}."))
        status = self.execObj.waitForCompletion()
        self._in_flight = False
        if status != self._success:
            raise self._failure(status, ValueError(self._with_shapes(f"the run failed with status {status}.")))
        status, out = self.execObj.getData()
        if status != self._success:
            raise self._failure(status, MemoryError("the runtime did not give the outputs (getData)."))
        found: Sequence[Any] = out
        return found

    def _settle(self) -> None:
        """Wait for a run that an interrupt left behind, as long as the runtime lets it last: until then nothing can be
        done with the program. Whoever interrupts that too gives the session up."""
        if not self._in_flight:
            return
        self._in_flight = False
        try:
            status = self.execObj.waitForCompletion()
        except BaseException as interrupt:
            interrupt.__traceback__ = None
            self._give_up()
            raise interrupt.with_traceback(None) from None
        if status != self._success:
            self._failure(status, ValueError())

    def _give_up(self) -> None:
        with contextlib.suppress(RuntimeError):  # a device that failed may refuse that too
            self.unload()

    def _enqueue(self) -> Any:
        """The status of submitting a run, which is tried again as long as the runtime says so."""
        status = self._queue.enqueue(self.execObj)
        for _ in range(faults.SUBMIT_RETRIES):
            if not faults.is_busy(status):
                break
            time.sleep(faults.RETRY_SECONDS)
            status = self._queue.enqueue(self.execObj)
        return status

    def _failure(self, status: Any, otherwise: Exception) -> Exception:
        """What to raise for a status: with the device's fault as its cause, if it is one."""
        fault = faults.run_fault(status, self._placement)
        if fault is None:
            return otherwise
        if isinstance(fault, SessionLostError):
            self._give_up()
        raised = type(otherwise)(str(fault))
        raised.__cause__ = fault
        return raised

    def _outputs(self, out: Sequence[Any]) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for name in self.output_names:
            index = self.binding_index_map[name]
            size, dims = self._shapes[index]
            if 0 in dims or not self.qbuffers[index].size:
                continue
            kind = self._types[self.bindings[index].type]
            array = np.frombuffer(bytes(out[index]), kind).reshape(dims)
            for alias in _aliases(name):
                found[alias] = array
        return found

    def _set(self, index: int, array: Array) -> None:
        if array.size:
            self._check_type(self.bindings[index], array.dtype)
        shape = array.shape or (1,)
        self.qbuffers[index] = self._runtime.QBuffer(array.tobytes())
        self._shapes[index] = (array.itemsize, shape)

    def _check_type(self, binding: Any, found: np.dtype) -> None:
        """Refuse numbers of another type: the runtime takes bytes, and the program would read others from them."""
        wanted, is_input = np.dtype(self._types[binding.type]), binding.dir == self._messages.BUFFER_IO_TYPE_INPUT
        whole_numbers = {found.kind, wanted.kind} <= WHOLE_KINDS and found.isnative
        readable = found == wanted or whole_numbers or not is_input  # of an output only the size counts
        if found.itemsize != wanted.itemsize or not readable:
            raise MemoryError(
                f"the {'input' if is_input else 'output'} '{binding.name}' was given as {found}, but it is {wanted} in"
                f" the program. Give an array of that type: .astype(np.{wanted})."
            )

    def _describe(self, qpc: Any) -> None:
        status, data = qpc.getIoDescriptor()
        self._check(status, "describe the program")
        description = self._messages.IoDesc()
        description.ParseFromString(bytes(data))
        self.bindings = list(description.selected_set.bindings)
        self.binding_index_map = {alias: b.index for b in self.bindings for alias in _aliases(b.name)}
        self.allowed_shapes: list[list[Shape]] = [
            [self._shape(shape.type, shape.dims) for shape in allowed.shapes] for allowed in description.allowed_shapes
        ]

    def _program(self, qpc: Any) -> Any:
        ids, properties = self._ids, self._runtime.QAicProgramProperties()
        properties.dataPathTimeoutMs = self._placement.timeout_ms
        if len(ids) > 1:
            properties.devMapping = ":".join(map(str, ids))
            return self._runtime.Program(self._context, None, qpc, properties)
        return self._runtime.Program(self._context, ids[0] if ids else 0, qpc, properties)

    def _shape(self, kind: int, dims: Iterable[int]) -> Shape:
        return np.dtype(self._types[kind]).itemsize, tuple(dims)

    @property
    def _success(self) -> Any:
        return self._runtime.QStatus.QS_SUCCESS

    def _check_opened(self, status: Any, what: str) -> None:
        """As `_check`, for what takes a part of a device."""
        if status != self._success:
            fault = faults.opening_fault(status, "", self._placement)
            raise RuntimeError(str(fault or f"the runtime could not {what}: status {status}.")) from fault

    def _check(self, status: Any, what: str) -> None:
        if status != self._success:
            raise RuntimeError(f"the runtime could not {what}: status {status}.")

    def _with_shapes(self, said: str) -> str:
        """The runtime says a number only: what was passed, and what would have been taken."""
        passed = {b.name: list(self._shapes[b.index][1]) for b in self.bindings if 0 not in self._shapes[b.index][1]}
        lines = [said, f"passed: {passed}"]
        for number, allowed in enumerate(self.allowed_shapes):
            listed = {b.name: list(allowed[b.index][1]) for b in self.bindings if b.name in passed}
            lines.append(f"allowed ({number}): {listed}")
        return "\n".join(lines)


def program_folder(path: Path) -> Path:
    """Where programqpc.bin lies: here, or in the folder that the compiler wrote."""
    for folder in (path, path / BINARY):
        if (folder / FILE).is_file():
            return folder
    raise FileNotFoundError(f"{path} holds no {FILE}, nor does its folder {BINARY}.")


def _numpy_types(messages: Any) -> dict[int, Any]:
    return {getattr(messages, name): kind for name, kind in NUMPY_TYPES.items() if hasattr(messages, name)}


def _aliases(name: str) -> list[str]:
    """A buffer is found by its last part too, and a state of a layer's function as if it were the graph's."""
    names = [name, name.rsplit("/", 1)[-1]]
    return list(dict.fromkeys([*names, *(n.replace(INTERNAL, PUBLIC) for n in names)]))
