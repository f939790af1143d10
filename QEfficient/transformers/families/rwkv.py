"""RWKV: transformers passes one list of states through all blocks; here each module holds its own.

Its attention loops over tokens in Python, so it is run token by token. Models made for half precision halve their
values every few blocks: transformers does that to the weights, here it is done to what they compute.
"""

from __future__ import annotations

from typing import Any

import torch

from QEfficient.transformers.held_states import held, hold

MODEL_TYPES = ("rwkv",)

NOTHING_SEEN = -1e38
"""The largest exponent of no tokens."""


def adapt(model: Any) -> None:
    body = next(module for module in model.modules() if hasattr(module, "layers_are_rescaled"))
    for number, block in enumerate(body.blocks):
        for part in (block.attention, block.feed_forward):
            part.time_shift = PreviousToken()
            if body.config.rescale_every > 0 and not body.layers_are_rescaled:
                part.register_forward_hook(_divided(2 ** (number // body.config.rescale_every)))
        block.attention.forward = _one_token(block.attention)
        block.feed_forward.forward = _stateless(block.feed_forward.forward)
    body.layers_are_rescaled = True


class PreviousToken(torch.nn.Module):
    """For one token the one before it, in place of shifting a whole sequence."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        last = hidden[:, -1:]
        before = held(self, "token", last.shape, hidden.dtype)
        hold(self, "token", last)
        return torch.cat((before, hidden[:, :-1]), dim=1)


def _one_token(attention: Any) -> Any:
    from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

    def forward(hidden: torch.Tensor, state: Any = None, use_cache: bool = False) -> tuple[torch.Tensor, None]:
        receptance, key, value, _ = attention.extract_key_value(hidden)
        names = ("numerator", "denominator", "exponent")
        numerator, denominator, exponent = (held(attention, name, key[:, 0].shape, torch.float32) for name in names)
        exponent = torch.where(denominator == 0, NOTHING_SEEN, exponent)  # a fresh state is zeros throughout
        states = (numerator, denominator, exponent)
        mixed, states = rwkv_linear_attention_cpu(attention.time_decay, attention.time_first, key, value, states)
        for name, new in zip(names, states, strict=True):
            hold(attention, name, new)
        return attention.output(receptance * mixed), None

    return forward


def _stateless(forward: Any) -> Any:
    return lambda hidden, state=None: forward(hidden)


def _divided(divisor: int) -> Any:
    return lambda module, args, output: (output[0] / divisor, *output[1:])
