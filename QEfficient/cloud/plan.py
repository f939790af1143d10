"""`qefficient plan`: whether a model fits on Cloud AI 100 cards and how fast it should be, before anything is made."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from QEfficient.artifacts import format_size
from QEfficient.cloud._arguments import Parser, UsageError, add_latent, add_source, positive

if TYPE_CHECKING:
    from QEfficient.devices.cloud_ai_100.plan.estimate import Estimate, ModelSize, Setup, Weights, Workload
    from QEfficient.devices.cloud_ai_100.plan.records import OperatorReads
    from QEfficient.specs import LatentSpec
    from QEfficient.transformers.size_records import FileCounts, ModelSizes, Reads, StateCounts

HELP = "Say whether a model fits on a Cloud AI 100, on how many SoCs, and how fast it should be."
EXAMPLES = """\
  qefficient plan --ctx-len 1024
  qefficient plan ./checkpoint --ctx-len 8192 --full-batch-size 16 --mxfp6-matmul --mxint8-kv-cache
  qefficient plan ./checkpoint --ctx-len 4096 --num-devices 4 --card ultra --json"""

CTX_LEN, CHUNK = 4096, 128
KINDS_OF_CARD = ("ultra", "pro", "standard")


def add_arguments(parser: Parser) -> None:
    group = parser.add_argument_group("model", "only its config and the headers of its weight files are read")
    group.add_argument("model", metavar="MODEL", nargs="?", help="hub name or local folder; default: demo")
    group.add_argument("--model-name", "--model", metavar="MODEL", help="the same as a flag")
    add_source(group)
    _add_workload(parser.add_argument_group("what is asked of it"))
    _add_cards(parser.add_argument_group("cards"))


def _add_workload(group: Any) -> None:
    add = group.add_argument
    add("--ctx-len", type=positive, default=CTX_LEN, metavar="N", help=f"most tokens of a sequence; default {CTX_LEN}")
    add("--prompt-len", type=positive, metavar="N", help="tokens of a prompt; default: as many as run at once")
    add("--prefill-seq-len", type=positive, metavar="N", help=f"tokens of a prompt that run at once; default {CHUNK}")
    add("--batch-size", type=positive, metavar="N", help="sequences that run together; default 1")
    add("--full-batch-size", type=positive, metavar="N", help="continuous batching: how many decode together")


def _add_cards(group: Any) -> None:
    group.add_argument("--card", choices=KINDS_OF_CARD, default="ultra", help="default ultra, which has four SoCs")
    group.add_argument("--num-devices", type=positive, metavar="N", help="SoCs; default: as few as it fits on")
    group.add_argument("--mxfp6-matmul", "--mxfp6", action="store_true", help="MXFP6 weights")
    add_latent(group)
    group.add_argument("--mxint8-kv-cache", "--mxint8", action="store_true", help="MXINT8 cache")


@dataclass(frozen=True)
class Plan:
    """A question and its answer."""

    name: str
    card: str
    sizes: ModelSizes
    model: ModelSize
    workload: Workload
    setup: Setup
    found: Estimate

    @property
    def fits(self) -> bool | None:
        """None where nobody can know."""
        return None if self.unknown else self.found.fits

    @property
    def unknown(self) -> str:
        """Why nobody can know; empty where it is known."""
        state = self.sizes.state
        if state.not_observed:
            return f"since it cannot be exported: {state.not_observed.rstrip('.')}"
        if state.replays and self.found.fits:
            return "since it computes its whole context again, with operators that a card's compiler may not take"
        return ""

    @property
    def remarks(self) -> list[str]:
        """What does not go together in what was asked and found."""
        return [*_differences(self.sizes), *_unused(self.sizes, self.workload)]

    @property
    def assumptions(self) -> list[str]:
        """What the answer rests on, and what it leaves out."""
        nothing = "there are no weight files here to compare with: the sizes are those of the config"
        return [*self.found.assumptions, *_gaps(self.sizes.state), *([] if self.sizes.files else [nothing])]


def _differences(sizes: ModelSizes) -> Iterator[str]:
    """Between the config and the weight files."""
    files, weights = sizes.files, sizes.weights
    if files is None:
        return
    if files.unreadable:
        yield f"its weight files cannot be used: {files.unreadable}"
        return
    if sizes.state.not_observed or files.numbers in (weights.stored, weights.stored + weights.head * weights.tied):
        return
    held = f"its weight files hold {files.numbers:,} numbers in {files.tensors:,} tensors"
    off = f"{abs(files.numbers - weights.stored):,}"
    if files.numbers < weights.stored:
        yield f"{held}, {off} fewer than the model by its config has: they are not its weights, or not all of them."
    else:
        yield f"{held}, {off} more than the model by its config has: it does not use them, or they are another model's."


def _unused(sizes: ModelSizes, workload: Workload) -> Iterator[str]:
    """What was asked for and is not to be had."""
    if sizes.positions is not None and workload.ctx_len > sizes.positions:
        yield (
            f"the model has positions for {sizes.positions:,} tokens only: texts end there, and the rest of a ctx_len"
            f" of {workload.ctx_len:,} is room that is never used."
        )


def _gaps(state: StateCounts) -> Iterator[str]:
    """What is not known of the model."""
    if state.not_observed:
        yield f"its state is read off its config and may be wrong; an export would fail here: {state.not_observed}"
    if state.unknown_layers:
        yield f"the config does not tell what {state.unknown_layers} recurrent layers keep: that state is not counted"


def run(arguments: argparse.Namespace) -> int:
    from QEfficient.cloud._preparation import model_name

    _check_devices(arguments.num_devices)
    workload = _workload(arguments)
    plan = _plan(model_name(arguments), workload, arguments)
    if arguments.json:
        _write_document(plan)
    else:
        _show(plan)
    return 0


def _check_devices(number: int | None) -> None:
    from QEfficient.devices.cloud_ai_100.plan.estimate import CHOICES

    if number is not None and number not in CHOICES:
        raise UsageError(f"--num-devices is one of {', '.join(map(str, CHOICES))}, not {number}.")


def _workload(arguments: argparse.Namespace) -> Workload:
    from QEfficient.devices.cloud_ai_100.plan.estimate import Workload

    if arguments.full_batch_size and arguments.batch_size:
        raise UsageError(
            f"--full-batch-size {arguments.full_batch_size} and --batch-size {arguments.batch_size} both say how many"
            " sequences decode together: with or without continuous batching. Give one of them."
        )
    chunk = arguments.prefill_seq_len or min(CHUNK, arguments.ctx_len)
    users = (arguments.batch_size or 1, arguments.full_batch_size)
    return Workload(arguments.ctx_len, arguments.prompt_len or chunk, *users, chunk)


def _plan(name: str, workload: Workload, arguments: argparse.Namespace) -> Plan:
    from QEfficient.devices.cloud_ai_100.plan.estimate import CARDS, CHOICES, Precision, Setup, estimate, smallest

    sizes = _read(name, workload.ctx_len, arguments)
    model = planned_size(sizes)
    card, precision = CARDS[arguments.card], Precision(arguments.mxfp6_matmul, arguments.mxint8_kv_cache)
    anywhere = replace(model, objection="")  # with which more SoCs do not help
    devices = arguments.num_devices or smallest(anywhere, workload, precision, card) or CHOICES[-1]
    setup = Setup(precision, devices, card)
    return Plan(name, arguments.card, sizes, model, workload, setup, estimate(model, workload, setup))


def _read(name: str, ctx_len: int, arguments: argparse.Namespace) -> ModelSizes:
    from QEfficient.cloud._logging import quieten_libraries
    from QEfficient.cloud._preparation import given
    from QEfficient.transformers.observed_sizes import Asked
    from QEfficient.transformers.sizes import read_model

    quieten_libraries(arguments.verbose)
    options = given(arguments, ("cache_dir", "hf_token"))
    options["trust_remote_code"] = arguments.trust_remote_code
    return read_model(name, options, Asked(_latent(arguments.mla_absorption), ctx_len))


def _latent(absorption: str | None) -> LatentSpec | None:
    from QEfficient.specs import LatentSpec

    return LatentSpec(absorption=True, fused=absorption == "fused") if absorption else None


def planned_size(sizes: ModelSizes) -> ModelSize:
    """From what is left of the ONNX file to what is right of it."""
    from QEfficient.devices.cloud_ai_100.plan.estimate import Buffers, ModelSize, State

    state = sizes.state
    return ModelSize(
        _weights(sizes),
        State(tuple(Buffers(**vars(buffers)) for buffers in state.buffers), state.replays),
        sizes.layers,
        sizes.attention_width,
        sizes.vocab_size,
        sizes.experts,
        sizes.experts_per_token,
        sizes.weights.expert_width,
        sizes.attention_heads,
        sizes.angles,
        None if sizes.reads is None else tuple(_reads(each) for each in sizes.reads),
        sizes.objection,
    )


def _reads(reads: Reads) -> OperatorReads:
    from QEfficient.devices.cloud_ai_100.plan.records import Counts, OperatorReads

    return OperatorReads(**{kind: Counts(**vars(counts)) for kind, counts in vars(reads).items()})


def _weights(sizes: ModelSizes) -> Weights:
    from QEfficient.devices.cloud_ai_100.plan.estimate import Weights

    weights = sizes.weights
    return Weights(
        weights.dense,
        weights.head,
        weights.other + weights.constants,
        weights.experts,
        weights.scanned,
        weights.largest_matrix,
        weights.largest_other,
        weights.expert_matrix,
    )


def _verdict(plan: Plan) -> str:
    """A sentence that answers the question."""
    from QEfficient.devices.cloud_ai_100.plan.estimate import remedies

    found, where = plan.found, f"{plan.found.devices} SoC{'s' if plan.found.devices > 1 else ''} ({plan.card})"
    if plan.fits is None:
        known_by = "its config and the headers of its files" if plan.sizes.state.not_observed else "its size"
        return f"Whether {plan.name} fits is not known, {plan.unknown}. By {known_by} it {_needs(found)}."
    if found.fits:
        spare = f"{format_size(found.usable - found.needed)} of each to spare"
        return f"{plan.name} fits on {where}, {spare}."
    helps = remedies(plan.model, plan.workload, plan.setup)
    advice = f" {'; '.join(helps)}." if helps else " Nothing that this command knows makes it fit."
    return f"{plan.name} {_objection(found, where)}.{advice}"


def _needs(found: Estimate) -> str:
    return f"needs {format_size(found.needed)} of {format_size(found.usable)} on each SoC"


def _objection(found: Estimate, where: str) -> str:
    """Why it does not fit."""
    sizes = _needs(found)
    if found.refusals and found.needed <= found.usable:
        return f"cannot be compiled for {where}: {'; '.join(found.refusals)}"
    if found.tight:
        left = "leaves too little for its code and activations: the simulator may refuse it, a card may take it"
        return f"is too tight for {where}: it {sizes} and {left}"
    besides = "".join(f"; besides, {refusal}" for refusal in found.refusals)
    return f"does not fit on {where}: it {sizes}, so with a reserve {format_size(found.missing)} are missing{besides}"


def _state_bytes(plan: Plan) -> tuple[int, int]:
    """Of one more token in layers that keep everything, and of a whole sequence."""
    state, precision = plan.model.state, plan.setup.precision
    return int(state.per_token(precision)), int(state.size(plan.workload.ctx_len, precision))


def _exported_bytes(plan: Plan) -> int:
    """Of the ONNX program as the compiler reads it; the simulator's compiled program holds them as they are."""
    weights = plan.sizes.weights
    return 4 * (weights.graph + weights.constants + plan.model.table_numbers(plan.workload.ctx_len))


