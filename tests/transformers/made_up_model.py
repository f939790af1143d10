"""A model type that no version of transformers knows, written as a new one would be, against public interfaces alone.

It resembles no other type on purpose: normalised queries and keys with a temperature for each head, rotation in sliding
layers only, gated attention beside the feed-forward block, and a layer whose memory decays as the token says. It stands
in a file of its own, so that it can also be shipped with a checkpoint as remote code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class MadeUpConfig(PreTrainedConfig):
    model_type = "made_up"

    vocab_size: int = 101
    hidden_size: int = 32
    intermediate_size: int = 48
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 256
    sliding_window: int = 8
    layer_types: list[str] | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None


def rotated(x: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    angles = position_ids[:, None, :, None] * 100.0 ** (-torch.arange(half, device=x.device) / half)
    a, b = x.split(half, dim=-1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1).to(x.dtype)


def eager_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **_: Any
) -> tuple[torch.Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scaling
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2).contiguous(), None


class MadeUpAttention(nn.Module):
    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.sliding = config.layer_types[layer_idx] == "sliding_attention"
        self.head_dim = config.hidden_size // config.num_attention_heads
        width = config.num_key_value_heads * self.head_dim
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, width)
        self.value = nn.Linear(config.hidden_size, width)
        self.gate = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)
        self.temperature = nn.Parameter(torch.full((config.num_attention_heads, 1, 1), 4.0))

    def forward(self, hidden: torch.Tensor, mask: Any, position_ids: torch.Tensor, cache: Any) -> torch.Tensor:
        shape = (*hidden.shape[:2], -1, self.head_dim)
        query, key, value = (part(hidden).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
        query = nn.functional.normalize(query, dim=-1) * self.temperature
        key = nn.functional.normalize(key, dim=-1)
        if self.sliding:
            query, key = rotated(query, position_ids), rotated(key, position_ids)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        window = self.config.sliding_window if self.sliding else None
        mixed, _ = attend(self, query, key, value, mask, scaling=1.0, dropout=0.0, sliding_window=window)
        return self.out(mixed.reshape(*hidden.shape[:2], -1) * self.gate(hidden).sigmoid())


class MadeUpMemory(nn.Module):
    """A matrix for each head, which decays as the token says and takes up an outer product, behind a short filter."""

    FILTER = 3

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx, self.heads = layer_idx, config.num_attention_heads
        self.filter = nn.Parameter(torch.full((self.FILTER, config.hidden_size), 0.5))
        self.parts = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.decay = nn.Linear(config.hidden_size, self.heads)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def kept(self, cache: Any, kind: str) -> torch.Tensor | None:
        """What an earlier call left; newer versions of transformers number the states of a layer."""
        if cache is None or not cache.has_previous_state(self.layer_idx):
            return None
        held = getattr(cache.layers[self.layer_idx], f"{kind}_states")
        return held[0] if isinstance(held, dict) else held

    def forward(self, hidden: torch.Tensor, mask: Any, position_ids: torch.Tensor, cache: Any) -> torch.Tensor:
        rows, length, width = hidden.shape
        before, memory = self.kept(cache, "conv"), self.kept(cache, "recurrent")
        if before is None or memory is None:
            before = hidden.new_zeros(rows, width, self.FILTER)
            memory = hidden.new_zeros(rows, self.heads, width // self.heads, width // self.heads)
        inputs = torch.cat([before, hidden.transpose(1, 2)], dim=2)
        filtered = sum(inputs[:, :, 1 + tap :][:, :, :length].mT * self.filter[tap] for tap in range(self.FILTER))
        query, key, value = self.parts(filtered).view(rows, length, self.heads, -1).chunk(3, dim=-1)
        decay = self.decay(filtered).sigmoid()[..., None, None]
        read = []
        for time in range(length):
            memory = memory * decay[:, time] + key[:, time, :, :, None] * value[:, time, :, None, :]
            read.append((query[:, time, :, None, :] @ memory).reshape(rows, width))
        if cache is not None:
            cache.update_conv_state(inputs[:, :, -self.FILTER :], self.layer_idx)
            cache.update_recurrent_state(memory, self.layer_idx)
        return self.out(torch.stack(read, 1).tanh())


class MadeUpLayer(nn.Module):
    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        linear = config.layer_types[layer_idx] == "linear_attention"
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.mixer = (MadeUpMemory if linear else MadeUpAttention)(config, layer_idx)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor, mask: Any, position_ids: torch.Tensor, cache: Any) -> torch.Tensor:
        normed = self.norm(hidden)
        return hidden + self.mixer(normed, mask, position_ids, cache) + self.down(self.up(normed).relu().square())


class MadeUpPreTrainedModel(PreTrainedModel):
    config_class = MadeUpConfig
    base_model_prefix = "model"
    _no_split_modules = ["MadeUpLayer"]
    _supports_attention_backend = True


class MadeUpModel(MadeUpPreTrainedModel):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([MadeUpLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.post_init()

    def forward(
        self, input_ids: Any, attention_mask: Any, position_ids: Any, past_key_values: Any, use_cache: bool
    ) -> tuple[torch.Tensor, Any]:
        hidden = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(hidden.shape[1], device=hidden.device) + seen)[None]
        context = {
            "config": self.config,
            "inputs_embeds": hidden,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        masks = {kind: make(**context) for kind, make in makers.items() if kind in self.config.layer_types}
        for kind, layer in zip(self.config.layer_types, self.layers, strict=True):
            hidden = layer(hidden, masks.get(kind), position_ids, past_key_values)
        return self.norm(hidden), past_key_values


class MadeUpForCausalLM(MadeUpPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = MadeUpModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        use_cache = self.config.use_cache if use_cache is None else use_cache
        hidden, cache = self.model(input_ids, attention_mask, position_ids, past_key_values, use_cache)
        return CausalLMOutputWithPast(logits=self.lm_head(hidden[:, -logits_to_keep:]), past_key_values=cache)
