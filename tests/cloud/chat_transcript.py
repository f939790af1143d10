"""The recorded conversation with the demo model: `python tests/cloud/chat_transcript.py` shows it as it is now."""

from __future__ import annotations

import re
import time
from pathlib import Path

from pseudo_terminal import PseudoTerminal

RECORDED = Path(__file__).parent / "transcripts" / "chat.txt"
COMMAND = "qefficient chat --device cpu --max-new-tokens 24"
PROMPT = r"> (?:\x1b\[\?2004h)?$"
STOPPED = "My name is"
READING = 1.0
"""Python shows a prompt a moment before it waits for keys; a Ctrl-C within it is seen with the next key only."""


def record(home: Path) -> tuple[int, str]:
    """Have the conversation; returns the exit code and what the terminal shows."""
    words = ("QEfficient.cloud.main", *COMMAND.split()[1:])
    with PseudoTerminal(*words, QEFF_HOME=str(home), NO_COLOR="1") as terminal:

        def enter(line: str) -> None:
            terminal.wait_for(PROMPT)
            terminal.type(line + "\r")

        for line in ("In the beginning", "And the king said", "/set max_new_tokens 900", "/set ignore_eos true"):
            enter(line)
        enter(STOPPED)
        terminal.wait_for(STOPPED + r"[^\n]*\n the Son[\s\S]*prophets")  # of an answer that goes on for long
        terminal.type("\x03")
        terminal.wait_for("stopped")
        for line in ("/show", "/undo", "/set max_new_tokens 24", "Then he went", "/exti"):
            enter(line)
        terminal.wait_for(PROMPT)
        time.sleep(READING)
        terminal.type("\x03")
        terminal.wait_for("leaves")
        terminal.wait_for(PROMPT)
        terminal.type("\x04")
        return terminal.end(), f"$ {COMMAND}\n{terminal.screen()}"


def normalised(text: str) -> str:
    """Without figures of time, and with the first words only of the answer that was stopped."""
    text = re.sub(r"[\d,.]+ tokens/s · first after [\d.]+ s", "N tokens/s · first after N s", text)
    answer = re.compile(rf"(> {STOPPED}\n(?:\s*\S+){{3}}).*?\n\d+ tokens (.* · stopped)", re.DOTALL)
    return answer.sub(r"\1 […]\nN tokens \2", text)


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        print(record(Path(folder))[1], end="")
