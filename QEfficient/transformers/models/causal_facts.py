"""What the rest of the way needs to know about a causal language model, from its configs."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from QEfficient.errors import WrongTaskError
from QEfficient.generation.defaults import recorded
from QEfficient.program import ModelFacts
from QEfficient.transformers.loading import ModelSource
from QEfficient.transformers.models.sampling_options import token_ids

GENERATION_CONFIG_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _class_name(source: ModelSource) -> str:
    if source.live is not None:
        return type(source.live).__name__
    mapped = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(source.config.model_type)
    return str(mapped or (source.config.architectures or [""])[0])


def layers_in(config: Any) -> int:
    """How many layers a model has; 0 where its config does not say."""
    text = config.get_text_config()
    return int(getattr(text, "num_hidden_layers", None) or getattr(text, "decoder_layers", None) or 0)


def causal_facts(source: ModelSource) -> ModelFacts:
    """What the rest of the way needs to know; refuses classes that are no causal language models."""
    name = _class_name(source)
    if not name.endswith(("ForCausalLM", "LMHeadModel")) and name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise WrongTaskError(
            f"'{name or source.config.model_type}' is no causal language model: a class …ForCausalLM is needed."
        )
    text = source.config.get_text_config()
    generation = _generation_config(source)
    special = {name: generation.get(name, getattr(text, name, None)) for name in SPECIAL_TOKENS}
    architectures = getattr(source.config, "architectures", None) or [name]
    return ModelFacts(
        name=name,
        architecture=architectures[0],
        model_type=source.config.model_type,
        task="causal-lm",
        vocab_size=int(text.vocab_size),
        max_positions=getattr(text, "max_position_embeddings", None),
        bos_token_id=special["bos_token_id"],
        eos_token_ids=token_ids(special["eos_token_id"]),
        pad_token_id=special["pad_token_id"],
        generation=recorded(generation),
        source=source.name,
    )


def _generation_config(source: ModelSource) -> dict[str, Any]:
    """What the model's generation config sets; nothing if it has none."""
    if source.live is not None:
        found = getattr(source.live, "generation_config", None)
    else:
        hub = {name: value for name, value in source.hub.items() if name in GENERATION_CONFIG_OPTIONS}
        try:
            found = transformers.GenerationConfig.from_pretrained(source.location, **hub)
        except OSError:
            found = None
    settings = {} if found is None else found.to_diff_dict()
    return {name: value for name, value in settings.items() if value is not None}
