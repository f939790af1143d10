"""`QEFFAutoModel`: hidden states as transformers computes them, whatever the padding around them."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from small_models import drawn, small_bert, small_encoder, small_llama, word_tokenizer

from qaic_simulator.root import write_root
from QEfficient import QEFFAutoModel
from QEfficient.devices import get_device
from QEfficient.errors import ArtifactError, DeviceError, OptionError, PromptError, UnsupportedModelError
from QEfficient.program import load_compiled, load_encoder, load_exported
from QEfficient.transformers.features import POOLINGS, pooling_identity
from QEfficient.transformers.observe import accepts

ROWS = [[5, 9, 33], [40, 6, 71, 12, 90, 8, 54], [17, 60, 22, 81, 35, 7, 44, 92, 13, 28, 66, 30]]
FAST = ("bert", "mpnet", "gemma3_text", "t5", "deberta-v2", "mamba")
# Of those that are built alike, one.
SLOW = (
    "albert", "bart", "deberta", "distilbert", "jamba", "llama", "mamba2", "modernbert", "mt5", "qwen3_moe", "roberta",
)  # fmt: skip


@torch.no_grad()
def eager(model: Any, row: list[int]) -> np.ndarray:
    """Last hidden states of one row, by transformers alone."""
    part = model.get_encoder() if accepts(model, "decoder_input_ids") else model
    stateless = {"use_cache": False} if accepts(part, "use_cache") else {}
    ids = torch.tensor([row])
    hidden: np.ndarray = (
        part(input_ids=ids, attention_mask=torch.ones_like(ids), **stateless).last_hidden_state[0].numpy()
    )
    return hidden


def check_rows(model: Any, output: np.ndarray, rows: list[list[int]] = ROWS) -> None:
    assert output.dtype == np.float32
    assert output.shape[:2] == (len(rows), max(map(len, rows)))
    for found, row in zip(output, rows, strict=True):
        wanted = eager(model, row)
        assert np.abs(wanted).mean() > 0.1, "the model is too dull to tell anything"
        np.testing.assert_allclose(found[: len(row)], wanted, atol=1e-4)
        assert not found[len(row) :].any()


def check_type(model_type: str) -> None:
    """Rows of three lengths, in two calls, of two compiled lengths."""
    model = small_encoder(model_type)
    features = QEFFAutoModel.from_pretrained(model)
    features.compile(seq_len=[16, 8], batch_size=2)
    check_rows(model, features.generate(input_ids=ROWS)["output"])


@pytest.mark.parametrize("model_type", FAST)
def test_ragged_rows_are_as_each_row_alone(model_type: str) -> None:
    check_type(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", SLOW)
def test_ragged_rows_are_as_each_row_alone_in_more_types(model_type: str) -> None:
    check_type(model_type)


@pytest.fixture
def bert() -> Any:
    return small_bert()


# Kinds of input


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a language model with its tokenizer, as a hub would have it."""
    path = tmp_path_factory.mktemp("gpt2-like")
    sizes = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    ends = {"bos_token_id": None, "eos_token_id": None}
    drawn(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends))).save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return path


def test_a_folder_and_a_text_are_enough(folder: Path) -> None:
    features = QEFFAutoModel.from_pretrained(str(folder))
    assert isinstance(features.compile(num_cores=16), Path)
    output = features.generate("My name is")["output"]
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    check_rows(model, output, [word_tokenizer()("My name is")["input_ids"]])


