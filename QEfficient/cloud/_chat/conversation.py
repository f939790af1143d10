"""What was said so far, and its form as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from QEfficient.cloud._writing import replace_text
from QEfficient.errors import OptionError


@dataclass(frozen=True)
class Turn:
    """A question, and what was answered."""

    question: str
    answer: str


@dataclass
class Conversation:
    """The system's text, if any, and the turns, from the first on."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def messages(self, question: str | None = None, left_out: int = 0) -> list[dict[str, str]]:
        """As chat templates want it; without the first `left_out` turns."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns[left_out:]:
            found += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
        return found if question is None else [*found, {"role": "user", "content": question}]

    def plain_text(self, question: str, left_out: int = 0) -> str:
        """As one text that goes on: for models without a chat template."""
        said = [turn.question + turn.answer for turn in self.turns[left_out:]]
        return "\n".join([*([self.system] if self.system else []), *said, question])


def save(conversation: Conversation, path: Path, model: str) -> None:
    """Write a conversation, whole or not at all. What is no conversation is never written over."""
    if path.exists():
        _checked(path, "it is there already and is no conversation. Choose another name")
    document = {"model": model, "messages": conversation.messages()}
    try:
        replace_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise OptionError(f"the conversation cannot be saved in {path}: {error.strerror}.") from error


def load(path: Path) -> Conversation:
    """The conversation in a file that `save` wrote, or a list of messages."""
    return _checked(path, "messages of user and assistant in turns are expected, perhaps after one of the system")


def _checked(path: Path, expected: str) -> Conversation:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"the file {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # also of bytes that are no text
        raise OptionError(f"the file {path} holds no conversation: {expected}.") from error
    found = _of_messages(document.get("messages") if isinstance(document, dict) else document)
    if found is None:
        raise OptionError(f"the file {path} holds no conversation: {expected}.")
    return found


def _of_messages(messages: Any) -> Conversation | None:
    """None if these are no turns."""
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        return None
    said: Sequence[dict[str, str]] = messages
    conversation = Conversation()
    if said and said[0]["role"] == "system":
        conversation.system, said = said[0]["content"], said[1:]
    if [message["role"] for message in said] != ["user", "assistant"] * (len(said) // 2):
        return None
    pairs = zip(said[::2], said[1::2], strict=True)
    conversation.turns = [Turn(question["content"], answer["content"]) for question, answer in pairs]
    return conversation


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(name), str) for name in ("role", "content"))
