"""A chat without a model and without a terminal: who answers says in capitals what was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from QEfficient.cloud._chat.conversation import Conversation
from QEfficient.cloud._chat.dialogue import Chat, Partner
from QEfficient.cloud._chat.loop import hold
from QEfficient.cloud._chat.settings import Settings
from QEfficient.cloud._chat.terminal import Terminal
from QEfficient.devices import Batch, Limits, Paging, Row
from QEfficient.devices.null import PagedNullSession
from QEfficient.generation.engine import Engine
from QEfficient.generation.text import TextGenerator

EOS = 256
BLOCK = 4


class ByteTokenizer:
    """One token a byte; `u:`, `a:` and `s:` begin the messages of a conversation."""

    eos_token_id: int | None = EOS
    chat_template: str | None = "there is one"

    def __call__(self, text: str, /, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool = False) -> str:
        return bytes(token for token in token_ids if token < EOS).decode(errors="replace")

    def apply_chat_template(self, messages: Any, tokenize: bool, add_generation_prompt: bool) -> str:
        return "".join(f"{m['role'][0]}:{m['content']}\n" for m in messages) + "a:"


class EchoSession(PagedNullSession):
    """Answers the last message in capitals. `before_run` may do something then."""

    def __init__(self, ctx_len: int = 128) -> None:
        paging = Paging(BLOCK, ctx_len // BLOCK)
        limits = Limits(2, 16, ctx_len, decode_rows=2, prefill_rows=2, tokens=16, paging=paging)
        super().__init__(limits, EOS + 1)
        self.prompts: list[str] = []
        self.before_run: Callable[[], None] = lambda: None

    def run(self, batch: Batch) -> np.ndarray:
        self.before_run()
        return super().run(batch)

    def _logits(self, row: Row) -> list[np.ndarray]:
        end = row.start + len(row.tokens)
        history = [int(self._memory[self._place(row, position)]) for position in range(end)]
        before, _, answer = bytes(history).decode(errors="replace").rpartition("a:")
        if not answer:
            self.prompts.append(before)
        question = before.rpartition("u:")[2].rstrip("\n").upper()
        logits = np.zeros(EOS + 1, np.float32)
        logits[question.encode()[len(answer)] if len(answer) < len(question) else EOS] = 1
        return [logits] * row.logits


class ScriptedTerminal(Terminal):
    """Types lines, and keeps what is shown. A line may be a function, which is called in place of being typed."""

    def __init__(self, lines: list[Any]) -> None:
        self.interactive = True
        self._lines: Iterator[Any] = iter(lines)
        self.answers = ""
        self.notes: list[str] = []
        self.while_saying: Callable[[str], None] = lambda answers: None

    def read(self) -> str | None:
        line = next(self._lines, None)
        return line() if callable(line) else line

    def say(self, piece: str) -> None:
        if piece:
            self.answers += piece
            self.while_saying(self.answers)

    def figures(self, text: str) -> None:
        self.notes.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Talk:
    """A chat over some lines, from its beginning to its end."""

    def __init__(self, *lines: Any, ctx_len: int = 128, config: dict[str, Any] | None = None, **given: Any) -> None:
        self._ctx_len, self._engine = ctx_len, Engine(EchoSession(ctx_len))
        partner = Partner("echo", "null", self._open)
        self.terminal = ScriptedTerminal(list(lines))
        self.chat = Chat(partner, Settings(config or {}, given), self.terminal, Conversation())

    def _open(self) -> tuple[Engine, TextGenerator]:
        if self._engine.lost is not None:
            self._engine = Engine(EchoSession(self._ctx_len))
        return self._engine, TextGenerator(self._engine, ByteTokenizer())

    @property
    def session(self) -> EchoSession:
        """The one that is open."""
        assert isinstance(self._engine.session, EchoSession)
        return self._engine.session

    def run(self) -> Talk:
        hold(self.chat)
        assert self.chat.engine.idle
        return self

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(turn.question, turn.answer) for turn in self.chat.conversation.turns]

    @property
    def errors(self) -> list[str]:
        return [note.removeprefix("error: ") for note in self.terminal.notes if note.startswith("error: ")]
