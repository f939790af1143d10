"""Latent attention that attends to what it retained as it is: the same tokens, other names, no keys made."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices.cloud_ai_100.sdk import SIMULATOR_VARIABLE, simulated_root
from QEfficient.errors import OptionError, UnsupportedModelError
from QEfficient.program import COMPUTE_CONTEXT
from QEfficient.specs import LatentSpec
from QEfficient.transformers.latent import latent_layers
from QEfficient.transformers.models.card_options import read_qaic_config
from QEfficient.verification.eager import expect
from QEfficient.verification.tiny_models import tiny_model

GEOMETRY: dict[str, Any] = {"ctx_len": 32, "prefill_seq_len": 4}
PROMPTS = [[5, 9, 77, 3, 8, 14, 22], [44, 3]]
ONLINE = {"cache_compressed": True, "absorption": True, "online": True}
FUSED = {"cache_compressed": True, "absorption": True, "online": False}
NAMES_ONLY = {"cache_compressed": True}


def model(model_type: str = "deepseek_v3") -> Any:
    return tiny_model(model_type)


def wrapped(original: Any, asked: dict[str, bool], slots: bool = False) -> QEFFAutoModelForCausalLM:
    return QEFFAutoModelForCausalLM(original, slots, {"mla_absorption": asked})


def tokens(found: QEFFAutoModelForCausalLM) -> list[list[int]]:
    result = found.generate(input_ids=PROMPTS, max_new_tokens=8, ignore_eos=True, temperature=0)
    return [[int(token) for token in ids] for ids in result.generated_ids]


def expected(original: Any) -> list[list[int]]:
    return [list(expect(original, prompt, 8).tokens) for prompt in PROMPTS]


def weights(found: QEFFAutoModelForCausalLM) -> dict[str, list[int]]:
    graph = onnx.load(str(found.onnx_path), load_external_data=False).graph
    return {tensor.name: list(tensor.dims) for tensor in graph.initializer}


@pytest.mark.parametrize("asked", [NAMES_ONLY, ONLINE, FUSED], ids=["names", "online", "fused"])
def test_the_same_tokens(asked: dict[str, bool]) -> None:
    original = model()
    found = wrapped(original, asked)
    found.compile(device="reference", batch_size=2, **GEOMETRY)
    assert tokens(found) == expected(original)
    assert found._program is not None
    states = [(state.tensor.name, state.kind) for state in found._program.graphs["lm"].spec.states]
    assert states[:2] == [("compressed_kv.0", "key"), ("k_pe.0", "value")]


def test_what_makes_keys_is_no_part_of_the_program() -> None:
    config = model().config
    heads, rank = config.num_attention_heads, config.kv_lora_rank
    program = wrapped(model(), ONLINE)
    program.export()
    online = {name.rpartition("self_attn.")[2]: dims for name, dims in weights(program).items() if "layers.0" in name}
    assert not any("kv_b_proj" in name for name in online)
    assert online["absorbed.key_up"] == [heads, config.qk_nope_head_dim, rank]
    assert online["absorbed.value_up"] == [heads, rank, config.v_head_dim]
    program = wrapped(model(), FUSED)
    program.export()
    names = weights(program)
    assert not any(part in name for name in names for part in ("kv_b_proj", "key_up", "q_b_proj"))


def test_slots_and_contexts_that_are_read_in_part_on_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a checkpoint, so that weights are made while they are streamed; in functions, one for each kind of layer."""
    monkeypatch.setenv(SIMULATOR_VARIABLE, "1.22")
    monkeypatch.setenv("QAIC_SIM_STATE", str(tmp_path / "cards.json"))
    simulated_root.cache_clear()
    original = model("deepseek_v2")
    original.save_pretrained(tmp_path / "model")
    found = QEFFAutoModelForCausalLM.from_pretrained(
        tmp_path / "model", continuous_batching=True, qaic_config={"mla_absorption": FUSED}
    )
    lengths = {"comp_ctx_lengths_prefill": [8], "comp_ctx_lengths_decode": [16, 32]}
    found.compile(device="cloud_ai_100", full_batch_size=2, use_onnx_subfunctions=True, **GEOMETRY, **lengths)
    assert found._program is not None
    assert COMPUTE_CONTEXT in {tensor.name for tensor in found._program.graphs["lm"].spec.inputs}
    assert tokens(found) == expected(original)
    found._forget_session()
    simulated_root.cache_clear()


def test_no_latent_attention_is_refused_before_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("QEfficient.graph.tracing.to_onnx", lambda *asked: pytest.fail("traced"))
    with pytest.raises(
        UnsupportedModelError, match="LlamaForCausalLM has no latent attention, which mla_absorption is for"
    ):
        wrapped(model("llama"), FUSED).export()


@pytest.mark.parametrize("asked", [ONLINE, FUSED], ids=["online", "fused"])
def test_keys_that_are_made_in_another_way_are_refused(
    asked: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEFF_HOME", str(tmp_path))  # the store has programs of this model as it was
    original = model()
    attention = type(next(iter(latent_layers(original).values())))
    before = attention.expand_kv

    def louder(self: Any, latent: torch.Tensor, rotary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = before(self, latent, rotary)
        return keys * 2, values

    monkeypatch.setattr(attention, "expand_kv", louder)
    words = "makes its keys in another way than known: leave 'absorption' out"
    with pytest.raises(UnsupportedModelError, match=words):
        wrapped(original, asked).export()


def test_queries_that_are_normed_are_refused_where_their_projection_is_fused() -> None:
    original = model()
    for attention in latent_layers(original).values():
        attention.q_norm = torch.nn.LayerNorm(attention.qk_head_dim)
    with pytest.raises(
        UnsupportedModelError, match="makes its queries in another way than by one projection.*ask for 'online'"
    ):
        wrapped(original, FUSED).export()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (True, "must be a dict of cache_compressed, absorption, online, not True"),
        ({"cache_compresed": True}, "does not know 'cache_compresed'. Did you mean 'cache_compressed'"),
        ({"cache_compressed": True, "online": 1}, r"\['online'\] must be True or False, not 1"),
    ],
)
def test_what_is_misspelt(asked: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        read_qaic_config({"mla_absorption": asked})


def test_without_a_compressed_cache_it_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert read_qaic_config({"mla_absorption": {"cache_compressed": False, "absorption": True}}).latent is None
    assert "mla_absorption'] has no effect: its 'cache_compressed' is not True" in caplog.text
    assert read_qaic_config({"mla_absorption": NAMES_ONLY}).latent == LatentSpec(absorption=False)
    assert read_qaic_config({"mla_absorption": ONLINE}).latent == LatentSpec(absorption=True, fused=False)
