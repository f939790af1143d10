"""The chat itself: what is remembered, stopped, refused, saved."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from chat_world import BLOCK, EchoSession, Talk

from QEfficient.cloud import chat as chat_command
from QEfficient.cloud._chat.answers import figures
from QEfficient.cloud._chat.commands import COMMANDS
from QEfficient.cloud._chat.conversation import Conversation, Turn, load, save
from QEfficient.cloud._chat.loop import AFTER_A_LOSS
from QEfficient.cloud._chat.settings import Settings, setting_names
from QEfficient.cloud._chat.terminal import Terminal, read_message
from QEfficient.devices import DeviceError
from QEfficient.errors import DeviceLostError, OptionError
from QEfficient.generation.request import RequestOutput, Timings


def press() -> None:
    """Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


# What is remembered


def test_turns_are_remembered_and_not_computed_again() -> None:
    talk = Talk("hello", "and you?").run()
    assert talk.said == [("hello", "HELLO"), ("and you?", "AND YOU?")]
    assert talk.terminal.answers == "HELLO\nAND YOU?\n"
    assert talk.session.prompts[-1] == "u:hello\na:HELLO\nu:and you?\n"
    first, second = talk.chat.answers
    assert first["cached_tokens"] == 0
    # All full blocks of the first prompt and its answer; the token that ended it is not among them.
    assert second["cached_tokens"] == len("u:hello\na:HELLO") // BLOCK * BLOCK > 0
    assert re.fullmatch(
        r"6 tokens · [\d,.]+ tokens/s · first after [\d.]+ s · 0 of 10 prompt tokens cached", talk.terminal.notes[0]
    )


def test_empty_lines_are_nothing_and_two_slashes_are_one() -> None:
    assert Talk("", "   ", "//exit").run().said == [("/exit", "/EXIT")]


def test_clear_undo_and_system() -> None:
    talk = Talk("/system be kind", "a", "b", "/undo", "c").run()
    assert talk.said == [("a", "A"), ("c", "C")]
    assert talk.session.prompts[-1] == "s:be kind\nu:a\na:A\nu:c\n"
    talk = Talk("/system be kind", "a", "/new", "b", "/system none", "c").run()
    assert talk.session.prompts[-2:] == ["s:be kind\nu:b\n", "u:b\na:B\nu:c\n"]
    assert talk.said == [("b", "B"), ("c", "C")]


def test_again_replaces_the_last_answer() -> None:
    talk = Talk("a", "hello", "/set max_new_tokens 3", "/again").run()
    assert talk.said == [("a", "A"), ("hello", "HEL")]
    assert any("so it may be the same" in note for note in talk.terminal.notes)
    assert talk.session.prompts[-1] == talk.session.prompts[-2]


def test_again_that_fails_leaves_the_answer() -> None:
    def break_it() -> str:
        def fail() -> None:
            raise DeviceError("broken")

        talk.session.before_run = fail
        return "/again"

    talk = Talk("hello", break_it)
    talk.run()
    assert talk.said == [("hello", "HELLO")] and talk.errors == ["broken"]


def test_what_was_said_outlives_the_device() -> None:
    """The message that failed is not kept; the next one is answered by another session, which computes all of it."""

    def lose_it() -> str:
        def fail() -> None:
            if talk.terminal.answers.endswith("AG"):  # in the middle of the answer
                raise DeviceLostError("device 0 has failed.")

        lost.append(talk.session)
        talk.session.before_run = fail
        return "again?"

    lost: list[EchoSession] = []
    talk = Talk("hello", lose_it, "and now?")
    talk.run()
    assert talk.said == [("hello", "HELLO"), ("and now?", "AND NOW?")]
    assert talk.terminal.answers == "HELLO\nAG\nAND NOW?\n"
    assert talk.errors == ["device 0 has failed."] and talk.terminal.notes[2] == AFTER_A_LOSS
    assert talk.session is not lost[0] and talk.session.prompts == ["u:hello\na:HELLO\nu:and now?\n"]
    assert [answer["cached_tokens"] for answer in talk.chat.answers] == [0, 0]


def test_the_models_end_of_length_is_told() -> None:
    notes = Talk("hello", max_new_tokens=3).run().terminal.notes
    assert notes[0].endswith("the length is reached")
    assert Talk("hello" * 4, ctx_len=32).run().terminal.notes[0].endswith("the context is full")


# Stopping


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said() -> None:
    talk = Talk("hello there", "next")
    talk.terminal.while_saying = lambda answers: press() if answers == "HELLO" else None
    talk.run()
    assert talk.said == [("hello there", "HELLO"), ("next", "NEXT")]
    assert talk.terminal.notes[0].endswith("stopped")
    assert talk.session.prompts[-1] == "u:hello there\na:HELLO\nu:next\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_a_long_prompt_forgets_the_message() -> None:
    talk = Talk("x" * 60, lambda: setattr(talk.session, "before_run", lambda: None) or "next")
    talk.session.before_run = press
    talk.run()
    assert talk.said == [("next", "NEXT")]
    assert "stopped before the first word: the message is forgotten." in talk.terminal.notes


