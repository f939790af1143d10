"""X-MOD: rows are sorted by language into adapters, which depends on data; here all take the default language's."""

from __future__ import annotations

from typing import Any

import torch

MODEL_TYPES = ("xmod",)


def adapt(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "adapter_modules"):
            module.lang_adapter = _one_language(module, model.config.default_language)


def _one_language(output: Any, language: str | None) -> Any:
    def adapter(lang_ids: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = hidden_states
        if output.adapter_layer_norm is not None:
            hidden_states = output.adapter_layer_norm(hidden_states)
        elif output.adapter_reuse_layer_norm:
            hidden_states = output.LayerNorm(hidden_states)
        if output.ln_before_adapter:
            residual = hidden_states
        adapted: torch.Tensor = output.adapter_modules[str(language)](hidden_states)
        return adapted + residual

    return adapter
