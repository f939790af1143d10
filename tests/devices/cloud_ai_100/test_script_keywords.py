"""Keywords that scripts of Qualcomm's library give to `generate` of the auto-class."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import GEOMETRY, byte_tokenizer, simulated, written

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.artifacts import ArtifactStore
from QEfficient.devices.cloud_ai_100.inference_session import load_runtime
from QEfficient.errors import OptionError
from QEfficient.generation.masks import OneOf
from QEfficient.verification.tiny_models import tiny_model

PROMPTS = ["My name is", "a"]
COUNT = 6
SAMPLER = ("include_sampler", "sampling_params", "return_pdfs", "include_guided_decoding")


@pytest.fixture(scope="module", autouse=True)
def _sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with simulated(tmp_path_factory.mktemp("sdk")):
        yield


def made(folder: Path, qaic_config: dict[str, Any] | None = None, **options: Any) -> QEFFAutoModelForCausalLM:
    model = QEFFAutoModelForCausalLM(tiny_model("llama"), qaic_config=qaic_config)
    graph = {"compute_context": True} if "comp_ctx_lengths_decode" in options else {}
    model.export(**graph)
    model.compile(**{"device": "cloud_ai_100", "compile_dir": folder, **GEOMETRY, **options})
    return model


@pytest.fixture(scope="module")
def plain(_sdk: None, tmp_path_factory: pytest.TempPathFactory) -> QEFFAutoModelForCausalLM:
    return made(tmp_path_factory.mktemp("plain"), batch_size=2)


@pytest.fixture(scope="module")
def choosing(_sdk: None, tmp_path_factory: pytest.TempPathFactory) -> QEFFAutoModelForCausalLM:
    config = {"include_sampler": True, "max_top_k_ids": 64, "include_guided_decoding": True}
    return made(tmp_path_factory.mktemp("sampler"), config, batch_size=2)


def ids(model: Any, *prompts: Any, **options: Any) -> list[list[int]]:
    (found,) = model.generate(byte_tokenizer(), *prompts, **{"generation_len": COUNT, **options}).generated_ids
    return [list(each) for each in found]


@pytest.fixture(scope="module")
def wanted(plain: QEFFAutoModelForCausalLM) -> list[list[int]]:
    return ids(plain, PROMPTS)


def test_a_file_of_prompts(plain: Any, wanted: list[list[int]], tmp_path: Path) -> None:
    """It goes before prompts, as on the command line."""
    (tmp_path / "prompts.txt").write_text(f"{PROMPTS[0]}\n\n {PROMPTS[1]} \n")
    file = tmp_path / "prompts.txt"
    assert ids(plain, prompts_txt_file_path=file) == wanted
    assert ids(plain, ["not this"], prompts_txt_file_path=str(file)) == wanted
    with pytest.raises(OptionError, match=r"prompts in /no/such/file cannot be read"):
        plain.generate(byte_tokenizer(), prompts_txt_file_path="/no/such/file")


@pytest.mark.parametrize("nothing", [None, False, {}])
def test_what_is_not_said(plain: Any, wanted: list[list[int]], nothing: Any) -> None:
    contexts = dict.fromkeys(("comp_ctx_lengths_prefill", "comp_ctx_lengths_decode"))
    assert ids(plain, PROMPTS, **dict.fromkeys(SAMPLER, nothing), **contexts) == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include_sampler": True}, r"no 'next_tokens'.*qaic_config=\{'include_sampler': True\}"),
        (
            {"sampling_params": {"top_ks": np.ones((2, 1))}},
            r"no 'next_tokens'.*qaic_config=\{'include_sampler': True\}",
        ),
        ({"return_pdfs": True}, r"no 'probs'.*'include_sampler': True, 'return_pdfs': True"),
        ({"include_guided_decoding": True}, r"no 'token_bitmasks'.*'include_guided_decoding': True"),
        ({"comp_ctx_lengths_decode": [64]}, r"\[64\] was asked for, but .* for none .*Compile it with"),
        ({"comp_ctx_lengths_prefill": "[64]"}, r"\[64\] was asked for, but .* for none .*Compile it with"),
        ({"iteration": 0}, "iteration must be a positive whole number, not 0"),
        ({"iteration": 2, "stream": True, "prompts": "a"}, "stream=True follows one run, but iteration is 2"),
        ({"include_samplers": True}, "does not know the option 'include_samplers'. Did you mean 'include_sampler'"),
    ],
)
def test_what_a_program_is_not(plain: Any, options: dict[str, Any], message: str) -> None:
    given = {"prompts": PROMPTS, **options}
    with pytest.raises(OptionError, match=message):
        plain.generate(byte_tokenizer(), generation_len=COUNT, **given)


def test_there_is_no_torch_behind_it(plain: Any) -> None:
    with pytest.raises(NotImplementedError, match="generate runs compiled programs only"):
        plain.generate(byte_tokenizer(), PROMPTS, runtime_ai100=False)


def test_a_program_that_chooses(choosing: Any, wanted: list[list[int]]) -> None:
    """Each prompt has its own line of the arrays; what the program is anyway may be said."""
    arrays = {"temperatures": np.array([[0.0], [5.0]], np.float32), "top_ks": np.array([[64], [64]], np.int32)}
    first, second = ids(choosing, [PROMPTS[0]] * 2, include_sampler=True, sampling_params=arrays, seed=1)
    assert first == wanted[0] != second
    assert ids(choosing, PROMPTS, include_sampler=True) == ids(choosing, PROMPTS) == wanted
    with pytest.raises(OptionError, match="include_sampler=False was given, but the program chooses tokens"):
        choosing.generate(byte_tokenizer(), PROMPTS, include_sampler=False)
    with pytest.raises(OptionError, match="no 'probs': the card chooses tokens, and does no more.*'return_pdfs': True"):
        choosing.generate(byte_tokenizer(), PROMPTS, return_pdfs=True)
    with pytest.raises(OptionError, match="'temprature', which is no input of a sampler. Did you mean 'temperatures'"):
        choosing.generate(byte_tokenizer(), PROMPTS, sampling_params={"temprature": [1]})


def test_a_program_that_is_told_which_tokens_there_are(choosing: Any) -> None:
    """By a mask of each prompt's own."""
    masks = np.zeros((2, 256), np.bool_)
    masks[0, 5:9], masks[1, 100:] = True, True
    given: dict[str, Any] = {"include_guided_decoding": True, "sampling_params": {"token_bitmasks": masks}}
    first, second = ids(choosing, PROMPTS, **given)
    assert set(first) <= {5, 6, 7, 8} and all(token >= 100 for token in second)
    assert set("".join(choosing.generate(byte_tokenizer(), PROMPTS[0], generation_len=2, stream=True, **given))) <= {
        *byte_tokenizer().decode([5, 6, 7, 8])
    }
    with pytest.raises(OptionError, match="mask and the token_bitmasks"):
        choosing.generate(byte_tokenizer(), PROMPTS, mask=lambda: OneOf([[5]]), **given)


