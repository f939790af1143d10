"""`numerics`: what float16, MXFP6 weights and an MXINT8 cache do to a model, layer by layer, and what helps.

1. read       the text, as tokens
2. measure    every tensor of the program in float32, and its twin in float16
3. compare    each format by itself, at the end of each layer; perplexities of the formats together
4. propose    nodes that stay in fp32, tried out until float16 is as good as float32, or nothing helps any more
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from QEfficient.artifacts import ArtifactStore
from QEfficient.demo import held_out_text
from QEfficient.devices import Session, get_device
from QEfficient.devices.cloud_ai_100.graph.half_range import LARGEST
from QEfficient.devices.cloud_ai_100.graph.prepared import for_half
from QEfficient.devices.cloud_ai_100.numerics.card_graph import Format
from QEfficient.devices.cloud_ai_100.numerics.flat import FlatGraph
from QEfficient.devices.cloud_ai_100.numerics.measures import Measure
from QEfficient.devices.cloud_ai_100.numerics.microscaling import BLOCK
from QEfficient.devices.cloud_ai_100.numerics.parts import Parts, find_parts
from QEfficient.devices.cloud_ai_100.numerics.proposal import LOST, Advisor, Proposal, Reason, ordered
from QEfficient.devices.cloud_ai_100.numerics.session import CardSession, all_tokens
from QEfficient.errors import OptionError, PromptError
from QEfficient.program import ExportedProgram, GraphSpec
from QEfficient.specs import CompileSpec
from QEfficient.transformers.models.stages import compile_program
from QEfficient.verification.perplexity import perplexity

ROLE = "lm"
TOLERANCE = 0.005
"""Of a perplexity: more is a loss that a proposal has to make good."""
ROUNDS = 8
"""In which a proposal grows."""
SMALL, SENSITIVE = (LOST, 0.002), (0.1, 0.03, 0.01)
"""Losses at the lower end of float16, and errors, of what is suspected, the largest first."""
SHORTEST, ENOUGH = 2, 256
"""Tokens of a text: of which there is a perplexity at all, and of which it begins to say something."""
FLOAT32, FLOAT16, WITH_FILE = "float32", "float16", "float16 + file"
PREPARED = "float32, as compiled"
"""With what is changed for float16 before the compiler sees it: tables of positions, norms, epsilons."""
COMPILED, COMPILED_WITHOUT = "float16 + file, compiled", "float16, compiled"
ALONE = {"float16": Format(half=True), "MXFP6": Format(mxfp6=True), "MXINT8": Format(mxint8=True)}
TOGETHER = {
    "float16 + MXFP6": Format(half=True, mxfp6=True),
    "float16 + MXINT8": Format(half=True, mxint8=True),
    "float16 + MXFP6 + MXINT8": Format(half=True, mxfp6=True, mxint8=True),
}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Text:
    """What is read."""

    tokens: Sequence[int]
    first: int | None
    """The token that every window begins with."""
    source: str


@dataclass(frozen=True)
class Row:
    """One part of the model."""

    name: str
    largest: float
    tensor: str
    """The one that has it."""
    overflows: int
    """Tensors beyond float16."""
    squared: float
    """The largest number that is squared."""
    lost: int
    """Tensors with rows that float16 loses at its lower end."""
    errors: Mapping[str, float]
    """What each format alone does to the part's last tensor, as a part of its RMS."""
    kept: int
    """Nodes proposed."""


