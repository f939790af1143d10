"""`qefficient verify`: the program against Hugging Face, and its cache under torture."""

from __future__ import annotations

import argparse
import sys
from itertools import groupby
from typing import TYPE_CHECKING, Any

from QEfficient.cloud._arguments import Geometry, Parser, add_device, add_geometry, add_model, add_phase, add_prompts

if TYPE_CHECKING:
    from QEfficient.verification.report import Report

HELP = "Compare Hugging Face, the transformed module and the program on a device; say where they part."
EXAMPLES = """\
  qefficient verify                                  the built-in demo model
  qefficient verify ./checkpoint --full-batch-size 2 --device reference
  qefficient verify "$(qefficient compile ./checkpoint)" --prompt "My name is"
  qefficient verify ./checkpoint --full-batch-size 2 --num-speculative-tokens 3 --device cloud_ai_100"""

LENGTH = 24
SHAPE = ("prefill_seq_len", "batch_size", "full_batch_size", "kv_cache_batch_size")


def add_arguments(parser: Parser) -> None:
    add_model(parser)
    add_prompts(parser)
    add_geometry(parser, Geometry(None, None, None))
    add_phase(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    from QEfficient.cloud._compiled import is_compiled
    from QEfficient.cloud._generation import read_prompts
    from QEfficient.cloud._logging import quieten_libraries
    from QEfficient.cloud._preparation import (
        check_batch,
        chosen_device,
        device_options,
        given,
        model_name,
        qaic_config,
        shapes,
        source_options,
    )
    from QEfficient.cloud._presentation import StageClock
    from QEfficient.specs import SamplingParams

    asked = arguments.prompt is not None or arguments.prompts_txt_file_path
    prompts = read_prompts(arguments) if asked else None
    length = LENGTH if arguments.generation_len is None else arguments.generation_len
    SamplingParams(max_new_tokens=length)  # which refuses what is no length
    check_batch(arguments)
    own, config = device_options(arguments), qaic_config(arguments)
    device, name = chosen_device(arguments), model_name(arguments)
    device.own_options(own)
    if not is_compiled(name):  # which says itself what it is for
        device.check_runs()
    with StageClock(arguments.verbose) as clock:
        clock("load libraries")
        from QEfficient.verification.ladder import verify

        quieten_libraries(arguments.verbose)
        report = verify(
            name,
            device=arguments.device,
            prompts=prompts,
            ctx_len=arguments.ctx_len,
            new_tokens=length,
            continuous_batching=True if arguments.full_batch_size else None,
            options={
                **source_options(arguments),
                **given(arguments, SHAPE),
                **shapes(arguments),
                **({"qaic_config": config} if config else {}),
                **own,
            },
            progress=lambda stage: clock(stage, shown=stage != "open"),  # which has bars of its own
        )
    _print(report, arguments.json, clock.seconds)
    report.raise_if_failed()
    return 0


def _print(report: Report, as_json: bool, seconds: dict[str, float]) -> None:
    from QEfficient.cloud._presentation import document, note, table

    if as_json:
        record: dict[str, Any] = report.to_json()
        document({**record, "stages": seconds})
    elif sys.stdout.isatty():
        from rich.console import Console

        Console(markup=False, highlight=False).print(*report.tables(), report.verdict(), sep="\n")
    else:
        for columns, sections in groupby(report.sections(), lambda section: section.columns):
            table(("compared", *columns), [(section.title, *row) for section in sections for row in section.rows])
        note(report.verdict())


if __name__ == "__main__":
    from QEfficient.cloud.main import run_alone

    sys.exit(run_alone("verify"))
