"""The reference: Hugging Face eager, all tokens so far in one call, no cache."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from QEfficient.transformers.loading import ModelSource
from QEfficient.transformers.rotary import follows_length

LOOKS_AHEAD = 1e-2
"""A token whose logits change by more of their spread when others follow belongs to a model that is not causal."""


@dataclass(frozen=True)
class Expected:
    """One prompt, the tokens that Hugging Face continues it with, and the logits that each was chosen by."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: np.ndarray
    """`[tokens, vocabulary]`, float32."""

    @property
    def fed(self) -> tuple[int, ...]:
        """What a run is fed with: the last token is chosen, but no longer fed."""
        return self.prompt + self.tokens[:-1]


def expect(model: Any, prompt: Sequence[int], count: int) -> Expected:
    """Continue `prompt` greedily by `count` tokens. The model's attention should be eager, its dtype float32."""
    ids, rows = list(prompt), []
    for _ in range(count):
        rows.append(_in_one_call(model, ids)[-1])
        ids.append(int(rows[-1].argmax()))
    return Expected(tuple(prompt), tuple(ids[len(prompt) :]), np.stack(rows))


def all_logits(model: Any, ids: Sequence[int]) -> np.ndarray:
    """Logits `[tokens, vocabulary]` after each of `ids`, as they are when nothing follows."""
    rows = _in_one_call(model, ids)
    middle = (len(ids) - 1) // 2
    alone = _in_one_call(model, ids[: middle + 1])[-1]
    if np.abs(rows[middle] - alone).max() > LOOKS_AHEAD * alone.std():
        rows = np.stack([_in_one_call(model, ids[:end])[-1] for end in range(1, len(ids) + 1)])
    return rows


def _in_one_call(model: Any, ids: Sequence[int]) -> np.ndarray:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
    rows: np.ndarray = logits[0].float().numpy()
    return rows


def load_eager(source: ModelSource) -> Any:
    """The model of Hugging Face with eager attention in float32; a live one is not changed."""
    if source.live is None:
        options = {"dtype": torch.float32, "attn_implementation": "eager", **source.hub}
        return source.model_class.from_pretrained(source.location, **options).eval()
    own = all(p.dtype == torch.float32 for p in source.live.parameters() if p.is_floating_point())
    model = twin(source.live) if own else copy.deepcopy(source.live).float()
    if getattr(model.config, "_attn_implementation", "eager") != "eager":
        model.set_attn_implementation("eager")
    return model.eval()


def with_frequencies_of(model: Any, ctx_len: int) -> Any:
    """The same model, which gives every text the rotary frequencies that a text of this length has, as a program does
    that is compiled for it. Changes `model`."""
    for module in model.modules():
        if follows_length(module):
            module.forward = _as_in_a_text_of(ctx_len, module.forward)
    return model


def _as_in_a_text_of(length: int, forward: Any) -> Any:
    """Its code looks for the last position; so it is shown one, whose cosines and sines are dropped."""

    def with_last(x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        last = torch.full_like(position_ids[..., :1], length - 1)
        found = forward(x, torch.cat((position_ids, last), dim=-1), *args, **kwargs)
        return tuple(values[..., :-1, :] for values in found)

    return with_last


def twin(model: Any) -> Any:
    """A copy with its own modules, config and buffers over the same parameters."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
