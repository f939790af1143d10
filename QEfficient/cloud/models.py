"""`qefficient models`: which types of models there are, and how far each of them comes."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from QEfficient.cloud._arguments import Parser, UsageError, add_simulate

if TYPE_CHECKING:
    from QEfficient.verification.model_matrix import Outcome

HELP = "List the model types, or test a tiny model of each."
EXAMPLES = """\
  qefficient models
  qefficient models --test                           all of them; writes docs/models.md
  qefficient models --test llama mixtral --device cpu --weight-format int4 --json"""

TABLE = Path("docs/models.md")
USUAL_DEVICE = "reference"
BROKEN = ("wrong", "crashed")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("types", metavar="TYPE", nargs="*", help="only these")
    parser.add_argument("--test", action="store_true", help="compare a tiny model of each with Hugging Face")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="with --test: how many at a time; default 2")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"with --test: where the table goes; of all types {TABLE}"
    )
    parser.add_argument("--device", metavar="NAME", help=f"with --test: where they run; default {USUAL_DEVICE}")
    add_simulate(parser)
    parser.takes_device_options = True


def run(arguments: argparse.Namespace) -> int:
    if not arguments.test and arguments.simulate is not None:
        raise UsageError("--simulate goes with --test.")
    if not arguments.test and arguments.output:
        raise UsageError("--output goes with --test.")
    if arguments.jobs < 1:
        raise UsageError("--jobs must be at least 1.")
    if arguments.device_options and not arguments.test:
        raise UsageError(f"{', '.join(arguments.device_options)} goes with --test.")
    names = _classes(arguments.types)
    return _test(names, arguments) if arguments.test else _list(names, arguments.json)


def _classes(types: Sequence[str]) -> dict[str, str]:
    """Type → class of the causal language models of the installed transformers, or of those that are asked for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from QEfficient.errors import OptionError, did_you_mean

    known = {name: cls for name, cls in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name in CONFIG_MAPPING_NAMES}
    for name in types:
        if name not in known:
            raise OptionError(f"transformers has no causal language model '{name}'.{did_you_mean(name, known)}")
    return {name: known[name] for name in types or sorted(known)}


def _list(names: dict[str, str], as_json: bool) -> int:
    from QEfficient.cloud._presentation import document, note, table

    if as_json:
        document({"models": [{"type": name, "class": cls} for name, cls in names.items()]})
        return 0
    table(("type", "class"), names.items())
    note(f"{len(names)} types; `qefficient models --test` finds out how far each of them comes")
    return 0


def _test(names: dict[str, str], arguments: argparse.Namespace) -> int:
    from QEfficient.cloud._presentation import document, note, table
    from QEfficient.devices import get_device
    from QEfficient.errors import VerificationError
    from QEfficient.program import place_name

    device, options = arguments.device or USUAL_DEVICE, arguments.device_options
    chosen = get_device(device)
    chosen.own_options(options)
    chosen.check_runs()
    from QEfficient.verification import model_matrix

    all_here = not arguments.types and device == USUAL_DEVICE and TABLE.parent.is_dir()
    output = arguments.output or (TABLE if all_here else None)
    outcomes = model_matrix.run(list(names), output, arguments.jobs, _say, device=device, options=options)
    if arguments.json:
        models = [asdict(outcome) for outcome in outcomes]
        document({"models": models, "device": device, "simulated": chosen.simulated()})
    elif any(outcome.level != "exact" for outcome in outcomes):
        table(("type", "level", "reason"), [(o.model_type, o.level, _why(o)) for o in outcomes if o.level != "exact"])
    counts = Counter(outcome.level for outcome in outcomes)
    where = f" on {place_name(device, True)}" if chosen.simulated() else ""
    note(f"{len(outcomes)} types{where}: " + ", ".join(f"{count} {level}" for level, count in counts.most_common()))
    if output:
        note(f"written to {output}")
    broken = [outcome.model_type for outcome in outcomes if outcome.level in BROKEN]
    if broken:
        raise VerificationError(f"{len(broken)} of {len(outcomes)} types are wrong or crash: {', '.join(broken[:10])}.")
    return 0


def _why(outcome: Outcome) -> str:
    return "; ".join(filter(None, (outcome.reason, outcome.narrow.describe() if outcome.narrow else "")))


def _say(outcome: Outcome) -> None:
    from QEfficient.cloud._presentation import note

    note(f"{outcome.model_type}: {outcome.level} ({outcome.seconds:.1f} s)")


if __name__ == "__main__":
    from QEfficient.cloud.main import run_alone

    sys.exit(run_alone("models"))
