"""What a run brings, and what is computed from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cases import MEMORY, Case


@dataclass(frozen=True)
class Sample:
    """One engine, one case, one round."""

    shape: str
    engine: str
    case: str
    round: int
    values: Mapping[str, float]


@dataclass
class Results:
    """Everything that a run brought."""

    about: dict[str, Any] = field(default_factory=dict)
    """Date, command, machine, versions."""
    samples: list[Sample] = field(default_factory=list)
    facts: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """shape → engine → version, bytes, settings."""
    failures: list[str] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)
    """Bytes per second, measured before every round."""

    def save(self, path: Path) -> None:
        """A line for each sample: differences between two runs stay readable."""
        record = asdict(self)
        lines = ",\n".join("  " + json.dumps(sample) for sample in record.pop("samples"))
        head = json.dumps(record, indent=1)
        path.write_text(f'{head[:-2]},\n "samples": [\n{lines}\n ]\n}}\n')

    @classmethod
    def load(cls, path: Path) -> Results:
        record = json.loads(path.read_text())
        return cls(**{**record, "samples": [Sample(**sample) for sample in record["samples"]]})

    @property
    def bandwidth(self) -> float:
        return max(self.bandwidths, default=0.0)


@dataclass(frozen=True)
class Spread:
    """A median and what it lies between."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(median(values), min(values), max(values))


Metric = str
"""One of `DERIVED`, or a value of a sample as it is."""
DERIVED = ("decode", "prefill", "first_token", "resident_ratio")
"""Tokens per second, the same, seconds from open to first token, resident bytes over those of weights and cache."""


class View:
    """The samples of one shape, as metrics."""

    def __init__(self, results: Results, shape: str) -> None:
        self._results, self.shape = results, shape
        self._samples: dict[tuple[str, str], dict[int, Mapping[str, float]]] = {}
        for sample in results.samples:
            if sample.shape == shape:
                self._samples.setdefault((sample.engine, sample.case), {})[sample.round] = sample.values
        self.facts = results.facts.get(shape, {})

    def has(self, engine: str) -> bool:
        return any(name == engine for name, _ in self._samples)

    def by_round(self, engine: str, case: Case, metric: Metric) -> dict[int, float]:
        """Empty if there are no samples, or if the case does not time this."""
        found = self._samples.get((engine, case.name), {})
        values = {number: self._value(engine, case, metric, sample) for number, sample in found.items()}
        return {number: value for number, value in values.items() if value is not None}

    def spread(self, engine: str, case: Case, metric: Metric) -> Spread | None:
        values = list(self.by_round(engine, case, metric).values())
        return Spread.of(values) if values else None

    def ratio(self, ours: str, peer: str, case: Case, metric: Metric) -> Spread | None:
        """Ours over theirs, round by round: what slows the machine down for a while slows both."""
        own, other = self.by_round(ours, case, metric), self.by_round(peer, case, metric)
        ratios = [own[number] / other[number] for number in own.keys() & other.keys()]
        return Spread.of(ratios) if ratios else None

    def limit(self, engine: str, case: Case) -> float | None:
        """Tokens per second if a step took only as long as reading its weights, keys and values."""
        if engine not in self.facts or not case.tokens or not self._results.bandwidth:
            return None
        facts = self.facts[engine]
        context = case.context + 1 + case.tokens / 2
        read = facts["step_bytes"] + case.sequences * context * facts["kv_token_bytes"]
        return self._results.bandwidth / read * case.sequences

    def needed_bytes(self, engine: str) -> float:
        """Weights, and the keys and values of what has run when memory is read."""
        facts = self.facts[engine]
        return float(facts["weight_bytes"] + (MEMORY.context + MEMORY.tokens) * facts["kv_token_bytes"])

    def _value(self, engine: str, case: Case, metric: Metric, values: Mapping[str, float]) -> float | None:
        if metric == "decode" and "decode_seconds" in values:
            return case.sequences * values["tokens"] / values["decode_seconds"]
        if metric == "prefill" and case.sequences == 1 and "prefill_seconds" in values:
            return case.context / values["prefill_seconds"]
        if metric == "first_token" and "open_seconds" in values:
            return values["open_seconds"] + values["first_token_seconds"]
        if metric == "resident_ratio" and "resident" in values:
            return values["resident"] / self.needed_bytes(engine)
        return values.get(metric)
