"""What a config tells of a model's size: how its tensors are used, and what its layers keep of a sequence.

Layers whose state the config's attributes do not describe are counted as unknown, and never guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from QEfficient.transformers.size_records import Buffers, ModelSizes, StateCounts, WeightCounts

Shape = tuple[int, ...]

_TABLE = re.compile(r"(^|\.)(\w*emb(?!\w*proj)\w*|wte|wpe)(\.weight)?$")
_HEAD = re.compile(r"^(\D*\.)?(lm_head|embed_out|output|output_projection)\.weight$")
_OTHER_TOWER = re.compile(
    r"(^|\.)((vision|visual|audio|multi_modal|image)\w*|(encoder_attn|crossattention|cross_attn)\w*)\."
)
"""What works on images and sound, or on what an encoder made of another text."""
ATTENTION = ("whole", "window")
_EXPERT = ".experts."
_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_layer")
_EXPERTS_CHOSEN = (
    "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts", "moe_topk", "moe_k",
)  # fmt: skip


_AT_LEAST_ONE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def impossible_number(config: Any) -> str:
    """What a config says that no model can have; empty if there is no such thing."""
    text = config.get_text_config(decoder=True)
    found = {name: getattr(text, name, None) for name in _AT_LEAST_ONE}
    wrong = (f"{name} is {value}" for name, value in found.items() if isinstance(value, int) and value < 1)
    return next(wrong, "")


def is_of_text(name: str) -> bool:
    """Whether a tensor belongs to what works on text."""
    return not _OTHER_TOWER.search(name)


def model_sizes(
    config: Any, shapes: Mapping[str, Shape], state: StateCounts | None = None, known: Mapping[str, str] | None = None
) -> ModelSizes:
    """The sizes that a config and the shapes of tensors tell; `state` and the uses in `known`, where a run showed them.

    A use is `dense`, `head`, `shared` (a table that is the head too), `table`, `experts`, `scanned` or `other`.
    """
    text = config.get_text_config(decoder=True)
    layer = text.per_layer_config[0] if getattr(text, "is_heterogeneous", False) else text
    heads = _number(layer, "num_attention_heads")
    return ModelSizes(
        weight_counts(text, shapes, known or {}),
        state or state_counts(text),
        _number(text, "num_hidden_layers"),
        heads,
        heads * _query_size(layer),
        _number(text, "vocab_size"),
        _first(text, _EXPERT_COUNTS),
        _first(text, _EXPERTS_CHOSEN),
        _angles(text),
    )


def weight_counts(config: Any, shapes: Mapping[str, Shape], known: Mapping[str, str]) -> WeightCounts:
    """Tensors by what is done with them; towers for images and sound are left out."""
    uses = _uses(config, shapes, known)
    found: Counter[str] = Counter()
    for name, use in uses.items():
        found[use] += prod(shapes[name])
    sizes = {name: prod(shapes[name]) for name in uses}
    matrices = [size for name, size in sizes.items() if uses[name] in ("dense", "head", "shared")]
    others = [size for name, size in sizes.items() if uses[name] not in ("dense", "head")]
    each = [_of_one_expert(config, name, shapes[name]) for name, use in uses.items() if use == "experts"]
    hidden = _number(config, "hidden_size")
    return WeightCounts(
        dense=found["dense"],
        head=found["head"] + found["shared"],
        experts=found["experts"],
        other=found["other"] + found["table"] + found["shared"],
        scanned=found["scanned"],
        tied=not found["head"],
        largest_matrix=max(matrices, default=0),
        largest_other=max(others, default=0),
        expert_matrix=max(each, default=0),
        expert_width=min(each, default=0) // hidden if hidden else 0,
    )


def _uses(config: Any, shapes: Mapping[str, Shape], known: Mapping[str, str]) -> dict[str, str]:
    """The use of each tensor by name. Where no head is stored, a table is the head too."""
    experts, vocabulary = _first(config, _EXPERT_COUNTS), _number(config, "vocab_size")
    own = [name for name in shapes if is_of_text(name)]
    uses = {name: known.get(name) or _use(name, shapes[name], experts) for name in own}
    tables = [n for n, use in uses.items() if use == "table" and shapes[n][0] >= vocabulary > 0]
    if tables and not {"head", "shared"} & set(uses.values()):
        uses[min(tables, key=lambda name: shapes[name][0])] = "shared"  # a table of positions may have more rows
    return uses


def _use(name: str, shape: Shape, experts: int) -> str:
    if len(shape) < 2 or name.endswith("bias") or (len(shape) == 3 and 1 in shape[1:]):
        return "other"  # three axes with a 1: a convolution of each channel by itself
    if _HEAD.search(name):
        return "head"
    if _TABLE.search(name):
        return "table"
    return "experts" if _EXPERT in name or (len(shape) == 3 and shape[0] == experts) else "dense"


def _of_one_expert(config: Any, name: str, shape: Shape) -> int:
    """Numbers of one expert in a tensor, which may hold all experts of a layer."""
    return prod(shape) // (1 if _ONE_EXPERT.search(name) else max(1, _first(config, _EXPERT_COUNTS)))


def state_counts(config: Any) -> StateCounts:
    """What the layers keep of a sequence, by the config."""
    layers = _layers(config)
    window = _number(config, "sliding_window") or _number(config, "attention_chunk_size")
    # One window for all layers is a mask only: buffers roll where layers differ
    rolls = bool(window) and {"whole", "window"} <= {kind for kind, _ in layers}
    slots = {"whole": None, "window": window if rolls else None}
    kept = [replace(b, slots=slots[kind]) for kind, own in layers if kind in slots for b in _keys_and_values(own)]
    recurrent = [_recurrent(own) for kind, own in layers if kind == "recurrent"]
    fixed = [Buffers(1, 1, numbers, slots=1, packs=False) for numbers in recurrent if numbers]
    return StateCounts(gathered([*kept, *fixed]), unknown_layers=recurrent.count(0))


def gathered(buffers: list[Buffers]) -> tuple[Buffers, ...]:
    """The same, equal ones together."""
    counts: Counter[Buffers] = Counter()
    for each in buffers:
        counts[replace(each, count=1)] += each.count
    return tuple(replace(each, count=count) for each, count in counts.items())


def _layers(config: Any) -> list[tuple[str, Any]]:
    """How each layer keeps its state (`whole` context, `window`, `recurrent`), and the config that holds for it."""
    count = _number(config, "num_hidden_layers")
    listed = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    attends = bool(_number(config, "num_attention_heads"))
    names = list(listed or ["attention" if attends else "recurrent"] * count)
    configs = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config] * count
    own = range(count - _number(config, "num_kv_shared_layers"))  # the last ones use the keys of others
    return [(kind, configs[index]) for index in own for kind in _kinds(str(names[index]))]


def _kinds(name: str) -> tuple[str, ...]:
    if name in ("mlp", "moe"):
        return ()
    if "hybrid" in name:
        return "whole", "recurrent"
    if "attention" not in name or "linear" in name:
        return ("recurrent",)
    return ("window",) if "sliding" in name or "chunked" in name else ("whole",)


def _keys_and_values(config: Any) -> Iterator[Buffers]:
    """Those of one layer."""
    latent, indexer = _number(config, "kv_lora_rank"), _number(config, "index_head_dim")
    size = latent or _head_dim(config)
    values = _number(config, "qk_rope_head_dim") if latent else _number(config, "v_head_dim") or size
    for width in filter(None, (size, values)):
        yield Buffers(1, _key_value_heads(config), width)
    if indexer:
        yield Buffers(1, 1, indexer, packs=False)


def _key_value_heads(config: Any) -> int:
    if _number(config, "kv_lora_rank"):
        return 1
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    names = ("num_key_value_heads", "num_kv_heads", "num_attention_heads")
    return max(1, _first(config, names))


def _head_dim(config: Any) -> int:
    heads = _number(config, "num_attention_heads")
    return _number(config, "head_dim") or (_number(config, "hidden_size") // heads if heads else 0)


def _angles(config: Any) -> tuple[int, ...]:
    """Widths of the cosines and of the sines, for each kind of layer that rotates in its own way."""
    rotary = getattr(config, "rope_parameters", None) or {}
    kinds = [each for each in rotary.values() if isinstance(each, dict)] or [rotary] * bool(rotary)
    width = _number(config, "qk_rope_head_dim") or _head_dim(config)
    each = (int(width * (kind.get("partial_rotary_factor") or 1)) for kind in kinds)
    return tuple(size for size in each for _ in ("cosines", "sines"))


def _query_size(config: Any) -> int:
    """Numbers of one query: with latent keys, of the keys that are made from them."""
    latent = _number(config, "qk_nope_head_dim") + _number(config, "qk_rope_head_dim")
    return latent if _number(config, "kv_lora_rank") and latent else _head_dim(config)


def _recurrent(config: Any) -> int:
    """Numbers that one recurrent layer keeps: the last inputs of its convolution, and a matrix for each head."""
    for names in _RECURRENT:
        keys, key_size, values, value_size, kernel = (_number(config, name) for name in names)
        if all((keys, key_size, values, value_size, kernel)):
            return (2 * keys * key_size + values * value_size) * kernel + values * key_size * value_size
    return 0


_RECURRENT = (
    (
        "linear_num_key_heads", "linear_key_head_dim", "linear_num_value_heads", "linear_value_head_dim",
        "linear_conv_kernel_dim",
    ),
    ("mamba_n_groups", "mamba_d_state", "mamba_n_heads", "mamba_d_head", "mamba_d_conv"),
    ("n_groups", "ssm_state_size", "mamba_num_heads", "mamba_head_dim", "conv_kernel"),
    ("n_groups", "state_size", "num_heads", "head_dim", "conv_kernel"),
)  # fmt: skip
"""Number and size of key heads, number and size of value heads, and the length of the convolution, by their names."""


def _first(config: Any, names: tuple[str, ...]) -> int:
    return next((number for name in names if (number := _number(config, name))), 0)


def layer_numbers(config: Any, name: str) -> tuple[int, ...]:
    """A number of a config: one where all layers share it, else each layer's; none where it is absent."""
    text = config.get_text_config()
    configs = text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text]
    return tuple(number for each in configs if (number := _number(each, name)))


def _number(config: Any, name: str) -> int:
    """An attribute of the config; 0 if it is absent or no number."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # layers differ in it
        return 0
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
