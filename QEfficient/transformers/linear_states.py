"""The states of transformers' recurrent cache layers: one of each kind or, in newer versions, several by number."""

from __future__ import annotations

from typing import Any

import torch


def states_of(layer: Any, kind: str) -> dict[int, torch.Tensor]:
    """The states of one kind that a layer holds, by number."""
    held = getattr(layer, f"{kind}_states")
    numbered = held if isinstance(held, dict) else {0: held}
    return {index: state for index, state in numbered.items() if state is not None}


def put_state(layer: Any, kind: str, index: int, state: torch.Tensor) -> None:
    """Let a layer hold `state`, as if an earlier call had left it there."""
    facts: dict[str, Any] = {f"{kind}_states": state, f"is_{kind}_states_initialized": True, "has_previous_state": True}
    if kind == "conv":
        facts["conv_kernel_size"] = state.shape[-1]
    for name, value in facts.items():
        held = getattr(layer, name, None)
        if isinstance(held, dict):
            held[index] = value
        else:
            setattr(layer, name, value)
    layer.dtype, layer.device = state.dtype, state.device
