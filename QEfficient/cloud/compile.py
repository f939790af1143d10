"""`qefficient compile`: a program becomes ready for one device and one geometry."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import Any

from QEfficient.cloud._arguments import Parser, UsageError, add_device, add_export, add_geometry, add_model, add_phase

HELP = "Compile a model, or a program that was exported before, for a device; print the folder."
EXAMPLES = """\
  qefficient compile --ctx-len 1024                  the built-in demo model
  qefficient compile ./checkpoint --ctx-len 4096 --full-batch-size 4 --weight-format int4
  qefficient compile --onnx-path ./program-1234/LlamaForCausalLM.onnx --prompt-len 64
  qefficient compile ./checkpoint --full-batch-size 4 --num-speculative-tokens 1,3,7
  qefficient compile ./checkpoint --ctx-len 8192 --comp-ctx-lengths-decode 1024,4096,8192"""


def add_arguments(parser: Parser) -> None:
    add_model(parser)
    add_export(parser)
    add_geometry(parser)
    add_phase(parser)
    add_device(parser)
    group = parser.add_argument_group("program")
    group.add_argument("--onnx-path", metavar="FILE", help="compile this exported program in place of a model")
    group.add_argument("--compile-dir", metavar="DIR", help="write below DIR, not into the program's folder")
    group.add_argument(
        "--qpc-path", metavar="DIR", help="the same; with --onnx-path and a card into DIR/qpcs, where old scripts look"
    )
    group.add_argument("--custom-io-file-path", metavar="FILE", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    from QEfficient.cloud._compiled import output_folder
    from QEfficient.cloud._preparation import Preparation, compile_onnx, model_name
    from QEfficient.cloud._presentation import StageClock, document, note

    if arguments.onnx_path and (arguments.model or arguments.model_name):
        raise UsageError("a model and --onnx-path contradict each other. Give one of them.")
    if arguments.compile_dir and arguments.qpc_path:
        raise UsageError("--compile-dir and --qpc-path contradict each other. Give one of them.")
    if not arguments.onnx_path:
        arguments.compile_dir = arguments.compile_dir or arguments.qpc_path
        if arguments.custom_io_file_path:
            note("--custom-io-file-path is not used: the types of inputs and outputs follow from the program")
    with StageClock(arguments.verbose) as clock:
        if arguments.onnx_path:
            compiled = compile_onnx(arguments, clock)
        else:
            compiled = Preparation(model_name(arguments), arguments, clock).compiled()
    if not arguments.json:
        clock.summary()
        for way, count in Counter(compiled.report.get("layers", {}).values()).items():
            note(f"{count} layer{'s' if count > 1 else ''} in {way}")
        print(output_folder(compiled))
        return 0
    document(
        {
            "folder": compiled.folder,
            "qpc_path": output_folder(compiled),
            "onnx_path": compiled.program.onnx_path(),
            "device": compiled.device,
            "simulated": compiled.simulated,
            "fingerprint": compiled.fingerprint,
            "layers": compiled.report.get("layers", {}),
            "seconds": clock.seconds,
        }
    )
    return 0


def main(onnx_path: str, qpc_path: str, num_cores: int, **options: Any) -> str:
    """`QEfficient.compile`, where old scripts of Qualcomm's library look for it."""
    from QEfficient.legacy import compile as compile_for_script

    return compile_for_script(onnx_path, qpc_path, num_cores, **options)


if __name__ == "__main__":
    from QEfficient.cloud.main import run_alone

    sys.exit(run_alone("compile"))
