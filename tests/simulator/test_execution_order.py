"""Inputs and outputs in another order than the graph's: whoever goes by the descriptor does not notice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from qaic_simulator.container import read_container
from qaic_simulator.network_descriptor import NetworkDescriptor, decode_descriptor
from qaic_simulator.root import write_root
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices import Batch, Row, get_device
from QEfficient.generation.cloud_infer import QAICInferenceSession
from QEfficient.program import CompiledProgram, load_compiled
from QEfficient.verification.tiny_models import tiny_model

TOKENS = ((5, 6, 7), (8,), (9,))


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[CompiledProgram]:
    """In the order of the graph, and in the other."""
    monkeypatch.setenv("QEFF_QAIC_ROOT", str(write_root(tmp_path / "sdk", "1.22")))
    monkeypatch.setenv("QAIC_SIM_STATE", str(tmp_path / "cards.json"))
    wrapped = QEFFAutoModelForCausalLM(tiny_model("llama"), continuous_batching=True)
    wrapped.export(tmp_path / "exported")
    found = []
    for asked in ("0", "1"):
        monkeypatch.setenv("QAIC_SIM_SHUFFLE", asked)
        sizes = {"ctx_len": 32, "prefill_seq_len": 8, "full_batch_size": 4, "batch_size": 1}
        found.append(load_compiled(wrapped.compile(device="cloud_ai_100", compile_dir=tmp_path / asked, **sizes)))
    return found


def descriptor_of(compiled: CompiledProgram) -> NetworkDescriptor:
    raw = (compiled.folder / "qpc" / "programqpc.bin").read_bytes()
    return decode_descriptor(read_container(raw)["networkdesc.bin"])


def by_session(compiled: CompiledProgram) -> list[np.ndarray]:
    """Logits of a prompt and of two tokens more."""
    with get_device("cloud_ai_100").load(compiled) as session:
        starts = np.cumsum([0, *map(len, TOKENS)])
        return [session.run(Batch((Row(2, ids, int(at)),))).copy() for ids, at in zip(TOKENS, starts, strict=False)]


def by_script(compiled: CompiledProgram) -> tuple[Sequence[str], np.ndarray]:
    """Names in binding order, and logits of a prompt, as scripts get them."""
    session = QAICInferenceSession(compiled.folder / "qpc")
    names = [*session.input_names, *session.output_names]
    session.skip_buffers([name for name in names if name.startswith("past_")])
    session.set_buffers({"logits": np.zeros((1, 1, 256), np.float32)})
    positions = np.array([[0, 1, 2, -1, -1, -1, -1, -1]])
    feeds = {"input_ids": positions + 5, "position_ids": positions, "batch_index": np.full((1, 1), 2)}
    logits = session.run(feeds)["logits"].copy()
    session.deactivate()
    return names, logits


def test_our_sessions_go_by_names(both: list[CompiledProgram]) -> None:
    plain, shuffled = map(descriptor_of, both)
    for kind in ("inputs", "outputs"):
        names = [[binding.name for binding in getattr(found, kind)] for found in (plain, shuffled)]
        assert names[0] != names[1] and sorted(names[0]) == sorted(names[1])
    assert {frozenset(shapes) for shapes in plain.allowed_shapes} == {frozenset(s) for s in shuffled.allowed_shapes}
    assert all(map(np.array_equal, *map(by_session, both)))
    (names, logits), (other_names, other_logits) = map(by_script, both)
    assert names != other_names and set(names) == set(other_names)
    assert np.array_equal(logits, other_logits) and np.isfinite(logits).all() and logits.std()
