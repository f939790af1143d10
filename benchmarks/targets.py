"""What we want to reach, and whether a run has reached it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cases import BATCHES, CONTEXTS, OPEN, PREFILLS, Case
from benchmarks.samples import Metric, Spread, View


@dataclass(frozen=True)
class Target:
    """A ratio that is to be reached, or, without peers, a value that is not to be exceeded."""

    what: str
    ours: str
    case: Case
    metric: Metric
    wanted: float
    peers: tuple[str, ...] = ()
    """The best of these counts."""


@dataclass(frozen=True)
class Verdict:
    target: Target
    peer: str | None
    found: Spread | None

    @property
    def met(self) -> bool | None:
        """None if it was not measured."""
        if self.found is None:
            return None
        if self.target.peers:
            return self.found.median >= self.target.wanted
        return self.found.median <= self.target.wanted


ONE, _, FOUR, _, SIXTEEN, _ = BATCHES
PROMPT_512, LONG = PREFILLS[1], CONTEXTS[2]
Q4, Q8, F16 = "llama.cpp-q4_0", "llama.cpp-q8_0", "llama.cpp-f16"
OV4, OV8 = "openvino-genai-int4", "openvino-genai-int8"

TARGETS = (
    Target("decode, 1 sequence, 4 bits", "ours-int4", ONE, "decode", 1.2, (Q4,)),
    Target("decode, 1 sequence, 4 bits", "ours-int4", ONE, "decode", 1.3, (OV4,)),
    Target("decode, 4 sequences, 4 bits", "ours-int4", FOUR, "decode", 1.6, (Q4,)),
    Target("decode, 4 sequences, 4 bits", "ours-int4", FOUR, "decode", 1.3, (OV4,)),
    Target("decode, 1 sequence, 8 bits", "ours-int8", ONE, "decode", 1.2, (Q8,)),
    Target("prompt of 512, 4 bits", "ours-int4", PROMPT_512, "prefill", 1.6, (Q4, Q8, F16)),
    Target("prompt of 512, 8 bits", "ours-int8", PROMPT_512, "prefill", 1.6, (Q4, Q8, F16)),
    Target("decode, 16 sequences, 4 bits", "ours-int4", SIXTEEN, "decode", 1.7, (Q4,)),
    Target("decode, 16 sequences, 4 bits", "ours-int4", SIXTEEN, "decode", 1.0, (OV4,)),
    Target("decode, 16 sequences, 8 bits", "ours-int8", SIXTEEN, "decode", 1.7, (Q8,)),
    Target("decode, 16 sequences, 8 bits", "ours-int8", SIXTEEN, "decode", 1.0, (OV8,)),
    Target("decode behind 8,192 tokens, 4 bits", "ours-int4", LONG, "decode", 1.0, (Q4,)),
    Target("decode behind 8,192 tokens, 8 bits", "ours-int8", LONG, "decode", 1.0, (Q8,)),
    Target("engine beside the bare loop, 1 sequence, 4 bits", "ours-int4-engine", ONE, "decode", 0.97, ("ours-int4",)),
    Target("engine beside the bare loop, 16 sequences", "ours-int4-engine", SIXTEEN, "decode", 0.97, ("ours-int4",)),
    Target("engine beside the bare loop, 1 sequence, 8 bits", "ours-int8-engine", ONE, "decode", 0.97, ("ours-int8",)),
    Target("engine beside the bare loop, 16 sequences", "ours-int8-engine", SIXTEEN, "decode", 0.97, ("ours-int8",)),
    Target("seconds from open to first token, 4 bits", "ours-int4", OPEN, "first_token", 1.0),
    Target("seconds from open to first token, 8 bits", "ours-int8", OPEN, "first_token", 1.0),
    Target("resident bytes over weights and cache, 4 bits", "ours-int4", OPEN, "resident_ratio", 1.2),
    Target("resident bytes over weights and cache, 8 bits", "ours-int8", OPEN, "resident_ratio", 1.2),
)


def judge(view: View, target: Target) -> Verdict:
    if not target.peers:
        return Verdict(target, None, view.spread(target.ours, target.case, target.metric))
    best, best_speed = None, 0.0
    for peer in target.peers:
        speed = view.spread(peer, target.case, target.metric)
        if speed is not None and speed.median > best_speed:
            best, best_speed = peer, speed.median
    found = view.ratio(target.ours, best, target.case, target.metric) if best else None
    return Verdict(target, best, found)
