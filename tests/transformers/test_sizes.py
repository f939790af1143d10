"""What a config and headers tell, against what is really exported and stored."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from QEfficient.errors import ModelError, UnsupportedModelError, WeightsError
from QEfficient.program import GraphSpec, load_exported
from QEfficient.transformers.config_sizes import model_sizes, state_counts
from QEfficient.transformers.models.modeling_auto import QEFFAutoModelForCausalLM
from QEfficient.transformers.size_records import Buffers, ModelSizes
from QEfficient.transformers.sizes import read_headers, read_model
from QEfficient.transformers.transform import retain
from QEfficient.verification.tiny_models import causal_types, tiny_config, tiny_model

TYPES = ("llama", "gpt2", "mixtral", "gemma2", "qwen3_next", "deepseek_v3", "mpt", "gpt_oss")
LENGTHS = (4, 64)
"""Shorter than the windows of the tiny models, and longer."""


def exported_numbers(graph: GraphSpec, ctx_len: int) -> int:
    """What the states of one sequence have room for."""
    rolling = {symbol: min(window, ctx_len) for symbol, window in graph.windows.items()}
    symbols = {"batch_size": 1, "ctx_len": ctx_len, **rolling}
    return sum(prod(state.tensor.resolve(symbols)) for state in graph.states)


@pytest.mark.parametrize("model_type", TYPES)
def test_sizes_are_those_of_the_file_and_of_the_program(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    sizes = read_model(str(tmp_path), {})
    check_weights(sizes, model, tmp_path / "model.safetensors")
    program = load_exported(Path(QEFFAutoModelForCausalLM(model).export()).parent)
    graph = program.graphs["lm"].spec
    for length in LENGTHS:
        assert sizes.state.numbers(length) == exported_numbers(graph, length)
    assert sizes.state.numbers(65) - sizes.state.numbers(64) == sizes.state.per_token
    assert (sizes.state.unknown_layers, sizes.state.not_observed, sizes.state.replays) == (0, "", False)
    assert sizes.state.heads == next(s.tensor.shape[1] for s in graph.states if s.kind == "key")
    check_fallback(sizes, model, tmp_path / "model.safetensors")


def check_fallback(sizes: ModelSizes, model: Any, file: Path) -> None:
    """Config and headers alone tell the same of these."""
    found = model_sizes(model.config, read_headers(file))
    for length in LENGTHS:
        assert found.state.numbers(length) == sizes.state.numbers(length)
    assert (found.weights.stored, found.weights.head) == (sizes.weights.stored, sizes.weights.head)
    assert found.weights.experts == sizes.weights.experts
    assert found.weights.dense + found.weights.other == (
        sizes.weights.dense + sizes.weights.other + sizes.weights.scanned
    )


def check_weights(sizes: ModelSizes, model: Any, file: Path) -> None:
    """All that is in the file is counted, once, and by its use."""
    with safe_open(file, "pt") as opened:
        stored = sum(prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    head, parameters = model.get_output_embeddings().weight, dict(model.named_parameters())
    assert sizes.weights.stored == stored
    assert sizes.weights.head == head.numel()
    assert sizes.weights.tied == (head is model.get_input_embeddings().weight)
    experts = [p for name, p in parameters.items() if ".experts." in name and not name.endswith("bias")]
    assert sizes.weights.experts == sum(p.numel() for p in experts)
    assert bool(experts) == bool(sizes.experts) and sizes.experts_per_token <= sizes.experts
    if experts:
        assert sizes.weights.expert_width * model.config.hidden_size == min(p.numel() // len(p) for p in experts)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", causal_types())
def test_every_type_is_counted_as_it_is_exported(model_type: str, tmp_path: Path) -> None:
    """None is off without notice: what cannot be run without its weights says so, and so do layers left out."""
    torch.set_num_threads(1)
    try:
        model = tiny_model(model_type)
        wanted = retain(model)
    except Exception as error:  # whatever a model that is not supported raises
        pytest.skip(f"cannot be exported: {error}")
    model.config.save_pretrained(tmp_path)
    save_file({"lm_head.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    state = read_model(str(tmp_path), {}).state
    tokens = any(plan.kind == "tokens" for plan in wanted.plans)
    numbers = 0 if tokens else sum(plan_numbers(plan, 64) for plan in wanted.plans)
    silent = not state.not_observed and not state.unknown_layers
    assert state.replays == tokens or not silent
    assert state.numbers(64) == numbers or not silent


def plan_numbers(plan: Any, ctx_len: int) -> int:
    kept = min(plan.window or ctx_len, ctx_len)
    return prod(kept if size is None else size for size in plan.shape)


# Heads and windows of their own kind, which their configs do not tell in a known form
ODD = ("mimo_v2_flash", "gemma4_text", "hy_v4", "zaya", "falcon_mamba", "lfm2", "jamba")


@pytest.mark.parametrize("model_type", ODD)
def test_types_whose_configs_do_not_tell_are_observed(model_type: str, tmp_path: Path) -> None:
    config = tiny_config(model_type)
    config.save_pretrained(tmp_path)
    save_file({"lm_head.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    state = read_model(str(tmp_path), {}).state
    wanted = retain(tiny_model(model_type)).plans
    assert not state.not_observed and not state.unknown_layers
    assert state.numbers(64) == sum(plan_numbers(plan, 64) for plan in wanted)
    guessed = state_counts(config.get_text_config(decoder=True))
    assert guessed.unknown_layers or guessed.numbers(64) != state.numbers(64)


TABLES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "gpt2": ({}, ()),
    "falcon": ({}, (16, 16)),
    "falcon-alibi": ({"alibi": True}, ()),  # angles are computed, and nobody uses them
    "deepseek_v3": ({}, (4, 4)),  # of cosines that are there twice, the half is used
    "bailing_hybrid": ({}, (4, 4, 8, 8)),  # by one kind of layer the half, by the other all
    "llama4_text": ({}, (1, 8, 8)),  # complex numbers, and scales of long texts
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_of_what_positions_alone_decide(name: str, tmp_path: Path) -> None:
    """As wide as in the compiled graph, which other tests hold."""
    changes, wanted = TABLES[name]
    config = tiny_config(name.partition("-")[0])
    for attribute, value in changes.items():
        setattr(config, attribute, value)
    config.save_pretrained(tmp_path)
    save_file({"lm_head.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert tuple(sorted(read_model(str(tmp_path), {}).angles)) == wanted


def test_tables_are_those_of_the_config_where_a_run_does_not_show_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("QEfficient.transformers.observed_sizes.observed_graph", fails)
    tiny_model("llama").save_pretrained(tmp_path)
    sizes = read_model(str(tmp_path), {})
    assert sizes.angles == (tiny_config("llama").head_dim,) * 2 and sizes.reads is None
    assert "no such operator" in caplog.text


def test_recurrent_layers_run_their_matrices_token_by_token(tmp_path: Path) -> None:
    model = tiny_model("qwen3_next")
    model.save_pretrained(tmp_path)
    inside = [p.numel() for name, p in model.named_parameters() if ".linear_attn." in name and p.dim() > 1]
    assert read_model(str(tmp_path), {}).weights.scanned == sum(inside) > 0


def test_a_model_that_replays_keeps_its_tokens_only(tmp_path: Path) -> None:
    tiny_model("openai-gpt").save_pretrained(tmp_path)
    state = read_model(str(tmp_path), {}).state
    assert state.replays and not state.buffers


def test_a_model_that_cannot_be_run_without_weights_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(source: object, asked: object) -> None:
        raise UnsupportedModelError("no such layer")

    monkeypatch.setattr("QEfficient.transformers.sizes.observed_sizes", fails)
    tiny_model("llama").save_pretrained(tmp_path)
    sizes = read_model(str(tmp_path), {})
    assert sizes.state.not_observed == "no such layer" and sizes.state.numbers(64) > 0 and sizes.weights.dense > 0


def test_towers_for_images_are_not_counted() -> None:
    headers = {"model.layers.0.mlp.up_proj.weight": (8, 4), "model.vision_tower.layers.0.fc1.weight": (100, 100)}
    assert model_sizes(tiny_config("llama"), headers).weights.stored == 32


def test_one_window_for_all_layers_keeps_the_whole_context() -> None:
    config = tiny_config("gemma2")
    config.layer_types = ["sliding_attention"] * 2
    assert state_counts(config).buffers == (Buffers(4, 2, 24),)


def test_recurrent_layers_that_the_config_does_not_describe_are_said_to_be_unknown() -> None:
    counts = state_counts(tiny_config("mamba"))
    assert (counts.buffers, counts.unknown_layers) == ((), 2)


def test_pickled_weights_have_shapes_too(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3, 5)}, tmp_path / "pytorch_model.bin")
    assert read_headers(tmp_path / "pytorch_model.bin") == {"weight": (3, 5)}


def test_a_damaged_header_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for content in (b"", b"\x08\0\0\0\0\0\0\0not json", b"\xff" * 20):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match="cannot be read"):
            read_headers(file)


def test_a_model_that_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="neither a local folder nor in the local cache"):
        read_model("nobody/has-this-model", {})


@pytest.fixture
def on_the_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model of which the hub has the config, and headers; what was asked for of these."""
    import huggingface_hub
    import transformers

    asked = []

    class Info:
        shape = (256, 64)

    class Metadata:
        class File:
            tensors = {"lm_head.weight": Info}

        files_metadata = {"model.safetensors": File}

        def __init__(self, name: str, **_: object) -> None:
            asked.append(name)

    def nothing_here(*args: object) -> None:
        raise ModelError("not in the cache")

    monkeypatch.setattr("QEfficient.transformers.sizes.open_source", nothing_here)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *a, **k: tiny_config("llama"))
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", Metadata)
    return asked


def test_only_the_config_of_a_hub_model_is_fetched(on_the_hub: list[str]) -> None:
    sizes = read_model("somebody/model", {})
    assert sizes.weights.stored == sum(p.numel() for p in tiny_model("llama").parameters()) and not on_the_hub


def test_headers_of_a_hub_model_are_fetched_where_its_config_is_not_enough(
    on_the_hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(source: object, asked: object) -> None:
        raise UnsupportedModelError("no such layer")

    monkeypatch.setattr("QEfficient.transformers.sizes.observed_sizes", fails)
    assert read_model("somebody/model", {}).weights.head == 256 * 64 and on_the_hub == ["somebody/model"]
