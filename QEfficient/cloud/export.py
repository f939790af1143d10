"""`qefficient export`: a model becomes an ONNX program."""

from __future__ import annotations

import argparse
import sys

from QEfficient.cloud._arguments import (
    Parser,
    add_export,
    add_latent,
    add_model,
    add_projections,
    add_sampler_width,
    positive,
    switch,
)

HELP = "Write a model as an ONNX program, or find it; print the path."
EXAMPLES = """\
  qefficient export                                  the built-in demo model
  qefficient export meta-llama/Llama-3.2-1B --dtype float16
  qefficient export --model-name ./checkpoint --full-batch-size 4 --json
  qefficient export ./checkpoint --full-batch-size 4 --speculative-target"""


def add_arguments(parser: Parser) -> None:
    add_model(parser)
    add_export(parser)
    group = parser.add_argument_group("program")
    group.add_argument("--export-dir", metavar="DIR", help="write to DIR-<fingerprint> in place of the artifact store")
    group.add_argument("--continuous-batching", action="store_true", help="sequences may come and go one by one")
    group.add_argument("--full-batch-size", type=positive, metavar="N", help="the same; its number matters to compile")
    group.add_argument("--mxint8-kv-cache", nargs="?", type=switch, help=argparse.SUPPRESS)  # compile decides that
    group = parser.add_argument_group("kinds of calls", "for compile --onnx-path with the same flags or numbers")
    group.add_argument("--speculative-target", action="store_true", help="for compile --num-speculative-tokens")
    add_projections(group)
    group.add_argument("--ccl-enabled", action="store_true", help="for compile --comp-ctx-lengths-… or --ccl-enabled")
    group.add_argument("--include-sampler", action="store_true", help="the program chooses the tokens itself")
    add_sampler_width(group)
    group.add_argument("--kv-head-copies", type=positive, metavar="N", help="hold each head of keys and values N times")
    add_latent(group)


def run(arguments: argparse.Namespace) -> int:
    from QEfficient.cloud._preparation import Preparation, model_name
    from QEfficient.cloud._presentation import StageClock, document

    with StageClock(arguments.verbose) as clock:
        preparation = Preparation(model_name(arguments), arguments, clock)
        program = preparation.exported()
    if not arguments.json:
        clock.summary()
        print(program.onnx_path())
        return 0
    document(
        {
            "model": preparation.name,
            "onnx_path": program.onnx_path(),
            "folder": program.folder,
            "fingerprint": program.fingerprint,
            "dtype": program.dtype,
            "seconds": clock.seconds,
        }
    )
    return 0


def main(
    model_name: str,
    cache_dir: str | None = None,
    hf_token: str | None = None,
    local_model_dir: str | None = None,
    full_batch_size: int | None = None,
    mxint8_kv_cache: bool = False,
) -> None:
    """The command, for scripts of Qualcomm's library."""
    given = dict(locals())
    from QEfficient.cloud._scripts import call

    call("export", given)


if __name__ == "__main__":
    from QEfficient.cloud.main import run_alone

    sys.exit(run_alone("export"))
