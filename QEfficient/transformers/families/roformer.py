"""RoFormer: the rotary table is looked up for one sequence; with positions per row it gains a batch axis."""

from __future__ import annotations

from typing import Any

MODEL_TYPES = ("roformer",)


def adapt(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "apply_rotary_position_embeddings"):
            module.apply_rotary_position_embeddings = _per_row(type(module).apply_rotary_position_embeddings)


def _per_row(apply: Any) -> Any:
    def apply_per_row(table: Any, *layers: Any) -> Any:
        if table.dim() == 5:  # [1, 1, b, s, d]
            table = table[0, 0][:, None]
        return apply(table, *layers)

    return apply_per_row
