"""Several programs of one process on one card: idle sessions give way to the one that runs, and come back by
themselves; one that runs never does."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import byte_tokenizer

from qaic_simulator.root import write_root
from qaic_simulator.runtime import cards
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices import Batch, Limits, Paging, Row, get_device
from QEfficient.devices.cloud_ai_100.sdk import ROOT_VARIABLE
from QEfficient.devices.handover import with_prefill
from QEfficient.devices.null import PagedNullSession
from QEfficient.errors import CoresTakenError, DeviceError, DeviceMemoryError
from QEfficient.generation.cloud_infer import QAICInferenceSession
from QEfficient.generation.decoding.draft_model import DraftModel
from QEfficient.generation.decoding.selection import DecodingChoice
from QEfficient.generation.engine import Engine
from QEfficient.generation.opened import OpenedProgram
from QEfficient.generation.request import Request
from QEfficient.generation.text_generation_inference import TextGeneration
from QEfficient.program import CompiledProgram, load_compiled
from QEfficient.specs import SamplingParams
from QEfficient.verification.tiny_models import tiny_model

CARD = 16
PROMPT = (5, 6, 7, 8, 9, 10)
COUNT = 6
DELAY = "QAIC_SIM_DELAY_MS"
WHOLE, LONGER, HALF, OTHER_HALF, THIRD_HALF = "whole", "longer", "half", "other half", "third half"
SHAPES: dict[str, dict[str, int]] = {
    WHOLE: {"num_cores": CARD},
    LONGER: {"num_cores": CARD, "ctx_len": 64},
    HALF: {"num_cores": 8},
    OTHER_HALF: {"num_cores": 8, "ctx_len": 48},
    THIRD_HALF: {"num_cores": 8, "ctx_len": 64},
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CompiledProgram]:
    folder = tmp_path_factory.mktemp("give-way")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ROOT_VARIABLE, str(write_root(folder / "sdk")))
        model = QEFFAutoModelForCausalLM(tiny_model("llama"))
        for name, shape in SHAPES.items():
            options: dict[str, Any] = {"ctx_len": 32, "prefill_seq_len": 4, **shape}
            found[name] = load_compiled(model.compile(device="cloud_ai_100", compile_dir=folder / name, **options))
    return found


@pytest.fixture(autouse=True)
def _sdk(new_sdk: str) -> None:
    gc.collect()  # what earlier tests have left would be asked to give way too


def opened(program: CompiledProgram) -> OpenedProgram:
    return OpenedProgram(program)


def tokens(program: OpenedProgram, devices: Sequence[int] | None = None) -> tuple[int, ...]:
    """Of an answer to the same prompt as ever."""
    engine = program.engine(DecodingChoice(), device_ids=devices)
    (output,) = engine.generate([Request(PROMPT, SamplingParams(max_new_tokens=COUNT, ignore_eos=True))])
    return tuple(output.generated_ids)


def free_cores(device: int = 0) -> int:
    return cards.look([device])[0].free_cores


@pytest.fixture
def wanted(programs: dict[str, CompiledProgram]) -> tuple[int, ...]:
    program = opened(programs[WHOLE])
    found = tokens(program)
    program.close()
    assert free_cores() == CARD and len(found) == COUNT
    return found


def test_programs_take_turns(programs: dict[str, CompiledProgram], wanted: tuple[int, ...]) -> None:
    """With all that an earlier turn left behind gone: nothing of it is relied on."""
    first, second = opened(programs[WHOLE]), opened(programs[LONGER])
    engines = [first.engine(DecodingChoice())]
    for program in (first, second, first, second, first):
        assert tokens(program) == wanted and free_cores() == 0
    assert first.engine(DecodingChoice()) is engines[0], "who waits for it need not know"
    assert engines[0].lost is None and engines[0].statistics.failed_steps == 0
    first.close()
    second.close()
    assert free_cores() == CARD


def test_what_a_session_kept_is_not_relied_on(programs: dict[str, CompiledProgram], wanted: tuple[int, ...]) -> None:
    program = opened(programs[WHOLE])
    engine = program.engine(DecodingChoice())

    def cached() -> int:
        request = Request(PROMPT, SamplingParams(max_new_tokens=COUNT, ignore_eos=True))
        (output,) = engine.generate([request])
        assert tuple(output.generated_ids) == wanted
        return output.cached_tokens

    assert cached() == 0 < cached(), "else the next line shows nothing"
    assert engine.give_way() and free_cores() == CARD and cached() == 0
    program.close()


def test_a_script_opens_the_same_program_by_hand(
    programs: dict[str, CompiledProgram], wanted: tuple[int, ...], tmp_path: Path
) -> None:
    model = QEFFAutoModelForCausalLM(tiny_model("llama"))
    onnx = str(programs[WHOLE].program.onnx_path())
    qpc = model.compile(onnx, tmp_path, device="cloud_ai_100", ctx_len=32, prefill_seq_len=4, num_cores=CARD)
    asked: dict[str, Any] = {"input_ids": [list(PROMPT)], "generation_len": COUNT, "ignore_eos": True}
    before = model.generate(**asked).generated_ids
    session = QAICInferenceSession(qpc, [0])
    with pytest.raises(CoresTakenError, match=r"Sessions of this process hold .*opened by hand, for .*`unload\(\)`"):
        model.generate(**asked)
    session.deactivate()
    assert model.generate(**asked).generated_ids == before
    generation = TextGeneration(byte_tokenizer(), qpc)
    texts = generation.generate("My", COUNT, stream=False, automation=True).generated_texts
    assert model.generate(**asked).generated_ids == before
    assert generation.generate("My", COUNT, stream=False, automation=True).generated_texts == texts
    generation.close()
    del model, generation
    gc.collect()
    assert free_cores() == CARD


def test_who_was_left_alone_longest_goes_first(
    programs: dict[str, CompiledProgram], wanted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    half, other, third = (opened(programs[name]) for name in (HALF, OTHER_HALF, THIRD_HALF))
    rested: list[OpenedProgram] = []
    for program in (half, other, third):
        session = program.engine(DecodingChoice(), device_ids=[0]).session
        rest = session.rest
        monkeypatch.setattr(session, "rest", lambda rest=rest, program=program: rested.append(program) or rest())
    rested.clear()
    assert tokens(third) == tokens(half) == wanted  # who has not run yet made room for the third, or for these two
    assert tokens(half) == tokens(third) == wanted
    rested.clear()
    assert tokens(other) == wanted
    assert rested == [half] and free_cores() == 0
    for program in (half, other, third):
        program.close()


def test_other_cards_are_left_alone(programs: dict[str, CompiledProgram], wanted: tuple[int, ...]) -> None:
    elsewhere, here, newcomer = opened(programs[WHOLE]), opened(programs[LONGER]), opened(programs[WHOLE])
    assert tokens(elsewhere, [1]) == tokens(here, [0]) == tokens(newcomer, [0]) == wanted
    assert (free_cores(0), free_cores(1)) == (0, 0)
    newcomer.close()
    assert (free_cores(0), free_cores(1)) == (CARD, 0)
    elsewhere.close()
    here.close()


def test_an_open_answer_keeps_the_card(programs: dict[str, CompiledProgram], wanted: tuple[int, ...]) -> None:
    program, other = opened(programs[WHOLE]), opened(programs[LONGER])
    request = Request(PROMPT, SamplingParams(max_new_tokens=COUNT, ignore_eos=True))
    events = program.engine(DecodingChoice()).stream([request])
    found = list(next(events).tokens)
    with pytest.raises(CoresTakenError, match="Sessions of this process hold .*with answers open"):
        tokens(other)
    found += [token for event in events for token in event.tokens]
    assert tuple(found) == wanted == tokens(other)
    program.close()
    other.close()


def test_a_run_in_another_thread_keeps_the_card(
    programs: dict[str, CompiledProgram], wanted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, other = opened(programs[WHOLE]), opened(programs[LONGER])
    engine = program.engine(DecodingChoice())
    monkeypatch.setenv(DELAY, "300")
    found: list[tuple[int, ...]] = []
    thread = threading.Thread(target=lambda: found.append(tokens(program)))
    thread.start()
    while engine.idle:
        pass
    assert not engine.give_way()
    with pytest.raises(CoresTakenError):
        tokens(other)
    monkeypatch.delenv(DELAY)
    thread.join()
    assert found == [wanted] and tokens(other) == wanted
    program.close()
    other.close()


def test_threads_that_take_turns_lose_nothing(programs: dict[str, CompiledProgram], wanted: tuple[int, ...]) -> None:
    """Whoever finds the card taken by a run tries again; nobody gets another error, or other tokens."""
    problems: list[BaseException] = []

    def work(program: OpenedProgram) -> None:
        done = 0
        while done < 4 and not problems:
            try:
                assert tokens(program) == wanted
                done += 1
            except CoresTakenError:
                continue
            except BaseException as error:
                problems.append(error)

    both = opened(programs[WHOLE]), opened(programs[LONGER])
    threads = [threading.Thread(target=work, args=(program,)) for program in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    for program in both:
        program.close()


def test_full_memory_too(programs: dict[str, CompiledProgram], wanted: tuple[int, ...]) -> None:
    before = cards.look([0])[0].free_dram_mb
    half, other = opened(programs[HALF]), opened(programs[OTHER_HALF])
    assert tokens(half) == wanted
    taken = cards.reserve([0], dram_mb=cards.look([0])[0].free_dram_mb)
    assert tokens(other) == wanted
    other.close()
    assert tokens(half) == wanted
    by_hand = QAICInferenceSession(programs[HALF].folder / "qpc", [0])
    with pytest.raises(DeviceMemoryError, match="Sessions of this process hold"):
        tokens(half)
    by_hand.unload()
    cards.release(taken)
    half.close()
    assert cards.look([0])[0].free_dram_mb == before


def test_nobody_goes_on_from_what_is_gone(programs: dict[str, CompiledProgram]) -> None:
    """A script that drives the session itself cannot be told otherwise."""
    session = get_device("cloud_ai_100").load(programs[WHOLE])
    start, further = Batch((Row(0, (5, 6), 0, 1),)), Batch((Row(0, (7,), 2, 1),))
    session.run(start)
    expected = session.run(further).copy()
    assert session.rest() and not session.rest() and free_cores() == CARD
    with pytest.raises(DeviceError, match="slot 0 is to go on from what it kept.*from position 0"):
        session.run(further)
    session.run(start)
    assert (session.run(further) == expected).all() and free_cores() == 0
    session.close()
    assert not session.rest()


def test_two_programs_as_one_session(
    programs: dict[str, CompiledProgram], wanted: tuple[int, ...], tmp_path: Path
) -> None:
    model = QEFFAutoModelForCausalLM(tiny_model("llama"))
    onnx = str(programs[HALF].program.onnx_path())
    shape: dict[str, Any] = {"ctx_len": 32, "prefill_seq_len": 4, "num_cores": 8, "device": "cloud_ai_100"}
    prefill, decode = (
        load_compiled(model.compile(onnx, tmp_path / str(phase), prefill_only=phase, **shape))
        for phase in (True, False)
    )
    other = opened(programs[WHOLE])
    with with_prefill(get_device("cloud_ai_100").load(decode), decode, prefill) as session:
        engine = Engine(session)
        for _ in range(2):
            request = Request(PROMPT, SamplingParams(max_new_tokens=COUNT, ignore_eos=True))
            assert tuple(engine.generate([request])[0].generated_ids) == wanted
            assert tokens(other) == wanted
    other.close()
    assert free_cores() == CARD


class Told(PagedNullSession):
    """A target that needs no card: it says these tokens."""

    def __init__(self, said: Sequence[int], vocabulary: int) -> None:
        paging = Paging(block_size=4, blocks=8)
        super().__init__(Limits(1, 8, 32, 1, 1, tokens=8, logits=4, paging=paging), vocabulary)
        self._said = said

    def _logits(self, row: Row) -> list[np.ndarray]:
        end = row.start + len(row.tokens)
        return [np.roll(self._ramp, self._said[stop]) for stop in range(end - row.logits + 1, end + 1)]


def test_a_draft_model_gives_way(programs: dict[str, CompiledProgram], wanted: tuple[int, ...]) -> None:
    """While an answer is open it does not. Its drafts are right after that too, from whatever it relies on."""
    other, target = opened(programs[WHOLE]), Told((*PROMPT, *wanted), programs[HALF].program.model.vocab_size)
    with get_device("cloud_ai_100").load(programs[HALF]) as session:
        engine = Engine(target, DraftModel(session, 3, adaptive=False))
        for turn in (1, 2):
            events = engine.stream([Request(PROMPT, SamplingParams(max_new_tokens=COUNT, ignore_eos=True))])
            found = [*next(events).tokens, *next(events).tokens]  # with the second it reads the prompt
            with pytest.raises(CoresTakenError, match="with answers open"):
                tokens(other)
            found += [token for event in events for token in event.tokens]
            assert tuple(found) == wanted and free_cores() == CARD // 2
            assert tokens(other) == wanted and free_cores() == 0
            assert engine.statistics.drafted == engine.statistics.accepted == 3 * turn
    other.close()
    assert free_cores() == CARD


def test_who_is_dropped_is_not_kept(programs: dict[str, CompiledProgram]) -> None:
    """That sessions are asked keeps none of them."""
    engine = opened(programs[WHOLE]).engine(DecodingChoice())
    assert free_cores() == 0
    del engine
    assert free_cores() == CARD
