"""`qefficient chat`: a conversation with a model, in a terminal or through a pipe."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from QEfficient.cloud import _arguments as options

if TYPE_CHECKING:
    from QEfficient.cloud._chat.dialogue import Chat
    from QEfficient.cloud._presentation import StageClock
    from QEfficient.program import CompiledProgram
    from QEfficient.specs import CompileSpec

HELP = "Talk with a model: answers as they come, the conversation remembered, /commands."
EXAMPLES = """\
  qefficient chat                                    the built-in demo model
  qefficient chat ./checkpoint --ctx-len 8192 --system "Answer in one sentence." --temperature 0.7
  qefficient chat ./checkpoint --weight-format int8 --max-new-tokens 200 --json
  qefficient chat ./checkpoint --draft-model ./smaller-checkpoint"""

LARGEST_CONTEXT = 4096
"""Unless --ctx-len says more: a card's program has memory for all of its context."""
PLAIN_LENGTH = 64
"""Most tokens of an answer of a model without a chat template: such models seldom end by themselves."""


def add_arguments(parser: options.Parser) -> None:
    options.add_model(parser)
    group = parser.add_argument_group("conversation")
    group.add_argument("--system", metavar="TEXT", help="what the model is told before all")
    options.add_length(group)
    options.add_choosing(parser)
    options.add_decoding(parser)
    options.add_export(parser)
    options.add_geometry(parser, options.Geometry(ctx_len=None))
    options.add_device(parser)
    parser.set_defaults(compile_dir=None)


def run(arguments: argparse.Namespace) -> int:
    from QEfficient.cloud import _generation as generation
    from QEfficient.cloud._compiled import output_folder
    from QEfficient.cloud._preparation import Preparation, chosen_device, model_name, share_cores, tokenizer_options
    from QEfficient.cloud._presentation import StageClock, document
    from QEfficient.cloud._tokenizers import model_tokenizer

    name = model_name(arguments)
    given = generation.sampling(arguments)
    if arguments.ctx_len is None:
        arguments.ctx_len = usual_context(name)
    share_cores(arguments)
    with StageClock(arguments.verbose) as clock:

        def check(spec: CompileSpec, vocabulary: int) -> None:
            generation.check_decoding(arguments, spec, chosen_device(arguments).pads_calls, given)
            generation.check_tokens(given, vocabulary)
            model_tokenizer(name, tokenizer_options(arguments))  # which refuses a model without one

        compiled = Preparation(name, arguments, clock).compiled(check, runs=True)
        chat = _run(name, compiled, given, arguments, clock)
    if arguments.json:
        made = {"model": name, "device": compiled.device, "simulated": compiled.simulated}
        made["qpc_path"] = output_folder(compiled)
        said = {"messages": chat.conversation.messages(), "answers": chat.answers}
        document({**made, **said, "seconds": clock.seconds})
    return 1 if chat.failed and not chat.terminal.interactive else 0  # a script learns that a line was refused


def usual_context(model: str) -> int:
    """As many tokens as a local model has positions for, up to `LARGEST_CONTEXT`."""
    from QEfficient.demo import DEMO_NAME, demo_folder

    folder = demo_folder() if model == DEMO_NAME else Path(model).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        positions = (config.get("text_config") or config).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):  # on a hub, or refused later with a reason
        positions = None
    return min(positions, LARGEST_CONTEXT) if isinstance(positions, int) and positions > 0 else LARGEST_CONTEXT


def _run(
    name: str, compiled: CompiledProgram, given: dict[str, Any], arguments: argparse.Namespace, clock: StageClock
) -> Chat:
    from QEfficient.cloud import _generation as generation
    from QEfficient.cloud._chat.commands import command_names
    from QEfficient.cloud._chat.conversation import Conversation
    from QEfficient.cloud._chat.dialogue import Chat, Partner
    from QEfficient.cloud._chat.loop import hold
    from QEfficient.cloud._chat.settings import Settings
    from QEfficient.cloud._chat.terminal import Terminal
    from QEfficient.cloud._preparation import draft_program

    generation.check_program(compiled)
    generation.check_tokens(given, compiled.program.model.vocab_size)
    settings, terminal = Settings(compiled.program.model.generation, given), Terminal(arguments.json, command_names())
    choice = generation.decoding(arguments, lambda: draft_program(arguments, clock))
    tokenizer = generation.open_tokenizer(compiled)
    with generation.opened(compiled, tokenizer, clock, choice, arguments.device_group) as opener:
        partner = Partner(name, compiled.place, opener)
        chat = Chat(partner, settings, terminal, Conversation(arguments.system or ""))
        _greet(chat)
        hold(chat)
    return chat


def _greet(chat: Chat) -> None:
    if not chat.prompts.templated:
        if chat.settings.params.max_new_tokens is None:
            chat.settings.set("max_new_tokens", str(PLAIN_LENGTH))
        most = chat.settings.params.max_new_tokens
        chat.terminal.note(
            f"the model has no chat template: it goes on with what you type, {most} tokens at a time"
            " (/set max_new_tokens)."
        )
    if chat.terminal.interactive:
        chat.terminal.note(
            f"{chat.partner.name} on {chat.partner.device}, a context of {chat.prompts.ctx_len:,} tokens. /help lists"
            " the commands; Ctrl-C stops an answer, Ctrl-D leaves.\n"
        )


if __name__ == "__main__":
    from QEfficient.cloud.main import run_alone

    sys.exit(run_alone("chat"))
