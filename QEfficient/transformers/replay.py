"""The last way: the tokens are the state, and each step computes the whole context again.

For models that keep nothing between calls, or keep it where nothing of ours can hold it. Exact, because transformers
itself does no better for most of them; slow, and said so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from QEfficient.errors import UnsupportedModelError
from QEfficient.operators.context import gather, scatter
from QEfficient.program import KEPT_LOGITS, Context
from QEfficient.transformers.observe import WatchedAttributes, accepts
from QEfficient.transformers.retained_module import LastRowsOnly, in_model_dtype
from QEfficient.transformers.retained_state import StatePlan
from QEfficient.transformers.rotary import trained_length
from QEfficient.transformers.sampling_head import Controls

TOKENS = StatePlan("tokens", 0, (1, None, 1), torch.int64)


@dataclass(frozen=True)
class Replay:
    """Why a model is replayed, and what it needs for that."""

    reason: str
    longest: int | None = None
    """Tokens up to which the model's answers do not depend on how long its input is padded."""
    ahead: bool = False
    """Whether tokens see those behind them: what was said of one may be another answer with the next."""
    masked: bool = False
    """Whether the model has to be told by its mask which slots are behind the last token."""


class OwnRowsOnly(LastRowsOnly):
    """Of all tokens so far, those of this call."""

    def _chosen(self, values: torch.Tensor) -> torch.Tensor:
        places = self.position_ids.clamp(min=0)[..., None].expand(-1, -1, values.shape[-1])
        return super()._chosen(values.gather(1, places))


class ReplayModule(torch.nn.Module):
    """Same signature as `RetainedModule`; its one state holds the tokens seen so far."""

    plans = (TOKENS,)
    lengths: ClassVar[torch.Tensor | None] = None
    """`[b, 1]`: live tokens of each row while the model runs, for families whose answers depend on them."""

    def __init__(self, model: Any, replay: Replay) -> None:
        super().__init__()
        self.model = model
        self.reason = replay.reason
        self.longest, self.ahead = replay.longest, replay.ahead
        self.masked = replay.masked
        if self.masked and not accepts(model, "attention_mask"):
            raise UnsupportedModelError("it takes no mask that could tell it where its tokens end")
        self.context = Context(replay.longest, trained_length(model))
        self.steps: dict[str, Any] = {}
        attributes = WatchedAttributes()
        with torch.no_grad():
            for _ in range(2):
                logits = model(input_ids=torch.full((1, 3), 3), use_cache=False).logits
                attributes.note(model)
        if attributes.changed:
            raise UnsupportedModelError("what it keeps from call to call is not in its tokens")
        self.vocab_size = int(logits.shape[-1])

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        batch_index: torch.Tensor | None,
        controls: Controls,
        states: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        written = scatter(states[0], position_ids, input_ids[:, None, :, None], batch_index)
        tokens = gather(written, position_ids, batch_index)[:, 0, :, 0].clamp(0, self.vocab_size - 1)
        slots = torch.arange(self.longest or tokens.shape[1])
        if self.longest is not None:
            tokens = tokens[:, slots.clamp(max=tokens.shape[1] - 1)]
        last = position_ids.amax(dim=1, keepdim=True)
        # A causal model does not look at the slots behind the last; others are told which they are, or the lengths
        mask = {"attention_mask": (slots <= last).long()} if self.masked else {}
        with OwnRowsOnly(self.model, position_ids, controls.get(KEPT_LOGITS)) as selection, self._telling(last + 1):
            logits = selection.of(self.model(input_ids=tokens, use_cache=False, **mask).logits)
        return (in_model_dtype(logits, self.model), written)

    @staticmethod
    @contextmanager
    def _telling(lengths: torch.Tensor) -> Iterator[None]:
        before, ReplayModule.lengths = ReplayModule.lengths, lengths
        try:
            yield
        finally:
            ReplayModule.lengths = before

    def notes(self) -> dict[str, Any]:
        return {"replay": 1, "reason": self.reason}
