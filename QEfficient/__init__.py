"""QEfficient: Hugging Face models as stateful ONNX programs, compiled for a device and run there.

Importing has no effect: each public name is resolved when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

_HOMES = {
    "CloudAI100ExecInfo": "QEfficient.generation.metrics",
    "PerfMetrics": "QEfficient.generation.metrics",
    "QEFFAutoModel": "QEfficient.transformers.models.modeling_auto",
    "QEFFAutoModelForCausalLM": "QEfficient.transformers.models.modeling_auto",
    "QEFFCommonLoader": "QEfficient.transformers.models.modeling_auto",
    "check_qaic_sdk": "QEfficient.legacy",
    "cloud_ai_100_exec_kv": "QEfficient.generation.text_generation_inference",
    "compile": "QEfficient.legacy",
    "export": "QEfficient.legacy",
    "qualcomm_efficient_converter": "QEfficient.legacy",
    "transform": "QEfficient.legacy",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'QEfficient' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