def test_a_config_object_in_place_of_the_checkpoints(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 1
    models = [QEFFAutoModel.from_pretrained(str(folder), config=each) for each in (config, None)]
    assert [model.config.num_hidden_layers for model in models] == [1, 2]
    assert models[0].export() != models[1].export()
    assert repr(models[0]).startswith(f"QEFFAutoModel({str(folder)!r}, architecture=")


def test_every_kind_of_input_gives_the_same(folder: Path) -> None:
    tokenizer, texts = word_tokenizer(), ["My name is", "what are you called now"]
    encoded = tokenizer(texts)
    features = QEFFAutoModel.from_pretrained(str(folder))
    features.compile(num_cores=16)
    wanted = features.generate(texts)["output"]
    assert wanted.shape == (2, 5, 32)
    for found in (
        features.generate(tokenizer=tokenizer, prompts=texts),
        features.generate(tokenizer, texts),
        features.generate(encoded),
        features.generate(inputs=encoded),
        features.generate(tokenizer(texts, padding=True, return_tensors="pt")),
        features.generate(input_ids=encoded["input_ids"]),
        features.generate(**tokenizer(texts, padding=True, return_tensors="np")),
    ):
        np.testing.assert_array_equal(found["output"], wanted)
    single = features.generate(tokenizer("My name is", return_tensors="pt"))["output"]
    np.testing.assert_array_equal(single, wanted[:1, :3])
    np.testing.assert_array_equal(features.generate(input_ids=encoded["input_ids"][0])["output"], single)


def test_hidden_states_stand_where_the_tokens_stood(bert: Any) -> None:
    """Left padding, a hole: what comes back has the layout of what went in."""
    ids = np.array([[0, 0, 5, 9, 33], [40, 6, 71, 12, 90]])
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    output = QEFFAutoModel.from_pretrained(bert).generate(input_ids=ids, attention_mask=mask)["output"]
    np.testing.assert_allclose(output[0, 2:], eager(bert, [5, 9, 33]), atol=1e-4)
    np.testing.assert_allclose(output[1], eager(bert, [40, 6, 71, 12, 90]), atol=1e-4)
    assert not output[0, :2].any()


def test_generate_alone_compiles_for_a_length_that_holds_the_input(bert: Any) -> None:
    features = QEFFAutoModel.from_pretrained(bert)
    long = [[5 + n % 80 for n in range(40)]]
    check_rows(bert, features.generate(input_ids=long)["output"], long)
    assert load_encoder(Path(str(features.qpc_path))).spec.seq_lens == (64,)


def test_what_does_not_fit_is_refused_with_both_numbers(bert: Any) -> None:
    features = QEFFAutoModel.from_pretrained(bert)
    features.compile(seq_len=8)
    with pytest.raises(PromptError, match=r"12 tokens.*seq_len 8\. Compile again"):
        features.generate(input_ids=ROWS)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({"input_ids": [[5], []]}, PromptError, "prompt 2 of 2 is empty"),
        ({"input_ids": []}, PromptError, "empty"),
        ({"inputs": {"input_ids": [[5, 6]], "token_type_ids": [[0, 1]]}}, OptionError, "pairs of texts"),
        ({"input_ids": [[5]], "tokeniser": None}, OptionError, "Did you mean 'tokenizer'"),
        ({"prompts": "a text, and no tokenizer"}, OptionError, "without a tokenizer"),
        ({}, OptionError, "found none"),
    ],
)
def test_bad_input(bert: Any, inputs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QEFFAutoModel.from_pretrained(bert).generate(**inputs)


# Pooling


def test_named_poolings_leave_padding_out() -> None:
    rows = [torch.randn(length, 5) - 3 for length in (2, 4)]
    hidden = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=9.0)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    wanted = {
        "mean": torch.stack([row.mean(0) for row in rows]),
        "avg": torch.stack([row.mean(0) for row in rows]),
        "max": torch.stack([row.amax(0) for row in rows]),
        "cls": torch.stack([row[0] for row in rows]),
    }
    for name, vectors in wanted.items():
        torch.testing.assert_close(POOLINGS[name](hidden, mask), vectors)


def test_a_named_pooling_in_the_graph(bert: Any) -> None:
    output = QEFFAutoModel.from_pretrained(bert, pooling="mean").generate(input_ids=ROWS)["output"]
    np.testing.assert_allclose(output, np.stack([eager(bert, row).mean(0) for row in ROWS]), atol=1e-4)


