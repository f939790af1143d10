"""Tiny random models, one of every causal-LM type that the installed transformers knows.

The default config of the type is shrunk by the names of its attributes (`SIZES`), the fewest layers are kept that show
every kind of layer, and the parameters are drawn anew so that greedy tokens depend on the prompt and on the position.
What this rule cannot find is in :mod:`QEfficient.verification.tiny_overrides`.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import transformers
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from QEfficient.errors import UnsupportedModelError, first_line

from .tiny_overrides import GAINS, OVERRIDES, SEEDS

T = TypeVar("T")
VOCAB = 256
PROMPT_LENGTHS = (5, 11, 19)
GAIN = 2.0  # of matrices: attention takes sides, and layers outweigh the embedding they add to
# Sizes by attribute name (or by the common name that the config's attribute_map gives it); never enlarged.
SIZES: dict[str, int] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "moe_intermediate_size": 48,
    # widths that go by another name
    **dict.fromkeys(
        [
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "ffn_dim",
            "ffn_hidden_size",
            "dff",
            "dim_ff",
            "feed_forward_size",
            "d_inner",
            "mlp_dim",
            "dense_intermediate_size",
            "intermediate_size_mlp",
        ],
        112,
    ),
    **dict.fromkeys(
        [
            "shared_intermediate_size",
            "shared_expert_intermediate_size",
            "shared_experts_intermediate_size",
            "moe_shared_expert_intermediate_size",
        ],
        80,
    ),
    **dict.fromkeys(
        [
            "encoder_attention_heads",
            "decoder_attention_heads",
            "num_encoder_attention_heads",
            "num_decoder_attention_heads",
            "num_heads",
            "swa_num_attention_heads",
        ],
        4,
    ),
    "swa_num_key_value_heads": 2,
    "d_head": 16,
    "dim_head": 16,
    "kv_channels": 16,
    "attention_hidden_size": 64,
    "word_embed_proj_dim": 48,
    "input_embedding_size": 48,
    "output_embedding_size": 80,
    "router_hidden_size": 32,
    "hc_lowrank": 16,
    "laurel_rank": 8,
    "o_groups": 2,
    "o_lora_rank": 24,
    # mixture of experts
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "zero_expert_num": 2,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    # windows that wrap in a short run
    "sliding_window": 8,
    "sliding_window_size": 8,
    "attention_window_size": 8,
    "attention_chunk_size": 8,
    "local_attention_window_len": 8,
    "num_nextn_predict_layers": 0,
    "window_size": 8,
    "local_attention": 16,
    "index_topk": 8,
    # latent attention, every size another
    "q_lora_rank": 40,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "index_head_dim": 16,
    "index_n_heads": 8,  # with few heads many scores are exactly 0, and ties decide
    # state-space and linear-attention layers
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "mamba_d_head": 16,
    "mamba_head_dim": 16,
    "mamba_d_state": 8,
    "mamba_d_ssm": 128,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 8,
    "mamba_dt_rank": 4,
    "state_size": 8,
    "ssm_state_size": 8,
    "time_step_rank": 4,
    "n_groups": 2,
    "chunk_size": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
}
LAYER_COUNTS = (
    "num_hidden_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "num_encoder_layers",
    "num_decoder_layers",
)
FLAGS = {"is_decoder": True, "use_mamba_kernels": False}  # kernels that need a GPU
PLACEHOLDER = ("token_id", "token_index")
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
QUERY_KEY_NORM = re.compile(r"(^|[._])(q|k|query|key)_?(layer)?norm$")


def causal_types() -> list[str]:
    """Names of the causal-LM types of the installed transformers, sorted."""
    return sorted(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING_NAMES)


def tiny_config(model_type: str) -> PreTrainedConfig:
    """A small valid config of `model_type` with every kind of layer of its default."""
    cls = CONFIG_MAPPING[model_type]
    return _shrunk(cls, None, OVERRIDES.get(model_type, {}))


def tiny_model(model_type: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A small random model of `model_type` in eval mode with eager attention; a function of `seed` alone."""
    config = tiny_config(model_type)
    offset, gain = _tuned(SEEDS, model_type, 0), _tuned(GAINS, model_type, GAIN)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + offset)
        model = _build(model_type, config, torch.float32)
        _initialise(model, gain)
        if dtype != torch.float32:  # built anew, so that what stays in float32 does so here too
            drawn, model = model, _build(model_type, config, dtype)
            model.load_state_dict(drawn.state_dict())
    model.generation_config = GenerationConfig()
    return model.eval()


