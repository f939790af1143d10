"""From a conversation to the tokens of a prompt that leaves room for an answer."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from QEfficient.cloud._chat.conversation import Conversation
from QEfficient.errors import PromptError
from QEfficient.generation.text import TextGenerator

ANSWERS_SHARE = 4
"""The part of the context that is kept free for an answer: one in so many tokens."""


@dataclass(frozen=True)
class Prompt:
    """Tokens, and how many of the first turns are not among them."""

    ids: list[int]
    left_out: int


class Prompts:
    """Makes prompts for one context."""

    def __init__(self, text: TextGenerator, ctx_len: int) -> None:
        self._text = text
        self.ctx_len = ctx_len

    @property
    def templated(self) -> bool:
        """Whether the model has a chat template; else the conversation is one text that goes on."""
        return self._text.has_chat_template

    def fitted(self, conversation: Conversation, question: str, max_new_tokens: int | None = None) -> Prompt:
        """The prompt with as many turns as fit. Refuses a question that does not fit alone."""
        room = min(max_new_tokens or self.ctx_len, self.ctx_len // ANSWERS_SHARE)
        most = self.ctx_len - max(room, 1)
        turns = len(conversation.turns)

        def fits(left_out: int) -> bool:
            return len(self._ids(conversation, question, left_out)) <= most

        # The fewer turns the shorter, so halving finds the place.
        left_out = bisect.bisect_left(range(turns), True, key=fits)
        ids = self._ids(conversation, question, left_out)
        if len(ids) >= self.ctx_len:
            raise PromptError(
                f"the message takes {len(ids):,} tokens, but the context has {self.ctx_len:,}. Shorten it, or start"
                " with a larger --ctx-len."
            )
        return Prompt(ids, left_out)

    def _ids(self, conversation: Conversation, question: str, left_out: int) -> list[int]:
        if self.templated:
            return self._text.encode_chat(conversation.messages(question, left_out))
        return self._text.encode(conversation.plain_text(question, left_out))
