"""What a model's generation config asks for, in transformers' words, and the SamplingParams that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from QEfficient.errors import OptionError
from QEfficient.specs import SamplingParams

HONOURED: Mapping[str, str] = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_new_tokens",
    "max_length": "max_length",
    "min_new_tokens": "min_new_tokens",
    "stop_strings": "stop",
    "num_return_sequences": "n",
}
"""transformers' names, and ours."""
LOOKUP = "prompt_lookup_num_tokens"
"""transformers' wish for prompt lookup: most tokens to try ahead."""
LEFT_OUT: Mapping[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "penalty_alpha": 0.0,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "token_healing": False,
    "min_length": 0,
    "max_time": None,
}
"""What would change the answer and is not done here, with the value that means nothing."""
LEFT_OUT_OF_DRAWING: Mapping[str, Any] = {"epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None}
"""The same of what only matters where tokens are drawn."""


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest keeps of a generation config: what is set and says how tokens are chosen."""
    neutral = {**LEFT_OUT, **LEFT_OUT_OF_DRAWING}
    kept = {name: config[name] for name in ("do_sample", LOOKUP, *HONOURED) if config.get(name) is not None}
    others = {name: config[name] for name in neutral if config.get(name) not in (None, neutral[name])}
    return kept | {name: value if isinstance(value, (int, float)) else True for name, value in others.items()}


def left_out(config: Mapping[str, Any]) -> str:
    """A sentence that names what the config asks for and is not done; empty if there is nothing."""
    neutral = {**LEFT_OUT, **(LEFT_OUT_OF_DRAWING if config.get("do_sample") else {})}
    asked = {name: config[name] for name in neutral if config.get(name) not in (None, neutral[name])}
    if not asked:
        return ""
    named = ", ".join(name if value is True or isinstance(value, (list, dict)) else f"{name}={value}"
                      for name, value in asked.items())  # fmt: skip
    return f"the generation config asks for {named}, which is not done here: tokens may differ from transformers'."


def sampling_params(config: Mapping[str, Any], given: Mapping[str, Any]) -> SamplingParams:
    """What the generation config says, each value replaced by the one that was given (None: it was not).

    `given` has the names of SamplingParams, and `do_sample`. A temperature that is given decides between drawing and
    the likeliest token; else `do_sample` does.
    """
    own = {name: value for name, value in given.items() if value is not None}
    asked = own.pop("do_sample", None)
    if asked is False:
        own["temperature"] = 0.0
    SamplingParams(**own)  # what is wrong with these is said without the config
    options = {ours: config[theirs] for theirs, ours in HONOURED.items() if config.get(theirs) is not None}
    if not (config.get("do_sample") if asked is None else asked):
        options["temperature"] = 0.0
    options.setdefault("temperature", 1.0)
    return _joined(options, own)


def _joined(options: dict[str, Any], own: Mapping[str, Any]) -> SamplingParams:
    if "max_length" in own:
        options.pop("max_new_tokens", None)  # which would go before it
    most, least = own.get("max_new_tokens"), options.get("min_new_tokens")
    if most is not None and least is not None:
        options["min_new_tokens"] = min(most, least)
    try:
        return SamplingParams(**{**options, **own})
    except OptionError as error:
        raise OptionError(f"the generation config cannot be followed: {error} Give another value.") from error
