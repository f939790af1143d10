"""`qefficient execute`: text from a folder that was compiled before. Needs no torch and not the model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from QEfficient.cloud._arguments import Parser, add_decoding, add_prompts, add_sampling, add_source, device_group

if TYPE_CHECKING:
    from QEfficient.program import CompiledProgram

HELP = "Generate text with a compiled program alone."
EXAMPLES = """\
  qefficient execute --qpc-path "$(qefficient compile ./checkpoint)" --prompt "My name is"
  qefficient execute --qpc-path ./qpc-0123456789abcdef --prompts-txt-file-path prompts.txt --json
  qefficient execute --qpc-path ./qpc-0123456789abcdef --prompt "My name is" --draft-model ./qpc-fedcba9876543210"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--qpc-path", metavar="DIR", required=True, help="the folder that compile printed, or its name")
    add_prompts(parser)
    add_sampling(parser)
    add_decoding(parser)
    group = parser.add_argument_group("tokenizer", "only for a program that was exported without one")
    group.add_argument("--model-name", "--model", metavar="MODEL", help="the model whose tokenizer is used")
    add_source(group)
    parser.add_argument("--device-group", type=device_group, help=argparse.SUPPRESS)
    parser.add_argument("--full-batch-size", type=int, help=argparse.SUPPRESS)  # the program knows its own


def run(arguments: argparse.Namespace) -> int:
    from QEfficient.cloud import _generation as generation
    from QEfficient.cloud._presentation import StageClock, document

    compiled = find_compiled(arguments.qpc_path)
    task = generation.Task(generation.read_prompts(arguments), generation.sampling(arguments), arguments.json)
    with StageClock(arguments.verbose) as clock:
        clock("load the tokenizer")
        choice = generation.decoding(arguments, lambda: find_compiled(arguments.draft_model))
        record = generation.generate(compiled, _tokenizer(compiled, arguments), task, clock, choice)
    if arguments.json:
        document({"device": compiled.device, "qpc_path": compiled.folder, **record, "seconds": clock.seconds})
    return 0


def is_compiled(where: str) -> bool:
    """Whether a compiled program lies in a folder, or below it."""
    from pathlib import Path

    from QEfficient.artifacts import COMPILED_PREFIX
    from QEfficient.program import MANIFEST

    folder = Path(where).expanduser()
    return (folder / MANIFEST).is_file() or any(folder.glob(f"{COMPILED_PREFIX}*/{MANIFEST}"))


def find_compiled(where: str) -> CompiledProgram:
    """The compiled program in a folder, the only one below it, or the one that the store knows by this name."""
    from pathlib import Path

    from QEfficient.artifacts import COMPILED_PREFIX, ArtifactStore
    from QEfficient.errors import ArtifactError
    from QEfficient.program import MANIFEST, load_compiled

    folder, store = Path(where).expanduser(), ArtifactStore()
    if not folder.is_dir():
        if folder.name != where:
            raise ArtifactError(f"there is no folder {where}. `qefficient compile` prints the folder that it made.")
        folder = store.find(where).path
    inside = [manifest.parent for manifest in sorted(folder.glob(f"{COMPILED_PREFIX}*/{MANIFEST}"))]
    if len(inside) > 1:
        names = ", ".join(path.name for path in inside[:5])
        raise ArtifactError(f"{folder} holds {len(inside)} compiled programs ({names}). Name one of them.")
    compiled = load_compiled(inside[0] if inside else folder)
    store.open(compiled.folder)
    return compiled


def _tokenizer(compiled: CompiledProgram, arguments: argparse.Namespace) -> Any:
    from QEfficient.cloud._generation import open_tokenizer
    from QEfficient.cloud._preparation import tokenizer_options
    from QEfficient.cloud._tokenizers import model_tokenizer

    named = arguments.local_model_dir or arguments.model_name
    if compiled.program.has_tokenizer or named is None:
        return open_tokenizer(compiled)
    return model_tokenizer(named, tokenizer_options(arguments))


if __name__ == "__main__":
    from QEfficient.cloud.main import run_alone

    sys.exit(run_alone("execute"))
