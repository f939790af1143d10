"""Reads what is typed until nothing more comes: commands are run, everything else is asked."""

from __future__ import annotations

from QEfficient.cloud._arguments import UsageError
from QEfficient.cloud._chat.commands import run_command
from QEfficient.cloud._chat.dialogue import Chat
from QEfficient.errors import QEfficientError, SessionLostError

HOW_TO_LEAVE = "Ctrl-C again, Ctrl-D or /exit leaves."
AFTER_A_LOSS = (
    "the conversation is kept, without this message; the next one opens the program again, and computes all of it anew."
)


def hold(chat: Chat) -> None:
    """Take lines until there are no more, or one ends the chat."""
    leaving = False
    while not chat.over:
        try:
            typed = chat.terminal.read()
            leaving = False
            _take(chat, typed)
        except KeyboardInterrupt:
            if not chat.terminal.interactive:
                raise
            chat.over, leaving = leaving, True
            if not chat.over:
                chat.terminal.note(HOW_TO_LEAVE)
        except (QEfficientError, UsageError) as error:
            _fail(chat, error)


def _take(chat: Chat, typed: str | None) -> None:
    """A command, or a message; two slashes begin a message that begins with one."""
    typed = None if typed is None else typed.strip()
    if typed is None:
        chat.over = True
    elif typed.startswith("//"):
        chat.ask(typed[1:])
    elif typed.startswith("/"):
        run_command(chat, typed)
    elif typed:
        chat.ask(typed)


def _fail(chat: Chat, error: Exception) -> None:
    chat.failed, lost = True, isinstance(error, SessionLostError)
    if lost:
        chat.terminal.end_line()  # a piece of the answer may stand there
    chat.terminal.error(error)
    if lost:
        chat.terminal.note(AFTER_A_LOSS)