def _program_bytes(plan: Plan) -> int:
    """On all SoCs together: what a compiled program for a card holds."""
    from QEfficient.devices.cloud_ai_100.plan.estimate import FP16

    tables = plan.model.table_numbers(plan.workload.ctx_len) * FP16
    return ceil(plan.model.weights.size(plan.setup.precision) + tables)


def _held(files: FileCounts | None) -> str:
    if files is None:
        return "no files here"
    return "unreadable" if files.unreadable else f"{files.numbers:,}"


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    found, (per_token, per_sequence) = plan.found, _state_bytes(plan)
    yield "weights by the config", "unknown" if plan.sizes.state.not_observed else f"{plan.sizes.weights.stored:,}"
    yield "weights in the files", _held(plan.sizes.files)
    yield "weights and tables, float32", format_size(_exported_bytes(plan))
    yield "weights and tables in the program", format_size(_program_bytes(plan))
    yield "cards", f"{ceil(found.devices / plan.setup.card.socs)} {plan.card}, {plan.setup.card.cores} cores per SoC"
    yield "SoCs", f"{found.devices}"
    yield "KV bytes per token", f"{per_token:,}"
    yield f"state of a sequence of {plan.workload.ctx_len:,}", format_size(per_sequence)
    yield "weights per SoC", format_size(found.weights)
    yield "tables of positions per SoC", format_size(found.tables)
    yield f"cache per SoC (users: {plan.workload.users})", format_size(found.cache)
    yield "buffers per SoC", format_size(found.io)
    yield "needed of usable per SoC", f"{format_size(found.needed)} of {format_size(found.usable)}"
    yield "fits", "unknown" if plan.fits is None else "yes" if plan.fits else "tight" if found.tight else "no"
    if plan.fits:
        yield f"first token of a prompt of {plan.workload.prompt_len:,}", f"{found.seconds_to_first_token:.2f} s"
        yield "tokens per second", f"{found.tokens_per_second:,.1f}"


