"""The module that stands in for `qaicrt`: the same names, positional arguments and statuses, and nothing beyond them.

Constructors raise and methods return a status. What real devices only show when a program runs shows here only then:
shapes that fit no specialization, memory that nobody wrote, a device that goes away. `QAIC_SIM_FAULT` asks for the
last kind: `timeout`, `lost`, `memory`, or `again:N` (every Nth enqueue is to be tried again).
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
import math
import os
import queue
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qaic_simulator.container import CONSTANTS, ContainerError, read_container
from qaic_simulator.network_descriptor import DescriptorError, NetworkDescriptor, decode_descriptor
from qaic_simulator.runtime import QAicApi_pb2, cards
from qaic_simulator.runtime.activation import (
    FAULT_VARIABLE,
    NUMPY_TYPES,
    Activation,
    BufferRefusal,
    Item,
    Job,
    QStatus,
    bindings_of,
    byte_size,
    fault,
    items_of_arrays,
    items_of_buffers,
    log,
)
from qaic_simulator.runtime.execution import Network
from qaic_simulator.runtime.settings import DESCRIPTOR, MODEL, SETTINGS, ExecutionError, read_settings

PROGRAM_FILE = "programqpc.bin"
ELF_MAGIC, ELF_NOTE = b"\x7fELF", b"qaic simulator"

_NO_CORES = "QAIC_ERROR_NSP_ALLOC_FAILED: Failed to allocate NSP resources"
_NO_OBJECT = "Failed to create ExecObj"
_DRIVER_TIMEOUT_MS = 5000
"""What a timeout of 0 means."""
_MEGABYTE = 1 << 20


class QLogLevel(enum.Enum):
    """How much the library says."""

    QL_DEBUG = 0
    QL_INFO = 1
    QL_WARN = 2
    QL_ERROR = 3


SUCCESS, INVALID, ERROR, DEVICE_ERROR = QStatus.QS_SUCCESS, QStatus.QS_INVAL, QStatus.QS_ERROR, QStatus.QS_DEV_ERROR


class QIDList(list[int]):
    """Numbers of devices."""

    def __init__(self, qids: Iterable[int] = (), /) -> None:
        super().__init__(_whole(qid, "a device id") for qid in qids)


class QBuffer:
    """Bytes of one input or output; none: there is no buffer."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes | bytearray | memoryview = b"", /) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"QBuffer takes bytes, not {type(data).__name__}")
        self._data = bytes(data)

    @property
    def size(self) -> int:
        """Bytes in the buffer."""
        return len(self._data)

    def __bytes__(self) -> bytes:
        return self._data


class BufferDimensionsVecRef(list[Any]):
    """Bytes of an element and dimensions, for each buffer."""

    def __init__(self, dimensions: Iterable[tuple[int, Sequence[int]]] = (), /) -> None:
        super().__init__(dimensions)


class Context:
    """The devices that a process uses: those of a list, or all."""

    __slots__ = ("__weakref__", "_qids")

    def __init__(self, qids: QIDList | None = None, /) -> None:
        fault()  # the first call of a host: a wrong wish is refused here, not in the middle of its work
        known = [use.card.qid for use in cards.look()]
        self._qids = tuple(known if qids is None else qids)
        unknown = sorted(set(self._qids) - set(known))
        if unknown or not self._qids or len(set(self._qids)) < len(self._qids):
            raise RuntimeError(f"Failed to create context: devices {list(self._qids)} of {known}")

    def setLogLevel(self, level: QLogLevel, /) -> QStatus:
        """Accepted, and ignored: errors are always printed, and nothing else is."""
        return SUCCESS if isinstance(level, QLogLevel) else INVALID


class QAicProgramProperties:
    """Timeouts, and the devices of a program that runs on several."""

    __slots__ = ("SubmitRetryTimeoutMs", "dataPathTimeoutMs", "devMapping")

    def __init__(self) -> None:
        self.dataPathTimeoutMs = 0
        self.SubmitRetryTimeoutMs = 0
        self.devMapping = ""

    def __setattr__(self, name: str, value: object) -> None:
        wanted = str if name == "devMapping" else int
        if name in QAicProgramProperties.__slots__ and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise TypeError(f"{name} is of type {wanted.__name__}, not {type(value).__name__}")
        super().__setattr__(name, value)


@dataclass(frozen=True)
class BufferMapping:
    """One buffer as the C++ interface describes it."""

    bufferName: str
    index: int
    ioType: int
    size: int
    isPartialBufferAllowed: bool
    dataType: int


