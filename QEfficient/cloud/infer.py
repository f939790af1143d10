"""`qefficient infer`: from a model and a prompt to text."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from QEfficient.cloud import _arguments as options

if TYPE_CHECKING:
    from QEfficient.program import CompiledProgram
    from QEfficient.specs import CompileSpec

HELP = "Export and compile a model as far as needed, then generate text."
EXAMPLES = """\
  qefficient infer --prompt "In the beginning"       the built-in demo model
  qefficient infer ./checkpoint --prompt "My name is" --ctx-len 512 --generation-len 64
  qefficient infer ./checkpoint --prompt "One|Two|Three" --full-batch-size 2 --temperature 0.8 --seed 1
  qefficient infer ./checkpoint --prompts-txt-file-path questions.txt --prompt-lookup
  qefficient infer ./checkpoint --prompt "My name is" --draft-model ./smaller-checkpoint
  qefficient infer ./checkpoint --prompt "My name is" --ctx-len 16384 --ccl-enabled --device cloud_ai_100"""

DEMO_PROMPT = "In the beginning"
ENCRYPTED = "io_encrypt"
"""The option of a card's compiler whose programs only who has the key can run."""
DEMO_LENGTH = 64
"""Half of the default context: the demo is to show something, not to go on for long."""


def add_arguments(parser: options.Parser) -> None:
    options.add_model(parser)
    options.add_prompts(parser)
    options.add_sampling(parser)
    options.add_decoding(parser)
    options.add_export(parser)
    options.add_geometry(parser)
    options.add_device(parser)
    parser.set_defaults(compile_dir=None)


def run(arguments: argparse.Namespace) -> int:
    from QEfficient.cloud import _generation as generation
    from QEfficient.cloud._compiled import output_folder
    from QEfficient.cloud._preparation import (
        Preparation,
        chosen_device,
        draft_program,
        model_name,
        share_cores,
        tokenizer_options,
    )
    from QEfficient.cloud._presentation import StageClock, document
    from QEfficient.cloud._tokenizers import model_tokenizer
    from QEfficient.demo import DEMO_NAME

    name = model_name(arguments)
    demo = name == DEMO_NAME
    task = generation.Task(
        generation.read_prompts(arguments, DEMO_PROMPT if demo else None),
        generation.sampling(arguments, DEMO_LENGTH if demo else None),
        arguments.json,
        arguments.device_group,
    )
    share_cores(arguments)
    with StageClock(arguments.verbose) as clock:

        def check(spec: CompileSpec, vocabulary: int) -> None:
            generation.check_decoding(arguments, spec, chosen_device(arguments).pads_calls, task.sampling)
            generation.check_tokens(task.sampling, vocabulary)
            generation.check_prompts(model_tokenizer(name, tokenizer_options(arguments)), task.prompts, spec)

        runs = arguments.device_options.get(ENCRYPTED) in (None, False)
        compiled = Preparation(name, arguments, clock).compiled(check, runs)
        if not runs:
            return _leave(compiled, name, arguments.json)
        choice = generation.decoding(arguments, lambda: draft_program(arguments, clock))
        record = generation.generate(compiled, generation.open_tokenizer(compiled), task, clock, choice)
    if arguments.json:
        paths = {"onnx_path": compiled.program.onnx_path(), "qpc_path": output_folder(compiled)}
        document({"model": name, "device": compiled.device, **paths, **record, "seconds": clock.seconds})
    return 0


def _leave(compiled: CompiledProgram, name: str, as_json: bool) -> int:
    """End with the program: what is encrypted is for who has the key."""
    from QEfficient.cloud._compiled import output_folder
    from QEfficient.cloud._presentation import document, note

    note(f"compiled with {ENCRYPTED}, so it is not run here")
    path = output_folder(compiled)
    if as_json:
        document({"model": name, "device": compiled.device, "qpc_path": path})
    else:
        print(path)
    return 0


def main(
    model_name: str,
    num_cores: int,
    device_group: list[int] | None = None,
    prompt: str | list[str] | None = None,
    prompts_txt_file_path: str | None = None,
    aic_enable_depth_first: bool = False,
    mos: int | None = None,
    batch_size: int = 1,
    full_batch_size: int | None = None,
    prompt_len: int = 32,
    ctx_len: int = 128,
    generation_len: int | None = None,
    mxfp6: bool = False,
    mxint8: bool = False,
    local_model_dir: str | None = None,
    cache_dir: str | None = None,
    hf_token: str | None = None,
    allow_mxint8_mdp_io: bool = False,
    enable_qnn: bool | str = False,
    qnn_config: str | None = None,
    trust_remote_code: bool = False,
    ccl_enabled: bool = False,
    **options: Any,
) -> None:
    """The command, for scripts of Qualcomm's library. `options`: other flags of it, and options of the device."""
    given = dict(locals())
    from QEfficient.cloud._scripts import call

    call("infer", given)


if __name__ == "__main__":
    from QEfficient.cloud.main import run_alone

    sys.exit(run_alone("infer"))