def test_more_ctrl_c_while_it_stops_change_nothing() -> None:
    def twice(answers: str) -> None:
        if answers == "HE":
            press()
            press()

    talk = Talk("hello", "next")
    talk.terminal.while_saying = twice
    talk.run()
    assert talk.said == [("hello", "HE"), ("next", "NEXT")]


def test_ctrl_c_at_the_prompt_leaves_when_pressed_twice() -> None:
    talk = Talk(press, "a", press, press, "b").run()
    assert talk.said == [("a", "A")]
    assert [note for note in talk.terminal.notes if "leaves" in note] == ["Ctrl-C again, Ctrl-D or /exit leaves."] * 2


def test_an_interrupted_script_is_interrupted() -> None:
    talk = Talk(press)
    talk.terminal.interactive = False
    with pytest.raises(KeyboardInterrupt):
        talk.run()


def test_ctrl_c_ends_a_script_in_the_middle_of_an_answer() -> None:
    talk = Talk("hello", "next")
    talk.terminal.interactive = False
    talk.terminal.while_saying = lambda answers: press()
    with pytest.raises(KeyboardInterrupt):
        talk.run()
    assert talk.said == [] and talk.chat.engine.idle


# The context


def test_the_first_turns_are_left_out_when_the_context_is_full() -> None:
    talk = Talk(*(f"message {n}" for n in range(6)), ctx_len=96).run()
    assert [answer for _, answer in talk.said] == [f"MESSAGE {n}" for n in range(6)]  # none is lost, nothing crashed
    told = [note for note in talk.terminal.notes if "too long" in note]
    assert told[0] == "the conversation is too long for the context of 96 tokens: the first turn is left out."
    assert "the first 2 turns are left out" in told[1]
    assert talk.session.prompts[-1].startswith("u:message 3\n") and talk.session.prompts[-1].endswith("u:message 5\n")


def test_a_message_that_does_not_fit_alone_is_refused() -> None:
    talk = Talk("a", "x" * 200, "b").run()
    assert talk.said == [("a", "A"), ("b", "B")]
    assert talk.errors == [
        "the message takes 205 tokens, but the context has 128. Shorten it, or start with a larger --ctx-len."
    ]


# Commands


def test_every_command_is_in_the_help() -> None:
    notes = "\n".join(Talk("/help").run().terminal.notes)
    assert all(f"/{name}" in notes for name in COMMANDS) and "/quit" in notes and '"""' in notes
    listed = Talk("/help set").run().terminal.notes[0]
    assert all(name in listed for name in ("temperature", "max_new_tokens", "stop_token_ids", "ignore_eos"))


@pytest.mark.parametrize("line", ["/exit", "/quit"])
def test_exit(line: str) -> None:
    assert Talk(line, "a").run().said == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/exti", "there is no command '/exti'. Did you mean '/exit'?"),
        ("/sytem x", "Did you mean '/system'?"),
        ("/undo", "nothing was said yet"),
        ("/again", "nothing was said yet"),
        ("/save", "/save takes the name of a file"),
        ("/set", "/set takes a name and a value"),
        ("/set temperature", "/set takes a name and a value"),
        ("/set temprature 1", "there is no setting 'temprature'. Did you mean 'temperature'?"),
        ("/set temperature hot", "temperature must be a number, not 'hot'"),
        ("/set top_k 1.5", "top_k must be a whole number, not '1.5'"),
        ("/set top-p 2", "top_p must lie in [0, 1]"),
        ("/set max_new_tokens 0", "max_new_tokens must be at least 1"),
        ("/set logit_bias 5", "a token id and a number such as 15=-2.5 is expected"),
        ("/set n 2", "there is no setting 'n'"),
        ("/load /no/such/file", "cannot be read: No such file"),
        ("/save /no/such/folder/file", "cannot be saved in /no/such/folder/file: No such file"),
    ],
)
def test_what_is_wrong_is_said_and_the_chat_goes_on(line: str, message: str) -> None:
    talk = Talk(line, "a").run()
    assert talk.said == [("a", "A")] and len(talk.errors) == 1 and message in talk.errors[0]
    assert talk.chat.failed


def test_show() -> None:
    notes = Talk("a", "/set seed 3", "/show", config={"do_sample": True, "temperature": 0.5}).run().terminal.notes
    shown = dict(note.split(maxsplit=1) for note in notes[2:])
    assert shown["model"] == "echo" and shown["turns"] == "1" and shown["context"] == "128 tokens"
    assert shown["seed"] == "3" and shown["temperature"] == "0.5  (the model's own)"


