"""Families of models that leave the seams, one file each: only what differs.

A file says which config types it is for (`MODEL_TYPES`) and how to adapt a model (`adapt(model)`, in place, on our own
copy). It is found by being here; what it needs of its model's own code it imports when it adapts one. If it returns a
`Replay`, the tokens are the model's only state.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from QEfficient.transformers.replay import Replay


def _families() -> list[ModuleType]:
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


def adapt(model: Any) -> Replay | None:
    """Let the family of this model, if it has one, change what it must. Composite models are asked part by part."""
    asked = [family.adapt(model) for family in families_of(model)]
    return next((replay for replay in asked if replay is not None), None)


def families_of(model: Any) -> list[ModuleType]:
    """The files that a model, or one of its parts, is of."""
    types = {getattr(module.config, "model_type", None) for module in model.modules() if hasattr(module, "config")}
    return [family for family in _families() if types & set(family.MODEL_TYPES)]