def prompts(model: PreTrainedModel) -> list[list[int]]:
    """Three prompts of different lengths, of ids that mean nothing special to `model`."""
    special = set(_special_ids(model.config))
    ids = [i for i in range(4, _text(model.config).vocab_size) if i not in special]
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(ids), generator=generator).tolist()
    chosen = [ids[i] for i in order]
    starts = [sum(PROMPT_LENGTHS[:i]) for i in range(len(PROMPT_LENGTHS))]
    return [chosen[s : s + n] for s, n in zip(starts, PROMPT_LENGTHS, strict=True)]


# ---- configs


def _shrunk(cls: type, default: PreTrainedConfig | None, overrides: dict[str, Any]) -> PreTrainedConfig:
    overrides = {**OVERRIDES.get(getattr(cls, "model_type", ""), {}), **overrides}
    if default is None:
        default = _default(cls, overrides)
    names = _names(cls)
    small = {name: _small_value(cls, name, names[name], _get(default, name), default) for name in names}
    small = {name: value for name, value in small.items() if value is not _get(default, name)}
    parts = {name: _get(default, name) for name in names if isinstance(_get(default, name), PreTrainedConfig)}
    small.update({name: value for name, value in overrides.items() if name not in parts})
    small = {**_layers(default, names), **small}
    others = {}
    for name, part in parts.items():
        changes = dict(overrides.get(name, {}))
        if other := changes.pop("model_type", None):
            others[name] = _shrunk(CONFIG_MAPPING[other], None, changes)
        else:
            small[name] = _shrunk(type(part), part, changes)
    config = cls(**small)
    vars(config).update(others)  # past the constructor, which may insist on its own type
    return config


def _default(cls: type, overrides: dict[str, Any]) -> PreTrainedConfig:
    try:
        return cls()
    except Exception:  # of whatever kind its validation raises: the defaults alone are not valid
        return cls(**overrides)


def _get(config: PreTrainedConfig, name: str) -> Any:
    """The global value, also where layers differ in it."""
    return config.__dict__[name] if name in config.__dict__ else getattr(config, name, None)


def _optional(cls: type, name: str) -> bool:
    field = getattr(cls, "__dataclass_fields__", {}).get(name)
    return field is None or "None" in str(field.type) or "Optional" in str(field.type)


def _names(cls: type) -> dict[str, str]:
    """Names that the config's constructor takes, each with its common name."""
    common = {own: name for name, own in getattr(cls, "attribute_map", {}).items()}
    fields = getattr(cls, "__dataclass_fields__", None)
    names = list(fields) if fields else list(inspect.signature(cls).parameters)
    return {name: name if name in SIZES or name in LAYER_COUNTS else common.get(name, name) for name in names}


def _small_value(cls: type, name: str, common: str, value: Any, default: PreTrainedConfig) -> Any:
    """The value for attribute `name`, which other configs call `common`; `value` itself where it can stay."""
    if "dropout" in common or common.endswith(("_pdrop", "layerdrop")):
        return 0.0 if isinstance(value, float) else value
    if common in SPECIAL:
        return None if _optional(cls, name) else SPECIAL.index(common)
    if common in FLAGS:
        return FLAGS[common]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if common.endswith(PLACEHOLDER) and value >= VOCAB:
        return VOCAB - 1 - sorted(n for n in _names(cls) if n.endswith(PLACEHOLDER)).index(name)
    if common in RULES:
        return RULES[common](default, value)
    return min(value, SIZES.get(common, value))


