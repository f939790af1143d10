"""The last way: the tokens are the state, and each step computes the whole context again.

For models that keep nothing between calls, or keep it where nothing of ours can hold it. Exact, because transformers
itself does no better for most of them; slow, and said so.
"""

from __future__ import annotations

from typing import Any

import torch

from QEfficient.operators.context import gather, scatter
from QEfficient.transformers.retained_module import LastRowOnly, last_row
from QEfficient.transformers.retained_state import StatePlan

TOKENS = StatePlan("tokens", 0, (1, None, 1), torch.int64)


class ReplayModule(torch.nn.Module):
    """Same signature as `RetainedModule`; its one state holds the tokens seen so far."""

    plans = (TOKENS,)

    def __init__(self, model: Any, reason: str) -> None:
        super().__init__()
        self.model = model
        self.reason = reason
        self.steps: dict[str, Any] = {}
        with torch.no_grad():
            logits = model(input_ids=torch.full((1, 3), 3), use_cache=False).logits
        self.vocab_size = int(logits.shape[-1])

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        batch_index: torch.Tensor | None,
        states: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        written = scatter(states[0], position_ids, input_ids[:, None, :, None], batch_index)
        tokens = gather(written, position_ids, batch_index)[:, 0, :, 0].clamp(0, self.vocab_size - 1)
        slots = torch.arange(tokens.shape[1])
        live = slots <= position_ids.amax(dim=1, keepdim=True)
        places = torch.where(live, slots, -1)
        # No mask for the slots behind the last: a causal model does not look there, and others are no such models
        with LastRowOnly(self.model, places) as selection:
            logits = self.model(input_ids=tokens, use_cache=False).logits
        return (logits if selection.done else last_row(logits, places), written)

    def notes(self) -> dict[str, Any]:
        return {"replay": 1, "reason": self.reason}
