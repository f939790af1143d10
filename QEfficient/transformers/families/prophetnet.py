"""ProphetNet: its predicting streams read the position bias of another token and head, by way of the length.

transformers flattens the biases as [token, stream, head] and reads them as [stream, head, token], so that an answer
depends on how many tokens there are. That is what its checkpoints are run with; here the same is read for each row's
own length.
"""

from __future__ import annotations

from typing import Any

import torch

from QEfficient.transformers.replay import Replay, ReplayModule

MODEL_TYPES = ("prophetnet",)


def adapt(model: Any) -> Replay:
    for module in model.modules():
        if hasattr(module, "get_predict_relative_pos_embeddings"):
            module.get_predict_relative_pos_embeddings = _bias(module)
    reason = "the bias of each token depends on how many tokens there are"
    # two less than its positions: transformers cuts its table of biases one off
    return Replay(reason, model.config.max_position_embeddings - 2, ahead=True)


def _bias(attention: Any) -> Any:
    streams, heads, buckets = attention.ngram, attention.num_attn_heads, attention.num_buckets

    def bias(hidden: torch.Tensor, scores: torch.Tensor, positions: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        rows, length = hidden.shape[:2]
        lengths = torch.full((rows, 1), length) if ReplayModule.lengths is None else ReplayModule.lengths
        biases = attention.relative_pos_embeddings(hidden).view(rows, length, streams, buckets, heads)
        flat = biases.transpose(3, 4).reshape(rows, length * streams * heads, buckets)
        number = torch.arange(streams * heads)[:, None] * lengths[:, :, None] + torch.arange(length)
        number = number.clamp(max=length * streams * heads - 1).reshape(rows, -1, 1)
        read = flat.gather(1, number.expand(-1, -1, buckets)).view(rows, streams, heads, length, buckets)
        found: torch.Tensor = read.gather(4, places.long()[:, None, None].expand(-1, streams, heads, -1, -1))
        return found

    return bias
