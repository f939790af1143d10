"""A compiled folder → a model that OpenVINO has made ready for this machine."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from QEfficient.devices.cpu.native import library_path, why_missing
from QEfficient.devices.cpu.options import CpuOptions
from QEfficient.devices.cpu.reading import read_model
from QEfficient.errors import ArtifactError, DeviceError

logger = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
COMPUTED_IN = {"bf16": "bf16", "f16": "f16"}
"""Weight format → what everything is computed in; float32 for the others."""


def open_model(folder: Path, options: CpuOptions) -> Any:
    """An `openvino.CompiledModel`."""
    import openvino

    path = folder / MODEL_FILE
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no {MODEL_FILE}. Compile the program again.")
    native = _native_library(options.linear_kernel) if options.compresses else None
    core = openvino.Core()
    if native is not None:
        core.add_extension(str(native))
    try:
        return core.compile_model(read_model(path, native), "CPU", settings(options))
    except RuntimeError as error:
        raise DeviceError(f"OpenVINO {openvino.__version__} cannot open {path}: {error}") from error


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


def settings(options: CpuOptions) -> dict[str, Any]:
    """OpenVINO's own properties."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": options.num_threads or len(os.sched_getaffinity(0)),
        "INFERENCE_PRECISION_HINT": COMPUTED_IN.get(options.weight_format, "f32"),
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
