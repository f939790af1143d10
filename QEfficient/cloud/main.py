"""`qefficient COMMAND …`: finds the command, reads its arguments, runs it; turns errors into a line and an exit code.

0 done · 1 an error that a sentence explains · 2 wrong usage · 130 interrupted; anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

import QEfficient
from QEfficient.cloud._arguments import SIMULATED_DEVICE, Parser, UsageError, add_output, refuse_simulating
from QEfficient.errors import CompilationError, QEfficientError, did_you_mean

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
BROKEN_PIPE = 141
"""What a shell shows for a program that the signal SIGPIPE ended."""
IN_FLAGS = {
    "trust_remote_code=True": "--trust-remote-code",
    "continuous_batching=True": "--continuous-batching",
    "pass token=": "pass --hf-token",
    "with full_batch_size": "with --full-batch-size",
}
"""What errors advise in Python, as flags."""


class Command(Protocol):
    """What the module of a command offers."""

    HELP: str
    EXAMPLES: str

    def add_arguments(self, parser: Parser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


def command_names() -> list[str]:
    """The modules of this folder, without those that commands share."""
    names = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    return [name for name in names if not name.startswith("_") and name != "main"]


def load_command(name: str) -> Command:
    if name not in command_names():
        known = "`qefficient --help` lists the commands."
        raise UsageError(f"there is no command '{name}'.{did_you_mean(name, command_names())} {known}")
    return cast(Command, importlib.import_module(f"QEfficient.cloud.{name}"))


def command_parser(name: str, command: Command, prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description=command.HELP,
        epilog=f"examples:\n{command.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    add_output(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "qefficient") -> int:
    """Run one command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _dispatch(words, prog))


def run_alone(name: str) -> int:
    """`python -m QEfficient.cloud.<name> …`: the command without the front door."""
    return _guarded(lambda: _run(name, sys.argv[1:], f"python -m QEfficient.cloud.{name}"))


def _dispatch(words: list[str], prog: str) -> int:
    if words and not words[0].startswith("-"):
        return _run(words[0], words[1:], f"{prog} {words[0]}")
    parser = _front_door(prog)
    parser.read(words)  # --help and --version end here
    parser.print_help(sys.stderr)
    return WRONG_USAGE


def _run(name: str, words: Sequence[str], prog: str) -> int:
    from QEfficient.cloud._logging import configure_logging

    command = load_command(name)
    arguments = command_parser(name, command, prog).read(words)
    configure_logging(arguments.verbose)
    with simulation(arguments):
        return command.run(arguments)


@contextmanager
def simulation(arguments: argparse.Namespace) -> Iterator[None]:
    """What --simulate asks for: by the environment, which processes that a command starts have too."""
    if getattr(arguments, "simulate", None) is None:
        yield
        return
    from QEfficient.devices.cloud_ai_100.sdk import SIMULATOR_VARIABLE

    if getattr(arguments, "device", None) in (None, "auto"):
        arguments.device = SIMULATED_DEVICE
    refuse_simulating(arguments.device, f"--device {arguments.device} was given")
    before = os.environ.get(SIMULATOR_VARIABLE)
    os.environ[SIMULATOR_VARIABLE] = arguments.simulate
    try:
        yield
    finally:
        if before is None:
            del os.environ[SIMULATOR_VARIABLE]
        else:
            os.environ[SIMULATOR_VARIABLE] = before


def _front_door(prog: str) -> Parser:
    width = max(map(len, command_names()))
    lines = [f"  {name:<{width}}  {load_command(name).HELP}" for name in command_names()]
    parser = Parser(
        prog=prog,
        usage=f"{prog} COMMAND …",
        description="Hugging Face models as stateful ONNX programs, compiled for a device and run there.",
        epilog="commands:\n" + "\n".join(lines) + f"\n\n`{prog} COMMAND --help` explains one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"qefficient {QEfficient.__version__}")
    return parser


def _guarded(work: Callable[[], int]) -> int:
    try:
        code = work()
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _failed(error, WRONG_USAGE)
    except QEfficientError as error:
        return _failed(error, FAILED)
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _failed(reason: object, code: int) -> int:
    # What a compiler said is lines; the error is one, so that scripts find all of it.
    breaks = " | " if isinstance(reason, CompilationError) else " "
    lines = [" ".join(line.split()) for line in str(reason).splitlines()]
    sentence = breaks.join(filter(None, lines)).replace(": | ", ": ")
    for python, flag in IN_FLAGS.items():
        sentence = sentence.replace(python, flag)
    print(f"error: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