@dataclass(frozen=True)
class Findings:
    """Everything that was found."""

    model: str
    text: Text
    ctx_len: int
    chunk: int
    rows: Sequence[Row]
    perplexities: Mapping[str, float]
    proposal: Proposal
    places: Mapping[str, str]
    """The part of each proposed node."""
    beyond: Mapping[str, float] = field(default_factory=dict)
    """Weights that the compiler refuses, since float16 does not hold them, with the largest magnitude in each."""
    refusal: str = ""
    """Why the compiler would not have the program, if it was asked."""
    remarks: Sequence[str] = field(default=())

    @property
    def is_short(self) -> bool:
        """Whether the text is too short to prove anything."""
        return len(self.text.tokens) < ENOUGH

    @property
    def helps(self) -> bool:
        """Whether float16 with the proposal is as good as float32, compiled too where that was asked for."""
        found = [self.perplexities.get(WITH_FILE, self.perplexities[FLOAT16])]
        found += [] if self.compiled is None else [self.compiled]
        return all(is_near(each, self.perplexities[FLOAT32]) for each in found)

    @property
    def compiled(self) -> float | None:
        """The perplexity of the compiled program, if there is one."""
        return self.perplexities.get(COMPILED, self.perplexities.get(COMPILED_WITHOUT))

    def to_json(self) -> dict[str, Any]:
        """Numbers that are none become null."""
        nodes = [{"node": node, "part": self.places[node], **asdict(why)} for node, why in self.proposal.items()]
        record = {
            "model": self.model,
            "text": {"source": self.text.source, "tokens": len(self.text.tokens)},
            "ctx_len": self.ctx_len,
            "prefill_seq_len": self.chunk,
            "parts": [asdict(row) for row in self.rows],
            "perplexity": dict(self.perplexities),
            "proposal": nodes,
            "beyond_float16": dict(self.beyond),
            "refusal": self.refusal or None,
            "recovered": self.helps,
            "remarks": list(self.remarks),
        }
        cleaned: dict[str, Any] = _without_nan(record)
        return cleaned


def is_near(found: float, wanted: float) -> bool:
    """Whether a perplexity is no worse than another, but for the tolerance."""
    return abs(found - wanted) <= TOLERANCE * wanted


def examine(
    program: ExportedProgram, text: Text, spec: CompileSpec, progress: Progress = lambda stage: None
) -> Findings:
    """Measure a program that was exported in float32."""
    if program.dtype != "float32":
        raise OptionError(
            f"{program.model.name} was exported in {program.dtype}, but formats are compared with float32, and only in"
            " a float32 program can nodes stay in fp32: the compiler converts it to float16 itself. Leave dtype out."
        )
    graph = program.graphs[ROLE].spec
    with TemporaryDirectory(prefix="qefficient-numerics-") as scratch:
        path = for_half(program.onnx_path(ROLE), Path(scratch), spec.specializations(graph.windows))
        return _Examination(program, text, spec, FlatGraph(path, all_tokens(graph)), progress).findings()