class Qpc:
    """A compiled program in a folder."""

    __slots__ = ("_descriptor", "_images", "_settings")

    def __init__(self, folder: str | os.PathLike[str], /) -> None:
        try:
            self._images = read_container((Path(folder) / PROGRAM_FILE).read_bytes())
            _check_maker(self._images["network.elf"])
            self._descriptor = decode_descriptor(self._images[DESCRIPTOR])
            self._settings = read_settings(self._images.get(SETTINGS, b""))
            _check_types(self._descriptor)
            _check_digests(self._images)
        except (OSError, ContainerError, DescriptorError, ExecutionError) as error:
            raise RuntimeError(f"Failed to open QPC {folder}: {error}") from error

    def getIoDescriptor(self) -> tuple[QStatus, bytes]:
        """The bytes of an `IoDesc`."""
        return SUCCESS, _describe(self._descriptor).SerializeToString()

    def getBufferMappings(self) -> list[BufferMapping]:
        """The buffers in binding order, directions as in C: 1 in, 2 out."""
        bindings = _describe(self._descriptor).selected_set.bindings
        return [
            BufferMapping(entry.name, entry.index, entry.dir + 1, entry.size, entry.is_partial_buf_allowed, entry.type)
            for entry in bindings
        ]


class Program:
    """A compiled program on a device, or on the devices that its properties map it to."""

    __slots__ = (
        *("__weakref__", "_activation", "_context", "_cores", "_exec_objs", "_memory", "_network"),
        *("_picked", "_qids", "_qpc", "_shortage", "_timeout_ms"),
    )

    def __init__(
        self, context: Context, qid: int | None, qpc: Qpc, properties: QAicProgramProperties | None = None, /
    ) -> None:
        properties = properties or QAicProgramProperties()
        self._context, self._qpc = context, qpc
        self._picked = qid is None and not properties.devMapping
        self._qids = _choose_devices(context, qid, properties.devMapping, qpc)
        self._timeout_ms = properties.dataPathTimeoutMs or _DRIVER_TIMEOUT_MS
        self._exec_objs: weakref.WeakSet[ExecObj] = weakref.WeakSet()
        self._network: Network | None = None
        self._activation: Activation | None = None
        self._memory: weakref.finalize[..., Program] | None = None
        self._cores: weakref.finalize[..., Program] | None = None
        self._shortage = ""

    def load(self) -> QStatus:
        """Take memory on the devices and put the program there."""
        if self._network is not None:
            return INVALID
        if not _all_ready(self._qids):
            return DEVICE_ERROR
        try:
            if fault() == "memory":
                raise cards.CardShortage(cards.MEMORY, "")
            taken = cards.reserve(self._qids, dram_mb=_megabytes(self._qpc))
        except cards.CardShortage:
            self._shortage = _NO_OBJECT
            return QStatus.QS_NOMEM
        self._memory = weakref.finalize(self, cards.release, taken)
        try:
            self._network = Network(self._qpc._images)
        except Exception as error:  # Whatever is wrong with a graph, the host sees a status.
            log(f"Failed to load program: {error}")
            self._memory()
            return ERROR
        return SUCCESS

    def activate(self) -> QStatus:
        """Take cores; what the program retains is undefined from here on."""
        if self._network is None:
            if self._shortage:
                log(f"[QKmdDevice][activate:#1172] Device {self._qids[0]} activate failed: Memory resource exhausted")
                log(f"Dev {self._qids[0]} activate failed status 300")
            return DEVICE_ERROR if self._shortage else INVALID
        if self._activation is not None:
            return INVALID
        if not _all_ready(self._qids):
            return DEVICE_ERROR
        try:
            taken = cards.reserve(self._qids, cores=self._qpc._settings.cores)
        except cards.CardShortage:
            self._shortage = _NO_CORES
            return DEVICE_ERROR
        self._cores, self._shortage = weakref.finalize(self, cards.release, taken), ""
        self._activation = Activation(self._network, self._qids, self._timeout_ms)
        return SUCCESS

    def deactivate(self) -> QStatus:
        """Give the cores back; refused while there are ExecObjs."""
        if self._activation is None or len(self._exec_objs):
            return INVALID
        self._activation = None
        if self._cores is not None:
            self._cores()
        return SUCCESS


