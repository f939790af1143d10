"""`TextGeneration` and `cloud_ai_100_exec_kv` on a folder with programqpc.bin alone; the reference device judges."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import Scripted, byte_tokenizer, scripted, simulated, written

from qaic_simulator.runtime import cards
from QEfficient import QEFFAutoModelForCausalLM, cloud_ai_100_exec_kv
from QEfficient.devices import Batch, Row, get_device
from QEfficient.errors import ArtifactError, DeviceError, OptionError
from QEfficient.generation.cloud_infer import QAICInferenceSession
from QEfficient.generation.script_options import chosen_params, for_every_batch
from QEfficient.generation.text_generation_inference import TextGeneration
from QEfficient.program import load_compiled
from QEfficient.specs import SamplingParams
from QEfficient.verification.tiny_models import tiny_model

PROMPTS = ["My name is", "In", "Once upon a time, there was", "a", "A longer one than the chunk"]
METRICS = re.compile(
    r"Average Prefill time a\.k\.a TTFT is= [\d.]+ sec\nDecode is= [\d.]+ tokens/sec\nTotal is= [\d.]+ tokens/sec\n"
    r"Total \(E2E\) inference time is= [\d.]+ sec"
)
COUNT = 6


@pytest.fixture(scope="module", autouse=True)
def _sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with simulated(tmp_path_factory.mktemp("sdk")):
        yield


@pytest.fixture(scope="module")
def rows(_sdk: None, tmp_path_factory: pytest.TempPathFactory) -> Scripted:
    """Two prompts at a time."""
    return scripted(tmp_path_factory.mktemp("rows"), batch_size=2)


@pytest.fixture(scope="module")
def slots(_sdk: None, tmp_path_factory: pytest.TempPathFactory) -> Scripted:
    """Continuous batching, with a slot more than rows."""
    return scripted(tmp_path_factory.mktemp("slots"), True, full_batch_size=2, kv_cache_batch_size=3)


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> Iterator[list[TextGeneration]]:
    """What is put in here is closed."""
    found: list[TextGeneration] = []
    yield found
    for each in found:
        each.close()


def opening(opened: list[TextGeneration], program: Scripted, **options: Any) -> TextGeneration:
    opened.append(TextGeneration(byte_tokenizer(), program.qpc, **options))
    return opened[-1]


def test_rows(opened: list[TextGeneration], rows: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """A batch as it is; several as lists, with what is left."""
    generation = opening(opened, rows)
    wanted = rows.wanted(PROMPTS, COUNT)
    one = generation.generate(PROMPTS[:2], COUNT, stream=False, automation=True)
    assert one.generated_ids.tolist() == wanted[:2] and one.batch_size == 2
    assert one.generated_texts == [rows.tokenizer.decode(ids) for ids in wanted[:2]]
    assert generation.perf_metrics == one.perf_metrics and one.perf_metrics.total_time > 0
    with caplog.at_level(logging.WARNING):
        all_of_them = generation.generate(PROMPTS, COUNT, stream=False, automation=True)
    assert "the last batch has 1 prompt(s) for 2 rows" in caplog.text
    assert [batch.tolist() for batch in all_of_them.generated_ids] == [wanted[:2], wanted[2:4], wanted[4:]]
    assert [len(batch) for batch in all_of_them.generated_texts] == [2, 2, 1]


def test_slots(opened: list[TextGeneration], slots: Scripted) -> None:
    generation = opening(opened, slots, full_batch_size=2)
    info = generation.generate(PROMPTS, COUNT, stream=False, automation=True)
    assert info.generated_ids.tolist() == slots.wanted(PROMPTS, COUNT) and info.batch_size == 1
    assert [len(text) > 0 for text in info.generated_texts] == [True] * 5


@pytest.mark.parametrize("program", ["rows", "slots"])
def test_fewer_prompts_are_repeated(
    opened: list[TextGeneration], program: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    known: Scripted = request.getfixturevalue(program)
    with caplog.at_level(logging.WARNING):
        info = opening(opened, known).generate("My name is", COUNT, stream=False, automation=True)
    assert info.generated_ids.tolist() == known.wanted(["My name is"] * 2, COUNT)
    assert "1 prompt(s) do not fill a batch of 2" in caplog.text


def test_an_answer_ends_where_the_tokenizer_says(opened: list[TextGeneration], rows: Scripted) -> None:
    generation = opening(opened, rows)
    wanted = rows.wanted(PROMPTS[:2], COUNT)
    end = wanted[0][2]
    generation._text._eos_ids = (end,)  # as if the tokenizer had been told before
    ids = generation.generate(PROMPTS[:2], COUNT, stream=False).generated_ids.tolist()
    stop = wanted[0].index(end) + 1
    assert [token for token in ids[0] if token != generation._tokenizer.pad_token_id] == wanted[0][:stop]
    assert generation.generate(PROMPTS[:2], COUNT, stream=False, automation=True).generated_ids.tolist() == wanted


def test_the_tokenizer_pads_as_scripts_expect(opened: list[TextGeneration], rows: Scripted) -> None:
    tokenizer = byte_tokenizer()
    opened.append(TextGeneration(tokenizer, rows.qpc))
    assert (tokenizer.padding_side, tokenizer.pad_token_id) == ("right", tokenizer.eos_token_id)


def test_lengths(opened: list[TextGeneration], rows: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    generation = opening(opened, rows, ctx_len=20)
    with pytest.raises(ValueError, match="generation_len must be a positive whole number, not 0"):
        generation.generate(PROMPTS[:2], 0, stream=False)
    with pytest.raises(ValueError, match="prompt has 27 tokens, but the program was compiled for ctx_len 20"):
        generation.generate(PROMPTS[2:4], stream=False)
    with caplog.at_level(logging.WARNING):
        info = generation.generate(PROMPTS[:2], 100, stream=False, automation=True)
    assert "a context of 20 holds 10" in caplog.text
    lengths = [len(output.generated_ids) for answers in info.outputs for output in answers]
    assert lengths == [20 - 10, 20 - 2], "each as far as the context goes, not as far as that of the first"
    with pytest.raises(ValueError, match="there is no prompt"):
        generation.generate([], stream=False)


def test_text_as_it_comes(
    opened: list[TextGeneration], rows: Scripted, capsys: pytest.CaptureFixture[str], slots: Scripted
) -> None:
    """Prompts in order, each with its answer, though they run together."""
    for device, program in enumerate((rows, slots)):
        info = opening(opened, program, device_id=[device]).generate(PROMPTS[:4], COUNT)
        texts = [output.text for answers in info.outputs for output in answers]
        told = "".join(f"{prompt}{text}\n" for prompt, text in zip(PROMPTS, texts, strict=False))
        assert capsys.readouterr().out == told


def test_pieces_of_a_batch(opened: list[TextGeneration], rows: Scripted, slots: Scripted) -> None:
    generation = opening(opened, rows)
    wanted = generation.generate(PROMPTS[1:3], COUNT, stream=False, automation=True).generated_texts
    steps = list(generation.generate_stream_tokens(PROMPTS[1:3], COUNT, automation=True))
    assert all(len(step) == 2 for step in steps) and len(steps) >= COUNT
    assert ["".join(pieces) for pieces in zip(*steps, strict=True)] == wanted
    next(generation.generate_stream_tokens(PROMPTS[:2]))  # left open, and closed when it is dropped
    assert generation._engine.idle
    with pytest.raises(OptionError, match="3 prompts were given, but one batch has 2"):
        generation.generate_stream_tokens(PROMPTS[:3])
    with pytest.raises(NotImplementedError, match="continuous batching"):
        opening(opened, slots, device_id=[1]).generate_stream_tokens(PROMPTS)


def test_prefill_of_rows(opened: list[TextGeneration], rows: Scripted) -> None:
    generation = opening(opened, rows)
    wanted = [ids[0] for ids in rows.wanted(PROMPTS[1:3], 1)]
    outputs, positions, length = generation._qaic_model.run_prefill(PROMPTS[1:3], None, prefill_logit_bs=2)
    assert outputs["logits"].shape == (2, 1, 256)
    assert outputs["logits"][:, 0].argmax(-1).tolist() == wanted
    assert (positions.tolist(), length) == ([[2], [27]], 64 - 27)
    again = generation.generate(PROMPTS[1:3], COUNT, stream=False, automation=True)
    assert again.generated_ids.tolist() == rows.wanted(PROMPTS[1:3], COUNT)


def test_prefill_into_a_slot(opened: list[TextGeneration], slots: Scripted) -> None:
    """And a step of decoding by hand, from where it left."""
    generation = opening(opened, slots)
    ids = slots.wanted(PROMPTS[4:], 2)[0]
    outputs, positions, length = generation._qaic_model.run_prefill(PROMPTS[4], 9, decode_batch_id=np.array([[2]]))
    assert (outputs["logits"].argmax(-1).tolist(), positions.tolist(), length) == ([[ids[0]]], [[27]], 9)
    logits = generation._engine.session.run(Batch((Row(2, (ids[0],), 27),)))
    assert logits.argmax(-1).tolist() == [ids[1]]
    with pytest.raises(OptionError, match="prefill_logit_bs is 2, but 1 prompts give as many rows"):
        generation._qaic_model.run_prefill(PROMPTS[4], 9, 2)
    with pytest.raises(OptionError, match="2 prompts were given for 1 slots"):
        generation._qaic_model.run_prefill(PROMPTS[:2], 9, decode_batch_id=[1])


def test_one_call_for_all(rows: Scripted, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without continuous batching by batches always; twice, so the cores were given back."""
    (tmp_path / "prompts.txt").write_text(f"{PROMPTS[0]}\n\n{PROMPTS[1]}\n")
    wanted = [rows.wanted(PROMPTS[:2], COUNT)]
    given: list[dict[str, Any]] = [{"prompts_txt_file_path": tmp_path / "prompts.txt", "prompt": "not this"}]
    given += [{"prompt": PROMPTS[:2], "iteration": 2}]
    for options in given:
        info = cloud_ai_100_exec_kv(
            byte_tokenizer(), str(rows.qpc), generation_len=COUNT, automation=True, device_id=[0], **options
        )
        assert [batch.tolist() for batch in info.generated_ids] == wanted and len(info.generated_texts[0]) == 2
        assert len(METRICS.findall(capsys.readouterr().out)) == 1
    with pytest.raises(ValueError, match="there is no prompt"):
        cloud_ai_100_exec_kv(byte_tokenizer(), rows.qpc)


