"""What a config and headers tell, against what is really exported and stored."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from QEfficient.errors import ModelError, WeightsError
from QEfficient.program import GraphSpec, load_exported
from QEfficient.transformers.models.modeling_auto import QEFFAutoModelForCausalLM
from QEfficient.transformers.sizes import ModelSizes, model_sizes, read_headers, read_model, state_counts
from QEfficient.transformers.transform import retain
from QEfficient.verification.tiny_models import causal_types, tiny_config, tiny_model

TYPES = (
    "llama", "gpt2", "mixtral", "gemma2", "qwen3_next", "deepseek_v3", "phi3", "falcon", "mpt", "olmo2", "gpt_oss",
)  # fmt: skip
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
    assert sizes.state.unknown_layers == 0
    assert sizes.state.heads == next(s.tensor.shape[1] for s in graph.states if s.kind == "key")


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


def observed_numbers(model_type: str, ctx_len: int) -> int | None:
    """Of the states that a run of the model shows; None for a model that keeps its tokens only, or is refused."""
    try:
        plans = retain(tiny_model(model_type)).plans
    except Exception:  # whatever a model that is not supported raises
        return None
    if any(plan.kind == "tokens" for plan in plans):
        return None
    slots = [min(plan.window or ctx_len, ctx_len) for plan in plans]
    return sum(prod(n if d is None else d for d in plan.shape) for plan, n in zip(plans, slots, strict=True))


@pytest.mark.slow
def test_most_types_are_read_off_the_config() -> None:
    """Not all: docs/plan.md says which are not. What is not known is mostly said to be so."""
    torch.set_num_threads(1)
    known = {name: numbers for name in causal_types() if (numbers := observed_numbers(name, 64)) is not None}
    counted = {name: state_counts(tiny_config(name).get_text_config(decoder=True)) for name in known}
    wrong = [name for name in known if counted[name].numbers(64) != known[name]]
    silent = [name for name in wrong if not counted[name].unknown_layers]
    assert len(wrong) < 0.2 * len(known), wrong
    assert len(silent) < 0.08 * len(known), silent


def test_towers_for_images_are_not_counted() -> None:
    headers = {"model.layers.0.mlp.up_proj.weight": (8, 4), "model.vision_tower.layers.0.fc1.weight": (100, 100)}
    assert model_sizes(tiny_config("llama"), headers).weights.stored == 32


def test_one_window_for_all_layers_keeps_the_whole_context() -> None:
    config = tiny_config("gemma2")
    config.layer_types = ["sliding_attention"] * 2
    assert state_counts(config).windows == () and state_counts(config).per_token == 2 * 2 * 2 * 24


def test_recurrent_layers_that_the_config_does_not_describe_are_said_to_be_unknown() -> None:
    counts = state_counts(tiny_config("mamba"))
    assert (counts.per_token, counts.fixed, counts.unknown_layers) == (0, 0, 2)


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


def test_only_config_and_headers_of_a_hub_model_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    import transformers

    class Info:
        shape = (256, 64)

    class Metadata:
        class File:
            tensors = {"lm_head.weight": Info}

        files_metadata = {"model.safetensors": File}

    def nothing_here(*args: object) -> None:
        raise ModelError("not in the cache")

    monkeypatch.setattr("QEfficient.transformers.sizes.open_source", nothing_here)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *a, **k: tiny_config("llama"))
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda *a, **k: Metadata)
    assert read_model("somebody/model", {}).weights.head == 256 * 64
