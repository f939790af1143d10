"""What is measured: sequences, tokens before, tokens after."""

from __future__ import annotations

from dataclasses import dataclass

STEPS = 32
"""Tokens of each sequence whose time is taken."""


@dataclass(frozen=True)
class Case:
    """`sequences` prompts of `context` tokens, then `tokens` more of each. The prompts' time is taken as well."""

    sequences: int
    context: int
    tokens: int = STEPS
    most_rounds: int | None = None
    fresh: bool = False
    """In a process of its own: opening, the first token, memory."""

    @property
    def name(self) -> str:
        return "open" if self.fresh else f"{self.sequences}x{self.context}"

    @property
    def room(self) -> int:
        """Tokens that an engine must have room for, with some to spare for steps that are not timed."""
        return self.sequences * (self.context + self.tokens + 32)


OPEN = Case(1, 16, 0, fresh=True)
MEMORY = Case(1, 128, 16)
"""What a fresh process runs after its first token, before its memory is read."""
BATCHES = tuple(Case(count, 128) for count in (1, 2, 4, 8, 16, 32))
PREFILLS = (BATCHES[0], Case(1, 512, 0), Case(1, 2048), Case(1, 8192, most_rounds=3))
CONTEXTS = (BATCHES[0], PREFILLS[2], PREFILLS[3])
CASES = (*BATCHES, *PREFILLS[1:], OPEN)
QUICK = (BATCHES[0], BATCHES[2], PREFILLS[1], OPEN)

MOST_SEQUENCES = max(case.sequences for case in CASES)
MOST_TOKENS = max(case.room for case in CASES)
LONGEST = max(case.room // case.sequences for case in CASES)


def named_cases(names: list[str]) -> tuple[Case, ...]:
    """The cases of these names, in the order in which they run."""
    known = {case.name: case for case in CASES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"there is no case {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(case for case in CASES if case.name in names)
