"""The matrix: a tiny model of every causal type, through export and a device, against Hugging Face.

Each type runs twice: three prompts of different lengths in a static batch of three, and through continuous batching in
two slots (whose state starts as NaN on the reference device). Both prefill in chunks of six tokens, in a context that
was not traced with. Where the device keeps other weights, the reference device with these weights stands in for Hugging
Face, and `stated` is what is as near to it as the device says. Where the device computes in another precision than
float32, it is also compared with the reference device in that one.
"""

from __future__ import annotations

import logging
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers

from QEfficient.devices import Device, device_class, get_device
from QEfficient.devices.reference import ReferenceDevice
from QEfficient.errors import QEfficientError
from QEfficient.program import CompiledProgram, load_compiled, place_name
from QEfficient.transformers.loading import open_source
from QEfficient.transformers.models.causal_lm import QEFFAutoModelForCausalLM
from QEfficient.transformers.models.stages import versions
from QEfficient.verification.comparison import TOLERANCE, Agreement, Comparison, agreement, percent
from QEfficient.verification.eager import Expected, expect
from QEfficient.verification.forced import forced_logits
from QEfficient.verification.narrow_reference import WIDE, Original, narrow_reference, reference_in
from QEfficient.verification.tiny_models import causal_types, prompts, tiny_model
from QEfficient.verification.truth import Truth, hugging_face, stored_weights
from QEfficient.verification.workers import Failure, run_each

LEVELS = ("exact", "stated", "close", "wrong", "refused", "crashed")
NEW_TOKENS = 24
CLOSE = 2e-2
"""Largest error, as a part of the spread of the logits, that is still called close."""
GEOMETRY: Mapping[str, Any] = {"prefill_seq_len": 6, "ctx_len": 56}
ALONE: Mapping[str, Any] = {"num_threads": 1, "num_cores": 2}
"""Of devices that have such options: several types run at a time, on one machine and one card."""
JUDGE = ReferenceDevice.name
WAYS: Mapping[str, Mapping[str, Any]] = {
    "static batch": {"batch_size": 3},
    "continuous batching": {"full_batch_size": 2},
}
TIMEOUT = 300.0
COLUMNS = ("type", "level", "state", "error", "seconds")
STATED = ("`stated`: as near as the device says to Hugging Face or, with weights of its own, to the reference device.",)


@dataclass(frozen=True)
class Outcome:
    """How far one model type comes."""

    model_type: str
    level: str
    """One of `LEVELS`: refused is an error that says why, crashed one that does not."""
    states: str = ""
    """How its layers keep their state: `1 rolling attention, 1 attention`."""
    seconds: float = 0.0
    reason: str = ""
    """Why it is not exact, in one line; of an exact type what is worth knowing."""
    error: float | None = None
    """Largest logit error, as a part of the spread of the logits."""
    narrow: Agreement | None = None
    """With the reference device in the device's own precision; None where that is float32."""


@dataclass(frozen=True)
class Judgement:
    """What is compared with what is true for a device, and with the reference device in its precision."""

    forms: Mapping[str, list[Comparison]]
    """By what tells a form of the program from others."""
    narrow: list[Comparison] | str | None
    """A text says why there is nothing to compare with."""


