"""The forms in which `generate` is told how to choose tokens, made into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import transformers

from QEfficient.errors import OptionError, did_you_mean
from QEfficient.generation.defaults import LOOKUP, left_out, sampling_params
from QEfficient.program import ModelFacts
from QEfficient.specs import SamplingParams
from QEfficient.transformers.models.script_keywords import NAMES as SCRIPT_NAMES

KEYWORDS = (
    "tokenizer", "prompts", "input_ids", "attention_mask", "generation_len", "generation_config", "streamer", "stream",
    "chat_template_kwargs", "decoding", "mask", "draft_model", "assistant_model", "prompt_lookup_num_tokens",
    "prefill_model", "device_id", "runtime_ai100",
)  # fmt: skip
"""Of `generate`, besides those that choose tokens: for suggestions."""


@dataclass(frozen=True)
class Choosing:
    """How the answers are to be chosen, and where they end."""

    params: SamplingParams
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    left_out: str
    """What was asked for and is not done; empty if there is nothing."""
    lookup: int | None = None
    """The `prompt_lookup_num_tokens` of the config of this call."""
    usual_lookup: int | None = None
    """The same of the model's own."""


def read_choosing(
    facts: ModelFacts, sampling: SamplingParams | None, generation_config: Any, options: Mapping[str, Any]
) -> Choosing:
    """From the model's generation config, on which `generation_config` is laid, and on that the options.

    A `sampling` is complete: neither config counts beside it, and options replace its fields.
    """
    given = dict(options)
    _check_names(given)
    if sampling is not None:
        if generation_config is not None:
            raise OptionError("sampling= and generation_config= were both given. Give one of them.")
        return Choosing(_replaced(sampling, given), facts.eos_token_ids, facts.pad_token_id or 0, "")
    own = _settings(generation_config)
    config = {**facts.generation, **own}
    ends = own.get("eos_token_id", facts.eos_token_ids)
    pad = own.get("pad_token_id", facts.pad_token_id)
    params, lookups = sampling_params(config, given), (own.get(LOOKUP), facts.generation.get(LOOKUP))
    return Choosing(params, token_ids(ends), pad or 0, left_out(config), *lookups)


def token_ids(found: Any) -> tuple[int, ...]:
    """transformers' one id or several, as a tuple."""
    return () if found is None else tuple(found) if isinstance(found, (list, tuple)) else (int(found),)


def _check_names(given: Mapping[str, Any]) -> None:
    known = [*(f.name for f in fields(SamplingParams)), "do_sample", *SCRIPT_NAMES]
    for name in given:
        if name not in known:
            suggestion = did_you_mean(name, [*known, *KEYWORDS])
            raise OptionError(f"generate does not know the option '{name}'.{suggestion}")


def _replaced(sampling: SamplingParams, given: dict[str, Any]) -> SamplingParams:
    changes = {name: value for name, value in given.items() if value is not None}
    if changes.pop("do_sample", None) is False:
        changes["temperature"] = 0.0
    return replace(sampling, **changes)


def _settings(config: Any) -> dict[str, Any]:
    """What a generation config sets: an object of transformers, or its settings by name."""
    if config is None:
        return {}
    if isinstance(config, Mapping):
        known = transformers.GenerationConfig().to_dict()
        for name in config:
            if name not in known:
                raise OptionError(f"generation_config does not know '{name}'.{did_you_mean(name, known)}")
        found = dict(config)
    elif hasattr(config, "to_diff_dict"):
        found = config.to_diff_dict()
    else:
        raise OptionError(f"generation_config must be a GenerationConfig or a dict, not {type(config).__name__}.")
    return {name: value for name, value in found.items() if value is not None}
