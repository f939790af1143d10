"""The kernel without OpenVINO around it: for tests and measurements."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import numpy as np

from QEfficient.devices.cpu.native import library_path, why_missing
from QEfficient.devices.cpu.packing import pack, pack_groups
from QEfficient.errors import DeviceError


class _Weights(ctypes.Structure):
    """`qefficient::Weights` of linear.hpp."""

    _fields_ = [
        ("values", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("bits", ctypes.c_size_t),
        ("group", ctypes.c_size_t),
        ("in_features", ctypes.c_size_t),
        ("out_features", ctypes.c_size_t),
    ]


@dataclass(frozen=True)
class Layer:
    """Packed weights."""

    values: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None
    bits: int
    group: int
    in_features: int
    out_features: int

    @classmethod
    def packed(cls, values: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, bits: int, group: int) -> Layer:
        """From values `[out, in]`, scales and zero points `[out, groups]`."""
        zero_groups = None if zeros is None else pack_groups(zeros)
        packed = pack(values, bits, group, zeros)
        return cls(packed, pack_groups(scales), zero_groups, bits, group, values.shape[1], values.shape[0])

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)


def multiply(layer: Layer, x: np.ndarray, threads: int = 1, out: np.ndarray | None = None) -> np.ndarray:
    """`[rows, in_features]` → `[rows, out_features]`, both float32."""
    if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != layer.in_features:
        raise ValueError(f"x is {x.shape} of {x.dtype}, but the layer takes [rows, {layer.in_features}] of float32.")
    x = np.ascontiguousarray(x)
    y = np.empty((len(x), layer.out_features), np.float32) if out is None else out
    zeros = None if layer.zeros is None else layer.zeros.ctypes.data
    sizes = (layer.bits, layer.group, layer.in_features, layer.out_features)
    weights = _Weights(layer.values.ctypes.data, layer.scales.ctypes.data, zeros, *sizes)
    if not _library().qeff_compressed_linear(weights, x.ctypes.data, len(x), y.ctypes.data, threads):
        raise ValueError(f"the kernel knows no layer of {layer.bits} bits in groups of {layer.group}.")
    return y


def choose_path(name: str) -> bool:
    """Use this instruction set from now on ("avx512", "avx2", "portable", "best"); false where there is none."""
    return bool(_library().qeff_choose_path(name.encode()))


def path_name() -> str:
    """The instruction set in use."""
    name: bytes = _library().qeff_path_name()
    return name.decode()


@functools.cache
def _library() -> ctypes.CDLL:
    path = library_path()
    if path is None:
        raise DeviceError(str(why_missing()))
    library = ctypes.CDLL(str(path))
    library.qeff_compressed_linear.restype = ctypes.c_bool
    library.qeff_compressed_linear.argtypes = [
        ctypes.POINTER(_Weights),
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_void_p,
        ctypes.c_int,
    ]
    library.qeff_choose_path.restype = ctypes.c_bool
    library.qeff_path_name.restype = ctypes.c_char_p
    return library