def test_settings() -> None:
    settings = Settings({"do_sample": True, "temperature": 0.5, "num_return_sequences": 4}, {"top_k": 5})
    assert (settings.params.temperature, settings.params.top_k, settings.params.n) == (0.5, 5, 1)
    values = {"temperature": "0.7", "generation-len": "9", "--stop": "a b", "stop_token_ids": "1,2"}
    for name, text in {**values, "ignore_eos": "true", "logit_bias": "3=-1.5"}.items():
        settings.set(name, text)
    params = settings.params
    assert (params.temperature, params.max_new_tokens, params.stop, params.stop_token_ids) == (0.7, 9, ("a b",), (1, 2))
    assert params.ignore_eos and params.logit_bias == ((3, -1.5),)
    settings.set("temperature", "default")
    assert settings.params.temperature == 0.5
    with pytest.raises(OptionError, match="min_new_tokens 20 is larger than max_new_tokens 9"):
        settings.set("min_new_tokens", "20")
    assert settings.params.min_new_tokens == 0 and "min_new_tokens" in setting_names()
    settings.set("do_sample", "false")
    assert settings.params.temperature == 0


# Files


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    Talk("/system être bref", "hello", f"/save {path}").run()
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["model"] == "echo" and document["messages"][0] == {"role": "system", "content": "être bref"}
    talk = Talk("other", f"/load {path}", "more", f"/save {path}").run()
    assert talk.said == [("hello", "HELLO"), ("more", "MORE")]
    assert talk.session.prompts[-1] == "s:être bref\nu:hello\na:HELLO\nu:more\n"
    assert load(path).messages() == talk.chat.conversation.messages() and list(tmp_path.iterdir()) == [path]
    path.write_text(json.dumps(document["messages"]))
    assert load(path).turns == [Turn("hello", "HELLO")]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat.json"
    save(Conversation("", [Turn("a", "b")]), path, "m")
    before = path.read_text()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OptionError, match="No space left on device"):
        save(Conversation("", [Turn("c", "d")]), path, "m")
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_what_is_no_conversation_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("important")
    with pytest.raises(OptionError, match="is there already and is no conversation"):
        save(Conversation(), path, "m")
    assert path.read_text() == "important"


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    "text",
    ["", "[1]", '{"a": 1}', "null", "\udcff", json.dumps([USER]), json.dumps([ASSISTANT, USER])]
    + [json.dumps({"messages": [USER, {"role": "assistant"}]}), json.dumps([USER, ASSISTANT, {"role": "system"}])],
)
def test_what_is_no_conversation_is_not_loaded(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    talk = Talk("a", f"/load {path}").run()
    assert "holds no conversation: messages of user and assistant" in talk.errors[0]
    assert talk.said == [("a", "A")]


# Lines


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a", "b"], "a"),
        (["a\\", "b\\", "c", "d"], "a\nb\nc"),
        (["a\\"], "a"),
        (['"""', "a", "", "b", '"""', "c"], "a\n\nb"),
        (['"""a', 'b"""'], "a\nb"),
        (['"""a"""'], "a"),
        (['"""', "a"], "a"),
        (['"""', "/exit", '"""'], "//exit"),
        ([], None),
    ],
)
def test_a_message_of_several_lines(lines: list[str], message: str | None) -> None:
    typed = iter(lines)
    assert read_message(lambda prompt: next(typed, None)) == message


# Smaller things


@pytest.mark.parametrize("interactive", [False, True])
def test_a_model_gives_a_terminal_no_orders(interactive: bool, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.interactive = interactive
    terminal.say("é\t\x1b[2J\r\n")
    assert capsys.readouterr().out == ("é\t�[2J�\n" if interactive else "é\t\x1b[2J\r\n")


def test_figures_of_an_answer_that_was_over_at_once() -> None:
    output = RequestOutput("id", (1, 2), (), "cancelled", Timings(submitted=1.0, finished=2.0))
    assert figures(output, 8) == "0 tokens · 0 of 2 prompt tokens cached · stopped"
    timings = Timings(submitted=1.0, first_token=1.5, finished=1.5)
    assert figures(RequestOutput("id", (1, 2), (3,), "stop", timings, cached_tokens=1), 8) == (
        "1 token · first after 0.50 s · 1 of 2 prompt tokens cached"
    )


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ('{"max_position_embeddings": 512}', 512),
        ('{"max_position_embeddings": 100000}', 4096),
        ('{"text_config": {"max_position_embeddings": 256}}', 256),
        ("{}", 4096),
        ("[]", 4096),
        ("broken", 4096),
    ],
)
def test_the_usual_context(tmp_path: Path, config: str, context: int) -> None:
    (tmp_path / "config.json").write_text(config)
    assert chat_command.usual_context(str(tmp_path)) == context
    assert chat_command.usual_context("some/model") == 4096
