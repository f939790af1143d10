"""What a stage is compared with: Hugging Face, or the reference device with the weights that a device keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from QEfficient.devices import Accuracy, Device
from QEfficient.devices.reference import ReferenceDevice
from QEfficient.program import CompiledProgram
from QEfficient.verification.comparison import NEAR_TIE, TOLERANCE, Comparison, compare
from QEfficient.verification.eager import Expected, all_logits
from QEfficient.verification.forced import greedy, logits_at
from QEfficient.verification.report import HUGGING_FACE
from QEfficient.verification.steering import for_padded_calls

STORED = "the reference device with the same stored weights"

Logits = Callable[[tuple[int, ...], Sequence[int]], np.ndarray]
"""Tokens and positions among them → logits `[positions, vocabulary]`."""


@dataclass(frozen=True)
class Truth:
    """Where the expected tokens and logits come from, and how near others have to come to them."""

    name: str
    expected: Sequence[Expected]
    logits: Logits
    allowed: Accuracy = Accuracy()
    """How near to them is near enough."""

    @property
    def near_tie(self) -> float:
        """Logits that are closer than this are equally good: what is exact in float32 decides ties by its last bits,
        anything else by the errors that two logits usually have."""
        return NEAR_TIE if self.allowed.largest <= TOLERANCE else min(2 * self.allowed.typical, self.allowed.largest)

    def allowing(self, accuracy: Accuracy) -> Truth:
        """The same for a device that is no more exact than this."""
        return self if accuracy.largest <= self.allowed.largest else replace(self, allowed=accuracy)

    def compare(self, expected: np.ndarray, found: np.ndarray, is_long: bool = True) -> Comparison:
        """Judge logits `[steps, vocabulary]`; few steps have nothing typical."""
        typical = self.allowed.typical if is_long else math.inf
        return compare(expected, found, self.allowed.largest, self.near_tie, typical, self.allowed.outliers)


def hugging_face(model: Any, expected: Sequence[Expected], tolerance: float) -> Truth:
    """`expected` is what this model says."""
    rows = cache(lambda tokens: all_logits(model, tokens))
    return Truth(HUGGING_FACE, expected, lambda tokens, at: rows(tokens)[list(at)], Accuracy(tolerance, tolerance))


@contextmanager
def stored_weights(device: Device, compiled: CompiledProgram, expected: Sequence[Expected]) -> Iterator[Truth | None]:
    """What the reference device makes of the prompts of `expected` with the weights that the compiled form holds; None
    where these are the exported weights."""
    with TemporaryDirectory(prefix="qefficient-") as folder:
        program = device.stored_program(compiled, Path(folder))
        if program is None:
            yield None
            return
        judged = replace(for_padded_calls(compiled), device=ReferenceDevice.name, program=program)
        with ReferenceDevice().load(judged) as session:
            yield Truth(STORED, greedy(session, expected), lambda tokens, at: logits_at(session, tokens, at))