def test_a_function_pools(bert: Any) -> None:
    def last(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        index = (mask.sum(1) - 1)[:, None, None].expand(-1, 1, hidden.shape[2])
        return hidden.gather(1, index)[:, 0]

    features = QEFFAutoModel(bert, pooling=last)
    output = features.generate(input_ids=ROWS)["output"]
    np.testing.assert_allclose(output, np.stack([eager(bert, row)[-1] for row in ROWS]), atol=1e-4)
    assert QEFFAutoModel(bert, pooling=last).export() == features.onnx_path


def test_unknown_pooling() -> None:
    with pytest.raises(ValueError, match="'means' is neither a function nor one of mean, .*Did you mean 'mean'"):
        QEFFAutoModel.from_pretrained("a name that is not looked up", pooling="means")


def pooling_of(count: int, scale: float = 1.0) -> Any:
    return lambda hidden, mask: hidden[:, :count].sum(1) * scale


OFFSET = 1


def shifted(hidden: Any, mask: Any) -> Any:
    return (lambda: hidden + OFFSET)()


def test_poolings_are_told_apart_by_all_they_compute_with(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pooling_identity(pooling_of(2)) == pooling_identity(pooling_of(2))
    assert pooling_identity(pooling_of(2)) != pooling_identity(pooling_of(3))
    assert pooling_identity(pooling_of(2, 0.5)) != pooling_identity(pooling_of(2))
    before = pooling_identity(shifted)
    assert before == pooling_identity(shifted)
    monkeypatch.setitem(globals(), "OFFSET", 2)
    assert before != pooling_identity(shifted)
    assert pooling_identity("avg") == pooling_identity("mean") != pooling_identity("max")
    kernel = torch.nn.Linear(2, 2)
    assert pooling_identity(kernel) != pooling_identity(kernel), "weights have no plain form: never taken for the same"


# The program


def test_the_graph(bert: Any) -> None:
    features = QEFFAutoModel.from_pretrained(bert)
    path = Path(features.export())
    model = onnx.load(path, load_external_data=False)
    ends = {
        value.name: (
            value.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in (*model.graph.input, *model.graph.output)
    }
    rows = ["batch_size", "seq_len"]
    assert ends == {
        "input_ids": (onnx.TensorProto.INT64, rows),
        "attention_mask": (onnx.TensorProto.INT64, rows),
        "output": (onnx.TensorProto.FLOAT, [*rows, 32]),
    }
    assert {p.key: p.value for p in model.metadata_props}["qeff_transforms"].endswith("clip_to_half")
    assert (path.parent / "BertModel_0.onnx.data").is_file(), "tensors are split over numbered files here"
    assert path.parent.name == f"BertModel-{features.export_hash}"
    assert load_exported(path.parent).model.task == "features"


def test_layers_as_functions(bert: Any) -> None:
    features = QEFFAutoModel.from_pretrained(bert)
    path = features.export(use_onnx_subfunctions=True)
    model = onnx.load(path, load_external_data=False)
    assert [function.name for function in model.functions] == ["BertLayer"]
    assert [node.op_type for node in model.graph.node].count("BertLayer") == 2
    check_rows(bert, features.generate(input_ids=ROWS)["output"])


def test_the_second_export_is_found(bert: Any) -> None:
    first = QEFFAutoModel.from_pretrained(bert).export()
    start = time.perf_counter()
    assert QEFFAutoModel.from_pretrained(small_bert()).export() == first
    assert time.perf_counter() - start < 2


def test_weights_and_pooling_tell_programs_apart(bert: Any) -> None:
    hashes = []
    for model, pooling in ((bert, None), (small_bert(seed=1), None), (bert, "mean")):
        features = QEFFAutoModel.from_pretrained(model, pooling=pooling)
        features.export()
        hashes.append(features.export_hash)
    assert len(set(hashes)) == 3


def test_the_users_model_stays_as_it_was() -> None:
    model = transformers.BertModel(small_bert().config)
    model.config._attn_implementation = "sdpa"
    model.train()
    before = model.config.to_dict(), {name: value.clone() for name, value in model.state_dict().items()}
    QEFFAutoModel.from_pretrained(model).export()
    assert model.training and model.config._attn_implementation == "sdpa" and model.config.to_dict() == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in model.state_dict().items())


def test_of_a_model_with_a_head_the_body_is_exported() -> None:
    model = small_llama()
    output = QEFFAutoModel.from_pretrained(model).generate(input_ids=ROWS[:1])["output"]
    check_rows(model.model, output, ROWS[:1])


def test_an_encoder_decoder_gives_its_encoder_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From a checkpoint that has nothing but the encoder."""
    encoder = drawn(transformers.T5EncoderModel(small_encoder("t5").config))
    encoder.save_pretrained(tmp_path)
    features = QEFFAutoModel.from_pretrained(str(tmp_path))
    with caplog.at_level(logging.INFO, "QEfficient"):
        check_rows(encoder, features.generate(input_ids=ROWS)["output"])
    assert "T5Model: the hidden states are those of its T5Stack" in caplog.text
    assert load_exported(Path(str(features.onnx_path)).parent).report["states"] == {"part": "T5Stack"}


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("vit", "does not take input_ids"),
        ("fnet", "does not take input_ids with an attention_mask"),
        ("mobilebert", "lets padding past its attention mask"),
        ("convbert", "lets padding past its attention mask"),
    ],
)
def test_what_cannot_be_padded_or_read_is_refused(model_type: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        QEFFAutoModel.from_pretrained(small_encoder(model_type)).export()


# Compilation


def test_specializations(bert: Any, tmp_path: Path) -> None:
    features = QEFFAutoModel.from_pretrained(bert)
    single = features.compile(seq_len=48, batch_size=3)
    several = features.compile(seq_len=[16, 8], compile_dir=tmp_path)
    assert several.parent == tmp_path and str(several) == features.qpc_path
    assert json.loads((single / "specializations.json").read_text()) == {
        "specializations": [{"name": "Embedding", "symbols": {"batch_size": "3", "seq_len": "48"}}]
    }
    assert json.loads((several / "specializations.json").read_text())["specializations"] == [
        {"name": "Embedding_0", "symbols": {"batch_size": "1", "seq_len": "16"}},
        {"name": "Embedding_1", "symbols": {"batch_size": "1", "seq_len": "8"}},
    ]


def test_many_lengths_are_worth_a_warning(bert: Any, caplog: pytest.LogCaptureFixture) -> None:
    features = QEFFAutoModel.from_pretrained(bert)
    features.compile(seq_len=list(range(8, 22)))
    assert not caplog.records
    features.compile(seq_len=list(range(8, 23)))
    assert "15 sequence lengths" in caplog.text


def test_options_of_the_card_are_named_once(bert: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "QEfficient.devices"):
        QEFFAutoModel.from_pretrained(bert).compile(num_cores=16, mxfp6_matmul=True)
    assert [record.getMessage() for record in caplog.records] == [
        "device 'reference' has no use for num_cores, mxfp6_matmul: options of another device."
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 0}, "seq_len must be a positive whole number, not 0"),
        ({"seq_len": []}, "the list is empty"),
        ({"seq_len": [8, 8]}, "twice"),
        ({"seq_len": 129}, "seq_len 129 was asked for, but the model has 128 positions"),
        ({"batch_size": -1}, "batch_size must be"),
        ({"nm_cores": 16}, "Did you mean 'num_cores'"),
        ({"seq_length": 16}, "Did you mean 'seq_len'"),
        ({"prompt_len": 16}, "device .* does not know the option 'prompt_len'"),
        ({"mxfp6": True}, "compile has no 'mxfp6', but mxfp6_matmul="),
    ],
)
def test_bad_options(bert: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        QEFFAutoModel.from_pretrained(bert).compile(**options)


def test_an_exported_program_can_be_compiled_by_its_path(bert: Any) -> None:
    path = QEFFAutoModel.from_pretrained(bert).export()
    other = QEFFAutoModel.from_pretrained(small_bert(seed=1))
    other.compile(onnx_path=path)
    check_rows(bert, other.generate(input_ids=ROWS)["output"])


# The device


def test_a_device_without_encoders_says_so(bert: Any) -> None:
    with pytest.raises(DeviceError, match="device 'null' cannot be used here.*no programs of the kind 'features'"):
        QEFFAutoModel.from_pretrained(bert).compile(device="null")


def test_a_card_that_stays_idle_is_not_passed_over_in_silence(
    bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("QEFF_QAIC_ROOT", str(write_root(tmp_path / "sdk", "1.22")))
    features = QEFFAutoModel.from_pretrained(bert)
    features.compile(num_cores=16)
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith("the best device here was asked for, but 'cloud_ai_100' does not run programs of the kind")
    assert "'reference' runs it instead" in said
    caplog.clear()
    features.compile(num_cores=16, device="reference")
    assert not caplog.records


def test_the_order_of_scripts(bert: Any) -> None:
    """`inputs, device_ids, runtime_ai100, write_io, dtype`."""
    features, tokenizer = QEFFAutoModel.from_pretrained(bert), word_tokenizer()
    encoded = tokenizer(["My name is", "what"], padding=True, return_tensors="pt")
    wanted = features.generate(encoded)["output"]
    np.testing.assert_array_equal(features.generate(encoded, [0], True, False, torch.float32)["output"], wanted)
    np.testing.assert_array_equal(features.generate(tokenizer, ["My name is", "what"], [0])["output"], wanted)
    with pytest.raises(TypeError, match="5 values by position.*device_ids, runtime_ai100, write_io, dtype; 6"):
        features.generate(encoded, [0], True, False, torch.float32, "more")


def test_an_encoder_is_not_loaded_as_a_language_model(bert: Any) -> None:
    features = QEFFAutoModel.from_pretrained(bert)
    folder = features.compile()
    with pytest.raises(ArtifactError, match="compiled as an encoder"):
        load_compiled(folder)


def test_sessions(bert: Any) -> None:
    features = QEFFAutoModel.from_pretrained(bert)
    compiled = load_encoder(features.compile(seq_len=8, batch_size=2))
    ids, mask = np.array([ROWS[0]]), np.ones((1, 3), np.int64)
    with get_device("reference", "features").load_encoder(compiled) as session:
        np.testing.assert_allclose(session.encode(ids, mask)[0], eager(bert, ROWS[0]), atol=1e-4)
        with pytest.raises(DeviceError, match="3 rows, but the program was compiled for batch_size 2"):
            session.encode(np.repeat(ids, 3, 0), np.repeat(mask, 3, 0))
    with pytest.raises(DeviceError, match="closed"):
        session.encode(ids, mask)