class ExecObj:
    """One set of buffers to run a program with, again and again."""

    __slots__ = ("__weakref__", "_context", "_items", "_job", "_program", "_waited")

    def __init__(self, context: Context, program: Program, /) -> None:
        if program._activation is None or program._context is not context:
            raise RuntimeError(program._shortage or _NO_OBJECT)
        self._context, self._program = context, program
        self._items: list[Item] | None = None
        self._job: Job | None = None
        self._waited = False
        program._exec_objs.add(self)

    def setData(
        self, buffers: Sequence[QBuffer] | Sequence[tuple[int, np.ndarray]], dimensions: Any = None, /
    ) -> QStatus:
        """Take buffers for all bindings and their dimensions, or arrays for some."""
        activation = self._program._activation
        if activation is None:
            return INVALID
        if self._job is not None and not self._waited:
            return ERROR
        try:
            self._items = _items(buffers, dimensions, activation.network)
        except BufferRefusal as error:
            log(f"setData: {error}")
            return ERROR
        return SUCCESS

    def waitForCompletion(self) -> QStatus:
        """Wait for the run that was enqueued, and say how it went."""
        if self._job is None or self._waited:
            return ERROR
        self._job.done.wait()
        self._waited = True
        return self._job.status

    def getData(self) -> tuple[QStatus, list[QBuffer]]:
        """The buffers of all bindings after a run; those that were not given are empty."""
        if self._job is None or not self._waited or self._job.status is not SUCCESS:
            return ERROR, []
        return SUCCESS, [QBuffer(data) for data in self._job.buffers]

    def run(self, buffers: Sequence[QBuffer], dimensions: Any = None, /) -> QStatus:
        """Take buffers, run, and wait."""
        status = self.setData(buffers, dimensions)
        if status is SUCCESS:
            status = self._start(lambda job: job.perform())
        return self.waitForCompletion() if status is SUCCESS else status

    def _start(self, submit: Any) -> QStatus:
        activation = self._program._activation
        if activation is None:
            return INVALID
        if self._items is None or (self._job is not None and not self._waited):
            return ERROR
        self._job, self._waited = Job(activation, self._items), False
        submit(self._job)
        return SUCCESS


class Queue:
    """Runs what is enqueued one after the other, in a thread of its own."""

    __slots__ = ("__weakref__", "_context", "_count", "_jobs", "_qid")

    def __init__(self, context: Context, qid: int, /) -> None:
        if qid not in context._qids:
            raise RuntimeError(f"Failed to create queue: device {qid} is not in the context")
        self._context, self._qid, self._count = context, qid, 0
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        threading.Thread(target=_serve, args=(self._jobs,), daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)

    def enqueue(self, exec_obj: ExecObj, /) -> QStatus:
        """Start a run; whether the shapes fit is found out only there."""
        program = exec_obj._program
        is_own = program._picked or self._qid == program._qids[0]
        if exec_obj._context is not self._context or not is_own:
            return ERROR
        self._count += 1
        if fault() == "again" and self._count % int(os.environ[FAULT_VARIABLE].partition(":")[2]) == 0:
            return QStatus.QS_AGAIN
        return exec_obj._start(self._jobs.put)


@dataclass(frozen=True)
class ResourceInfo:
    """What a device has, and what of it is free; memory in MB."""

    dramTotal: int
    dramFree: int
    nspTotal: int
    nspFree: int


@dataclass(frozen=True)
class DeviceInfo:
    """What a device is."""

    qid: int
    status: str
    boardSerial: str
    skuType: str


class Util:
    """Questions about devices."""

    __slots__ = ()

    def getDeviceIds(self) -> tuple[QStatus, QIDList]:
        """All devices."""
        return SUCCESS, QIDList(use.card.qid for use in cards.look())

    def getResourceInfo(self, qid: int, /) -> tuple[QStatus, ResourceInfo | None]:
        """What is free on a device."""
        with contextlib.suppress(KeyError):
            use = cards.look([qid])[0]
            return SUCCESS, ResourceInfo(use.card.dram_mb, use.free_dram_mb, use.card.cores, use.free_cores)
        return QStatus.QS_NODEV, None

    def getDeviceInfo(self, qid: int, /) -> tuple[QStatus, DeviceInfo | None]:
        """What a device is."""
        with contextlib.suppress(KeyError):
            card = cards.look([qid])[0].card
            return SUCCESS, DeviceInfo(card.qid, card.status, card.board_serial, card.sku)
        return QStatus.QS_NODEV, None


def _items(buffers: Sequence[Any], dimensions: Sequence[Any] | None, network: Network) -> list[Item]:
    if dimensions is None and buffers and isinstance(buffers[0], tuple):
        return items_of_arrays(buffers, network)
    if not all(isinstance(buffer, QBuffer) for buffer in buffers):
        raise TypeError("setData takes QBuffers, or pairs of an index and an array")
    return items_of_buffers(buffers, dimensions, network)


