"""A chat whose card fails: it says so, and goes on once the card is there again."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Cli

from qaic_simulator.runtime import cards
from QEfficient.cloud._chat.loop import AFTER_A_LOSS

SHAPE = ("--ctx-len", 64, "--prompt-len", 8, "--num-cores", 16, "--max-new-tokens", 3, "--full-batch-size", 1)
FAULT = "QAIC_SIM_FAULT"
pytestmark = pytest.mark.usefixtures("without_sdk")


class Typed(io.StringIO):
    """Lines that are typed one after the other, some of them after something has happened."""

    def __init__(self, lines: list[tuple[str, Callable[[], None] | None]]) -> None:
        super().__init__()
        self._left = iter(lines)

    def readline(self, *_: object) -> str:
        line, before = next(self._left, ("", None))
        if before is not None:
            before()
        return line


def test_a_card_that_is_lost_and_comes_back(
    cli: Cli, scratch: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mend() -> None:
        monkeypatch.delenv(FAULT)
        cards.set_status(0, cards.READY)

    lines: list[tuple[str, Callable[[], None] | None]] = [
        ("hello\n", None),
        ("lost\n", lambda: monkeypatch.setenv(FAULT, "lost")),
        ("gone\n", None),
        ("back\n", mend),
        ("more\n", None),
    ]
    monkeypatch.setattr(sys, "stdin", Typed(lines))
    result = cli("chat", model_folder, "--simulate", *SHAPE, "--json")
    assert result.code == 1, result.err  # a script learns that a message went without an answer
    assert [said["content"] for said in result.json["messages"] if said["role"] == "user"] == ["hello", "back", "more"]
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and all("device 0, " in error and "its status is Error" in error for error in errors)
    assert result.err.count(AFTER_A_LOSS) == 2 and "Traceback" not in result.err
    first, back, more = result.json["answers"]
    assert first["cached_tokens"] == back["cached_tokens"] == 0 < more["cached_tokens"]
    assert cards.look([0])[0].free_cores == 16