class _Examination:
    def __init__(
        self, program: ExportedProgram, text: Text, spec: CompileSpec, flat: FlatGraph, progress: Progress
    ) -> None:
        self._program, self._text, self._spec, self._flat, self._progress = program, text, spec, flat, progress
        self._graph: GraphSpec = program.graphs[ROLE].spec
        self._parts: Parts = find_parts(self._flat, {state.input.name: state.layer for state in self._graph.states})
        self._perplexities: dict[str, float] = {}
        self._in_vain: tuple[int, float] | None = None
        """Nodes that were tried in fp32 and did not help, and the perplexity with them."""

    def findings(self) -> Findings:
        self._plain(FLOAT32, Format(), FlatGraph(self._program.onnx_path(ROLE), all_tokens(self._graph)))
        self._plain(PREPARED, Format())
        measures = {name: self._measured(name) for name in ALONE}
        for name, asked in TOGETHER.items():
            self._plain(name, asked)
        proposal = self._settled(measures[FLOAT16])
        owners = {self._flat.owner(node): self._parts.of_node[node.output[0]] for node in self._flat.nodes}
        places = {node: self._parts.name(owners[node]) for node in proposal}
        return Findings(
            model=self._program.model.source or self._program.model.name,
            text=self._text,
            ctx_len=self._spec.ctx_len,
            chunk=self._spec.prefill_seq_len,
            rows=list(self._rows(measures, list(places.values()))),
            perplexities=self._perplexities,
            proposal=proposal,
            places=places,
            beyond=self._beyond(),
            remarks=list(self._remarks(measures[FLOAT16])),
        )

    # runs

    def _plain(self, name: str, asked: Format, flat: FlatGraph | None = None) -> float:
        self._progress(f"run in {name}")
        with CardSession(flat or self._flat, self._graph, self._spec, asked) as session:
            self._perplexities[name] = found = perplexity_of(session, self._text)
        return found

    def _measured(self, name: str) -> dict[str, Measure]:
        """In float16 all tensors; what other formats do is seen at the ends of the parts."""
        asked = ALONE[name]
        names = self._flat.measurable if asked.half else list(dict.fromkeys(self._parts.last.values()))
        found, measures = self._tried(name, asked, names)
        self._perplexities[name] = found
        return measures

    def _tried(self, name: str, asked: Format, names: Sequence[str]) -> tuple[float, dict[str, Measure]]:
        self._progress(f"measure in {name}")
        session = CardSession(self._flat, self._graph, self._spec, asked, names)
        with session:
            return perplexity_of(session, self._text), session.measures()

    # the proposal

    def _settled(self, measures: dict[str, Measure]) -> Proposal:
        """What is out of range; then, as long as that is not enough, more of what could be the reason. Nothing, if
        nothing helps."""
        wanted, found = self._perplexities[PREPARED], self._perplexities[FLOAT16]
        needed, best = dict[str, Reason](), found
        proposal = dict(Advisor(self._flat, measures).out_of_range())
        if proposal:
            found, measures = self._with(proposal)
            if _is_no_worse(found, best, wanted):  # or as good: another text may go further
                needed, best = dict(proposal), found
        for _ in range(ROUNDS):
            if is_near(found, wanted) or not math.isfinite(wanted):
                break
            more = self._more(Advisor(self._flat, measures), proposal)
            if not more:
                break
            proposal |= more
            found, measures = self._with(proposal)
            if _is_nearer(found, best, wanted):
                needed, best = dict(proposal), found
        if needed:
            self._perplexities[WITH_FILE] = best
            names = Format(half=True, mxfp6=True, mxint8=True, fp32=frozenset(needed))
            self._plain(f"{WITH_FILE} + MXFP6 + MXINT8", names)
        elif proposal:
            self._in_vain = len(proposal), found
        return ordered(self._flat, needed)

    def _with(self, proposal: Mapping[str, Reason]) -> tuple[float, dict[str, Measure]]:
        asked = Format(half=True, fp32=frozenset(proposal))
        return self._tried(f"float16 with {len(proposal)} nodes in fp32", asked, self._flat.measurable)

    def _more(self, advisor: Advisor, proposal: Mapping[str, Reason]) -> dict[str, Reason]:
        """The first of the usual suspects that are not in the proposal yet."""
        for suspects in _suspects(advisor):
            more = {node: reason for node, reason in suspects.items() if node not in proposal}
            if more:
                return more
        return {}

    # what is told

    def _rows(self, measures: Mapping[str, Mapping[str, Measure]], places: Sequence[str]) -> Iterator[Row]:
        half = measures[FLOAT16]
        advisor = Advisor(self._flat, half)
        squared, lost = advisor.squared(), set(advisor.lost())
        for part in self._parts.numbers:
            names = [n for n in half if self._parts.of_node[self._flat.producers[n].output[0]] == part]
            if not names:
                continue
            reaches = {name: advisor.reach(name) for name in names}
            tensor = max(reaches, key=lambda name: reaches[name])
            last = self._parts.last.get(part, "")
            yield Row(
                name=self._parts.name(part),
                largest=reaches[tensor],
                tensor=tensor,
                overflows=sum(not reach <= LARGEST for reach in reaches.values()),
                squared=max((squared[name] for name in names if name in squared), default=0.0),
                lost=len(lost.intersection(names)),
                errors={name: found[last].error for name, found in measures.items() if last in found},
                kept=places.count(self._parts.name(part)),
            )

    def _beyond(self) -> dict[str, float]:
        """Constants that float16 does not hold. Minus infinity it does: it is what hides scores."""
        found = {}
        for name in self._flat.constants:
            value = self._flat.value(name)
            largest = float(np.abs(value).max(initial=0.0, where=value != -np.inf))
            if not largest <= LARGEST:
                found[name] = largest
        return found

    def _remarks(self, half: Mapping[str, Measure]) -> Iterator[str]:
        exported, prepared = self._perplexities[FLOAT32], self._perplexities[PREPARED]
        if not is_near(prepared, exported):
            yield (
                f"what is changed for float16 before compiling (an epsilon is raised to what float16 has) alone makes"
                f" the perplexity {prepared:.3f} in float32, which was {exported:.3f}; no file changes that."
            )
        for state in self._graph.states:
            measure = half.get(state.output.name)
            if measure is not None and not measure.largest <= LARGEST:
                yield (
                    f"{state.input.name} reaches {measure.largest:,.0f}: the cache is float16 on the card, and no file"
                    " changes that."
                )
        if self._in_vain is not None:
            count, found = self._in_vain
            yield f"{count} nodes were tried in fp32, in vain: the perplexity is {found:.3f} with them."
        widths = {state.tensor.shape[-1] for state in self._graph.states if state.kind in ("key", "value")}
        uneven = sorted(width for width in widths if isinstance(width, int) and width % BLOCK)
        if uneven:
            yield (
                f"the compiler takes an MXINT8 cache in whole blocks of {BLOCK} only, and heads here have {uneven[0]}:"
                " its figures are an estimate."
            )


