"""Heads of keys that a state holds several times, so that devices share them evenly; and programs that are exported
anew because a compilation needs another graph than the last export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices.cloud_ai_100.sdk import SIMULATOR_VARIABLE, simulated_root
from QEfficient.errors import OptionError
from QEfficient.program import COMPUTE_CONTEXT, StateSpec
from QEfficient.transformers.models.card_options import kv_head_copies, sharing
from QEfficient.verification.eager import expect
from QEfficient.verification.tiny_models import tiny_config, tiny_model

HEADS, KV_HEADS, LAYERS = 8, 2, 2
GEOMETRY: dict[str, Any] = {"ctx_len": 64, "prefill_seq_len": 8}
COPIES = {"replicate_kv_heads": True}
LENGTHS: dict[str, Any] = {"comp_ctx_lengths_prefill": [16], "comp_ctx_lengths_decode": [32, 64]}


def model() -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, max_position_embeddings=128, eos_token_id=None, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(3)
    found = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return found


def config(heads: int, kv_heads: int | None) -> Any:
    text = SimpleNamespace(num_attention_heads=heads, num_key_value_heads=kv_heads)
    return SimpleNamespace(get_text_config=lambda: text)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "devices", "copies"),
    [
        (8, 2, 1, 1), (8, 2, 2, 1), (8, 2, 4, 2), (8, 2, 8, 4), (8, 8, 4, 1), (8, None, 4, 1), (8, 1, 4, 4),
        (32, 8, 16, 2), (12, 6, 4, 2), (24, 8, 6, 3),
    ],
)  # fmt: skip
def test_the_fewest_copies_that_devices_share_evenly(
    heads: int, kv_heads: int | None, devices: int, copies: int
) -> None:
    assert kv_head_copies(config(heads, kv_heads), devices) == copies


@pytest.mark.parametrize(("heads", "kv_heads", "devices"), [(8, 2, 16), (8, 2, 3), (8, 8, 16), (9, 3, 2)])
def test_numbers_that_cannot_be_shared(heads: int, kv_heads: int, devices: int) -> None:
    words = f"{devices} devices are to share each layer, but {kv_heads} heads of keys for {heads} of queries cannot be"
    with pytest.raises(OptionError, match=words):
        kv_head_copies(config(heads, kv_heads), devices)


def states(wrapped: QEFFAutoModelForCausalLM) -> Sequence[StateSpec]:
    assert wrapped._program is not None
    return wrapped._program.graphs["lm"].spec.states


def inputs(wrapped: QEFFAutoModelForCausalLM) -> set[str]:
    assert wrapped._program is not None
    return {tensor.name for tensor in wrapped._program.graphs["lm"].spec.inputs}


@pytest.mark.parametrize("geometry", [{"full_batch_size": 2}, {"batch_size": 2}], ids=["slots", "rows"])
def test_the_same_tokens_with_copies(geometry: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the reference device, and on four devices of the simulator."""
    monkeypatch.setenv(SIMULATOR_VARIABLE, "1.22")
    monkeypatch.setenv("QAIC_SIM_STATE", str(tmp_path / "cards.json"))
    simulated_root.cache_clear()
    original, asked = model(), [[5, 6, 7], list(range(20, 33))]
    said = [list(expect(original, prompt, 8).tokens) for prompt in asked]
    for device in ("reference", "cloud_ai_100"):
        wrapped = QEFFAutoModelForCausalLM(original, "full_batch_size" in geometry, COPIES)
        wrapped.compile(device=device, num_devices=4, **GEOMETRY, **geometry)
        found = wrapped.generate(input_ids=asked, max_new_tokens=8, ignore_eos=True, temperature=0)
        assert [list(ids) for ids in found.generated_ids] == said, device
        wrapped._forget_session()
    names = [f"past_{kind}.{layer}" for layer in range(LAYERS) for kind in ("key", "value")]
    slots = "full_batch_size" if "full_batch_size" in geometry else "batch_size"
    assert [state.tensor.name for state in states(wrapped)] == names
    assert {state.tensor.shape for state in states(wrapped)} == {(slots, 2 * KV_HEADS, "ctx_len", 64 // HEADS)}
    simulated_root.cache_clear()


@pytest.mark.parametrize(
    ("options", "devices"),
    [({}, 1), ({"num_devices": 4}, 4), ({"num_devices": 4, "mdp_num_partitions": 2}, 2), ({"num_devices": 0}, 1)]
    + [({"num_devices": 3, "mdp_num_partitions": 3}, 1), ({"num_devices": 4, "mdp_num_partitions": 3}, 1)],
)
def test_a_pipeline_shares_layers_among_those_of_a_stage(options: dict[str, int], devices: int) -> None:
    assert sharing(options) == devices


def test_layers_with_more_heads_are_copied_less_often() -> None:
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "swa_num_attention_heads": 8}
    config = tiny_config("mimo_v2_flash")
    for name, value in {**heads, "swa_num_key_value_heads": 4}.items():
        setattr(config, name, value)
    original = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    wrapped = QEFFAutoModelForCausalLM(original, False, COPIES)
    wrapped.compile(device="reference", num_devices=8, ctx_len=40, prefill_seq_len=4)
    assert {state.tensor.shape[1] for state in states(wrapped)} == {8}
    found = wrapped.generate(input_ids=[[5, 9, 33, 12, 7]], max_new_tokens=6, ignore_eos=True, temperature=0)
    assert list(found.generated_ids[0]) == list(expect(original, [5, 9, 33, 12, 7], 6).tokens)


@pytest.mark.parametrize("asked", ["replicate_kv_heads", "enable_blocking"])
def test_models_without_heads_are_refused(asked: str) -> None:
    wrapped = QEFFAutoModelForCausalLM(tiny_model("mamba"), False, {asked: True})
    with pytest.raises(OptionError, match=f"tells of no heads of attention: leave {asked} out"):
        wrapped.compile(device="reference", num_devices=2)


def test_another_number_of_devices_is_exported_anew() -> None:
    wrapped = QEFFAutoModelForCausalLM(model(), False, COPIES)
    wrapped.export(kv_cache_prefix="abc")
    heads, folders = [], set()
    for devices in (4, 8, 2, 4):
        wrapped.compile(device="reference", num_devices=devices, **GEOMETRY)
        heads.append(states(wrapped)[0].tensor.shape[1])
        folders.add(wrapped.onnx_path)
    assert heads == [4, 8, 2, 4] and len(folders) == 3
    assert states(wrapped)[0].tensor.name == "past_key.0_abc", "what the export was told stays"


def test_what_a_program_was_asked_for_can_be_taken_back() -> None:
    wrapped = QEFFAutoModelForCausalLM(model())
    folders = []
    for asked in ({"use_onnx_subfunctions": True}, {}, {"use_onnx_subfunctions": False}):
        wrapped.compile(device="reference", **GEOMETRY, **asked)
        folders.append(wrapped.onnx_path)
    assert folders[0] == folders[1] != folders[2]
    assert folders[2] == QEFFAutoModelForCausalLM(model()).export()


def test_contexts_that_are_read_in_part_are_exported_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = QEFFAutoModelForCausalLM(model())
    plain = wrapped.export()
    assert (wrapped.comp_ctx_lengths_prefill, wrapped.comp_ctx_lengths_decode) == (None, None)
    wrapped.compile(device="reference", **GEOMETRY, **LENGTHS)
    assert COMPUTE_CONTEXT in inputs(wrapped)
    assert (wrapped.comp_ctx_lengths_prefill, wrapped.comp_ctx_lengths_decode) == tuple(LENGTHS.values())
    wrapped.compile(device="reference", **GEOMETRY)
    assert (wrapped.comp_ctx_lengths_prefill, wrapped.comp_ctx_lengths_decode) == (None, None)
    assert COMPUTE_CONTEXT not in inputs(wrapped) and wrapped.onnx_path == plain
    monkeypatch.setattr(wrapped, "_export", lambda *asked: pytest.fail(f"exported again: {asked}"))
    wrapped.compile(device="reference", **{**GEOMETRY, "ctx_len": 32})
    with pytest.raises(OptionError, match="exported without the input comp_ctx_lengths"):
        wrapped.compile(plain, device="reference", **GEOMETRY, **LENGTHS)
