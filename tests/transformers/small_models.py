"""Small random models whose answers depend on every token, position and mask."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModel, PreTrainedTokenizerFast

from QEfficient.verification.tiny_models import tiny_config

VOCAB = 97
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@torch.no_grad()
def drawn(model: Any, seed: int = 0) -> Any:
    """`model` with parameters drawn anew, far enough apart that what is wrong shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if isinstance(module, torch.nn.Embedding):
                parameter.copy_(noise * 0.5)
            elif parameter.dim() >= 2:
                parameter.copy_(noise * 2 / max(parameter.shape[-2:]) ** 0.5)
            else:
                parameter.add_(noise * 0.1)
    return model.eval()


def small_llama(seed: int = 0) -> Any:
    return drawn(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)), seed)


def small_gemma2() -> Any:
    """The first layer sees the last 8 positions only, the second one all."""
    config = transformers.Gemma2Config(**SIZES, head_dim=8, sliding_window=8, query_pre_attn_scalar=8)
    return drawn(transformers.Gemma2ForCausalLM(config))


def small_bert(seed: int = 0) -> Any:
    sizes = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
    return drawn(transformers.BertModel(transformers.BertConfig(**sizes)), seed)


def small_encoder(model_type: str) -> Any:
    """What `AutoModel` makes of a small config of this type."""
    config = tiny_config(model_type)
    for part in (config, config.get_text_config()):
        if getattr(part, "pad_token_id", 0) is None:
            part.pad_token_id = 0
        if getattr(part, "is_decoder", False):
            part.is_decoder = False
    return drawn(AutoModel.from_config(config, attn_implementation="eager"))


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word of a few."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<pad>", "My", "name", "is", "and", "what", "are", "you", "called", "there", "now"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ('system', 'user', 'assistant') %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ message.role }} {{ message.content }} "
    "{% endfor %}{% if add_generation_prompt %}{{ mark or 'assistant' }}{% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A word for each token of the small models, and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<pad>", "system", "user", "assistant", "My", "name", "is", "what", "are", "you", "called"]
    words += [f"word{number}" for number in range(len(words), VOCAB)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", chat_template=CHAT_TEMPLATE
    )
