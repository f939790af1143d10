"""A program in action: the states that it retains, the buffers that a host gave, and one run over them."""

from __future__ import annotations

import enum
import math
import os
import re
import sys
import threading
import time
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qaic_simulator.network_descriptor import Binding, NetworkDescriptor, Shape
from qaic_simulator.runtime import QAicApi_pb2, cards
from qaic_simulator.runtime.execution import Network

FAULT_VARIABLE = "QAIC_SIM_FAULT"
DELAY_VARIABLE = "QAIC_SIM_DELAY_MS"
"""How long each run takes beyond its computation; with what a paced card takes, the time that a host may limit."""
NUMPY_TYPES: Mapping[int, type[np.generic]] = {
    QAicApi_pb2.FLOAT_TYPE: np.float32,
    QAicApi_pb2.FLOAT_16_TYPE: np.float16,
    QAicApi_pb2.INT8_Q_TYPE: np.int8,
    QAicApi_pb2.UINT8_Q_TYPE: np.uint8,
    QAicApi_pb2.INT16_Q_TYPE: np.int16,
    QAicApi_pb2.INT32_Q_TYPE: np.int32,
    QAicApi_pb2.INT32_I_TYPE: np.int32,
    QAicApi_pb2.INT64_I_TYPE: np.int64,
    QAicApi_pb2.INT8_TYPE: np.int8,
}
_FLOATS = (QAicApi_pb2.FLOAT_TYPE, QAicApi_pb2.FLOAT_16_TYPE)
_GARBAGE = 0x7F
_POISON = 0xFF


class QStatus(enum.Enum):
    """What methods of the runtime return; not equal to its number, which `int` gives."""

    QS_SUCCESS = 0
    QS_PERM = 1
    QS_AGAIN = 2
    QS_NOMEM = 3
    QS_BUSY = 4
    QS_NODEV = 5
    QS_INVAL = 6
    QS_NOSPC = 7
    QS_BADFD = 8
    QS_TIMEDOUT = 9
    QS_PROTOCOL = 10
    QS_UNSUPPORTED = 11
    QS_DATA_CRC_ERROR = 12
    QS_DEV_ERROR = 300
    QS_ERROR = 500

    def __int__(self) -> int:
        return int(self.value)


class BufferRefusal(ValueError):
    """The buffers that were given are not those of the program."""


@dataclass(frozen=True)
class Item:
    """A buffer that a host gave for a binding."""

    index: int
    binding: Binding
    dims: tuple[int, ...]
    values: np.ndarray | None
    """What an input holds, in one dimension."""
    array: np.ndarray | None = None
    """The host's own memory, where nothing was copied."""
    checksum: int = 0


def fault() -> str:
    """The fault that is asked for, without its number."""
    asked = os.environ.get(FAULT_VARIABLE, "")
    name = asked.partition(":")[0]
    if asked not in ("", "timeout", "lost", "memory") and not re.fullmatch("again:[1-9][0-9]*", asked):
        raise RuntimeError(f"{FAULT_VARIABLE} is {asked!r}; it can be timeout, lost, memory or again:N, N from 1 on")
    return name


def log(text: str) -> None:
    """Say an error where the library says it."""
    print(f"[ERROR] {text}", file=sys.stderr)


def byte_size(shape: Shape) -> int:
    """Bytes of a tensor on the host."""
    return math.prod(shape.dims) * np.dtype(NUMPY_TYPES[shape.type]).itemsize


def bindings_of(descriptor: NetworkDescriptor) -> tuple[Binding, ...]:
    """Inputs, then outputs."""
    return descriptor.inputs + descriptor.outputs


def items_of_buffers(buffers: Sequence[Any], dimensions: Sequence[Any] | None, network: Network) -> list[Item]:
    """Buffers of all bindings, as bytes; empty ones are left out."""
    bindings = bindings_of(network.descriptor)
    if dimensions is None:
        pairs = zip(buffers, bindings, strict=False)
        dimensions = [(_item_size(binding), binding.shape.dims if buffer.size else (0,)) for buffer, binding in pairs]
    if len(buffers) != len(bindings) or len(dimensions) != len(bindings):
        raise BufferRefusal(f"{len(buffers)} buffers, {len(dimensions)} dimensions, {len(bindings)} bindings")
    items = []
    for index, (binding, buffer, (item_size, dims)) in enumerate(zip(bindings, buffers, dimensions, strict=True)):
        given = tuple(int(size) for size in dims)
        if min(given, default=0) < 0:
            raise BufferRefusal(f"{binding.name} has dimensions {given}, of which one is negative")
        if buffer.size != item_size * math.prod(given):
            raise BufferRefusal(f"{binding.name} has {buffer.size} bytes for {given} elements of {item_size}")
        if buffer.size:
            _check_size(index, buffer.size, item_size, network)
            values: np.ndarray = np.frombuffer(bytes(buffer), NUMPY_TYPES[binding.shape.type])
            items.append(Item(index, binding, given, values if index < len(network.descriptor.inputs) else None))
    _check_complete(items, network)
    return items


