"""`verify`: Hugging Face eager, the transformed module and the program on a device give the same logits.

Where a device keeps other weights (compressed ones), nobody but the reference device with these very weights can say
what is right: then the program as exported is compared with Hugging Face on the reference device, and the device's with
the reference device: once as it is, and once with nothing rounded beside those weights, where they must agree closely.
Where a device computes in another precision than float32, its tokens are also held against those of the reference
device in that one.

1. open       the model, or the artifact and the model that it was made from
2. compile    the program, or take that of the artifact
3. expect     Hugging Face eager in float32, greedily, without a cache; the reference device with the stored weights,
              and in the device's precision
4. compare    each stage fed with the expected tokens, all prompts through one engine
5. torture    the cache of each stage
6. locate     the stage and the layer where they part, if they do
7. report     kept beside the compiled program
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from QEfficient.devices import Device, Limits, Session, get_device
from QEfficient.devices.reference import ReferenceDevice
from QEfficient.devices.slotted import SlottedSession, slotted_limits
from QEfficient.errors import PromptError
from QEfficient.generation.request import Request
from QEfficient.generation.scheduler import Scheduler
from QEfficient.program import CompiledProgram, GraphSpec
from QEfficient.transformers.models.stages import versions
from QEfficient.transformers.transform import retain, with_copied_heads
from QEfficient.verification.comparison import TOLERANCE, Agreement, agreement
from QEfficient.verification.eager import Expected, expect, load_eager, twin, with_frequencies_of
from QEfficient.verification.fixed_blocks import with_fixed_blocks
from QEfficient.verification.forced import forced_logits
from QEfficient.verification.locate import TOLERANCE as STATE_TOLERANCE
from QEfficient.verification.locate import Place, locate_in_module, locate_in_program
from QEfficient.verification.module_session import ModuleSession, StatefulModule
from QEfficient.verification.narrow_reference import Original, narrow_reference, reference_in
from QEfficient.verification.report import Check, Report, StageResult, report_path
from QEfficient.verification.steering import for_padded_calls
from QEfficient.verification.target import Target, open_target
from QEfficient.verification.tiny_models import prompts as random_prompts
from QEfficient.verification.torture import Bench, torture
from QEfficient.verification.truth import STORED, Truth, hugging_face, stored_weights

logger = logging.getLogger(__name__)

TOLERANCES = {"float32": TOLERANCE, "float16": 2e-2, "bfloat16": 1e-1}
"""By the dtype of the program; Hugging Face runs in float32 in any case."""
TEXTS = (
    "The sea was calm",
    "In the beginning there was a small house at the end of the road, and in it",
    "She opened the letter, read it twice, and then put it back on the table without a word. What it said was that",
)
MODULE = "the transformed module"
EXACTLY = "nothing else rounded"
EXPORTED = f"program on {ReferenceDevice.name}"
CHEAP_PARAMETERS = 100_000_000
"""Up to this size the caches of the stages before are tortured too, besides the device's."""

Progress = Callable[[str], None]


def verify(
    target: Any,
    *,
    device: str | None = None,
    prompts: Sequence[str] | Sequence[Sequence[int]] | None = None,
    ctx_len: int | None = None,
    new_tokens: int = 24,
    continuous_batching: bool | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress = lambda stage: None,
) -> Report:
    """Compare the stages of a model (name, folder, `demo`, object) or of an artifact (its folder).

    `options`: more of `compile` (`prefill_seq_len`, `num_speculative_tokens`, the device's own) and of
    `from_pretrained` (`qaic_config` too). A program that chooses its tokens itself has no logits to compare, and is
    refused.
    The program is exported and compiled in the usual store; the report is written beside it and returned.
    """
    start = time.perf_counter()
    progress("open")
    opened = open_target(target, options or {}, device)
    model = load_eager(opened.source)
    ids = _prompt_ids(prompts, opened, model)
    compiled = opened.compile(device, continuous_batching, ctx_len, max(len(p) for p in ids) + new_tokens, progress)
    trained = compiled.program.graphs["lm"].spec.context.trained
    if trained is not None and compiled.spec.ctx_len > trained:
        model = with_frequencies_of(model, compiled.spec.ctx_len)
    progress("expect")
    expected = _expected(
        model, ids, new_tokens, slotted_limits(compiled.spec, compiled.program.graphs["lm"].spec.context.positions)
    )
    chosen = get_device(compiled.device)
    original = Original(opened.source, model)
    with (
        stored_weights(chosen, compiled, expected) as stored,
        narrow_reference(chosen, compiled.spec, original, expected, compiled=compiled) as narrow,
    ):
        report = Ladder(model, compiled, chosen, expected, stored, narrow).report(start, progress)
    try:
        report.write(report_path(compiled.folder))
    except OSError as error:
        logger.warning("the report could not be kept beside %s: %s", compiled.folder, error)
    return report


