"""Which contexts a traced graph holds for: some code wants blocks, some has an end, some unrolls for one length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.errors import ExportError, OptionError
from QEfficient.graph.tracing import trace_causal
from QEfficient.program import Context, GraphSpec, StateSpec, TensorSpec
from QEfficient.verification.tiny_models import tiny_model

IDS = TensorSpec("input_ids", "int64", ("batch_size", "seq_len"))
POSITIONS = TensorSpec("position_ids", "int64", ("batch_size", "seq_len"))
LOGITS = TensorSpec("logits", "float32", ("batch_size", 1, 2))
STATE = StateSpec(TensorSpec("past_key.0", "float32", ("batch_size", 2, "ctx_len", 2)), "key", 0)
SPEC = GraphSpec((IDS, POSITIONS), (LOGITS,), (STATE,))

Work = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Module(torch.nn.Module):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, slots: None, controls: Any, states: Any):  # type: ignore[no-untyped-def]
        result = self.work(ids.float() + positions, states[0])
        logits = result.sum() + torch.zeros(ids.shape[0], 1, 2)
        return logits, states[0] + 1


def in_blocks(ids: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    return state.reshape(state.shape[0], 2, state.shape[2] // 4, 4, 2) * ids.sum()


def up_to_a_hundred(ids: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    return state[0, 0, :, 0] * torch.arange(100.0)[: state.shape[2]] * ids.sum()


def token_by_token(ids: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    total = state.sum()
    for column in range(ids.shape[1]):
        total = total * 0.5 + ids[:, column].sum()
    return total


def any_size(ids: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    return state.sum() * ids.sum()


@pytest.mark.parametrize(
    ("work", "sizes"),
    [(any_size, Context()), (in_blocks, Context(multiple_of=4)), (up_to_a_hundred, Context(largest=100))],
)
def test_what_the_code_needs_is_found(work: Work, sizes: Context) -> None:
    assert trace_causal(Module(work), SPEC)[1] == sizes


def test_a_loop_over_tokens_is_refused() -> None:
    with pytest.raises(ExportError, match="unrolls for one length only"):
        trace_causal(Module(token_by_token), SPEC)


def test_a_context_that_the_graph_does_not_hold_for_is_refused(tmp_path: Path) -> None:
    alibi = QEFFAutoModelForCausalLM(tiny_model("mpt"))  # whose biases are made for 2,048 tokens
    with pytest.raises(OptionError, match="ctx_len is 2056, but MptForCausalLM takes at most 2048"):
        alibi.compile(prefill_seq_len=8, ctx_len=2056)
