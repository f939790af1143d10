"""Two programs driven by hand as scripts of Qualcomm's library do: every state of the one that took the prompt is read
on its last chunk, and handed to the other with its first token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.generation.cloud_infer import QAICInferenceSession
from QEfficient.verification.eager import expect
from QEfficient.verification.tiny_models import prompts, tiny_model

CHUNK, NEW = 8, 8
GEOMETRY: dict[str, Any] = {"ctx_len": 64, "num_cores": 8, "device": "cloud_ai_100"}  # both lie on one device
RETAINED = "_RetainedState"


def states(session: QAICInferenceSession) -> list[str]:
    return [name for name in session.input_names if name.startswith("past_")]


def blank(session: QAICInferenceSession, name: str) -> np.ndarray:
    """Room for an output."""
    sizes = session.bindings[session.binding_index_map[name]].dims
    return np.zeros(tuple(sizes), session.buffer_types[name])


def prefilled(session: QAICInferenceSession, prompt: Sequence[int], slot: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the last chunk gives: logits, and every state."""
    outputs = [name + RETAINED for name in states(session)]
    session.skip_buffers([*states(session), *outputs])
    session.set_buffers({"logits": blank(session, "logits")})
    padded = -(-len(prompt) // CHUNK) * CHUNK
    ids, positions = np.zeros((1, padded), np.int64), np.full((1, padded), -1, np.int64)
    ids[0, : len(prompt)], positions[0, : len(prompt)] = prompt, np.arange(len(prompt))
    found: dict[str, Any] = {}
    for start in range(0, padded, CHUNK):
        if start + CHUNK == padded:
            session.set_buffers({name: blank(session, name) for name in outputs})
        part = slice(start, start + CHUNK)
        found = session.run({"input_ids": ids[:, part], "position_ids": positions[:, part], **slot})
    return found


def decoded(
    session: QAICInferenceSession, given: dict[str, Any], length: int, slot: dict[str, np.ndarray]
) -> list[int]:
    """Tokens after a prompt of this length, from what the other program gave."""
    tokens = [int(given["logits"].argmax(-1).ravel()[0])]
    session.skip_buffers([name + RETAINED for name in states(session)])
    session.set_buffers({"logits": blank(session, "logits")})
    handed = {name: given[name + RETAINED] for name in states(session)}
    for position in range(length, length + NEW - 1):
        step = {"input_ids": np.array([[tokens[-1]]]), "position_ids": np.array([[position]]), **slot}
        found = session.run({**step, **handed})
        if handed:
            session.skip_buffers(handed)
            handed = {}
        tokens.append(int(found["logits"].argmax(-1).ravel()[0]))
    return tokens


@pytest.mark.parametrize("slots", [False, True], ids=["rows", "slots"])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_states_that_a_script_hands_over(new_sdk: str, model_type: str, slots: bool) -> None:
    model = tiny_model(model_type)
    prefill, decode = (QEFFAutoModelForCausalLM(model, slots) for _ in range(2))
    rows = {"full_batch_size": 1, "kv_cache_batch_size": 2} if slots else {"batch_size": 1}
    first = prefill.compile(prefill_only=True, prefill_seq_len=CHUNK, retain_full_kv=True, **GEOMETRY, **rows)
    second = decode.compile(prefill_only=False, prefill_seq_len=1, retain_full_kv=True, **GEOMETRY, **rows)
    slot = {"batch_index": np.array([[1]])} if slots else {}
    one, other = QAICInferenceSession(Path(first)), QAICInferenceSession(str(second))
    for prompt in prompts(model):
        given = prefilled(one, prompt, slot)
        assert all(given[name + RETAINED].dtype == np.float16 for name in states(one))
        found = decoded(other, given, len(prompt), slot)
        assert found == list(expect(model, prompt, NEW).tokens)
    one.deactivate()
    other.deactivate()


@pytest.mark.parametrize("model_type", ["llama", "bloom"])
def test_tokens_that_a_script_tries_beyond_the_end(new_sdk: str, tmp_path: Path, model_type: str) -> None:
    """A loop with a draft scores as many tokens at the end as anywhere: those beyond it have no say."""
    shape: dict[str, Any] = {**GEOMETRY, "ctx_len": 16, "prefill_seq_len": CHUNK, "num_speculative_tokens": 3}
    target = QEFFAutoModelForCausalLM(tiny_model(model_type), qaic_config={"speculative_model_type": "target"})
    session = QAICInferenceSession(target.compile(compile_dir=tmp_path, **shape))
    session.skip_buffers([*states(session), *(name + RETAINED for name in states(session))])
    text, found = np.arange(3, 20), []
    for places in (range(CHUNK), range(CHUNK, 2 * CHUNK), [13, 14, 15, -1], [13, 14, 15, 16]):
        wanted = 1 if len(places) == CHUNK else 4
        session.set_buffers({"logits": np.zeros((1, wanted, 256), np.float32)})
        asked = {"input_ids": text[list(places)][None], "position_ids": np.array([places])}
        found.append(session.run({**asked, "num_logits_to_keep": np.zeros((wanted, 1), np.int64)})["logits"])
    assert np.array_equal(found[2][:, :3], found[3][:, :3]) and np.isfinite(found[3]).all()