def _head_dim(default: PreTrainedConfig, value: int) -> int:
    heads = _get(default, "num_attention_heads")
    usual = _get(default, "hidden_size") // heads if heads else value
    if value == _get(default, "qk_rope_head_dim"):
        return SIZES["qk_rope_head_dim"]
    return 16 if value == usual else 32 if value > usual else 24


def _key_value_heads(default: PreTrainedConfig, value: int) -> int:
    latent = _get(default, "kv_lora_rank") is not None
    return SIZES["num_attention_heads"] if latent else min(value, 2)


def _experts(default: PreTrainedConfig, value: int) -> int:
    """Twice as many where experts are chosen in groups: four groups of two."""
    return min(value, 8 if (_get(default, "n_group") or 1) > 1 else 4)


def _embedding_size(default: PreTrainedConfig, value: int) -> int:
    return 64 if value == default.hidden_size else 48


def _query_scalar(default: PreTrainedConfig, value: int) -> int:
    return _head_dim(default, _get(default, "head_dim")) if value == _get(default, "head_dim") else value


def _rotary(default: PreTrainedConfig, value: int) -> int:
    return 8


RULES: dict[str, Callable[[PreTrainedConfig, int], int]] = {
    "head_dim": _head_dim,
    "swa_head_dim": _head_dim,
    "embedding_size": _embedding_size,
    "num_key_value_heads": _key_value_heads,
    "query_pre_attn_scalar": _query_scalar,
    "rotary_dim": _rotary,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), _experts),
}


def _layers(default: PreTrainedConfig, names: dict[str, str]) -> dict[str, Any]:
    """Layer count and per-layer lists for the fewest layers that show each value of each per-layer list."""
    counts = {name: _get(default, name) for name in names if names[name] in LAYER_COUNTS}
    if not counts:
        return {}
    count = next(iter(counts.values()))
    lists = {}
    for name in names:
        value = _get(default, name)
        # A list of many values is of numbers of layers rather than of kinds.
        if isinstance(value, (list, tuple)) and len(value) == count and len({str(item) for item in value}) <= 4:
            lists[name] = value
    kept = _cover(count, list(lists.values()))
    new: dict[str, Any] = {name: len(kept) for name in counts}
    new.update({name: [value[i] for i in kept] for name, value in lists.items()})
    return new


def _cover(count: int, lists: list[Any]) -> list[int]:
    """Indices of two or more layers that show every value of every list, earlier layers first."""
    missing = {(n, str(v)) for n, values in enumerate(lists) for v in values}
    kept: list[int] = []
    while missing or len(kept) < min(2, count):
        gains = [
            len({(n, str(v[i])) for n, v in enumerate(lists)} & missing) if i not in kept else -1 for i in range(count)
        ]
        best = gains.index(max(gains))
        kept.append(best)
        missing -= {(n, str(v[best])) for n, v in enumerate(lists)}
    return sorted(kept)


def _text(config: PreTrainedConfig) -> PreTrainedConfig:
    return config.get_text_config(decoder=True)


def _special_ids(config: PreTrainedConfig) -> Iterator[int]:
    for name, value in config.to_dict().items():
        if name.endswith(PLACEHOLDER) and isinstance(value, int):
            yield value
    for name in config.sub_configs:
        if isinstance(getattr(config, name, None), PreTrainedConfig):
            yield from _special_ids(getattr(config, name))


# ---- parameters


