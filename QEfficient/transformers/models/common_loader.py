"""`QEFFCommonLoader`: the auto-class that fits a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from QEfficient.errors import UnsupportedModelError
from QEfficient.transformers.loading import ModelSource, open_source
from QEfficient.transformers.models.causal_lm import QEFFAutoModelForCausalLM


class QEFFCommonLoader:
    """Reads the config of a checkpoint and chooses the class that runs it."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        continuous_batching: bool = False,
        qaic_config: Mapping[str, Any] | None = None,
        max_seq_len_cached: int | None = None,
        layerwise: bool = False,
        *,
        hf_token: str | None = None,
        cache_dir: str | None = None,
        local_model_dir: str | None = None,
        full_batch_size: int | None = None,
        **options: Any,
    ) -> QEFFAutoModelForCausalLM:
        """Open a model as the class that its config asks for.

        `local_model_dir` is a folder with the checkpoint that is called `pretrained_model_name_or_path`;
        `full_batch_size` means continuous batching. The other options go to that class.
        """
        hub = {"token": hf_token, "cache_dir": cache_dir}
        options |= {name: value for name, value in hub.items() if value is not None}
        source = open_source(
            local_model_dir or pretrained_model_name_or_path, transformers.AutoModelForCausalLM, options
        )
        _check_causal(source)
        return QEFFAutoModelForCausalLM.from_pretrained(
            source, continuous_batching or full_batch_size is not None, qaic_config, max_seq_len_cached, layerwise
        )


def _check_causal(source: ModelSource) -> None:
    """Refuse what is no causal language model, by the name of its architecture."""
    config = source.config
    names = getattr(config, "architectures", None) or [type(config).__name__]
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not remote:
        raise UnsupportedModelError(
            f"'{names[0]}' of {source.name} is no causal language model, and no other class of this release takes it."
            " For hidden states of a text use QEFFAutoModel."
        )