def _suspects(advisor: Advisor) -> Iterator[Proposal]:
    yield advisor.overflowing()
    for threshold in SMALL:
        yield advisor.too_small(threshold)
    for threshold in SENSITIVE:
        yield advisor.sensitive(threshold)


def _is_nearer(found: float, best: float, wanted: float) -> bool:
    """Whether more nodes in fp32 were worth it: half of the way, or the first number at all."""
    if not math.isfinite(found):
        return False
    return not math.isfinite(best) or abs(found - wanted) <= abs(best - wanted) / 2


def _is_no_worse(found: float, before: float, wanted: float) -> bool:
    if not math.isfinite(found):
        return False
    return is_near(found, wanted) or not math.isfinite(before) or abs(found - wanted) <= abs(before - wanted)


def perplexity_of(session: Session, text: Text) -> float:
    """NaN or infinite where the formats leave nothing of the model."""
    with np.errstate(all="ignore"):
        try:
            return perplexity(session, text.tokens, session.limits.ctx_len, text.first)
        except OverflowError:
            return math.inf


def compiled_perplexity(
    program: ExportedProgram, text: Text, spec: CompileSpec, options: Mapping[str, Any]
) -> tuple[float, bool]:
    """On the device, and whether that was a simulated one."""
    device = get_device("cloud_ai_100")
    compiled = compile_program(program, replace(spec, device_options=options), device, ArtifactStore())
    with device.load(compiled) as session:
        return perplexity_of(session, text), bool(compiled.report.get("simulated"))


def check_length(most: int) -> None:
    """Refuse to read fewer tokens than a perplexity is of, whatever the text."""
    if most < SHORTEST:
        raise OptionError(
            f"{most} token is to be read (--tokens), but a perplexity needs at least {SHORTEST}: ask for more."
        )


def read_text(program: ExportedProgram, text: str | None, most: int) -> Text:
    """The given text, or the one that comes with the demo; random tokens for a model without a tokenizer."""
    check_length(most)
    if not program.has_tokenizer:
        if text is not None:
            raise PromptError("a text was given, but the model has no tokenizer beside it. Leave the text out.")
        tokens = np.random.default_rng(0).integers(0, program.model.vocab_size, most).tolist()
        return Text(tokens, None, "random tokens: the model has no tokenizer")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(program.folder / "tokenizer")
    source = "the demo's held-out text" if text is None else "the given text"
    whole = held_out_text() if text is None else text
    tokens = tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"][:most]
    if len(tokens) < SHORTEST:
        raise PromptError(f"the text has {len(tokens)} tokens, but a perplexity needs at least {SHORTEST}.")
    first = program.model.bos_token_id
    return Text(tokens, first if first is not None and 0 <= first < program.model.vocab_size else None, source)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list) else value
