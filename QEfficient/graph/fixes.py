"""The fixes that transformers keeps for exporting its models, met in this one module.

`transformers.exporters` (from 5.13 on, experimental) patches what `torch.export` and `torch.onnx` cannot take, and puts
everything back. Without it we export with what torch itself can do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """transformers' reversible patches for the time of an export."""
    try:
        from transformers.exporters import exporter_onnx  # noqa: F401  (registers the patches)
        from transformers.exporters.utils import apply_patches
    except ImportError:
        yield
        return
    with apply_patches("onnx"):
        yield


def fix_traced(program: torch.export.ExportedProgram) -> None:
    """Rewrite the traced nodes that have no ONNX form."""
    with contextlib.suppress(ImportError):
        from transformers.exporters.utils import apply_fx_node_fixes

        apply_fx_node_fixes("onnx", program.graph_module)


def translation_table() -> dict[Any, Any]:
    """Translations that replace torch's own."""
    try:
        from transformers.exporters.exporter_onnx import _ONNX_TRANSLATION_TABLE
    except ImportError:
        return {}
    return dict(_ONNX_TRANSLATION_TABLE)


def fix_translated(program: Any) -> None:
    """Repairs of the translated graph for ONNX Runtime."""
    with contextlib.suppress(ImportError):
        from transformers.exporters.exporter_onnx import apply_onnx_ir_fixes

        apply_onnx_ir_fixes(program)
