"""Tensors → external data, each written at its place as it arrives; memory does not grow with the model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from QEfficient import progress
from QEfficient.errors import WeightsError

INLINE_LIMIT = 1024
"""Bytes: smaller tensors stay inside the ONNX file."""
ALIGNMENT = 4096
"""Offsets are multiples of a page, so that a runtime can map each tensor."""
CHUNK_LIMIT = 10 * 2**30
"""Bytes of one file when tensors are split over several."""

_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}


@dataclass(frozen=True)
class Place:
    """Where one tensor goes."""

    file: str
    offset: int
    size: int
    dtype: torch.dtype


class ExternalData:
    """The data files of one model: places are given out first, then tensors arrive in any order."""

    def __init__(self, folder: Path, stem: str, split: bool, clip: float | None = None) -> None:
        self.folder, self.stem, self.split, self.clip = folder, stem, split, clip
        self.places: dict[str, Place] = {}
        self.written: set[str] = set()
        self._ends: list[int] = [0]
        self._done = 0

    def _file(self, index: int) -> str:
        return f"{self.stem}_{index}.onnx.data" if self.split else f"{self.stem}.onnx.data"

    def reserve(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Place:
        """Give `name` the next free place."""
        size = math.prod(shape) * dtype.itemsize
        start = -(-self._ends[-1] // ALIGNMENT) * ALIGNMENT
        if self.split and start and start + size > CHUNK_LIMIT:
            self._ends.append(0)
            start = 0
        place = Place(self._file(len(self._ends) - 1), start, size, dtype)
        self._ends[-1] = start + size
        self.places[name] = place
        return place

    def allocate(self) -> None:
        """Make the files at their full size, so that a full disk is noticed before the work."""
        for index, end in enumerate(self._ends):
            if end:
                with open(self.folder / self._file(index), "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, end)

    def write(self, name: str, source: Any) -> None:
        """Write a tensor, or a lazy one block by block, cast to the dtype of its place."""
        place = self.places[name]
        blocks = source.blocks() if hasattr(source, "blocks") else iter([source.detach().contiguous().reshape(-1)])
        position = place.offset
        raw_size = math.prod(source.shape) * source.dtype.itemsize
        unchanged = source.dtype == place.dtype and self.clip is None and raw_size == place.size
        with open(self.folder / place.file, "r+b", buffering=0) as file:
            if unchanged and hasattr(source, "copy_into") and source.copy_into(file.fileno(), position):
                self._record(name)
                return
            for block in blocks:
                block = self._cast(block, place.dtype)
                raw = block.contiguous().view(torch.uint8).numpy()
                file.seek(position)
                file.write(raw.data)
                position += raw.nbytes
        if position - place.offset != place.size:
            raise WeightsError(f"'{name}' has {position - place.offset:,} bytes, {place.size:,} were expected.")
        self._record(name)

    def _record(self, name: str) -> None:
        self.written.add(name)
        self._done += self.places[name].size
        progress.tell(self._done, sum(self._ends))

    def _cast(self, block: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if self.clip is not None and block.is_floating_point():
            infinite = torch.isneginf(block)
            block = torch.where(infinite, block, block.float().clamp(-self.clip, self.clip).to(block.dtype))
        return block.to(dtype)


def withhold(model: ir.Model, streamed: Collection[str]) -> dict[str, ir.TensorProtocol]:
    """Take the values of all initializers that the checkpoint may bring, so that nothing is folded with them.

    Parameters have none (they are fake); persistent buffers have the ones they were built with, which are returned:
    they hold if the checkpoint brings no others.
    """
    defaults: dict[str, ir.TensorProtocol] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        raw = getattr(tensor, "raw", None)
        fake = hasattr(raw, "fake_mode") or getattr(raw, "is_meta", False)
        if tensor is None or not (fake or name in streamed):
            continue
        value.dtype, value.shape, value.const_value = tensor.dtype, ir.Shape(tensor.shape.numpy()), None
        if not fake:
            defaults[name] = tensor
    return defaults


def place_initializers(model: ir.Model, data: ExternalData) -> dict[str, ir.TensorProtocol]:
    """Give every large initializer its place in `data` and refer to it; return those whose values are here."""
    ready: dict[str, ir.TensorProtocol] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes < INLINE_LIMIT:
            continue
        assert value.dtype is not None and value.shape is not None
        shape = tuple(int(size) for size in value.shape.numpy())
        place = data.reserve(name, _DTYPES[value.dtype], shape)
        if tensor is not None:
            ready[name] = tensor
        value.const_value = ir.ExternalTensor(
            place.file, place.offset, place.size, value.dtype, shape=ir.Shape(shape), name=name, base_dir=data.folder
        )
    return ready


def write_weights(
    data: ExternalData,
    ready: Mapping[str, ir.TensorProtocol],
    defaults: Mapping[str, ir.TensorProtocol],
    stream: Callable[[Callable[[str, Any], None]], None],
    aliases: Mapping[str, tuple[str, ...]],
) -> None:
    """Write what is here, then what the stream brings, then the defaults of what it did not; complain about what is
    missing still. `aliases` maps a parameter's
    name to all the names that its storage may have in the graph."""

    def write(name: str, tensor: ir.TensorProtocol) -> None:
        data.write(name, torch.from_numpy(np.array(tensor.numpy())))

    for name, tensor in ready.items():
        write(name, tensor)

    def sink(name: str, tensor: Any) -> None:
        for target in aliases.get(name, ()):
            if target in data.places and target not in data.written:
                data.write(target, tensor)

    stream(sink)
    for name in (defaults.keys() & data.places.keys()) - data.written:
        write(name, defaults[name])
    missing = sorted(set(data.places) - data.written)
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise WeightsError(
            f"the checkpoint lacks {len(missing)} of the model's tensors ({shown}). It is incomplete, or its config"
            " describes another model."
        )
