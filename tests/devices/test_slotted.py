"""How a batch becomes padded calls: seen through a session that records what it is fed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from QEfficient.devices import Batch, Choice, Row
from QEfficient.devices.slotted import SlottedSession, write_specializations
from QEfficient.errors import DeviceError, OptionError
from QEfficient.program import ACCEPTED_TOKENS, MARKED_PRESENCE, NEXT_TOKENS, GraphSpec, StateSpec, TensorSpec
from QEfficient.specs import CompileSpec

VOCAB = 7
TOKENS = ("batch_size", "seq_len")
LOGITS = TensorSpec("logits", "float32", ("batch_size", 1, VOCAB))


def graph(*extra: str) -> GraphSpec:
    inputs = [TensorSpec(name, "int64", TOKENS) for name in ("input_ids", "position_ids")]
    inputs += [TensorSpec(name, "int64", ("batch_size", 1)) for name in extra]
    return GraphSpec(tuple(inputs), (LOGITS,))


CHOOSING = GraphSpec(
    (*graph("batch_index").inputs, TensorSpec("random_numbers", "float32", ("batch_size", 2))),
    (TensorSpec(NEXT_TOKENS, "int64", ("batch_size", 1, 1)),),
    (StateSpec(TensorSpec(MARKED_PRESENCE, "bool", ("full_batch_size", VOCAB)), "marks", 0),),
)


class Recording(SlottedSession):
    """Its logits say in which call and line they were made."""

    def __init__(self, spec: CompileSpec, own: GraphSpec | None = None) -> None:
        super().__init__(spec, own or graph(*["batch_index"] * spec.continuous_batching))
        self.calls: list[dict[str, np.ndarray]] = []

    def _execute(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        self.calls.append(feeds)
        lines = len(feeds["input_ids"])
        if self._graph.chooses_tokens:
            return np.zeros((lines, 1, 1), np.int64)
        lines_and_call = np.arange(lines, dtype=np.float16) + 10 * len(self.calls)
        return np.tile(lines_and_call[:, None, None], (1, 1, VOCAB))

    def close(self) -> None:
        pass


def test_static_lines_are_slots() -> None:
    session = Recording(CompileSpec(batch_size=3, prefill_seq_len=4, ctx_len=16))
    logits = session.run(Batch((Row(2, [7, 8, 9], 4), Row(0, [5, 6], 0))))
    (call,) = session.calls
    assert set(call) == {"input_ids", "position_ids"}
    assert call["input_ids"].dtype == call["position_ids"].dtype == np.int64
    assert call["input_ids"].tolist() == [[5, 6, 0, 0], [0, 0, 0, 0], [7, 8, 9, 0]]
    assert call["position_ids"].tolist() == [[0, 1, -1, -1], [-1, -1, -1, -1], [4, 5, 6, -1]]
    assert logits.dtype == np.float32
    assert logits[:, 0].tolist() == [12, 10]  # in row order, not in line order


def test_continuous_batching_prefills_one_row_a_call() -> None:
    session = Recording(CompileSpec(full_batch_size=3, prefill_seq_len=4, ctx_len=16))
    session.run(Batch((Row(1, [7, 8, 9], 4),)))
    (call,) = session.calls
    assert call["input_ids"].tolist() == [[7, 8, 9, 0]]
    assert call["position_ids"].tolist() == [[4, 5, 6, -1]]
    assert call["batch_index"].tolist() == [[1]]


def test_continuous_batching_gives_idle_lines_slots_of_their_own() -> None:
    session = Recording(CompileSpec(full_batch_size=3, kv_cache_batch_size=5, prefill_seq_len=4, ctx_len=16))
    logits = session.run(Batch((Row(4, [7], 9), Row(0, [8], 3))))
    (call,) = session.calls
    assert call["input_ids"].tolist() == [[7], [8], [0]]
    assert call["position_ids"].tolist() == [[9], [3], [-1]]
    assert call["batch_index"].tolist() == [[4], [0], [1]] and call["batch_index"].dtype == np.int64
    assert logits[:, 0].tolist() == [10, 11]


@pytest.mark.parametrize(
    ("prefill_only", "follows_prompt", "shape", "said"),
    [(None, False, (6, 1), 3), (None, True, (1, 4), -4), (True, False, (1, 4), 3 + VOCAB), (True, True, (1, 4), -4)],
)
def test_a_program_that_chooses(
    prefill_only: bool | None, follows_prompt: bool, shape: tuple[int, int], said: int
) -> None:
    """A token of an answer comes in a call of a prompt only where there is no other, and says then what it is; the last
    one of a prompt may come in either."""
    spec = CompileSpec(full_batch_size=6, prefill_seq_len=4, ctx_len=16, prefill_only=prefill_only)
    session = Recording(spec, CHOOSING)
    choice = Choice(np.full(2, 0.5, np.float32), follows_prompt=follows_prompt)
    session.run(Batch((Row(1, [3], 5, choice=choice),)))
    (call,) = session.calls
    assert call["input_ids"].shape == shape and call[ACCEPTED_TOKENS][0, 0] == said


def test_mixed_batch_is_two_calls() -> None:
    session = Recording(CompileSpec(full_batch_size=2, prefill_seq_len=4, ctx_len=16))
    rows = Row(1, [7], 9), Row(0, [5, 6], 0)
    assert session.run(Batch(rows))[:, 0].tolist() == [20, 10]
    assert [call["input_ids"].shape for call in session.calls] == [(1, 4), (2, 1)]


def test_one_token_chunks_share_one_shape() -> None:
    session = Recording(CompileSpec(full_batch_size=2, prefill_seq_len=1, ctx_len=16))
    session.run(Batch((Row(0, [7], 0), Row(1, [5], 3))))
    assert session.calls[0]["position_ids"].tolist() == [[0], [3]]


def test_only_wanted_logits_come_back() -> None:
    session = Recording(CompileSpec(batch_size=2, prefill_seq_len=4, ctx_len=16))
    rows = Row(0, [1, 2], 0, logits=0), Row(1, [1, 2], 0)
    assert session.run(Batch(rows))[:, 0].tolist() == [11]
    assert session.run(Batch(rows[:1])).shape == (0, VOCAB)


def test_context_end() -> None:
    session = Recording(CompileSpec(prefill_seq_len=4, ctx_len=16))
    session.run(Batch((Row(0, [1], 15),)))
    with pytest.raises(DeviceError, match="positions 16 to 16, .* ctx_len 16"):
        session.run(Batch((Row(0, [1], 16),)))


@pytest.mark.parametrize(
    ("spec", "inputs", "message"),
    [
        (CompileSpec(), ["batch_index"], "compile it with full_batch_size"),
        (CompileSpec(full_batch_size=2), [], "full_batch_size 2 .* without continuous batching"),
    ],
)
def test_graph_and_geometry_must_agree(spec: CompileSpec, inputs: list[str], message: str) -> None:
    class Plain(Recording):
        def __init__(self) -> None:
            SlottedSession.__init__(self, spec, graph(*inputs))

    with pytest.raises(OptionError, match=message):
        Plain()


def test_refuses_inputs_that_it_cannot_feed() -> None:
    class WithLora(Recording):
        def __init__(self) -> None:
            SlottedSession.__init__(self, CompileSpec(), graph("lora_ids"))

    with pytest.raises(DeviceError, match="'lora_ids'"):
        WithLora()


def test_specializations_file(tmp_path: Path) -> None:
    path = tmp_path / "specializations.json"
    write_specializations(path, CompileSpec(prefill_seq_len=32, ctx_len=128).specializations({"sliding_window": 64}))
    assert path.read_text().startswith('{\n    "specializations": [')
    symbols = {"batch_size": "1", "ctx_len": "128", "sliding_window": "64"}
    assert json.loads(path.read_text()) == {
        "specializations": [
            {"name": "Prefill", "symbols": {**symbols, "seq_len": "32"}},
            {"name": "Decode", "symbols": {**symbols, "seq_len": "1"}},
        ]
    }
