"""Models are looked at without their weights and their windows: what is too large for this machine can be planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.errors import HostMemoryError
from QEfficient.transformers import transform
from QEfficient.transformers.replay import ReplayModule
from QEfficient.transformers.skeleton import build_skeleton, fake_mode
from QEfficient.transformers.transform import retain
from QEfficient.verification.tiny_models import tiny_model

TERABYTE = 2**40


def test_a_window_longer_than_memory() -> None:
    """Nothing of its length is made when a model is looked at."""
    config = transformers.Gemma2Config(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, sliding_window=2**36, attn_implementation="eager",
    )  # fmt: skip
    retained = retain(transformers.Gemma2ForCausalLM(config))
    assert [plan.window for plan in retained.plans] == [2**36, 2**36, None, None]


def test_experts_larger_than_memory() -> None:
    config = transformers.Qwen3MoeConfig(
        vocab_size=256, hidden_size=2**13, moe_intermediate_size=2**14, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_experts=2**12, attn_implementation="eager",
    )  # fmt: skip
    model = build_skeleton(lambda: transformers.Qwen3MoeForCausalLM(config), fake_mode())
    assert max(parameter.nbytes for parameter in model.parameters()) > TERABYTE
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    "said",
    [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")],
)
def test_no_memory_is_no_property_of_the_model(
    said: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program than usual must not come of it, and stay."""
    monkeypatch.setenv("QEFF_HOME", str(tmp_path))  # where no other test has exported it

    def starved(*asked: Any) -> Any:
        raise said

    monkeypatch.setattr(transform, "observe", starved)
    with pytest.raises(HostMemoryError, match="too little memory to run LlamaForCausalLM on a few tokens"):
        QEFFAutoModelForCausalLM(tiny_model("llama")).export()


def test_a_fault_of_the_model_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*asked: Any) -> Any:
        raise RuntimeError("The size of tensor a must match the size of tensor b")

    monkeypatch.setattr(transform, "observe", refuses)
    assert isinstance(retain(tiny_model("llama")), ReplayModule)
