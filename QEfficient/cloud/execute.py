"""`qefficient execute`: text from a folder that was compiled before. Needs no torch and not the model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from QEfficient.cloud._arguments import (
    Parser,
    add_decoding,
    add_prompts,
    add_sampling,
    add_simulate,
    add_source,
    device_group,
    refuse_simulating,
)

if TYPE_CHECKING:
    from QEfficient.program import CompiledProgram

HELP = "Generate text with a compiled program alone."
EXAMPLES = """\
  qefficient execute --qpc-path "$(qefficient compile ./checkpoint)" --prompt "My name is"
  qefficient execute --qpc-path ./qpc-0123456789abcdef --prompts-txt-file-path prompts.txt --json
  qefficient execute --qpc-path ./qpc-0123456789abcdef --prompt "My name is" --draft-model ./qpc-fedcba9876543210
  qefficient execute --qpc-path ./qpc-new-tokens --prefill-qpc-path ./qpc-prompts --prompt Hello"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--qpc-path", metavar="DIR", required=True, help="the folder that compile printed, or its name")
    parser.add_argument(
        "--prefill-qpc-path", metavar="DIR", help="another program of the model, compiled --prefill-only, takes prompts"
    )
    add_prompts(parser)
    add_sampling(parser)
    add_decoding(parser)
    group = parser.add_argument_group("tokenizer", "only for a program that was exported without one")
    group.add_argument("--model-name", "--model", metavar="MODEL", help="the model whose tokenizer is used")
    add_source(group)
    add_simulate(parser)
    parser.add_argument("--device-group", type=device_group, help=argparse.SUPPRESS)
    parser.add_argument("--full-batch-size", type=int, help=argparse.SUPPRESS)  # the program knows its own


def run(arguments: argparse.Namespace) -> int:
    from QEfficient.cloud import _generation as generation
    from QEfficient.cloud._compiled import find_compiled, output_folder, with_end
    from QEfficient.cloud._presentation import StageClock, document
    from QEfficient.devices.handover import check_alike

    compiled = find_compiled(arguments.qpc_path)
    if arguments.simulate is not None:
        refuse_simulating(compiled.device, f"the program in {compiled.folder} is for {compiled.device}")
    prompts, sampling = generation.read_prompts(arguments), generation.sampling(arguments)
    prefill = find_compiled(arguments.prefill_qpc_path) if arguments.prefill_qpc_path else None
    if prefill is not None:
        check_alike(compiled, prefill)
    task = generation.Task(prompts, sampling, arguments.json, arguments.device_group, prefill)
    with StageClock(arguments.verbose) as clock:
        clock("load the tokenizer")
        choice = generation.decoding(arguments, lambda: find_compiled(arguments.draft_model))
        tokenizer = _tokenizer(compiled, arguments)
        record = generation.generate(with_end(compiled, tokenizer), tokenizer, task, clock, choice)
    if arguments.json:
        paths = {"qpc_path": output_folder(compiled)}
        document({"device": compiled.device, **paths, **record, "seconds": clock.seconds})
    return 0


def _tokenizer(compiled: CompiledProgram, arguments: argparse.Namespace) -> Any:
    from QEfficient.cloud._generation import open_tokenizer
    from QEfficient.cloud._preparation import tokenizer_options
    from QEfficient.cloud._tokenizers import model_tokenizer

    named = arguments.local_model_dir or arguments.model_name
    if compiled.program.has_tokenizer or named is None:
        return open_tokenizer(compiled)
    return model_tokenizer(named, tokenizer_options(arguments))


def main(
    model_name: str,
    qpc_path: str,
    device_group: list[int] | None = None,
    local_model_dir: str | None = None,
    prompt: str | list[str] | None = None,
    prompts_txt_file_path: str | None = None,
    generation_len: int | None = None,
    cache_dir: str | None = None,
    hf_token: str | None = None,
    full_batch_size: int | None = None,
) -> None:
    """The command, for scripts of Qualcomm's library."""
    given = dict(locals())
    from QEfficient.cloud._scripts import call

    call("execute", given)


if __name__ == "__main__":
    from QEfficient.cloud.main import run_alone

    sys.exit(run_alone("execute"))
