"""How large a model is, from its config and the headers of its weight files: nothing is built and no weight is read.

Numbers are counted, not bytes: what a number takes is a device's affair. What a layer keeps of a sequence is read off
the config's own attributes; kinds of layers that these do not describe are counted as unknown and never guessed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import transformers

from QEfficient.demo import DEMO_NAME
from QEfficient.errors import ModelError, UnsupportedModelError, WeightsError, first_line
from QEfficient.transformers.checkpoint import open_pickle
from QEfficient.transformers.loading import open_source

Shape = tuple[int, ...]

_TABLE = re.compile(r"(^|\.)(\w*emb(?!\w*proj)\w*|wte|wpe)(\.weight)?$")
_HEAD = re.compile(r"^(\D*\.)?(lm_head|embed_out|output|output_projection)\.weight$")
_OTHER_TOWER = re.compile(r"(^|\.)(vision|visual|audio|multi_modal|image)\w*\.")
ATTENTION = ("whole", "window")
_EXPERT = ".experts."
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_layer")
_EXPERTS_CHOSEN = (
    "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts", "moe_topk", "moe_k",
)  # fmt: skip


@dataclass(frozen=True)
class WeightCounts:
    """The weights of a model, by what is done with them."""

    dense: int
    """Of matrices that every token is multiplied with, without the head."""
    head: int
    """Of the matrix that gives the logits; the embedding table again if the two are tied."""
    experts: int
    """Of all experts that tokens are sent to."""
    other: int
    """Tables that are looked up, norms, biases, convolutions."""
    tied: bool = False

    @property
    def stored(self) -> int:
        """As in the files: a tied head lies there once, as the table."""
        return self.dense + self.experts + self.other + (0 if self.tied else self.head)


@dataclass(frozen=True)
class StateCounts:
    """What a model keeps of one sequence."""

    per_token: int
    """Of each position, in layers that keep the whole context."""
    windows: tuple[tuple[int, int], ...] = ()
    """Numbers of each position, and positions kept, for each size of window."""
    fixed: int = 0
    """Whatever the length is: recurrent states and convolutions."""
    heads: int = 1
    """Of keys and values; the most parts that they can be cut into."""
    unknown_layers: int = 0
    """Layers whose state the config does not tell; they are not counted."""

    def numbers(self, ctx_len: int) -> int:
        """All of it for one sequence."""
        return self.per_token * ctx_len + self.fixed + sum(n * min(slots, ctx_len) for n, slots in self.windows)


@dataclass(frozen=True)
class ModelSizes:
    """Everything that a plan needs to know of a model."""

    weights: WeightCounts
    state: StateCounts
    layers: int
    attention_width: int
    """Heads times their size: the width of the queries."""
    vocab_size: int
    experts: int = 0
    experts_per_token: int = 0


def read_model(name: str, options: Mapping[str, Any]) -> ModelSizes:
    """The sizes of a local folder, the demo or a model of the hub, of which only config and headers are fetched."""
    local = name == DEMO_NAME or Path(name).expanduser().is_dir() or name.startswith((".", "/", "~"))
    try:
        only_here = {} if local else {"local_files_only": True}
        source = open_source(name, transformers.AutoModelForCausalLM, {**options, **only_here})
    except (UnsupportedModelError, WeightsError):
        raise
    except ModelError:
        if local:
            raise
        return model_sizes(*_from_hub(name, options))
    headers: dict[str, Shape] = {}
    for file in getattr(source.weights, "files", ()):
        headers.update(read_headers(file))
    return model_sizes(source.config, headers)


def read_headers(file: Path) -> dict[str, Shape]:
    """The shape of every tensor of a file, by name."""
    if file.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in open_pickle(file).items()}
    try:
        with open(file, "rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise WeightsError(
            f"the header of {file} cannot be read: {first_line(error)}. Fetch the file again."
        ) from error


def model_sizes(config: Any, headers: Mapping[str, Shape]) -> ModelSizes:
    """The sizes that a config and the shapes of the stored tensors tell."""
    text = config.get_text_config(decoder=True)
    layer = text.per_layer_config[0] if getattr(text, "is_heterogeneous", False) else text
    return ModelSizes(
        weight_counts(text, headers),
        state_counts(text),
        _number(text, "num_hidden_layers"),
        _number(layer, "num_attention_heads") * _head_dim(layer),
        _number(text, "vocab_size"),
        _first(text, _EXPERT_COUNTS),
        _first(text, _EXPERTS_CHOSEN),
    )


def weight_counts(config: Any, headers: Mapping[str, Shape]) -> WeightCounts:
    """The stored weights by what is done with them; towers for images and sound are left out."""
    experts, vocabulary = _first(config, _EXPERT_COUNTS), _number(config, "vocab_size")
    found: Counter[str] = Counter()
    tables: list[tuple[int, int]] = []
    for name, shape in headers.items():
        if _OTHER_TOWER.search(name):
            continue
        use = _use(name, shape, experts)
        found[use] += prod(shape)
        if use == "table" and shape[0] >= vocabulary > 0:
            tables.append((shape[0], prod(shape)))
    _, table = min(tables, default=(0, 0))  # a table of positions may have more rows
    tied = not found["head"]
    return WeightCounts(
        dense=found["dense"],
        head=table if tied else found["head"],
        experts=found["experts"],
        other=found["other"] + found["table"],
        tied=tied,
    )


def state_counts(config: Any) -> StateCounts:
    """What the layers keep of a sequence, by the config."""
    layers = _layers(config)
    window = _number(config, "sliding_window") or _number(config, "attention_chunk_size")
    kept = {kind: sum(_keys_and_values(layer) for own, layer in layers if own == kind) for kind in ATTENTION}
    # One window for all layers is a mask only: buffers roll where layers differ
    rolls = bool(window and kept["window"] and kept["whole"])
    recurrent = [_recurrent(layer) for kind, layer in layers if kind == "recurrent"]
    return StateCounts(
        per_token=kept["whole"] + (0 if rolls else kept["window"]),
        windows=((kept["window"], window),) if rolls else (),
        fixed=sum(recurrent),
        heads=max([_key_value_heads(layer) for kind, layer in layers if kind in ATTENTION], default=1),
        unknown_layers=recurrent.count(0),
    )


def _use(name: str, shape: Shape, experts: int) -> str:
    if len(shape) < 2 or name.endswith("bias") or (len(shape) == 3 and 1 in shape[1:]):
        return "other"  # three axes with a 1: a convolution of each channel by itself
    if _HEAD.search(name):
        return "head"
    if _TABLE.search(name):
        return "table"
    return "experts" if _EXPERT in name or (len(shape) == 3 and shape[0] == experts) else "dense"


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


def _keys_and_values(config: Any) -> int:
    """Numbers of one position in one layer."""
    latent = _number(config, "kv_lora_rank")
    indexer = _number(config, "index_head_dim")
    if latent:
        return latent + _number(config, "qk_rope_head_dim") + indexer
    size = _head_dim(config)
    values = _number(config, "v_head_dim") or size
    return _key_value_heads(config) * (size + values) + indexer


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


def _number(config: Any, name: str) -> int:
    """An attribute of the config; 0 if it is absent or no number."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # layers differ in it
        return 0
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _from_hub(name: str, options: Mapping[str, Any]) -> tuple[Any, dict[str, Shape]]:
    """Config and headers by small requests: a plan comes before the download of the weights."""
    from huggingface_hub import get_safetensors_metadata

    token = options.get("hf_token")
    own = {key: options[key] for key in ("cache_dir", "trust_remote_code") if key in options}
    try:
        config = transformers.AutoConfig.from_pretrained(name, token=token, **own)
        files = get_safetensors_metadata(name, token=token).files_metadata.values()
    except Exception as error:  # of many kinds: the hub's, the network's, those of a config's own code
        raise ModelError(
            f"the model '{name}' is neither a local folder nor in the local cache, and its config and headers cannot be"
            f" read from the hub: {first_line(error)}"
        ) from error
    if getattr(config, "quantization_config", None):
        raise UnsupportedModelError(f"{name} is a quantized checkpoint. Use the model's unquantized checkpoint.")
    return config, {tensor: tuple(info.shape) for file in files for tensor, info in file.tensors.items()}