def _serve(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.perform()
        # The next one may be long in coming, and what this one holds is large.
        del job


def _describe(descriptor: NetworkDescriptor) -> Any:
    """The record as the message that hosts read."""
    message = QAicApi_pb2.IoDesc(program_name=descriptor.name)
    for index, binding in enumerate(bindings_of(descriptor)):
        message.selected_set.bindings.add(
            name=binding.name,
            index=index,
            type=binding.shape.type,
            dir=int(index >= len(descriptor.inputs)),
            dims=binding.shape.dims,
            size=byte_size(binding.shape),
            is_partial_buf_allowed=binding.partial_allowed,
            is_valid=True,
        )
    message.selected_set.name = "default"
    message.io_sets.add().CopyFrom(message.selected_set)
    for shapes in descriptor.allowed_shapes:
        entry = message.allowed_shapes.add()
        for shape in shapes:
            entry.shapes.add(type=shape.type, dims=shape.dims)
    return message


def _check_maker(elf: bytes) -> None:
    if not elf.startswith(ELF_MAGIC) or ELF_NOTE not in elf:
        raise ExecutionError("network.elf was not made by the stand-in compiler; only a card can run it")


def _check_digests(images: Mapping[str, bytes]) -> None:
    for name, digest in json.loads(images[SETTINGS]).get("sha256", {}).items():
        if hashlib.sha256(images[name]).hexdigest() != digest:
            raise ExecutionError(f"{name} is not what the compiler wrote")


def _check_types(descriptor: NetworkDescriptor) -> None:
    for binding in bindings_of(descriptor):
        if binding.shape.type not in NUMPY_TYPES:
            raise ExecutionError(f"{binding.name} is of type {binding.shape.type}, for which there are no arrays here")


def _choose_devices(context: Context, qid: int | None, mapping: str, qpc: Qpc) -> tuple[int, ...]:
    """The devices of a program: the named one, those of the mapping, or the first of the context with free cores."""
    settings = qpc._settings
    if mapping:
        qids = _parse_mapping(mapping)
        if qid is not None and len(qids) > 1:
            raise RuntimeError(f"Failed to create program: device {qid} beside devMapping {mapping}")
    else:
        qids = (_pick(context, settings.cores) if qid is None else _whole(qid, "a device id"),)
    if len(qids) != settings.devices or len(set(qids)) < len(qids):
        raise RuntimeError(f"Failed to create program: it is for {settings.devices} devices, not {list(qids)}")
    if not set(qids) <= set(context._qids):
        raise RuntimeError(f"Failed to create program: {list(qids)} are not all in the context")
    _check_together([use.card for use in cards.look(qids)])
    return qids


def _check_together(chosen: Sequence[cards.Card]) -> None:
    """Refuse devices that cannot run one program together, and warn of those that do it slowly."""
    if len(chosen) > 1:
        unable = [card.qid for card in chosen if "MDP+" not in card.capabilities]
        if unable:
            raise RuntimeError(f"Failed to create program: device {unable[0]} lacks MDP+")
        if len({card.board_serial for card in chosen}) > 1:
            log(f"Devices {[card.qid for card in chosen]} are on different boards")


def _parse_mapping(mapping: str) -> tuple[int, ...]:
    if not all(part.isdecimal() for part in mapping.split(":")):
        raise RuntimeError(f"Failed to create program: devMapping {mapping!r} is not ids with colons between")
    return tuple(int(part) for part in mapping.split(":"))


def _pick(context: Context, cores: int) -> int:
    uses = cards.look(context._qids)
    return next((use.card.qid for use in uses if use.free_cores >= cores), context._qids[0])


def _all_ready(qids: Sequence[int]) -> bool:
    return all(use.card.status == cards.READY for use in cards.look(qids))


def _megabytes(qpc: Qpc) -> int:
    """Memory that a program needs on each of its devices, by the compiler, or else by what the container holds."""
    if qpc._settings.bytes_per_device is not None:
        return max(1, math.ceil(qpc._settings.bytes_per_device / _MEGABYTE))
    constants = len(qpc._images.get(CONSTANTS, b"")) + len(qpc._images[MODEL])
    buffers = sum(byte_size(binding.shape) for binding in bindings_of(qpc._descriptor))
    share = (constants // (2 if qpc._settings.half else 1) + buffers) / qpc._settings.devices
    return max(1, math.ceil(share / _MEGABYTE))


def _whole(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} is a whole number, not {value!r}")
    return value