def _prompt_ids(prompts: Any, opened: Target, model: Any) -> list[list[int]]:
    """The given prompts as token ids; by default some sentences, or random ids where there is no tokenizer."""
    tokenizer = opened.tokenizer()
    if prompts is None and tokenizer is None:
        return random_prompts(model)
    given = TEXTS if prompts is None else prompts
    if tokenizer is None and any(isinstance(prompt, str) for prompt in given):
        raise PromptError("the model has no tokenizer beside it: give prompts as lists of token ids.")
    encode: Any = tokenizer
    found = [encode(prompt)["input_ids"] if isinstance(prompt, str) else list(map(int, prompt)) for prompt in given]
    if not found or not all(found):
        raise PromptError("each prompt must have at least one token, and there must be at least one prompt.")
    return found


def _expected(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int, limits: Limits) -> list[Expected]:
    """What Hugging Face says, as far as the context reaches."""
    for prompt in prompts:
        Scheduler(limits).check(Request(tuple(prompt)))
    return [expect(model, prompt, min(new_tokens, limits.ctx_len - len(prompt))) for prompt in prompts]


def _head_copies(retained: StatefulModule, graph: GraphSpec) -> int:
    """How often the program's states hold each head of keys."""
    pairs = zip(retained.plans, graph.states, strict=False)  # other numbers of them are refused by the session
    held = ((plan, state.tensor.shape[1]) for plan, state in pairs if plan.kind == "key" and plan.direct)
    return max((int(heads) // plan.shape[0] for plan, heads in held if plan.shape[0]), default=1)


@dataclass(frozen=True)
class Stage:
    """One rung: how to open a session of it."""

    name: str
    open: Callable[[bool], Session | None]
    """With True on a state of NaN, or None where that cannot be had."""
    truth: Truth


class Ladder:
    """The stages of one compiled program."""

    def __init__(
        self,
        model: Any,
        compiled: CompiledProgram,
        device: Device,
        expected: Sequence[Expected],
        stored: Truth | None = None,
        narrow: Truth | str | None = None,
    ) -> None:
        self._model, self._compiled, self._device = model, compiled, device
        self._truth = hugging_face(model, expected, TOLERANCES[compiled.program.dtype])
        self._stored, self._narrow = stored, narrow
        self._limits: dict[str, Limits] = {}
        self._program_stage = f"program on {device.name}"

    @cached_property
    def retained(self) -> StatefulModule:
        """The retained module over the weights of the reference; rolling where the program's states roll, with as many
        copies of heads."""
        retained = retain(twin(self._model), rolling=bool(self._graph.windows))
        return with_copied_heads(retained, _head_copies(retained, self._graph))

    @property
    def _graph(self) -> GraphSpec:
        return self._compiled.program.graphs["lm"].spec

    def stages(self) -> list[Stage]:
        stages = [Stage(MODULE, self._open_module, self._truth)]
        if self._stored is not None and self._compiled.program.dtype != "bfloat16":  # which it cannot read
            stages.append(Stage(EXPORTED, self._open_exported, self._truth))
        exact = self._device.exactly(self._compiled)
        if exact is not None:
            stages.append(self._program(f"{self._program_stage} ({EXACTLY})", exact))
        return [*stages, self._program(self._program_stage, self._compiled)]

    def _program(self, name: str, compiled: CompiledProgram) -> Stage:
        truth = (self._stored or self._truth).allowing(self._device.accuracy(compiled))
        return Stage(name, partial(self._open_program, compiled), truth)

    def _open_module(self, poison: bool = False, states: Mapping[str, np.ndarray] | None = None) -> ModuleSession:
        return ModuleSession(self.retained, self._graph, for_padded_calls(self._compiled).spec, poison, states)

    def _open_twin(self, states: Mapping[str, np.ndarray]) -> ModuleSession:
        return self._open_module(states=states)

    def _open_program(self, compiled: CompiledProgram, poison: bool = False) -> Session | None:
        if isinstance(self._device, ReferenceDevice):
            return self._open_exported(poison)
        return None if poison else self._device.load(compiled)

    def _open_exported(self, poison: bool = False) -> Session:
        return ReferenceDevice(poison).load(replace(for_padded_calls(self._compiled), device=ReferenceDevice.name))

    def report(self, start: float, progress: Progress) -> Report:
        results: list[StageResult] = []
        checks: list[Check] = []
        for stage in self.stages():
            progress(f"compare {stage.name}")
            results += self._compared(stage)
        if self._stored is not None:
            last = replace(self._program(self._program_stage, self._compiled), truth=self._truth)
            results += self._compared(last, is_judged=False)
        beside = self._compared_narrowly()
        for stage in self.stages():
            if stage.name == self._program_stage or self._model.num_parameters() <= CHEAP_PARAMETERS:
                progress(f"torture {stage.name}")
                checks += torture(self._bench(stage))
        asked = asdict(self._compiled.spec)
        spec = {name: value for name, value in asked.items() if value is not None and (value or name != "verbatim")}
        facts = self._compiled.program.model
        return Report(
            model=facts.source if facts.source != "object" else facts.name,
            device=self._device.name,
            dtype=self._compiled.program.dtype,
            geometry=spec,
            tolerance=self._truth.allowed.largest,
            results=[*results, *beside],
            checks=checks,
            parting=self._parting([*results, *beside], checks),
            seconds=round(time.perf_counter() - start, 1),
            versions=versions(),
            simulated=self._compiled.simulated,
            narrow=self._agreement(beside),
        )

    def _compared(self, stage: Stage, is_judged: bool = True) -> list[StageResult]:
        session, truth = stage.open(False), stage.truth
        assert session is not None
        with session:
            self._limits[stage.name] = with_fixed_blocks(session).limits
            found = forced_logits(session, truth.expected)
        allowed = truth.allowed if is_judged else None
        results = []
        for number, (e, logits) in enumerate(zip(truth.expected, found, strict=True)):
            comparison = truth.compare(e.logits, logits)
            results.append(StageResult(stage.name, number, len(e.prompt), comparison, truth.name, allowed))
        return results

    def _compared_narrowly(self) -> list[StageResult]:
        """The program beside the reference device in the precision that it computes in, where there is one."""
        if not isinstance(self._narrow, Truth):
            return []
        stage, allowed = self._program(self._program_stage, self._compiled), self._device.accuracy(self._compiled)
        return self._compared(replace(stage, truth=self._narrow.allowing(allowed)))

    def _agreement(self, beside: Sequence[StageResult]) -> Agreement | None:
        if isinstance(self._narrow, Truth):
            return agreement(self._narrow.name, [result.comparison for result in beside])
        name = reference_in(self._device.computes_in)
        return Agreement(name, reason=self._narrow) if self._narrow is not None else None

    def _bench(self, stage: Stage) -> Bench:
        rules = [plan.rule for plan in self.retained.plans if plan.kind == "key"]
        return Bench(
            stage=stage.name,
            open=stage.open,
            truth=stage.truth,
            limits=self._limits[stage.name],
            pool=sorted({token for e in stage.truth.expected for token in e.prompt}),
            windows=sorted({size for rule in rules for size in (rule.window, rule.chunk) if size}),
        )

    # where they part

    def _parting(self, results: Sequence[StageResult], checks: Sequence[Check]) -> str:
        """One clause about the first stage that fails: what it parts from, and where."""
        everything: list[StageResult | Check] = [*results, *checks]
        failed = [result for result in everything if result.passed is False]
        if not failed:
            return ""
        stage = next(stage for stage in self.stages() if any(r.stage == stage.name for r in failed))
        mine = [r for r in failed if r.stage == stage.name]
        if stage.truth.name == STORED:
            return f"{stage.name} parts from {STORED}: {mine[0].describe()}"
        other = "Hugging Face" if stage.name == MODULE else MODULE
        for tokens, singly in self._suspects(mine):
            place = self._located(stage, tokens, singly)
            if place is not None:
                return f"{stage.name} parts from {other} at {place.describe()}"
        return f"{stage.name} parts from {other}, but not when the same tokens run alone: {mine[0].describe()}"

    def _suspects(self, failed: Sequence[StageResult | Check]) -> list[tuple[tuple[int, ...], int]]:
        """Sequences to look at more closely, each with how many of its last tokens run one by one."""
        found = []
        for result in failed:
            if isinstance(result, StageResult):
                expected = self._truth.expected[result.prompt]
                found.append((expected.fed, len(expected.tokens) - 1))
            elif result.tokens:
                found.append((result.tokens, 2))
        return found[:3]

    def _located(self, stage: Stage, tokens: Sequence[int], singly: int) -> Place | None:
        if stage.name == MODULE:
            return locate_in_module(self._model, self._open_module(), tokens, singly)
        program = stage.open(False)
        assert program is not None
        with program:
            if not isinstance(program, SlottedSession):
                return None
            tolerance = max(STATE_TOLERANCE, stage.truth.near_tie)
            return locate_in_program(program, self._open_twin, self._graph, tokens, singly, tolerance)
