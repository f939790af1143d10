"""The chat as it stands: who answers, how, and what was said. Asked something, it answers and remembers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from QEfficient.cloud._chat.answers import answer, figures
from QEfficient.cloud._chat.conversation import Conversation, Turn
from QEfficient.cloud._chat.prompts import Prompt, Prompts
from QEfficient.cloud._chat.settings import Settings
from QEfficient.cloud._chat.terminal import Terminal, interruption
from QEfficient.generation.engine import Engine
from QEfficient.generation.request import RequestOutput
from QEfficient.generation.text import TextGenerator


@dataclass(frozen=True)
class Partner:
    """The model that answers."""

    name: str
    device: str
    open: Callable[[], tuple[Engine, TextGenerator]]
    """Gives one engine for the whole chat, so that earlier turns are not computed again; another after its session
    was lost."""


@dataclass
class Chat:
    """One chat, from its first line to its last."""

    partner: Partner
    settings: Settings
    terminal: Terminal
    conversation: Conversation = field(default_factory=Conversation)
    over: bool = False
    failed: bool = False
    answers: list[dict[str, Any]] = field(default_factory=list)
    """Figures of all answers, also of those that were taken back."""

    def __post_init__(self) -> None:
        self._open()
        self._left_out = 0

    def ask(self, question: str) -> bool:
        """Answer, and remember what was said; False if nothing was."""
        self._open()
        params = self.settings.params
        prompt = self.prompts.fitted(self.conversation, question, params.max_new_tokens)
        self._say_what_is_left_out(prompt)
        request = self._text.request(prompt.ids, params)
        with interruption() if self.terminal.interactive else nullcontext(lambda: False) as stopped:
            output = answer(self.engine, self._text, request, self.terminal.say, stopped)
        self.terminal.end_line()
        self._record(output)
        kept = bool(output.text) or output.finish_reason != "cancelled"
        if kept:
            self.conversation.turns.append(Turn(question, output.text))
        else:
            self.terminal.note("stopped before the first word: the message is forgotten.")
        return kept

    def _open(self) -> None:
        self.engine, self._text = self.partner.open()
        self.prompts = Prompts(self._text, self.engine.session.limits.ctx_len)

    def forget(self, conversation: Conversation) -> None:
        """Go on with another conversation."""
        self.conversation, self._left_out = conversation, 0

    def _say_what_is_left_out(self, prompt: Prompt) -> None:
        count, self._left_out = prompt.left_out, prompt.left_out
        if count:
            turns = "the first turn is" if count == 1 else f"the first {count:,} turns are"
            self.terminal.note(
                f"the conversation is too long for the context of {self.prompts.ctx_len:,} tokens: {turns} left out."
            )

    def _record(self, output: RequestOutput) -> None:
        self.terminal.figures(figures(output, self.prompts.ctx_len))
        timings = output.timings
        self.answers.append(
            {
                "prompt_tokens": len(output.prompt_ids),
                "cached_tokens": output.cached_tokens,
                "tokens": len(output.generated_ids),
                "finish_reason": output.finish_reason,
                "seconds_to_first_token": timings.time_to_first_token,
            }
        )
