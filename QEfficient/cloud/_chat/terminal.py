"""Where a chat is typed and shown: a terminal with a prompt and line editing, or a pipe without either."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

PROMPT, CONTINUED = "> ", "… "
QUOTES = '"""'
CONTROL, UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"), "\N{REPLACEMENT CHARACTER}"


class Terminal:
    """Answers go to stdout, everything else to stderr; with `as_json` stdout is left to the document at the end."""

    def __init__(self, as_json: bool = False, completions: Sequence[str] = ()) -> None:
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._answers = sys.stderr if as_json else sys.stdout
        self._dims = self.interactive and _takes_colour(sys.stderr)
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a byte that is no text must not end a chat
                stream.reconfigure(errors="replace")
        if self.interactive:
            _edit_lines(completions)

    def read(self) -> str | None:
        """What is typed next; None at the end."""
        typed = None
        try:
            typed = read_message(self._line)
        finally:
            if typed is None and self.interactive:  # after Ctrl-C or Ctrl-D the cursor is still behind the prompt
                self.end_line()
        return typed

    def say(self, piece: str) -> None:
        """A piece of an answer. What a terminal would take for an order is not for a model to send."""
        self._answers.write(CONTROL.sub(UNPRINTABLE, piece) if self.interactive else piece)
        self._answers.flush()

    def end_line(self) -> None:
        self.say("\n")

    def figures(self, text: str) -> None:
        """A line about an answer; on a terminal it stays in the background."""
        self.note(f"\x1b[2m{text}\x1b[0m" if self._dims else text)
        if self.interactive:
            self.note("")

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def error(self, reason: object) -> None:
        self.note(f"error: {' '.join(str(reason).split())}")

    def _line(self, prompt: str) -> str | None:
        if self.interactive:
            try:
                return input(prompt)
            except EOFError:
                return None
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None


def read_message(line: Callable[[str], str | None]) -> str | None:
    """One message: a line, lines of which each but the last ends in a backslash, or lines between triple quotes."""
    first = line(PROMPT)
    if first is None:
        return None
    if first.lstrip().startswith(QUOTES):
        return _quoted(first.lstrip().removeprefix(QUOTES), line)
    lines = [first]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        following = line(CONTINUED)
        if following is None:
            break
        lines.append(following)
    return "\n".join(lines)


def _quoted(first: str, line: Callable[[str], str | None]) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(QUOTES):
        following = line(CONTINUED)
        if following is None:
            break
        lines.append(following)
    text = "\n".join(lines).rstrip().removesuffix(QUOTES).strip("\n")
    return f"/{text}" if text.startswith("/") else text  # what is quoted is no command


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C is only noted, for whoever asks: an exception would leave a step of the engine half done."""
    pressed: list[int] = []
    try:
        before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    except ValueError:  # only the main thread may
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _edit_lines(completions: Sequence[str]) -> None:
    """Let `input` edit lines and remember them; Tab completes the names of commands."""
    try:
        import readline
    except ImportError:  # a Python that was built without it
        return
    readline.set_completer_delims(" ")
    readline.set_completer(lambda begun, number: _nth([c for c in completions if c.startswith(begun)], number))
    readline.parse_and_bind("tab: complete")


def _nth(found: Sequence[str], number: int) -> str | None:
    return found[number] if number < len(found) else None


def _takes_colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
