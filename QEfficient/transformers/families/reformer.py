"""Reformer: up to the length of one chunk it attends to all tokens; beyond, it sorts them by hash.

Sorted, an answer depends on the tokens that follow and on how far the input is padded, which no step by step run can
give. So it is served up to one chunk, where the two are the same.
"""

from __future__ import annotations

from typing import Any

import torch

from QEfficient.transformers.replay import Replay

MODEL_TYPES = ("reformer",)


def adapt(model: Any) -> Replay:
    from transformers.models.reformer.modeling_reformer import _get_min_chunk_len

    for module in model.modules():
        if hasattr(module, "axial_pos_shape"):
            module.forward = _whole_table(module)
    chunk = int(_get_min_chunk_len(model.config))
    return Replay(f"beyond {chunk} tokens it sorts them by hash, so that an answer depends on what follows", chunk)


def _whole_table(embeddings: Any) -> Any:
    """transformers cuts the table to the largest position, which depends on data."""

    def forward(position_ids: torch.Tensor) -> torch.Tensor:
        columns = [weight.expand((*embeddings.axial_pos_shape, -1)) for weight in embeddings.weights]
        rows: torch.Tensor = torch.cat(columns, dim=-1).flatten(0, 1)[position_ids]
        return rows

    return forward
