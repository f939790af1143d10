"""Each trial finds the fault that it is there for; sessions that misbehave stand in for devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from QEfficient.devices import Batch
from QEfficient.devices.slotted import slotted_limits
from QEfficient.program import GraphSpec
from QEfficient.specs import CompileSpec, ExportSpec
from QEfficient.transformers.signature import causal_signature
from QEfficient.transformers.transform import retain
from QEfficient.verification.comparison import TOLERANCE
from QEfficient.verification.eager import twin
from QEfficient.verification.module_session import ModuleSession, StatefulModule
from QEfficient.verification.tiny_models import prompts, tiny_model
from QEfficient.verification.torture import TRIALS, Bench, torture
from QEfficient.verification.truth import hugging_face

STATIC = CompileSpec(batch_size=3, prefill_seq_len=8, ctx_len=48)
CONTINUOUS = CompileSpec(full_batch_size=2, prefill_seq_len=8, ctx_len=48)
AHEAD = CompileSpec(full_batch_size=2, prefill_seq_len=8, ctx_len=48, num_speculative_tokens=(1, 3))
IN_PART = CompileSpec(
    batch_size=3, prefill_seq_len=8, ctx_len=48, comp_ctx_lengths_prefill=(16, 40), comp_ctx_lengths_decode=(24, 48)
)
BOTH = CompileSpec(
    full_batch_size=2,
    prefill_seq_len=8,
    ctx_len=48,
    num_speculative_tokens=(3,),
    comp_ctx_lengths_prefill=(40,),
    comp_ctx_lengths_decode=(24, 48),
)


class IdleRowsRun(ModuleSession):
    """Takes padding for the token at position 0."""

    def _execute(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        idle = (feeds["position_ids"] < 0).all(1)
        positions = feeds["position_ids"].copy()
        positions[idle, 0] = 0
        return super()._execute({**feeds, "position_ids": positions})


class SlotsSwapped(ModuleSession):
    """Hands each row the logits of another, if there are several."""

    def run(self, batch: Batch) -> np.ndarray:
        return super().run(batch)[::-1]


class EndOverwritten(ModuleSession):
    """Writes what does not fit over the last position."""

    def run(self, batch: Batch) -> np.ndarray:
        last = self.limits.ctx_len - 1
        return super().run(Batch(tuple(r if r.start + len(r.tokens) <= last + 1 else _at(r, last) for r in batch.rows)))


class StateRead(ModuleSession):
    """Reads all of the state, also what nobody wrote."""

    def _execute(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        everything = sum(0 * float(state.sum()) for state in self.states().values())
        return super()._execute(feeds) + everything


class LeftPositions(ModuleSession):
    """Believes that a sequence in a used slot goes on where the last one ended, once in a row of one token."""

    longest = 0

    def _execute(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        positions = feeds["position_ids"]
        if positions.shape[1] == 1:
            feeds = {**feeds, "position_ids": np.where(positions >= 0, np.maximum(positions, self.longest), -1)}
        self.longest = max(self.longest, int(positions.max()))
        return super()._execute(feeds)


class OneRowOfLogits(ModuleSession):
    """Gives the logits behind the last token for all of them."""

    def _execute(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        logits = super()._execute(feeds)
        for line, positions in zip(logits, feeds["position_ids"], strict=True):
            line[:] = line[max(min((positions >= 0).sum(), len(line)) - 1, 0)]
        return logits


class WrongTokensStay(ModuleSession):
    """Does not write again where something stands already, once in a row of several tokens that begins behind it."""

    written: dict[int, int] | None = None

    def run(self, batch: Batch) -> np.ndarray:
        self.written = {} if self.written is None else self.written
        kept = []
        for row in batch.rows:
            known = self.written.get(row.slot, 0) if row.start else 0
            self.written[row.slot] = max(known, row.start + len(row.tokens))
            kept.append(replace(row, start=known) if 0 < known - row.start < len(row.tokens) else row)
        return super().run(Batch(tuple(kept)))


def _at(row: Any, start: int) -> Any:
    return type(row)(row.slot, row.tokens[:1], start, row.logits)


def bench(model_type: str, spec: CompileSpec, session: type[ModuleSession] = ModuleSession) -> Bench:
    model = tiny_model(model_type)
    retained: StatefulModule = retain(twin(model))
    graph: GraphSpec = causal_signature(
        retained.plans,
        ExportSpec(
            continuous_batching=spec.continuous_batching,
            several_logits=bool(spec.num_speculative_tokens),
            compute_context=bool(spec.comp_ctx_lengths_decode),
        ),
        retained.vocab_size,
        "float32",
        retained.context,
    )
    return Bench(
        stage="module",
        open=lambda poison: session(retained, graph, spec, poison),
        truth=hugging_face(model, (), TOLERANCE),
        limits=slotted_limits(spec),
        pool=[token for prompt in prompts(model) for token in prompt],
        windows=(8,) if model_type == "gemma3_text" else (),
    )


@pytest.mark.parametrize("spec", [STATIC, CONTINUOUS], ids=["static", "continuous"])
@pytest.mark.parametrize("model_type", ["gemma3_text", "jamba"])
def test_sound_caches_pass(model_type: str, spec: CompileSpec) -> None:
    checks = torture(bench(model_type, spec))
    assert [check.name for check in checks] == list(TRIALS)
    assert [check.describe() for check in checks if check.passed is False] == []
    skipped = ["window wrap"] * (model_type == "jamba") + ["tokens tried ahead"]
    assert [check.name for check in checks if check.passed is None] == skipped


@pytest.mark.parametrize(
    ("session", "trials"),
    [
        (IdleRowsRun, {"idle rows"}),
        (SlotsSwapped, {"alone and among others"}),
        (EndOverwritten, {"one past the last"}),
        (StateRead, {"unwritten state"}),
        (LeftPositions, {"slot reuse"}),
    ],
)
def test_faults_are_found_by_their_trial(session: type[ModuleSession], trials: set[str]) -> None:
    failed = {check.name: check for check in torture(bench("llama", STATIC, session)) if check.passed is False}
    assert trials <= set(failed)
    assert all(check.detail for check in failed.values())


@pytest.mark.parametrize("spec", [AHEAD, IN_PART, BOTH], ids=["ahead", "in part", "both"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_sound_caches_of_other_calls_pass(model_type: str, spec: CompileSpec) -> None:
    checks = torture(bench(model_type, spec))
    assert [check.describe() for check in checks if check.passed is False] == []
    skipped = ["window wrap"] + ["tokens tried ahead"] * (not spec.num_speculative_tokens)
    assert [check.name for check in checks if check.passed is None] == skipped


@pytest.mark.parametrize("session", [OneRowOfLogits, WrongTokensStay])
def test_faults_of_tokens_tried_ahead(session: type[ModuleSession]) -> None:
    failed = {check.name for check in torture(bench("llama", AHEAD, session)) if check.passed is False}
    assert "tokens tried ahead" in failed
    assert len(failed) < 4, "the others do not see it"


def test_one_slot_has_no_neighbours() -> None:
    checks = {check.name: check for check in torture(bench("llama", CompileSpec(prefill_seq_len=1, ctx_len=16)))}
    assert checks["idle rows"].passed is None and "one slot" in checks["idle rows"].detail
    assert all(check.passed is not False for check in checks.values())