def test_figures_of_several_batches(rows: Scripted) -> None:
    """The mean of the batches, each from its own beginning."""
    options: dict[str, Any] = {"generation_len": COUNT, "automation": True, "stream": False}
    info = cloud_ai_100_exec_kv(byte_tokenizer(), rows.qpc, PROMPTS, **options)
    batches = [[output.timings for (output,) in info.outputs[first : first + 2]] for first in (0, 2, 4)]
    spans = [max(t.finished or 0 for t in batch) - min(t.submitted or 0 for t in batch) for batch in batches]
    prefills = [sum(timing.prefill for timing in batch) for batch in batches]
    metrics = info.perf_metrics
    assert metrics.total_time == pytest.approx(np.mean(spans)) and metrics.prefill_time == pytest.approx(
        np.mean(prefills)
    )
    lines = [len(batch) * (COUNT - 1) / 2 / span for batch, span in zip(batches, spans, strict=True)]
    assert metrics.total_perf == pytest.approx(np.mean(lines))


def test_one_call_for_all_slots(slots: Scripted) -> None:
    options: dict[str, Any] = {"generation_len": COUNT, "automation": True, "stream": False}
    info = cloud_ai_100_exec_kv(byte_tokenizer(), slots.qpc, PROMPTS, **options)
    assert info.generated_ids.tolist() == slots.wanted(PROMPTS, COUNT)
    assert info.simulated and len(info.generated_texts) == 5


