"""States that a module holds itself, as plain attributes.

For families whose models hand their state around in a way of their own: the family makes the module hold it, and the
observation finds it there like any other attribute that changes from call to call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

PREFIX = "retained_"


def held(module: torch.nn.Module, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """What `module` holds under this name; zeros before its first call."""
    found = getattr(module, PREFIX + name, None)
    return torch.zeros(tuple(shape), dtype=dtype) if found is None else found


def hold(module: torch.nn.Module, name: str, state: torch.Tensor) -> None:
    """Let `module` hold this state until its next call."""
    setattr(module, PREFIX + name, state)