def _build(model_type: str, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The class that the causal mapping names; where that class takes a part of the config only, from that part."""
    options = {"attn_implementation": "eager", "dtype": dtype}
    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
    for name in config.sub_configs:
        if type(getattr(config, name)) is model_class.config_class:
            config = getattr(config, name)
            break
    try:
        return model_class._from_config(config, **options)
    except Exception as error:  # whatever a model's own constructor raises
        raise UnsupportedModelError(
            f"transformers {transformers.__version__} cannot build a tiny one: {first_line(error)}"
        ) from error


def _tuned(table: dict[T, str], model_type: str, usual: T) -> T:
    return next((value for value, types in table.items() if model_type in types.split()), usual)


@torch.no_grad()
def _initialise(model: PreTrainedModel, gain: float) -> None:
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen and parameter.is_floating_point():
                seen.add(id(parameter))
                _draw(module, name, parameter, gain)
                if QUERY_KEY_NORM.search(path) and parameter.dim() == 1 and name == "weight":
                    parameter.add_(0.5)  # or attention would be close to a mean
        for name, buffer in module.named_buffers(recurse=False):
            _draw_buffer(module, name, buffer)
    _mute_special(model)
    with contextlib.suppress(ValueError):  # raised by models that do not run from ids alone
        _calm_embeddings(model.eval())


def _draw(module: nn.Module, name: str, parameter: torch.Tensor, gain: float) -> None:
    """New values: matrices of the given gain, constants with noise, state-space parameters that remember."""
    if isinstance(module, nn.Embedding):
        parameter.copy_(_rows(parameter.shape) * (0.5 if len(parameter) > 16 else 0.1))
    elif isinstance(module, nn.Linear) and name == "weight":
        parameter.copy_(_rows(parameter.shape) * gain / parameter.shape[1] ** 0.5)
    elif type(module).__name__ == "Conv1D" and name == "weight":
        parameter.copy_(_rows(parameter.t().shape).t() * gain / parameter.shape[0] ** 0.5)
    elif name == "dt_bias":
        parameter.uniform_(-5.0, -1.0)
    elif name == "A_log" and parameter.dim() == 1:
        parameter.uniform_(0.5, 4.0).log_()
    elif name == "sinks":
        parameter.normal_(2.0, 1.0)
    elif bool((parameter == parameter.flatten()[0]).all()):
        parameter.add_(torch.randn(parameter.shape) * 0.1)
    elif parameter.dim() >= 2 and "A_log" not in name:
        parameter.normal_(0.0, gain / (parameter.shape[-1] * parameter.shape[-2]) ** 0.25)


def _draw_buffer(module: nn.Module, name: str, buffer: torch.Tensor) -> None:
    """Noise for what a checkpoint brings as a buffer: expert biases, scales of layers, tables from token to experts."""
    if name.endswith(("bias", "biases", "_scalar")) and buffer.dim() == 1 and buffer.is_floating_point():
        buffer.add_(torch.randn(buffer.shape) * 0.1)
    elif name == "tid2eid":
        count: Any = module.num_experts
        buffer.copy_(torch.rand(len(buffer), count).argsort(1)[:, : buffer.shape[1]])


def _rows(shape: torch.Size) -> torch.Tensor:
    """Random rows of mean 0 and deviation 1: no output is preferred, and a constant input gives nothing."""
    values = torch.randn(shape)
    return (values - values.mean(1, keepdim=True)) / values.std(1, keepdim=True).clamp_min(1e-3)


def _calm_embeddings(model: PreTrainedModel) -> None:
    """Shrink tied embeddings until the model seldom answers a token, even a repeated one, with the same token."""
    known = [token for prompt in prompts(model) for token in prompt]
    ids = torch.tensor([known[n : n + 8] + [known[n]] * 4 for n in range(24)])
    inputs = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    scaled = [p for name, p in model.named_parameters() if "emb" in name or id(p) in inputs]
    for _ in range(6):
        logits = model(input_ids=ids, use_cache=False).logits
        if not logits.isfinite().all() or float((logits.argmax(-1) == ids).float().mean()) < 0.02:
            return
        for parameter in scaled:
            parameter.mul_(0.5)


def _mute_special(model: PreTrainedModel) -> None:
    """Give special ids a logit of about 0, which is never the largest."""
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        ids = sorted({i for i in _special_ids(model.config) if 0 <= i < len(head.weight)})
        head.weight[ids] = 0.0
