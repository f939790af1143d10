"""What single operators of eager attention read, of models whose states have the same shapes."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from QEfficient.transformers.checkpoint import CheckpointWeights
from QEfficient.transformers.loading import ModelSource
from QEfficient.transformers.observed_reads import observed_reads
from QEfficient.transformers.retained_module import RetainedModule
from QEfficient.transformers.size_records import Reads
from QEfficient.transformers.transform import retain
from QEfficient.verification.tiny_models import tiny_config

HEADS, SIZE = 4, 16


def reads_of(model_type: str, **changes: Any) -> tuple[Reads, ...]:
    config = tiny_config(model_type)
    for name, value in changes.items():
        setattr(config, name, value)
    files, kind = CheckpointWeights([]), transformers.AutoModelForCausalLM
    model, mode = ModelSource("tiny", "tiny", config, files, kind, "float32", {}).skeleton()
    retained = retain(model)
    assert isinstance(retained, RetainedModule)
    return observed_reads(retained, mode)


def largest(reads: tuple[Reads, ...], rows: int, tokens: int) -> int:
    """Floats for each position of the context."""

    def numbers(each: Reads) -> int:
        counts = each.floats
        return counts.fixed + counts.row * rows + counts.token * tokens + counts.both * rows * tokens

    return max(map(numbers, reads))


@pytest.mark.parametrize(
    ("model_type", "changes", "prompt", "step"),
    [
        ("xglm", {}, HEADS + 1, HEADS * (SIZE + 1)),  # scores and a mask for all heads; values
        ("bloom", {}, 2 * HEADS, HEADS * (SIZE + 1)),  # a bias of each head's own, counted from each token
        ("gpt_neo", {}, 2 * HEADS, HEADS * (SIZE + 1)),  # what hides scores is as large as they are
        ("falcon", {}, HEADS + 1, SIZE + HEADS),  # one head for all that is not repeated
        ("deepseek_v3", {}, HEADS + 1, HEADS * (24 + 16)),  # keys that are put together: all of them, and a part
        ("deepseek_v3", {"v_head_dim": 64}, HEADS + 1, HEADS * (16 + 64)),  # keys and values, as they are made
        ("deepseek_v32", {"index_n_heads": 32}, 32, HEADS * (24 + 16)),  # scores of the indexer's own heads
    ],
)
def test_what_operators_read(model_type: str, changes: dict[str, int], prompt: int, step: int) -> None:
    reads, tokens = reads_of(model_type, **changes), 10**6
    assert largest(reads, 1, tokens) / tokens == pytest.approx(prompt, abs=0.01)
    assert largest(reads, 1, 1) == step and largest(reads, 5, 1) == 5 * step
    assert not any(a != b and a.covers(b) for a in reads for b in reads)


def test_attention_that_is_one_node_is_not_looked_into() -> None:
    """What is left is a mask that nobody uses."""
    assert largest(reads_of("llama"), 3, 7) <= 3 * 7