def test_compute_contexts(tmp_path: Path) -> None:
    """As they were given to `compile`, which lowered those that both phases had."""
    lists = {"comp_ctx_lengths_prefill": [32, 64], "comp_ctx_lengths_decode": [32, 64]}
    model = made(tmp_path, **lists)
    assert model.compiled is not None and model.compiled.spec.comp_ctx_lengths_prefill != (32, 64)
    assert ids(model, "a", **lists) == ids(model, "a")
    with pytest.raises(OptionError, match=r"comp_ctx_lengths_decode \[48\] was asked for.*Give those"):
        model.generate(byte_tokenizer(), "a", comp_ctx_lengths_decode=[48])


def test_buffers_are_written(plain: Any, wanted: list[list[int]]) -> None:
    """Of each call that asks for them, beside the program, which stays whole."""
    folder = Path(plain.qpc_path).parent / "io_dir"
    for prompts in (PROMPTS, PROMPTS[::-1]):
        shutil.rmtree(folder, ignore_errors=True)
        assert sorted(ids(plain, prompts, write_io=True)) == sorted(wanted)
        steps = written(folder)
        assert [[entry["map-to"] for entry in step] for step in steps] == [["input_ids", "position_ids", "logits"]] * 2
        raw = np.frombuffer((folder / steps[0][0]["path"]).read_bytes(), np.int64).reshape(2, 8)
        long = prompts.index(PROMPTS[0])  # the other one is a single token, which runs with those of decoding
        assert raw[long].tolist() == byte_tokenizer()(PROMPTS[0])["input_ids"][:8]
    shutil.rmtree(folder)
    assert ids(plain, PROMPTS) == wanted and not folder.exists()
    ArtifactStore().open(plain.compiled.folder)


def test_no_other_session_while_answers_are_open(plain: Any) -> None:
    pieces = plain.generate(byte_tokenizer(), "a", generation_len=COUNT, stream=True)
    next(pieces)
    with pytest.raises(OptionError, match="answers are still open: close their iterators first"):
        plain.generate(byte_tokenizer(), "a", write_io=True)
    pieces.close()


def test_the_log_of_the_runtime(plain: Any, wanted: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, _ = load_runtime()
    levels: list[Any] = []
    accepting = runtime.Context.setLogLevel

    def recorded(context: Any, level: Any) -> Any:
        levels.append(level)
        return accepting(context, level)

    monkeypatch.setattr(runtime.Context, "setLogLevel", recorded)
    assert ids(plain, PROMPTS) == wanted and levels == []
    assert ids(plain, PROMPTS, enable_debug_logs=True) == wanted and levels == [runtime.QLogLevel.QL_DEBUG]


def test_all_of_it_several_times(plain: Any, wanted: list[list[int]]) -> None:
    assert ids(plain, PROMPTS) == wanted
    before = plain._session.running.statistics.generated
    assert ids(plain, PROMPTS, iteration=3) == wanted
    assert plain._session.running.statistics.generated - before == 3 * 2 * COUNT


def test_answers_that_go_on_behind_their_ends(plain: Any, wanted: list[list[int]]) -> None:
    end = {"eos_token_id": wanted[0][2]}
    first = wanted[0].index(wanted[0][2]) + 1
    assert ids(plain, PROMPTS[:1], generation_config=end) == [wanted[0][:first]]
    assert ids(plain, PROMPTS[:1], generation_config=end, automation=True) == wanted[:1]


def test_what_another_device_does_not_show(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = made(tmp_path, device="reference")
    with pytest.raises(OptionError, match="device 'reference' does not show the buffers of its runs"):
        model.generate(byte_tokenizer(), "a", generation_len=2, write_io=True)
    with caplog.at_level(logging.WARNING, "QEfficient"):
        for _ in range(2):
            ids(model, "a", enable_debug_logs=True)
    said = [record.message for record in caplog.records if "enable_debug_logs" in record.message]
    assert said == ["enable_debug_logs has no effect on device 'reference': its runtime has no log."]


def test_devices_of_a_program_that_is_not_compiled_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QEFF_DEVICE", "cloud_ai_100")
    model = QEFFAutoModelForCausalLM(tiny_model("llama"))
    assert len(ids(model, "a", device_id=[2, 3])[0]) == COUNT
    assert model.compiled is not None and model.compiled.report["devices"] == 2
    with pytest.raises(OptionError, match="cards have numbers from 0 on, and each can be named once"):
        model.generate(byte_tokenizer(), "a", device_id=[1, 1])
