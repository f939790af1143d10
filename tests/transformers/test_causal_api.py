"""`QEFFAutoModelForCausalLM` and its loader: what users call, what they get, what is refused."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from small_models import small_bert, small_encoder, small_llama, word_tokenizer

from QEfficient import QEFFAutoModelForCausalLM, QEFFCommonLoader
from QEfficient.errors import OptionError, UnsupportedModelError
from QEfficient.program import load_exported
from QEfficient.transformers.loading import REFUSED_OPTIONS, _own_config
from QEfficient.verification.tiny_models import tiny_model

PROMPTS = [[17, 60, 22, 81, 35], [7, 44, 92, 13, 28, 66, 30, 5, 9, 33, 71], [40, 6, 12]]
COUNT = 6


@pytest.fixture(scope="module")
def llama() -> Any:
    return small_llama()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model as a checkpoint with a tokenizer."""
    path = tmp_path_factory.mktemp("llama")
    small_llama().save_pretrained(path)  # another object: its config is changed by saving
    word_tokenizer().save_pretrained(path)
    return str(path)


@torch.no_grad()
def greedy(model: Any, prompt: list[int]) -> list[int]:
    tokens = list(prompt)
    for _ in range(COUNT):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def symbols(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((folder / "specializations.json").read_text())["specializations"]
    return entries


# The object


def test_before_the_first_verb(llama: Any) -> None:
    model = QEFFAutoModelForCausalLM(llama)
    assert model.model is llama and model.config is llama.config
    assert (model.model_name, model.model_architecture, model.num_layers) == ("LlamaForCausalLM", "LlamaForCausalLM", 2)
    assert (model.onnx_path, model.qpc_path, model.export_hash) == (None, None, None)
    assert model.hash_params["qeff_auto_class"] == "QEFFAutoModelForCausalLM"
    assert model.get_model_config["hidden_size"] == 32
    assert not model.is_tlm and not model.continuous_batching


def test_a_folder_is_remembered_by_its_name(folder: str) -> None:
    model = QEFFAutoModelForCausalLM.from_pretrained(folder)
    assert model.hash_params["pretrained_model_name_or_path"] == folder
    assert type(model.model) is transformers.LlamaForCausalLM


def test_a_loaded_model_can_be_called_something(llama: Any) -> None:
    model = QEFFAutoModelForCausalLM(llama, pretrained_model_name_or_path="some/name")
    assert model.hash_params["pretrained_model_name_or_path"] == "some/name"


def test_a_model_is_named_once(folder: str) -> None:
    with pytest.raises(OptionError, match="given beside .*, which names the model already"):
        QEFFAutoModelForCausalLM(folder, pretrained_model_name_or_path="some/name")


def fewer_layers(folder: str) -> Any:
    """As scripts make one."""
    config = transformers.AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 1
    return config


def test_a_config_object_in_place_of_the_checkpoints(folder: str) -> None:
    config = fewer_layers(folder)
    model = QEFFAutoModelForCausalLM.from_pretrained(folder, config=config, rms_norm_eps=0.125)
    assert model.num_layers == 1 and model.config.rms_norm_eps == 0.125
    assert model.config is not config and config.rms_norm_eps != 0.125
    config.num_hidden_layers = 5
    assert model.num_layers == 1
    assert QEFFCommonLoader.from_pretrained(folder, config=fewer_layers(folder)).num_layers == 1


def test_a_config_object_is_part_of_the_hash(folder: str) -> None:
    """By its content: as the same values by name, and other than another's."""
    own, same = fewer_layers(folder), transformers.AutoConfig.from_pretrained(folder)
    options: list[dict[str, Any]] = [{}, {"config": same}, {"config": own}, {"num_hidden_layers": 1}]
    models = [QEFFAutoModelForCausalLM.from_pretrained(folder, **each) for each in options]
    for model in models:
        model.export()
    whole, whole_too, short, short_too = (model.export_hash for model in models)
    assert whole == whole_too != short == short_too
    layers = [len(load_exported(Path(str(model.onnx_path)).parent).graphs["lm"].spec.states) // 2 for model in models]
    assert layers == [2, 2, 1, 1]


def test_a_config_object_runs(folder: str) -> None:
    short = transformers.LlamaForCausalLM.from_pretrained(folder, num_hidden_layers=1)
    model = QEFFAutoModelForCausalLM.from_pretrained(folder, config=fewer_layers(folder))
    found = model.generate(input_ids=PROMPTS[:1], max_new_tokens=COUNT, ignore_eos=True)
    assert list(found.generated_ids[0]) == greedy(short, PROMPTS[0])


def test_parts_of_a_composite_config_object_are_laid_over(tmp_path: Path) -> None:
    config = tiny_model("gemma3").config
    config.save_pretrained(tmp_path)
    name, value = "text_config", {"rms_norm_eps": 0.125}
    given = _own_config(config, {name: value})
    read = transformers.AutoConfig.from_pretrained(tmp_path, **{name: value})
    assert given.text_config.to_dict() == read.text_config.to_dict()
    assert given.text_config.rms_norm_eps == 0.125 != config.text_config.rms_norm_eps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": {"num_hidden_layers": 1}}, "config must be a config object of transformers, not dict"),
        ({"config": "some/folder"}, "config must be a config object of transformers, not str"),
        ({"config": transformers.LlamaConfig(), "num_hiden_layers": 1}, "'num_hiden_layers'.*num_hidden_layers"),
        ({"gguf_file": "x.gguf"}, "gguf_file='x.gguf' was given, but quantized GGUF checkpoints are not read"),
        ({"state_dict": {}}, "state_dict was given, but weights are read from the files"),
        ({"key_mapping": {"a": "b"}}, "key_mapping was given, but"),
        ({"load_in_8bit": True}, "load_in_8bit=True was given, but weights are not quantized"),
    ],
)
def test_what_is_not_taken_from_transformers_keywords(folder: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        QEFFAutoModelForCausalLM.from_pretrained(folder, **options)


@pytest.mark.parametrize("value", [None, False])
def test_keywords_that_ask_for_nothing(folder: str, llama: Any, value: Any) -> None:
    nothing = {**dict.fromkeys(REFUSED_OPTIONS, value), "config": None, "max_memory": None}
    for model in (folder, llama):
        assert QEFFAutoModelForCausalLM.from_pretrained(model, **nothing).num_layers == 2


@pytest.mark.parametrize("asked", ["some name", None, 1])
def test_continuous_batching_is_true_or_false(llama: Any, asked: Any) -> None:
    with pytest.raises(OptionError, match=f"must be True or False, but {asked!r} was given.*name_or_path="):
        QEFFAutoModelForCausalLM(llama, asked)


def test_a_model_prints_as_what_was_made_of_it(llama: Any, folder: str) -> None:
    assert repr(QEFFAutoModelForCausalLM(llama)) == (
        "QEFFAutoModelForCausalLM(<LlamaForCausalLM object>, architecture='LlamaForCausalLM', dtype='float32')"
    )
    model = QEFFAutoModelForCausalLM.from_pretrained(folder)
    known = f"QEFFAutoModelForCausalLM({folder!r}, architecture='LlamaForCausalLM', dtype='float32'"
    assert repr(model) == f"{known})"
    onnx_path = model.export()
    assert repr(model) == f"{known}, onnx_path={onnx_path!r})"
    qpc_path = model.compile(device="reference")
    assert repr(model) == f"{known}, device='reference', qpc_path='{qpc_path}')"


@pytest.mark.parametrize(("asked", "warns"), [("sdpa", True), ("eager", False)])
def test_another_attention_is_not_taken_in_silence(
    llama: Any, asked: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    QEFFAutoModelForCausalLM.from_pretrained(llama, attn_implementation=asked)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "attn_implementation='sdpa' was asked for, but attention is always exported in the form 'eager'."
    ] * warns


def test_stand_ins_for_layers_are_not_pretended(llama: Any) -> None:
    with pytest.raises(OptionError, match="enable_proxy=True was asked for.*leave it out"):
        QEFFAutoModelForCausalLM.from_pretrained(llama, enable_proxy=True)
    QEFFAutoModelForCausalLM.from_pretrained(llama, enable_proxy=False)


@pytest.mark.parametrize("model", [small_bert(), small_encoder("t5")], ids=["encoder", "encoder-decoder"])
def test_other_classes_are_a_type_error(model: Any) -> None:
    with pytest.raises(TypeError, match=f"'{type(model).__name__}' is no causal language model"):
        QEFFAutoModelForCausalLM(model)


def test_full_batch_size_means_continuous_batching(llama: Any) -> None:
    assert QEFFAutoModelForCausalLM.from_pretrained(llama, full_batch_size=4).continuous_batching


def test_what_needs_the_card_is_not_pretended(llama: Any) -> None:
    with pytest.raises(OptionError, match="num_speculative_tokens needs a model"):
        QEFFAutoModelForCausalLM(llama).compile(num_speculative_tokens=3)
    with pytest.raises(NotImplementedError, match="decode_only"):
        QEFFAutoModelForCausalLM(llama).compile(decode_only=True)
    assert not QEFFAutoModelForCausalLM(llama, qaic_config={"include_sampler": False}).is_tlm


# Export


def test_export(llama: Any, store: Path) -> None:
    model = QEFFAutoModelForCausalLM(llama)
    path = Path(model.export())
    assert str(path) == model.onnx_path
    assert re.fullmatch("[0-9a-f]{16}", str(model.export_hash))
    assert path == store / "LlamaForCausalLM" / f"LlamaForCausalLM-{model.export_hash}" / "LlamaForCausalLM.onnx"
    hashed = json.loads((path.parent / "hashed_export_params.json").read_text())
    assert hashed["qeff_auto_class"] == "QEFFAutoModelForCausalLM" and hashed["config"]["hidden_size"] == 32
    assert load_exported(path.parent).fingerprint == model.export_hash


def test_the_second_export_is_found(llama: Any) -> None:
    first = QEFFAutoModelForCausalLM(llama).export()
    start = time.perf_counter()
    assert QEFFAutoModelForCausalLM(small_llama()).export() == first
    assert time.perf_counter() - start < 2


def test_a_folder_of_ones_own_gets_the_hash_too(llama: Any, tmp_path: Path) -> None:
    model = QEFFAutoModelForCausalLM(llama)
    assert Path(model.export(export_dir=tmp_path / "mine")).parent == tmp_path / f"mine-{model.export_hash}"


def test_export_by_position_and_by_another_tracer(llama: Any) -> None:
    model = QEFFAutoModelForCausalLM(llama)
    path = model.get_onnx_path()
    assert path == model.onnx_path == model.get_onnx_path(kv_cache_prefix="later")
    assert model.export(None, False, None, 16, 256, False, 1, None, True) == path
    with pytest.raises(OptionError, match="kv_cache_prefix 'a-b'"):
        model.export(None, False, None, 16, 256, False, 1, "a-b")


def test_buffers_that_do_not_roll_are_whole_anyway(llama: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = QEFFAutoModelForCausalLM(llama)
    assert model.export(retain_full_kv=True) == model.export(retain_full_kv=True) == model.export()
    (said,) = [message for message in caplog.messages if "retain_full_kv=True has no effect" in message]
    assert model.model_name in said


@pytest.mark.parametrize(("model_type", "rolls"), [("gemma2", True), ("mistral", False)])
def test_buffers_that_roll_can_be_kept_whole(model_type: str, rolls: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A window in every second layer, and the same one in all of them."""
    model = QEFFAutoModelForCausalLM(tiny_model(model_type))
    assert model._keeps_all(True) == rolls and not model._keeps_all(False)
    assert ("retain_full_kv=True has no effect" in caplog.text) != rolls


def test_two_checkpoints_with_one_config_have_two_programs(llama: Any) -> None:
    models = [QEFFAutoModelForCausalLM(llama), QEFFAutoModelForCausalLM(small_llama(seed=1))]
    paths = {model.export() for model in models}
    assert models[0].config.to_dict() == models[1].config.to_dict()
    assert len(paths) == 2 and len({model.export_hash for model in models}) == 2


def test_batching_changes_the_hash(llama: Any) -> None:
    models = [QEFFAutoModelForCausalLM(llama, continuous_batching) for continuous_batching in (False, True)]
    assert models[0].export() != models[1].export()


def test_the_users_model_stays_as_it_was() -> None:
    model = small_llama(seed=2)
    model.config._attn_implementation = "sdpa"
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    QEFFAutoModelForCausalLM(model).export()
    assert model.training and model.config._attn_implementation == "sdpa"
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_loaded_model_in_another_dtype() -> None:
    """Constants that a layer makes of its own follow the weights, as they do where transformers loads it so."""
    wrapped = QEFFAutoModelForCausalLM.from_pretrained(tiny_model("minimax"), dtype="float16")
    wrapped.compile(ctx_len=32, prefill_seq_len=8)
    found = wrapped.generate(input_ids=PROMPTS[:1], max_new_tokens=COUNT, ignore_eos=True, temperature=0)
    assert list(found.generated_ids[0]) == greedy(tiny_model("minimax").half(), PROMPTS[0])


# Compile


def test_specializations_are_prefill_and_decode(llama: Any) -> None:
    folder = QEFFAutoModelForCausalLM(llama).compile(prefill_seq_len=8, ctx_len=64, batch_size=2)
    shared = {"batch_size": "2", "ctx_len": "64"}
    assert symbols(folder) == [
        {"name": "Prefill", "symbols": {**shared, "seq_len": "8"}},
        {"name": "Decode", "symbols": {**shared, "seq_len": "1"}},
    ]
    assert '\n    "specializations": [\n        {' in (folder / "specializations.json").read_text()


def test_a_prefill_of_one_token_is_the_decode(llama: Any) -> None:
    folder = QEFFAutoModelForCausalLM(llama).compile(prefill_seq_len=1, ctx_len=64)
    assert symbols(folder) == [{"name": "Prefill", "symbols": {"batch_size": "1", "ctx_len": "64", "seq_len": "1"}}]


def test_specializations_of_continuous_batching(llama: Any) -> None:
    model = QEFFAutoModelForCausalLM(llama, continuous_batching=True)
    folder = model.compile(prefill_seq_len=8, ctx_len=64, full_batch_size=3, kv_cache_batch_size=5)
    shared = {"ctx_len": "64", "full_batch_size": "5"}
    assert symbols(folder) == [
        {"name": "Prefill", "symbols": {**shared, "batch_size": "1", "seq_len": "8", "full_batch_exec_size": "1"}},
        {"name": "Decode", "symbols": {**shared, "batch_size": "3", "seq_len": "1"}},
    ]


def test_slots_without_continuous_batching_are_ignored(llama: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = QEFFAutoModelForCausalLM(llama)
    assert model.compile(kv_cache_batch_size=4, ctx_len=64) == model.compile(ctx_len=64)
    assert "kv_cache_batch_size=4 has no effect" in caplog.text


@pytest.mark.parametrize("batching", [False, True])
def test_specializations_one_by_one(llama: Any, batching: bool) -> None:
    """As scripts ask for them: those that `compile` writes."""
    model = QEFFAutoModelForCausalLM(llama, continuous_batching=batching)
    sizes: dict[str, int] = {"full_batch_size": 3, "kv_cache_batch_size": 5} if batching else {"batch_size": 2}
    prefill, decode = symbols(model.compile(prefill_seq_len=8, ctx_len=64, **sizes))
    for entry, build in ((prefill, model.build_prefill_specialization), (decode, model.build_decode_specialization)):
        found = build(8, 64, **sizes)
        assert {name: str(size) for name, size in (found or {}).items()} == entry["symbols"]
    assert model.build_decode_specialization(1, 64, **sizes) is None


def test_specializations_of_windows_are_known_before_the_export() -> None:
    model = QEFFAutoModelForCausalLM(tiny_model("gemma2"))
    shared = {"batch_size": 1, "ctx_len": 64, "sliding_window": model.config.sliding_window}
    assert model.build_prefill_specialization(8, 64) == {**shared, "seq_len": 8}
    assert model.build_decode_specialization(8, 64) == {**shared, "seq_len": 1}


def test_tokens_tried_ahead(llama: Any) -> None:
    plain = QEFFAutoModelForCausalLM(llama)
    target = QEFFAutoModelForCausalLM(llama, qaic_config={"speculative_model_type": "target"})
    assert plain.check_and_get_num_speculative_tokens(None, 8) is None
    assert target.check_and_get_num_speculative_tokens(3, 8) == 3
    assert target.check_and_get_num_speculative_tokens([3, 1], 8) == [1, 3]
    with pytest.raises(TypeError, match="num_speculative_tokens is needed"):
        target.check_and_get_num_speculative_tokens(None, 8)
    with pytest.raises(ValueError, match="prefill_seq_len 3 is too short to try 3 tokens ahead"):
        target.check_and_get_num_speculative_tokens(3, 3)
    assert target.build_prefill_specialization(8, 64)["num_logits_to_keep"] == 1
    decode = {"batch_size": 1, "seq_len": 4, "ctx_len": 64, "num_logits_to_keep": 4}
    assert target.build_decode_specialization(8, 64, num_speculative_tokens=3) == decode


def test_compiled_programs_lie_in_their_exported_one(llama: Any, tmp_path: Path) -> None:
    model = QEFFAutoModelForCausalLM(llama)
    small, large = model.compile(ctx_len=64), model.compile(ctx_len=96)
    exported = Path(str(model.onnx_path)).parent
    assert small.parent == large.parent == exported and small != large
    assert re.fullmatch("qpc-[0-9a-f]{16}", small.name) and model.qpc_path == str(large)
    assert (small / "hashed_compile_params.json").is_file()
    assert model.compile(compile_dir=tmp_path, ctx_len=96) == tmp_path / large.name


def test_continuous_batching_needs_full_batch_size(llama: Any) -> None:
    with pytest.raises(TypeError, match="full_batch_size is needed"):
        QEFFAutoModelForCausalLM(llama, continuous_batching=True).compile()
    with pytest.raises(OptionError, match="full_batch_size 2 needs continuous batching"):
        QEFFAutoModelForCausalLM(llama).compile(full_batch_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill_seq_len": 64, "ctx_len": 32}, "prefill_seq_len 64 is larger than ctx_len 32"),
        ({"ctx_len": "128"}, "ctx_len must be a positive whole number, not '128'"),
        ({"num_core": 16}, "Did you mean 'num_cores'"),
        ({"num_threads": "2"}, "must be int"),
        ({"fullbatch_size": 4}, "Did you mean 'full_batch_size'"),
        ({"ctx_length": 64}, "Did you mean 'ctx_len'"),
        ({"prefill_seq_length": 8, "device": "reference"}, "Did you mean 'prefill_seq_len'"),
        ({"mxfp6": True}, "compile has no 'mxfp6', but mxfp6_matmul="),
        ({"mxint8": True, "device": "reference"}, "compile has no 'mxint8', but mxint8_kv_cache="),
        ({"prompt_len": 8}, "compile has no 'prompt_len', but prefill_seq_len="),
        ({"device_group": [0, 1]}, r"but num_devices=, .*generate is told which ones \(device_id=\)"),
        ({"num_speculative_tokens": [0, 3]}, r"needs a model that was loaded with .*, but \[0, 3\] was asked for"),
    ],
)
def test_bad_options(llama: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        QEFFAutoModelForCausalLM(llama).compile(**options)


def test_a_misspelt_keyword_is_named_before_one_that_is_missing(llama: Any) -> None:
    with pytest.raises(OptionError, match="Did you mean 'full_batch_size'"):
        QEFFAutoModelForCausalLM(llama, continuous_batching=True).compile(fullbatch_size=4)


@pytest.mark.parametrize(
    "nothing", [{"num_speculative_tokens": 0}, {"num_speculative_tokens": [0]}, {"num_devices": 0}]
)
def test_zero_asks_for_nothing(llama: Any, nothing: dict[str, Any]) -> None:
    model = QEFFAutoModelForCausalLM(llama)
    assert model.compile(ctx_len=64, **nothing) == model.compile(ctx_len=64)


@pytest.mark.parametrize(("name", "value"), [("comp_ctx_lengths_prefill", [32, 64]), ("ctx_len", 64)])
def test_what_is_for_compile_is_no_part_of_the_config(llama: Any, name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=re.escape(f"keyword of its own: compile({name}={value})")):
        QEFFAutoModelForCausalLM(llama, qaic_config={"ccl_enabled": True, name: value})


def test_options_of_the_card_are_named_once(llama: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "QEfficient.devices"):
        QEFFAutoModelForCausalLM(llama).compile(num_cores=16, mxfp6_matmul=True, ctx_len=64)
    lines = [record.getMessage() for record in caplog.records if "num_cores" in record.getMessage()]
    assert lines and set(lines) == {"device 'cpu' has no use for num_cores, mxfp6_matmul: options of another device."}


# Generate


def test_static_batches(llama: Any) -> None:
    model = QEFFAutoModelForCausalLM(llama)
    model.compile(prefill_seq_len=8, ctx_len=32, batch_size=2)
    found = model.generate(input_ids=PROMPTS, generation_len=COUNT).generated_ids
    assert found == [greedy(llama, prompt) for prompt in PROMPTS]


def test_more_prompts_than_slots(llama: Any) -> None:
    model = QEFFAutoModelForCausalLM(llama, continuous_batching=True)
    model.compile(prefill_seq_len=4, ctx_len=32, full_batch_size=2)
    found = model.generate(input_ids=PROMPTS, generation_len=COUNT).generated_ids
    assert found == [greedy(llama, prompt) for prompt in PROMPTS]


def test_generate_alone_does_what_is_missing(llama: Any, folder: str) -> None:
    tokenizer = word_tokenizer()
    wanted = greedy(llama, tokenizer("My name is")["input_ids"])
    info = QEFFAutoModelForCausalLM.from_pretrained(folder).generate("My name is", generation_len=COUNT)
    np.testing.assert_array_equal(info.generated_ids[0][0], wanted)
    assert info.generated_texts == [[tokenizer.decode(wanted, skip_special_tokens=True)]]


def test_every_kind_of_input_gives_the_same(folder: str) -> None:
    tokenizer, texts = word_tokenizer(), ["My name is", "what are you called now"]
    model = QEFFAutoModelForCausalLM.from_pretrained(folder)
    model.compile(prefill_seq_len=8, ctx_len=32)
    wanted = model.generate(texts, generation_len=COUNT).generated_texts
    assert model.generate(tokenizer=tokenizer, prompts=texts, generation_len=COUNT).generated_texts == wanted
    assert model.generate(tokenizer, texts, generation_len=COUNT).generated_texts == wanted
    assert model.generate(tokenizer, texts, [0], True, generation_len=COUNT).generated_texts == wanted
    ids = model.generate(tokenizer(texts), generation_len=COUNT).generated_ids
    padded = tokenizer(texts, padding=True, return_tensors="pt")
    assert model.generate(padded, generation_len=COUNT).generated_ids == ids
    assert model.generate(input_ids=tokenizer(texts)["input_ids"], generation_len=COUNT).generated_ids == ids
    assert [[tokenizer.decode(row, skip_special_tokens=True)] for row in ids] == wanted


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "found none"),
        ({"prompts": "a", "input_ids": [[1]]}, "found 2 of them"),
        ({"input_ids": [[1.5]]}, "whole numbers"),
        ({"input_ids": [[5]], "temperatur": 1.0}, "Did you mean 'temperature'"),
        ({"input_ids": [[5]], "device_ids": [0]}, "Did you mean 'device_id'"),
        ({"input_ids": [list(range(1, 40))]}, "39 tokens.*32"),
    ],
)
def test_bad_input(llama: Any, inputs: dict[str, Any], message: str) -> None:
    model = QEFFAutoModelForCausalLM(llama)
    model.compile(prefill_seq_len=8, ctx_len=32, batch_size=2)
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs)


def test_the_order_of_scripts(llama: Any) -> None:
    """`tokenizer, prompts, device_id, runtime_ai100`."""
    model, tokenizer = QEFFAutoModelForCausalLM(llama), word_tokenizer()
    with pytest.raises(NotImplementedError, match="runtime_ai100=False"):
        model.generate(tokenizer, ["My name is"], None, False)
    with pytest.raises(TypeError, match="device_id by position and by name"):
        model.generate(tokenizer, ["My name is"], [0], device_id=[1])
    with pytest.raises(TypeError, match="4 values by position, the last 2 of which are device_id, runtime_ai100; 5"):
        model.generate(tokenizer, ["My name is"], None, True, 32)


# The loader


def test_the_loader_finds_the_class(folder: str) -> None:
    model = QEFFCommonLoader.from_pretrained("some/name", local_model_dir=folder)
    assert type(model) is QEFFAutoModelForCausalLM and not model.continuous_batching
    assert QEFFCommonLoader.from_pretrained(folder, full_batch_size=2).continuous_batching
    assert QEFFCommonLoader.from_pretrained(folder, True).continuous_batching
    assert not QEFFCommonLoader.from_pretrained(folder, False, {"speculative_model_type": None}).is_tlm


@pytest.mark.parametrize("model_type", ["t5", "vit"])
def test_the_loader_names_what_it_cannot_take(model_type: str) -> None:
    model = small_encoder(model_type)
    with pytest.raises(
        UnsupportedModelError, match=f"'{type(model.config).__name__}' of object is no causal language model"
    ):
        QEFFCommonLoader.from_pretrained(model)


def test_the_loader_passes_options_on(folder: str) -> None:
    with pytest.raises(OptionError, match="does not know the option 'torch_dtyp'"):
        QEFFCommonLoader.from_pretrained(folder, torch_dtyp="float16")
