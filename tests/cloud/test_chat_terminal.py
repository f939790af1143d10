"""`qefficient chat` as it is used: in a terminal, and through a pipe."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from chat_transcript import COMMAND, RECORDED, normalised, record
from command_line import Cli, Result
from pseudo_terminal import TOP, PseudoTerminal

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PROMPT = r"> (?:\x1b\[\?2004h)?$"


@pytest.fixture(scope="session")
def chat_model(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("models") / "chat"
    shutil.copytree(model_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chat_home")


@pytest.fixture
def pipe(cli: Cli, chat_home: Path, chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a chat over some lines of a pipe."""
    monkeypatch.setenv("QEFF_HOME", str(chat_home))

    def run(*lines: str, flags: tuple[object, ...] = ()) -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return cli("chat", chat_model, "--device", "cpu", "--ctx-len", 256, "--max-new-tokens", 9, *flags)

    return run


# A pipe


def test_tokens_tried_ahead_say_the_same(pipe: Any, chat_model: Path) -> None:
    lines = ("one two one two", "one two")
    plain = pipe(*lines, flags=("--json",)).json
    for flags in (("--prompt-lookup",), ("--draft-model", chat_model)):
        assert pipe(*lines, flags=("--json", *flags)).json["messages"] == plain["messages"]
    refused = pipe(*lines, flags=("--draft-model", "/nowhere"))
    assert refused.code == 1 and "/nowhere" in refused.error


def test_a_conversation_through_the_template(pipe: Any) -> None:
    result = pipe("hello", "and what now?", flags=("--system", "be brief and kind", "--json"))
    assert result.code == 0
    messages = result.json["messages"]
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2]
    assert [message["content"] for message in messages[:4:3]] == ["be brief and kind", "and what now?"]
    first, second = result.json["answers"]
    told = "<system>be brief and kind\n<user>hello\n<assistant>"
    assert first["prompt_tokens"] == len(told) and first["cached_tokens"] == 0
    answered = messages[2]["content"].encode()
    assert second["prompt_tokens"] == len(told) + len(answered) + len("\n<user>and what now?\n<assistant>")
    assert second["cached_tokens"] == 32  # the block that the first prompt filled


def test_answers_are_all_that_is_on_stdout(pipe: Any) -> None:
    document = pipe("hello", "more", flags=("--json",)).json
    answers = [message["content"] for message in document["messages"] if message["role"] == "assistant"]
    result = pipe("hello", "", "/show", "more", "/exit", "never")
    assert result.out == "".join(f"{answer}\n" for answer in answers)
    assert result.code == 0 and "> " not in result.err and "\x1b" not in result.err
    assert result.err.count("prompt tokens cached") == 2 and "/help" not in result.err


def test_a_script_learns_that_a_line_was_refused(pipe: Any) -> None:
    result = pipe("/sett temperature 1", "hello")
    assert result.code == 1 and "Did you mean '/set'?" in result.err
    assert "prompt tokens cached" in result.err  # and the rest was done


def test_sampling_flags_are_the_settings(pipe: Any) -> None:
    result = pipe("/show", "/set seed default", "/show", flags=("--temperature", 0.7, "--seed", 5))
    assert result.err.count("temperature     0.7\n") == 2 and result.err.count("seed            5\n") == 1
    assert pipe(flags=("--top-p", 3)).error == "top_p must lie in [0, 1]."


def test_a_conversation_goes_on_from_a_file(pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    assert pipe("hello", f"/save {path}").code == 0
    whole = pipe("hello", "more", flags=("--json",)).json["messages"]
    assert pipe(f"/load {path}", "more", flags=("--json",)).json["messages"] == whole
    assert json.loads(path.read_text())["messages"] == whole[:2]


def test_a_model_without_a_template_goes_on_with_the_text(
    cli: Cli, model_folder: Path, chat_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEFF_HOME", str(chat_home))
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nmore\n"))
    geometry = ("--device", "reference", "--ctx-len", 256, "--prompt-len", 8)
    result = cli("chat", model_folder, *geometry, "--json")
    assert "the model has no chat template: it goes on with what you type, 64 tokens at a time" in result.err
    first, second = result.json["answers"]
    assert first["prompt_tokens"] == len("hello") and first["tokens"] == second["tokens"] == 64
    said = result.json["messages"][1]["content"]
    assert second["prompt_tokens"] == len(f"hello{said}\nmore".encode())


# A terminal


def test_colours_editing_completion_and_pasting(pipe: Any, chat_model: Path, chat_home: Path) -> None:
    assert pipe().code == 0  # the program is made
    words = ("QEfficient.cloud.chat", str(chat_model), "--device", "cpu", "--ctx-len", "256", "--max-new-tokens", "9")
    with PseudoTerminal(*words, QEFF_HOME=str(chat_home)) as terminal:
        terminal.wait_for(PROMPT)
        terminal.type("hellp\x7fo\r")
        terminal.wait_for(r"\x1b\[2m9 tokens · .* cached[^\n]*\x1b\[0m")
        terminal.wait_for(PROMPT)
        terminal.type("\x1b[A\x1b[A\x1b[B/undo\x01\x0b/undo\r")  # an earlier line, deleted again
        terminal.wait_for("forgotten: hello")
        terminal.wait_for(PROMPT)
        terminal.type("\x1b[A\x1b[A\r")  # the line before the last
        terminal.wait_for("9 tokens")
        terminal.wait_for(PROMPT)
        terminal.type("/sh\t\r")
        terminal.wait_for("turns +1")
        terminal.wait_for(PROMPT)
        terminal.type("\x1b[200~pasted\nlines\x1b[201~\r")
        terminal.wait_for("9 tokens")
        terminal.wait_for(PROMPT)
        terminal.type("/undo\r")
        terminal.wait_for("forgotten: pasted lines")
        terminal.wait_for(PROMPT)
        terminal.type("\x04")
        assert terminal.end() == 0


@pytest.mark.slow
def test_the_recorded_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Ctrl-C in the middle of an answer of 900 tokens; the program is made on the way, and that is shown."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, shown = record(tmp_path)
    assert normalised(shown) == normalised(RECORDED.read_text(encoding="utf-8"))
    assert code == 0


def test_the_documents_show_what_was_recorded() -> None:
    text = (TOP / "docs" / "chat.md").read_text(encoding="utf-8")
    assert RECORDED.read_text(encoding="utf-8").strip() in text and COMMAND in text
