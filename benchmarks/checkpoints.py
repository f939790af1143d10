"""The models that are measured: shapes of real ones, random weights, written on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "0.5b": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
}


def make_checkpoint(shape: str, folder: Path, shard_bytes: int = 4 * 2**30) -> None:
    """Random weights of a shape in bfloat16, written shard by shard; the same for the same versions."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], architectures=["LlamaForCausalLM"], dtype="bfloat16")
    config.save_pretrained(folder)
    with torch.device("meta"):
        names = {n: t.shape for n, t in LlamaForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        del names["lm_head.weight"]
    shards: list[dict[str, torch.Size]] = [{}]
    for name, size in names.items():
        if 2 * sum(s.numel() for s in shards[-1].values()) + 2 * size.numel() > shard_bytes:
            shards.append({})
        shards[-1][name] = size
    index = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        save_file({n: _values(s).bfloat16() for n, s in shard.items()}, folder / file, {"format": "pt"})
        index.update(dict.fromkeys(shard, file))
    total = 2 * sum(size.numel() for size in names.values())
    if len(shards) > 1:
        record = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(record))


def _values(size: torch.Size) -> torch.Tensor:
    # Norms of one, so that numbers keep the sizes that they have in real models
    return torch.ones(size) if len(size) == 1 else torch.randn(size).mul_(0.02)


def make_tokenizer(folder: Path) -> None:
    """A token for each byte: some converters do not go on without one, nothing that is measured uses it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    tokenizer = Tokenizer(models.BPE({**special, **{c: n + 3 for n, c in enumerate(letters)}}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