def _show(plan: Plan) -> None:
    from QEfficient.cloud._presentation import note, table

    table(("what", "value"), _rows(plan))
    note(_verdict(plan))
    for remark in plan.remarks:
        note(f"But {remark}")
    note("Assumed, not measured; most published figures of real cards lie within 25 % of such speeds (docs/plan.md):")
    for assumption in plan.assumptions:
        note(f"- {assumption}")


def _write_document(plan: Plan) -> None:
    from QEfficient.cloud._presentation import document

    found, (per_token, per_sequence) = plan.found, _state_bytes(plan)
    of_each = ("weights", "tables", "cache", "copies", "io", "needed", "usable", "missing")
    per_soc = {name: getattr(found, name) for name in of_each}
    is_known = plan.fits is not None
    document(
        {
            "model": plan.name,
            "weights": {**asdict(plan.sizes.weights), "stored": plan.sizes.weights.stored},
            "files": None if plan.sizes.files is None else asdict(plan.sizes.files),
            "workload": asdict(plan.workload),
            "card": plan.card,
            "precision": asdict(plan.setup.precision),
            "devices": found.devices,
            "kv_bytes_per_token": per_token,
            "state_bytes_per_sequence": per_sequence,
            "bytes_per_soc": per_soc,
            "exported_bytes": _exported_bytes(plan),
            "program_bytes": _program_bytes(plan),
            "refusals": found.refusals,
            "fits": plan.fits,
            "tight": found.tight if is_known else None,
            "seconds_to_first_token": found.seconds_to_first_token if is_known else None,
            "tokens_per_second": found.tokens_per_second if is_known else None,
            "verdict": _verdict(plan),
            "remarks": plan.remarks,
            "assumptions": plan.assumptions,
        }
    )


if __name__ == "__main__":
    from QEfficient.cloud.main import run_alone

    sys.exit(run_alone("plan"))