def test_the_first_buffers_are_written(opened: list[TextGeneration], rows: Scripted, tmp_path: Path) -> None:
    generation = opening(opened, rows, write_io_dir=tmp_path / "io")
    info = generation.generate(PROMPTS[:2], COUNT, stream=False, automation=True)
    prefill, decode = written(tmp_path / "io")
    names = ["input_ids", "position_ids", "logits"]
    for step, entries, length in (("prefill", prefill, 8), ("decode", decode, 1)):
        assert [entry["map-to"] for entry in entries] == names
        assert [entry["io-direction"] for entry in entries] == ["in", "in", "out"]
        assert [entry["dims"] for entry in entries] == [[2, length], [2, length], [2, 1, 256]]
        assert [entry["elem-size"] for entry in entries] == [8, 8, 4]
        assert [entry["path"] for entry in entries] == [f"{step}/{name}.raw" for name in names]
    raw = np.frombuffer((tmp_path / "io" / "prefill" / "input_ids.raw").read_bytes(), np.int64).reshape(2, 8)
    assert raw[1, :2].tolist() == rows.tokenizer(PROMPTS[1])["input_ids"]
    logits = np.frombuffer((tmp_path / "io" / "prefill" / "logits.raw").read_bytes(), np.float32).reshape(2, -1)
    assert logits[1].argmax() == info.generated_ids[1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"full_batch_size": 4}, "compiled without continuous batching"),
        ({"ctx_len": 128}, "ctx_len 128 was asked for, but the program was compiled for 64"),
        ({"is_tlm": True}, "no input 'num_logits_to_keep'"),
        ({"comp_ctx_lengths_decode": [32, 64]}, r"comp_ctx_lengths_decode \[32, 64\] was asked for.* for none"),
    ],
)
def test_what_a_program_is_not(rows: Scripted, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextGeneration(byte_tokenizer(), rows.qpc, **options)


def test_a_batch_of_another_size(slots: Scripted, opened: list[TextGeneration]) -> None:
    with pytest.raises(ValueError, match="full_batch_size 4 was asked for, but the program was compiled for 2"):
        TextGeneration(byte_tokenizer(), slots.qpc, 4)
    assert opening(opened, slots, full_batch_size=3).batch_size == 2, "3 is what specializations.json calls it"


def test_a_sampler_that_is_not_there(
    opened: list[TextGeneration], rows: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        generation = opening(opened, rows, include_sampler=True, sampling_params={"temperatures": np.ones((2, 1))})
    assert "the program has no sampler: the likeliest tokens are taken" in caplog.text
    info = generation.generate(PROMPTS[:2], COUNT, stream=False, automation=True)
    assert info.generated_ids.tolist() == rows.wanted(PROMPTS[:2], COUNT)


def test_a_sampler_that_is_there(tmp_path: Path, opened: list[TextGeneration], rows: Scripted) -> None:
    """Each prompt has its own line of the arrays: the first takes the likeliest tokens, the second does not."""
    config = {"include_sampler": True, "max_top_k_ids": 64, "include_guided_decoding": True}
    model = QEFFAutoModelForCausalLM(tiny_model("llama"), qaic_config=config)
    qpc = model.compile(device="cloud_ai_100", compile_dir=tmp_path, batch_size=2, ctx_len=64, prefill_seq_len=8)
    with pytest.raises(ValueError, match="say so with include_sampler=True"):
        TextGeneration(byte_tokenizer(), qpc)
    arrays = {"temperatures": np.array([[0.0], [5.0]], np.float32), "top_ks": np.array([[64], [64]], np.int32)}
    opened.append(TextGeneration(byte_tokenizer(), qpc, include_sampler=True, sampling_params=arrays))
    ids = opened[-1].generate([PROMPTS[0]] * 2, COUNT, stream=False, automation=True).generated_ids.tolist()
    (wanted,) = rows.wanted(PROMPTS[:1], COUNT)
    assert ids[0] == wanted != ids[1]
    opened[-1].close()
    allowed = np.zeros((2, 256), np.bool_)
    allowed[0, 5:9], allowed[1, 100:] = True, True
    arrays = {"token_bitmasks": allowed, "temperatures": np.array([[0.0], [0.0]], np.float32)}
    guided: dict[str, Any] = {"include_sampler": True, "include_guided_decoding": True}
    opened.append(TextGeneration(byte_tokenizer(), qpc, sampling_params=arrays, **guided))
    info = opened[-1].generate([PROMPTS[0]] * 4, COUNT, stream=False, automation=True)
    for first, second in info.generated_ids:  # the lines of one batch are for every batch
        assert set(first) <= {5, 6, 7, 8} and all(token >= 100 for token in second)
    with pytest.raises(OptionError, match=r"of shape \[2, 255\], but the program has 256 tokens"):
        TextGeneration(byte_tokenizer(), qpc, sampling_params={"token_bitmasks": allowed[:, 1:]}, **guided)


def test_lines_of_arrays() -> None:
    def temperature(given: Any, number: int) -> float:
        return chosen_params(SamplingParams(top_k=7), {"temperatures": given, "random_numbers": 1}, number).temperature

    assert (
        temperature(0.5, 3) == temperature([[0.5]], 3) == temperature([0.5, 0.5], 3) == temperature([0, 0.5], 1) == 0.5
    )
    with pytest.raises(OptionError, match="2 lines in 'temperatures', which differ, and there are more prompts"):
        temperature([[0.5], [0]], 2)
    with pytest.raises(OptionError, match="no line in 'temperatures'"):
        temperature([], 0)
    with pytest.raises(
        OptionError, match="no input of a sampler. Did you mean 'temperatures'.* There are repetition_p"
    ):
        chosen_params(SamplingParams(), {"temprature": 1}, 0)
    repeated = for_every_batch({"top_ks": [[1], [2]], "top_ps": [1.0], "token_bitmasks": np.eye(2)}, 5, 2)
    assert [array.tolist() for array in repeated.values()][:2] == [[1, 2, 1, 2, 1], [1.0]]
    assert repeated["token_bitmasks"].argmax(-1).tolist() == [0, 1, 0, 1, 0]


def test_a_target_of_speculative_decoding(tmp_path: Path, opened: list[TextGeneration], rows: Scripted) -> None:
    """It also runs alone."""
    model = QEFFAutoModelForCausalLM(tiny_model("llama"), qaic_config={"speculative_model_type": "target"})
    shapes: dict[str, Any] = {"ctx_len": 64, "prefill_seq_len": 8, "num_speculative_tokens": 3}
    qpc = model.compile(device="cloud_ai_100", compile_dir=tmp_path, batch_size=2, **shapes)
    opened.append(TextGeneration(byte_tokenizer(), qpc, is_tlm=True))
    info = opened[-1].generate(PROMPTS[1:3], COUNT, stream=False, automation=True)
    assert info.generated_ids.tolist() == rows.wanted(PROMPTS[1:3], COUNT)


def test_adapters_that_are_not_there(opened: list[TextGeneration], rows: Scripted) -> None:
    with pytest.raises(ValueError, match="the program has no input 'lora_ids'"):
        opening(opened, rows).generate(PROMPTS[:2], COUNT, prompt_to_lora_id_mapping=[0, 1])


def test_folders_without_a_program(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no programqpc.bin"):
        TextGeneration(byte_tokenizer(), tmp_path)


def test_dropping_it_gives_the_cores_back(rows: Scripted) -> None:
    for _ in range(3):  # a card has 16 cores, and the program takes all
        TextGeneration(byte_tokenizer(), rows.qpc, device_id=[1])
    QAICInferenceSession(rows.qpc, [1]).deactivate()


# Which devices


@pytest.fixture(scope="module")
def model(_sdk: None, tmp_path_factory: pytest.TempPathFactory) -> QEFFAutoModelForCausalLM:
    folder = tmp_path_factory.mktemp("ids")
    model = QEFFAutoModelForCausalLM(tiny_model("llama"))
    model.compile(device="cloud_ai_100", compile_dir=folder / "compiled", ctx_len=64, prefill_seq_len=8)
    return model


def is_free(device: int) -> bool:
    return cards.look([device])[0].free_cores == 16


def test_generate_runs_on_the_devices_that_are_named(model: QEFFAutoModelForCausalLM) -> None:
    asked: dict[str, Any] = {"input_ids": [[5, 6, 7]], "generation_len": 3}
    tokens = model.generate(**asked, device_id=[1]).generated_ids
    assert (is_free(0), is_free(1)) == (True, False)
    assert model.generate(**asked).generated_ids == tokens
    assert not is_free(1), "it stays where it is"
    assert model.generate(**asked, device_id=[2]).generated_ids == tokens
    assert (is_free(1), is_free(2)) == (True, False)
    pieces = model.generate("My", tokenizer=byte_tokenizer(), stream=True, generation_len=5)
    next(pieces)
    with pytest.raises(OptionError, match=r"device_id is \[1\], but answers are still open on \[2\]"):
        model.generate(**asked, device_id=[1])
    pieces.close()  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match=r"2 device id\(s\) were given \(0, 1\), but the program was compiled for 1"):
        model.generate(**asked, device_id=[0, 1])
    assert model.generate(**asked, device_id=[1]).generated_ids == tokens
    model._forget_session()


def test_a_device_that_is_not_there(model: QEFFAutoModelForCausalLM) -> None:
    compiled = load_compiled(model.compiled.folder)  # type: ignore[union-attr]
    with pytest.raises(DeviceError, match="99"):
        get_device("cloud_ai_100").load(compiled, [99])