def items_of_arrays(arrays: Sequence[tuple[int, np.ndarray]], network: Network) -> list[Item]:
    """Arrays of some bindings, which stay where they are and must not change until the run is over."""
    bindings = bindings_of(network.descriptor)
    items: list[Item] = []
    for index, array in arrays:
        if isinstance(index, (bool, np.bool_)) or not isinstance(index, (int, np.integer)):
            raise BufferRefusal(f"{index!r} is no whole number, and so no index of a binding")
        if not isinstance(array, np.ndarray):
            raise BufferRefusal(f"binding {index} is given a {type(array).__name__}, and no array")
        if not 0 <= index < len(bindings) or index in [item.index for item in items]:
            raise BufferRefusal(f"{index} is not, or not for the first time, one of {len(bindings)} bindings")
        binding, is_input = bindings[index], index < len(network.descriptor.inputs)
        if array.dtype != NUMPY_TYPES[binding.shape.type] or not array.flags.c_contiguous:
            raise BufferRefusal(f"{binding.name} is {array.dtype}, or not contiguous")
        if not is_input and not array.flags.writeable:
            raise BufferRefusal(f"{binding.name} cannot be written")
        _check_size(index, array.nbytes, array.itemsize, network)
        values, dims = array.reshape(-1) if is_input else None, array.shape or (1,)
        items.append(Item(index, binding, dims, values, array, zlib.crc32(array.data) if is_input else 0))
    _check_complete(items, network)
    return items


def _item_size(binding: Binding) -> int:
    return np.dtype(NUMPY_TYPES[binding.shape.type]).itemsize


def _check_size(index: int, size: int, item_size: int, network: Network) -> None:
    """Refuse what does not fit the binding: smaller is for partial buffers and for shapes of specializations only."""
    binding = bindings_of(network.descriptor)[index]
    if binding.name in network.settings.mxint8 and binding.shape.type not in _FLOATS:
        raise BufferRefusal(f"{binding.name} is in MXINT8, whose bytes are the card's own")
    if item_size != _item_size(binding):
        raise BufferRefusal(f"{binding.name} has elements of {_item_size(binding)} bytes, not {item_size}")
    whole = byte_size(binding.shape)
    smaller = {byte_size(shapes[index]) for shapes in network.descriptor.allowed_shapes}
    if size > whole or (size < whole and not binding.partial_allowed and size not in smaller):
        raise BufferRefusal(f"{binding.name} has {whole} bytes, not {size}")


def _check_complete(items: Sequence[Item], network: Network) -> None:
    given = {item.binding.name for item in items}
    absent = [entry.name for entry in network.descriptor.inputs if entry.name not in given | network.states.keys()]
    if absent:
        raise BufferRefusal(f"there is no buffer for {', '.join(absent)}, which is no retained state")


