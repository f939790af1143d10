"""A compiled folder → models that OpenVINO has made ready for this machine."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from QEfficient.devices.cpu.native import library_path, why_missing
from QEfficient.devices.cpu.options import CpuOptions
from QEfficient.devices.cpu.processors import allowed, bind_to_node, count_cores
from QEfficient.devices.cpu.reading import read_model
from QEfficient.errors import ArtifactError, DeviceError

logger = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"


class ModelFile:
    """The artifact, read once, to be compiled for any sizes and for certain ones."""

    def __init__(self, folder: Path, options: CpuOptions) -> None:
        import openvino

        self._path = folder / MODEL_FILE
        if not self._path.is_file():
            raise ArtifactError(f"{folder} holds no {MODEL_FILE}. Compile the program again.")
        native = _native_library(options.linear_kernel) if options.compresses else None
        self.is_native = native is not None
        """Whether our kernel computes the compressed layers, from weights that stay where they are."""
        if options.batch_invariant and native is None:
            raise DeviceError(f"{folder} was compiled with batch_invariant, but {why_missing()}")
        if options.numa_node >= 0:
            bind_to_node(options.numa_node)
        self._settings = settings(options)
        self._core = openvino.Core()
        if native is not None:
            self._core.add_extension(str(native))
        with self._told():
            self._model = read_model(self._path, native)

    @property
    def inputs(self) -> list[str]:
        return [port.any_name for port in self._model.inputs]

    def compiled(self) -> Any:
        """An `openvino.CompiledModel` for any sizes."""
        return self.compiled_for([{}])[0]

    def compiled_for(self, variants: Sequence[Mapping[str, Sequence[int]]]) -> list[Any]:
        """One for each of these sizes of inputs, at the same time; what is not named has any size."""
        with self._told(), ThreadPoolExecutor(len(variants)) as pool:
            return list(pool.map(self._compiled, [self._with_sizes(sizes) for sizes in variants]))

    def _with_sizes(self, sizes: Mapping[str, Sequence[int]]) -> Any:
        if not sizes:
            return self._model
        model = self._model.clone()
        model.reshape({name: list(shape) for name, shape in sizes.items()})
        return model

    def _compiled(self, model: Any) -> Any:
        return self._core.compile_model(model, "CPU", self._settings)

    @contextmanager
    def _told(self) -> Iterator[None]:
        import openvino

        try:
            yield
        except RuntimeError as error:
            raise DeviceError(f"OpenVINO {openvino.__version__} cannot open {self._path}: {error}") from error


def runs_natively(options: CpuOptions) -> bool:
    """Whether our kernel computes a program's compressed layers here."""
    return options.compresses and options.linear_kernel != "openvino" and library_path() is not None


def _native_library(wanted: str) -> Path | None:
    """The library with our kernel, unless OpenVINO's own is wanted or must do."""
    if wanted == "openvino":
        return None
    found, reason = library_path(), why_missing()
    if found is None and wanted == "native":
        raise DeviceError(f"linear_kernel 'native' was asked for, but {reason}")
    if found is None:
        _say_once(str(reason))
    return found


@functools.cache
def _say_once(reason: str) -> None:
    logger.warning("compressed layers run on OpenVINO's own kernels: %s", reason)


def thread_count(options: CpuOptions) -> int:
    default = len(allowed()) if options.hyper_threading else count_cores(allowed())
    return options.num_threads or default


def settings(options: CpuOptions) -> dict[str, Any]:
    """OpenVINO's own properties."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": thread_count(options),
        "ENABLE_HYPER_THREADING": options.hyper_threading or thread_count(options) > count_cores(allowed()),
        "ENABLE_CPU_PINNING": options.pin_threads,
        "INFERENCE_PRECISION_HINT": options.compute_in,
        "KV_CACHE_PRECISION": options.kv_cache,
    }


def infer(request: Any, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """Run once; the first output, where it lies."""
    try:
        request.infer(feeds, share_inputs=True)
    except RuntimeError as error:
        raise DeviceError(f"OpenVINO could not run the program: {error}") from error
    logits: np.ndarray = request.get_output_tensor(0).data
    return logits
