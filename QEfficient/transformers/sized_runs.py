"""Runs of a retained module on sizes alone: no numbers are there, and none are computed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from QEfficient.errors import first_line
from QEfficient.transformers.retained_module import RetainedModule
from QEfficient.transformers.retained_state import RetainedCache, StatePlan

FAILURES = "torch._subclasses.fake_tensor"
"""Who logs a traceback for an operator whose sizes do not go together, beside the error that it raises."""


class UnreadCache(RetainedCache):
    """States that are neither written nor read: what comes back has the right sizes."""

    def _written(self, kind: str, layer: int, new: torch.Tensor) -> torch.Tensor:
        _, heads, slots, width = self.before[kind, layer, 0].shape
        return new.new_empty((new.shape[0], heads, slots, width))

    def attend(self, query, key, value, mask, scale, softcap, sinks):  # type: ignore[no-untyped-def]
        self._pending.pop(self._fresh[id(key)][0], None)
        return query.new_empty((*query.shape[:3], value.shape[3]))


def objection(retained: RetainedModule, mode: FakeTensorMode, ctx_len: int) -> str:
    """What goes wrong with a context of this length; empty if nothing does, or if numbers decide what does."""
    try:
        run_on_sizes(retained, mode, 1, min(2, ctx_len), ctx_len)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return ""
    except Exception as error:  # of whatever kind a model's own code raises
        return first_line(error)
    return ""


def run_on_sizes(
    retained: RetainedModule, mode: FakeTensorMode, rows: int, tokens: int, ctx_len: int, watched: Any = None
) -> None:
    """One call, inside of `watched`."""
    with torch.no_grad(), mode, _with_unread_states(retained), _without_tracebacks():
        ids = torch.zeros((rows, tokens), dtype=torch.long)
        positions = torch.arange(tokens)[None].expand(rows, -1)
        states = [_empty(plan, rows, ctx_len) for plan in retained.plans]
        with watched or nullcontext():
            retained(ids, positions, None, {}, states)


def _empty(plan: StatePlan, rows: int, ctx_len: int) -> torch.Tensor:
    sizes = [(plan.window or ctx_len) if size is None else size for size in plan.shape]
    return torch.empty([rows, *sizes], dtype=plan.dtype)


@contextmanager
def _with_unread_states(retained: RetainedModule) -> Iterator[None]:
    before, retained.cache_type = retained.cache_type, UnreadCache
    try:
        yield
    finally:
        retained.cache_type = before


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    logger = logging.getLogger(FAILURES)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
