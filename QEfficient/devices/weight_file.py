"""Every large tensor of a program into one file that is mapped, a tensor (or a slice of it) at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from QEfficient import progress

FILE = "weights.bin"
ALIGNMENT = 4096
"""Offsets are multiples of a page: a mapped tensor is used where it lies."""
INLINE_LIMIT = 1024
"""Bytes: smaller tensors stay in the ONNX file."""


class WeightFile:
    """Appends tensors; hands out what an ONNX initializer needs to find them again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self.size = 0

    def __enter__(self) -> WeightFile:
        self._file = open(self._folder / FILE, "wb")  # noqa: SIM115  (closed by __exit__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> ir.Value:
        """Write the parts one after the other as the tensor `name`; returns an initializer that refers to it."""
        assert self._file is not None
        start = -(-self.size // ALIGNMENT) * ALIGNMENT
        self._file.seek(start)
        length = 0
        for part in parts:
            raw = np.ascontiguousarray(part)
            self._file.write(raw.data if raw.dtype.kind != "V" else raw.view(np.uint8).data)
            length += raw.nbytes
            progress.tell(start + length)
        self.size = start + length
        tensor = ir.ExternalTensor(FILE, start, length, dtype, shape=ir.Shape(shape), name=name, base_dir=self._folder)
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor)