class Activation:
    """What a program has on its devices while it holds cores there: above all, its retained states."""

    def __init__(self, network: Network, qids: tuple[int, ...], timeout_ms: int) -> None:
        self.network, self.qids, self.timeout_ms = network, qids, timeout_ms
        self.lost = False
        self.lock = threading.Lock()
        self.states = {name: network.garbage(name) for name in network.states}

    def run(self, items: Sequence[Item]) -> dict[str, np.ndarray]:
        """The outputs; states that were given replace those here, and all are those of the run afterwards."""
        inputs = dict(self.states)
        for item in items:
            if item.values is not None:
                inputs[item.binding.name] = self.network.rounded(item.binding.name, self._whole(item))
        outputs = self.network.run(inputs)
        self.states = {entry: outputs[output] for entry, output in self.network.states.items()}
        return outputs

    def seconds(self, items: Sequence[Item]) -> float:
        """What a run takes at least."""
        pace = self.network.pace
        whole = [item.dims for item in items if item.values is not None and item.values.dtype.kind in "iu"]
        return pace.seconds(whole) if pace else 0.0

    def fits(self, items: Sequence[Item]) -> bool:
        """Whether one specialization has the shapes of all buffers."""
        descriptor = self.network.descriptor
        alone = [tuple(binding.shape for binding in bindings_of(descriptor))]
        return any(
            all(item.dims == (shapes[item.index].dims or (1,)) or self._is_part(item) for item in items)
            and self._has_states(shapes, {item.binding.name for item in items})
            for shapes in descriptor.allowed_shapes or alone
        )

    def _has_states(self, shapes: Sequence[Shape], given: Collection[str]) -> bool:
        """Whether the states that are kept, and not given, are those of a specialization."""
        pairs = zip(self.network.descriptor.inputs, shapes, strict=False)
        sizes = {entry.name: shape.dims for entry, shape in pairs if entry.name not in given}
        return all(sizes.get(name, values.shape) == values.shape for name, values in self.states.items())

    def _is_part(self, item: Item) -> bool:
        """Whether a buffer is the beginning of its binding, where there are no specializations to choose from."""
        return item.binding.partial_allowed and not self.network.descriptor.allowed_shapes

    def _whole(self, item: Item) -> np.ndarray:
        """An input in its shape; what a partial buffer lacks is undefined."""
        assert item.values is not None
        if not self._is_part(item):
            return item.values.reshape(item.dims if item.binding.shape.dims else ())
        filled = np.full(byte_size(item.binding.shape), _GARBAGE, np.uint8).view(item.values.dtype)
        filled[: item.values.size] = item.values
        return filled.reshape(item.binding.shape.dims)


def _timed_out() -> QStatus:
    log("IOCTL: Connection timed out")
    return QStatus.QS_TIMEDOUT


class Job:
    """One run of a program over the buffers of an ExecObj."""

    def __init__(self, activation: Activation, items: Sequence[Item]) -> None:
        self._activation, self._items = activation, items
        self.done = threading.Event()
        self.status = QStatus.QS_ERROR
        self.buffers = [b""] * len(bindings_of(activation.network.descriptor))
        for item in items:
            if item.values is None and item.array is not None:
                item.array.reshape(-1).view(np.uint8)[:] = _POISON

    def perform(self) -> None:
        """Run, and let those go on who wait."""
        try:
            delay = float(os.environ.get(DELAY_VARIABLE, "0")) / 1000
            time.sleep(min(delay, self._limit))
            self.status = self._fail() or self._run(delay)
        except Exception as error:  # Whatever goes wrong on a device, the host sees a status.
            log(f"Device {self._activation.qids[0]}: {' '.join(str(error).split())}")
            self.status = QStatus.QS_DEV_ERROR
        finally:
            self.done.set()

    def _fail(self) -> QStatus | None:
        """What happens in place of the run, if anything."""
        kind, activation = fault(), self._activation
        if kind == "timeout":
            time.sleep(self._limit)
            return _timed_out()
        if kind == "lost":
            activation.lost = True
            for qid in activation.qids:
                cards.set_status(qid, cards.FAILED)
        return QStatus.QS_DEV_ERROR if activation.lost else None

    @property
    def _limit(self) -> float:
        """Seconds after which the driver gives a run up."""
        return self._activation.timeout_ms / 1000

    def _run(self, delay: float) -> QStatus:
        """Its time is what the card is said to take: how long this machine computes says nothing about a card."""
        if not self._activation.fits(self._items):
            log(f"No matching specialization found for {[item.dims for item in self._items]}")
            return QStatus.QS_DEV_ERROR
        lasts = self._activation.seconds(self._items)
        if delay + lasts > self._limit:
            time.sleep(max(0.0, self._limit - delay))
            return _timed_out()
        with self._activation.lock:
            begun = time.monotonic()
            outputs = self._activation.run(self._items)
            time.sleep(max(0.0, begun + lasts - time.monotonic()))
        for item in self._items:
            if item.values is not None:
                self.buffers[item.index] = item.values.tobytes()
            else:
                self._deliver(item, outputs[item.binding.name])
        return QStatus.QS_SUCCESS if self._are_inputs_same() else QStatus.QS_ERROR

    def _deliver(self, item: Item, values: np.ndarray) -> None:
        if (values.shape or (1,)) != item.dims:
            raise BufferRefusal(f"{item.binding.name} became {values.shape}, not {item.dims}")
        converted: np.ndarray = values.astype(NUMPY_TYPES[item.binding.shape.type])
        if item.array is None:
            self.buffers[item.index] = converted.tobytes()
        else:
            item.array[...] = converted.reshape(item.array.shape)

    def _are_inputs_same(self) -> bool:
        for item in self._items:
            if item.values is not None and item.array is not None and zlib.crc32(item.array.data) != item.checksum:
                log(f"{item.binding.name}: buffer modified while in flight")
                return False
        return True