def run(
    types: Sequence[str] | None = None,
    output: Path | None = Path("docs/models.md"),
    jobs: int = 2,
    progress: Callable[[Outcome], None] = lambda outcome: None,
    timeout: float = TIMEOUT,
    device: str = JUDGE,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> list[Outcome]:
    """Check `types` (default all), `jobs` at a time, each in a process of its own; write a table to `output`.

    `options` are the device's own. With `jobs=0` in this process. `progress` is called with each outcome as it comes.
    """
    wanted = list(types if types is not None else causal_types())
    here = ((item, check_type(item, device, options)) for item in wanted)
    results = (
        here if jobs == 0 else run_each(partial(_work, device=device, options=dict(options)), wanted, jobs, timeout)
    )
    found = {}
    for item, result in results:
        found[item] = Outcome(item, "crashed", reason=result.reason) if isinstance(result, Failure) else result
        progress(found[item])
    outcomes = [found[item] for item in wanted]
    if output is not None:
        output.write_text(to_markdown(outcomes, device), encoding="utf-8")
    return outcomes


def _work(model_type: str, device: str, options: Mapping[str, Any]) -> Outcome:
    """One type in a worker: one thread, and no remarks of libraries."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    return check_type(model_type, device, options)


def check_type(model_type: str, device: str = JUDGE, options: Mapping[str, Any] = MappingProxyType({})) -> Outcome:
    """Build the tiny model, run it both ways, and judge."""
    start = time.perf_counter()
    try:
        outcome = _checked(model_type, device, options)
    except QEfficientError as error:
        outcome = Outcome(model_type, "refused", reason=_one_line(error))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).stem}:{place.lineno}"
        outcome = Outcome(model_type, "crashed", reason=f"{type(error).__name__} at {where}: {_one_line(error)}")
    return replace(outcome, seconds=round(time.perf_counter() - start, 1))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:299]}…"


def _checked(model_type: str, device: str, options: Mapping[str, Any]) -> Outcome:
    model = tiny_model(model_type)
    expected = [expect(model, prompt, NEW_TOKENS) for prompt in prompts(model)]
    original = Original(open_source(model, transformers.AutoModelForCausalLM, {}), model)
    found: dict[str, list[Comparison]] = {}
    narrow: dict[str, list[Comparison] | str | None] = {}
    outcome = Outcome(model_type, "")
    for way, geometry in WAYS.items():
        kind = device_class(device)
        threads = {name: value for name, value in ALONE.items() if name in kind.options}
        asked = {**geometry, **threads, **kind.in_small_pieces, **options, "device": device}
        with tempfile.TemporaryDirectory(prefix="qefficient-") as folder:
            compiled = _compiled(model, asked, Path(folder))
            states, note = _states(compiled)
            outcome = replace(outcome, states=states, reason=note)
            judgement = _compared(compiled, original, expected)
            found |= {way + form: comparisons for form, comparisons in judgement.forms.items()}
            narrow[way] = judgement.narrow
    outcome = replace(outcome, narrow=_agreement(device_class(device).computes_in, list(narrow.values())))
    return _judged(outcome, found, narrow, expected)


def _agreement(dtype: str, found: Sequence[list[Comparison] | str | None]) -> Agreement | None:
    if dtype == WIDE:
        return None
    reason = next((one for one in found if isinstance(one, str)), None)
    if reason is not None:
        return Agreement(reference_in(dtype), reason=reason)
    return agreement(reference_in(dtype), [c for one in found if isinstance(one, list) for c in one])


def _compiled(model: Any, geometry: Mapping[str, Any], folder: Path) -> CompiledProgram:
    wrapped = QEFFAutoModelForCausalLM(model, continuous_batching="full_batch_size" in geometry)
    wrapped.export(folder / "exported")
    return load_compiled(wrapped.compile(compile_dir=folder / "compiled", **geometry, **GEOMETRY))


def _compared(compiled: CompiledProgram, original: Original, expected: Sequence[Expected]) -> Judgement:
    """The prompts, in each form in which the program is held against something."""
    slots = compiled.spec.continuous_batching
    device = ReferenceDevice(poison=slots) if compiled.device == JUDGE else get_device(compiled.device)
    exact = device.exactly(compiled)
    eager = hugging_face(original.model, expected, TOLERANCE)
    with stored_weights(device, compiled, expected) as stored:
        forms = {"": compiled, " (nothing else rounded)": exact}
        found = {name: _forced(device, form, stored or eager) for name, form in forms.items() if form is not None}
    asked = (device, compiled.spec, original, expected, ALONE["num_threads"], compiled)
    with narrow_reference(*asked) as narrow:
        told = _forced(device, compiled, narrow) if isinstance(narrow, Truth) else narrow
    return Judgement(found, told)


def _forced(device: Device, compiled: CompiledProgram, truth: Truth) -> list[Comparison]:
    truth = truth.allowing(device.accuracy(compiled))
    with device.load(compiled) as session:
        logits = forced_logits(session, truth.expected)
    return [truth.compare(e.logits, own) for e, own in zip(truth.expected, logits, strict=True)]


def _states(compiled: CompiledProgram) -> tuple[str, str]:
    """How its layers keep their state, and what the export had to say about it."""
    ways = compiled.program.report.get("states", {})
    states = ", ".join(f"{count} {way}" for way, count in ways.items() if isinstance(count, int))
    taken = Counter(compiled.report.get("layers", {}).values())
    if taken:
        states += " as " + ", ".join(f"{count} {way}" for way, count in taken.items())
    return states, str(ways.get("reason", ""))


def _judged(
    outcome: Outcome,
    found: Mapping[str, list[Comparison]],
    narrow: Mapping[str, list[Comparison] | str | None],
    expected: Sequence[Expected],
) -> Outcome:
    """Level and reason, from the comparisons of each way."""
    named = _named(found, expected)
    outcome = replace(outcome, error=max(c.relative_error for _, c in named))
    beside = f" against {outcome.narrow.against}" if outcome.narrow else ""
    others = _named({way + beside: one for way, one in narrow.items() if isinstance(one, list)}, expected)
    failed = [(name, c) for name, c in (*named, *others) if not c.passed]
    if not failed:
        is_exact = outcome.error is not None and outcome.error <= TOLERANCE
        every = [c for _, c in named]
        remarks = (outcome.reason, _ties(every), "" if is_exact else _distance(every))
        return replace(outcome, level="exact" if is_exact else "stated", reason="; ".join(filter(None, remarks)))
    if all(c.relative_error < CLOSE and c.worst_gap < CLOSE for _, c in failed):
        return replace(outcome, level="close", reason=_close([c for _, c in named]))
    name, worst = failed[0]
    return replace(outcome, level="wrong", reason=f"{name}: {worst.describe()}")


def _named(found: Mapping[str, list[Comparison]], expected: Sequence[Expected]) -> list[tuple[str, Comparison]]:
    return [
        (f"{way}, prompt of {len(e.prompt)}", c)
        for way, comparisons in found.items()
        for e, c in zip(expected, comparisons, strict=True)
    ]


def _ties(comparisons: Sequence[Comparison]) -> str:
    ties = sum(c.ties for c in comparisons)
    return f"{ties} of {sum(c.steps for c in comparisons)} steps are ties of two tokens" if ties else ""


def _close(comparisons: Sequence[Comparison]) -> str:
    error = percent(max(c.relative_error for c in comparisons))
    gap = max(c.worst_gap for c in comparisons)
    tokens = f"tokens differ only where two are within {percent(gap)} of the spread" if gap else "all tokens equal"
    return f"{tokens}; logits off by up to {error} of the spread"


def _distance(comparisons: Sequence[Comparison]) -> str:
    error, usual = (percent(max(errors)) for errors in zip(*map(_errors, comparisons), strict=True))
    outliers = sum(c.outliers for c in comparisons)
    more = f", {outliers} of {sum(c.steps for c in comparisons)} steps are outliers" if outliers else ""
    return f"logits off by up to {error} of the spread, usually {usual}{more}"


def _errors(comparison: Comparison) -> tuple[float, float]:
    return comparison.relative_error, comparison.typical_error


def to_markdown(outcomes: Sequence[Outcome], device: str = JUDGE) -> str:
    """The table, with a line that sums it up."""
    counts = {level: sum(o.level == level for o in outcomes) for level in LEVELS}
    summary = ", ".join(f"{count} {level}" for level, count in counts.items() if count)
    where = place_name(device, device_class(device).simulated())
    libraries = (f"{name} {version}" for name, version in versions().items())
    used = ", ".join(filter(None, (*libraries, device_class(device).version())))
    narrow = [o.narrow for o in outcomes if o.narrow is not None]
    titles = [*COLUMNS, *([f"as {narrow[0].against}"] if narrow else []), "reason"]
    lines = [
        "# Causal language models",
        "",
        "Written by `qefficient models --test`: a tiny random model of every type goes through export and the",
        f"{where} device, and is compared with Hugging Face over {NEW_TOKENS} greedy tokens of three prompts, as a",
        "static batch and with continuous batching in two slots, prefilled in chunks of "
        f"{GEOMETRY['prefill_seq_len']}.",
        *(STATED if counts["stated"] else ()),
        *(_summed(narrow) if narrow else ()),
        "",
        f"**{len(outcomes)} types: {summary}.** Versions: {used}.",
        "",
        f"| {' | '.join(titles)} |",
        "|---" * len(titles) + "|",
    ]
    return "\n".join([*lines, *(_row(outcome, bool(narrow)) for outcome in outcomes)]) + "\n"


def _summed(narrow: Sequence[Agreement]) -> list[str]:
    """What the column of the reference device in another precision says, and its sum."""
    there = [one for one in narrow if not one.reason]
    same, prompts = sum(one.same for one in there), sum(one.prompts for one in there)
    ties, steps = sum(one.ties for one in there), sum(one.steps for one in there)
    whole = sum(one.same == one.prompts for one in there)
    outliers = sum(one.outliers for one in there)
    return [
        f"`as {narrow[0].against}`: of how many prompts all greedy tokens are the same, each device",
        "choosing for itself (where steps are ties, two tokens are so near that either may be chosen), and the largest",
        f"distance of two logits. {same} of {prompts} prompts are continued alike,",
        f"all of {whole} of {len(there)} types; of {steps} steps {ties} are ties, {outliers} outliers.",
    ]


def _row(outcome: Outcome, has_narrow: bool = False) -> str:
    error = "" if outcome.error is None else f"{outcome.error:.0e}"
    cells = [outcome.model_type, outcome.level, outcome.states, error, f"{outcome.seconds:.1f}"]
    cells += [_beside(outcome.narrow)] if has_narrow else []
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in [*cells, outcome.reason]) + " |"


def _beside(narrow: Agreement | None) -> str:
    if narrow is None or narrow.error is None:
        return narrow.reason if narrow else ""
    return f"{narrow.same} of {narrow.prompts}{narrow.others}; {percent(narrow.error)}"
