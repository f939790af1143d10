"""What may be typed in place of a message: `/help`, `/undo`, …"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from QEfficient.cloud._arguments import UsageError
from QEfficient.cloud._chat import conversation as conversations
from QEfficient.cloud._chat.conversation import Conversation
from QEfficient.cloud._chat.dialogue import Chat
from QEfficient.cloud._chat.settings import AS_THE_MODEL, setting_names
from QEfficient.errors import did_you_mean

NO_SYSTEM = "none"


@dataclass(frozen=True)
class ChatCommand:
    """One command: how it is typed, what it does."""

    usage: str
    help: str
    run: Callable[[Chat, str], None]


def command_names() -> list[str]:
    """Every name, as it is typed."""
    return [f"/{name}" for name in (*COMMANDS, *ALIASES)]


def run_command(chat: Chat, typed: str) -> None:
    """Run `/name rest`, or say what was probably meant."""
    name, _, rest = typed.removeprefix("/").partition(" ")
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        meant = did_you_mean(f"/{name}", command_names())
        raise UsageError(f"there is no command '/{name}'.{meant} /help lists them; // begins a message with a slash.")
    COMMANDS[name].run(chat, rest.strip())


def _help(chat: Chat, rest: str) -> None:
    if rest.removeprefix("/") == "set":
        chat.terminal.note(f"/set NAME VALUE with one of {', '.join(setting_names())}.")
        chat.terminal.note(f"/set NAME {AS_THE_MODEL}: as the model's generation config says.")
        return
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        chat.terminal.note(f"{command.usage:<{width}}  {command.help}")
    chat.terminal.note('A line that ends in \\ goes on with the next; lines between """ and """ are one message.')


def _exit(chat: Chat, rest: str) -> None:
    chat.over = True


def _clear(chat: Chat, rest: str) -> None:
    chat.forget(Conversation(chat.conversation.system))
    chat.terminal.note("a new conversation.")


def _undo(chat: Chat, rest: str) -> None:
    _need_turns(chat)
    turn = chat.conversation.turns.pop()
    chat.terminal.note(f"forgotten: {_shortened(turn.question)}")


def _again(chat: Chat, rest: str) -> None:
    _need_turns(chat)
    if chat.settings.params.greedy:
        chat.terminal.note("the likeliest tokens are chosen, so it may be the same; /set temperature 0.7 changes that.")
    last = chat.conversation.turns.pop()
    kept = False
    try:
        kept = chat.ask(last.question)
    finally:
        if not kept:
            chat.conversation.turns.append(last)


def _system(chat: Chat, rest: str) -> None:
    if rest:
        chat.conversation.system = "" if rest == NO_SYSTEM else rest
    chat.terminal.note(f"system: {chat.conversation.system or NO_SYSTEM}")


def _set(chat: Chat, rest: str) -> None:
    name, _, value = rest.partition(" ")
    if not name or not value.strip():
        raise UsageError("/set takes a name and a value, such as /set temperature 0.7. /help set lists the names.")
    chat.terminal.note(chat.settings.set(name, value.strip()))


def _show(chat: Chat, rest: str) -> None:
    rows = [
        ("model", chat.partner.name),
        ("device", chat.partner.device),
        ("context", f"{chat.prompts.ctx_len:,} tokens"),
        ("system", chat.conversation.system or NO_SYSTEM),
        ("turns", f"{len(chat.conversation.turns):,}"),
        *chat.settings.rows(),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        chat.terminal.note(f"{name:<{width}}  {value}")


def _save(chat: Chat, rest: str) -> None:
    path = _path(rest, "/save")
    conversations.save(chat.conversation, path, chat.partner.name)
    chat.terminal.note(f"saved in {path}")


def _load(chat: Chat, rest: str) -> None:
    found = conversations.load(_path(rest, "/load"))
    chat.forget(found)
    count = len(found.turns)
    chat.terminal.note(f"loaded: {count:,} turn{'' if count == 1 else 's'}.")


def _need_turns(chat: Chat) -> None:
    if not chat.conversation.turns:
        raise UsageError("nothing was said yet.")


def _path(rest: str, name: str) -> Path:
    if not rest:
        raise UsageError(f"{name} takes the name of a file.")
    return Path(rest).expanduser()


def _shortened(text: str, longest: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


COMMANDS: dict[str, ChatCommand] = {
    "help": ChatCommand("/help", "this list; /help set: the settings", _help),
    "exit": ChatCommand("/exit, /quit", "leave; so do Ctrl-D, and Ctrl-C twice", _exit),
    "clear": ChatCommand("/clear, /new", "forget the conversation, but not the system's text", _clear),
    "undo": ChatCommand("/undo", "forget the last turn", _undo),
    "again": ChatCommand("/again", "answer the last message anew", _again),
    "system": ChatCommand("/system TEXT", f"what the model is told before all; {NO_SYSTEM}: nothing", _system),
    "set": ChatCommand("/set NAME VALUE", "temperature, top_p, max_new_tokens, seed, …", _set),
    "show": ChatCommand("/show", "model, conversation and settings", _show),
    "save": ChatCommand("/save FILE", "the conversation as JSON", _save),
    "load": ChatCommand("/load FILE", "go on with a conversation that was saved", _load),
}
ALIASES = {"quit": "exit", "new": "clear"}
