"""`qefficient numerics`: what float16, MXFP6 and MXINT8 do to a model, and which nodes should stay in fp32."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from QEfficient.cloud._arguments import Parser, UsageError, add_export, add_latent, add_model, add_simulate, positive

if TYPE_CHECKING:
    from QEfficient.program import ExportedProgram
    from QEfficient.specs import CompileSpec
    from QEfficient.verification.numerics import Findings, Text

HELP = "Say what a card's number formats do to a model, layer by layer, and which nodes should stay in fp32."
EXAMPLES = """\
  qefficient numerics                                the built-in demo model on its own text
  qefficient numerics ./checkpoint --text book.txt --ctx-len 1024 --output fp32_nodes.yaml"""

CTX_LEN, CHUNK, TOKENS = 128, 32, 1024
FILE = "fp32_nodes.yaml"
RANGE, ROOT = 65504.0, 255.9
NAMED = 5
"""Weights that the verdict names."""


def add_arguments(parser: Parser) -> None:
    add_model(parser)
    add_export(parser)
    group = parser.add_argument_group("text")
    group.add_argument("--text", metavar="FILE", help="what is read; default: the demo's held-out text")
    group.add_argument("--tokens", type=positive, default=TOKENS, metavar="N", help=f"read so many; default {TOKENS}")
    group = parser.add_argument_group("geometry")
    group.add_argument(
        "--ctx-len", type=positive, default=CTX_LEN, metavar="N", help=f"tokens of a window; default {CTX_LEN}"
    )
    group.add_argument(
        "--prompt-len",
        "--prefill-seq-len",
        dest="prefill_seq_len",
        type=positive,
        metavar="N",
        help=f"tokens that run at once; default {CHUNK}",
    )
    group.add_argument("--full-batch-size", type=positive, metavar="N", help="the program for continuous batching")
    add_latent(group)
    group = parser.add_argument_group("proposal")
    group.add_argument("--output", metavar="FILE", help=f"where the nodes are written; default {FILE}")
    group.add_argument(
        "--compile", action="store_true", help="compile with the file and run that too: needs the SDK or its simulator"
    )
    add_simulate(group)


def run(arguments: argparse.Namespace) -> int:
    from QEfficient.cloud._preparation import Preparation, model_name
    from QEfficient.cloud._presentation import StageClock
    from QEfficient.errors import DeviceError

    if arguments.simulate is not None and not arguments.compile:
        raise UsageError("--simulate goes with --compile.")
    text, output = _given_text(arguments.text), _output(arguments.output)
    if arguments.compile:
        _check_device()
    arguments.export_dir = None
    spec = _spec(arguments)
    with StageClock(arguments.verbose) as clock:
        clock("load libraries")
        from QEfficient.verification.numerics import check_length, examine, read_text

        check_length(arguments.tokens)
        program = Preparation(model_name(arguments), arguments, clock).exported()
        read = read_text(program, text, arguments.tokens)
        findings = examine(program, read, spec, clock)
        if findings.proposal:
            _write(output, findings)
        if arguments.compile:
            clock("compile and run")
            findings = _compiled(findings, program, read, spec, output)
    _tell(findings, output, arguments.json, clock.seconds)
    if findings.refusal:
        raise DeviceError(findings.refusal)
    return 0


def _spec(arguments: argparse.Namespace) -> CompileSpec:
    from QEfficient.specs import CompileSpec

    chunk = arguments.prefill_seq_len or min(CHUNK, arguments.ctx_len)
    return CompileSpec(1, chunk, arguments.ctx_len, 1 if arguments.full_batch_size else None)


def _given_text(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--text {name} cannot be read: {error}") from None


def _output(name: str | None) -> Path:
    """Where to write; refused before the work if there is no such folder."""
    path = Path(name or FILE).expanduser()
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError(f"--output {path} cannot be written: name a file in a folder that exists.")
    return path


def _check_device() -> None:
    """Refuse at once what needs an SDK that is not there."""
    from QEfficient.devices.cloud_ai_100.sdk import find_sdk

    find_sdk()


def _write(path: Path, findings: Findings) -> None:
    from QEfficient.cloud._writing import replace_text
    from QEfficient.devices.cloud_ai_100.numerics.precision_file import precision_text
    from QEfficient.errors import StorageError

    remark = f"{len(findings.proposal)} nodes of {findings.model} that float16 does not hold, by qefficient numerics"
    try:
        replace_text(path, precision_text(findings.proposal, [remark.replace("\n", " ")]))
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


def _compiled(findings: Findings, program: ExportedProgram, text: Text, spec: CompileSpec, file: Path) -> Findings:
    """With what the compiled program gives, or why there is none: what was found before is told all the same."""
    from dataclasses import replace

    from QEfficient.errors import QEfficientError
    from QEfficient.verification.numerics import COMPILED, COMPILED_WITHOUT, compiled_perplexity

    options = {"node_precision_info": str(file.absolute())} if findings.proposal else {}
    try:
        found, is_simulated = compiled_perplexity(program, text, spec, options)
    except QEfficientError as error:
        return replace(findings, refusal=str(error))
    name = COMPILED if findings.proposal else COMPILED_WITHOUT
    remark = f"'{name}' was run on {'a simulated card' if is_simulated else 'a card'}."
    perplexities = {**findings.perplexities, name: found}
    return replace(findings, perplexities=perplexities, remarks=[*findings.remarks, remark])


def _tell(findings: Findings, file: Path, as_json: bool, seconds: dict[str, float]) -> None:
    from QEfficient.cloud._presentation import document, note, table

    if as_json:
        written = str(file) if findings.proposal else None
        document({**findings.to_json(), "file": written, "verdict": _verdict(findings, file), "stages": seconds})
        return
    formats = list(findings.rows[0].errors)
    columns = ("part", "largest", "tensor", "overflows", "squared", "lost", *formats, "kept in fp32")
    table(columns, _rows(findings))
    table(("format", "perplexity", "of float32"), _perplexities(findings))
    for remark in (*_remarks(findings), *findings.remarks):
        note(f"- {remark}")
    note(_verdict(findings, file))


def _rows(findings: Findings) -> Iterator[tuple[str, ...]]:
    for row in findings.rows:
        errors = (_share(error) for error in row.errors.values())
        figures = (_figure(row.largest), row.tensor, str(row.overflows), _figure(row.squared), str(row.lost))
        yield (row.name, *figures, *errors, str(row.kept))


def _perplexities(findings: Findings) -> Iterator[tuple[str, str, str]]:
    from QEfficient.verification.numerics import FLOAT32

    wanted = findings.perplexities[FLOAT32]
    for name, found in findings.perplexities.items():
        change = f"{found / wanted - 1:+.2%}" if math.isfinite(found / wanted) else "-"
        yield name, f"{found:.4g}" if found >= 1e5 else f"{found:.3f}", change


def _remarks(findings: Findings) -> Iterator[str]:
    """The worst of what the table shows, in words."""
    from QEfficient.verification.numerics import ENOUGH

    yield f"{len(findings.text.tokens):,} tokens of {findings.text.source}, in windows of {findings.ctx_len:,}."
    if findings.is_short:
        yield (
            "so few tokens prove nothing: the perplexities are accidents, and what longer texts reach was not seen."
            f" Read at least {ENOUGH}."
        )
    for name, largest in findings.beyond.items():
        yield f"{name} holds {_figure(largest)}, and float16 ends at {RANGE:,.0f}."
    for row in findings.rows:
        if row.overflows:
            yield f"{row.name}: {row.overflows} tensors leave float16; {row.tensor} reaches {row.largest:,.0f}."
        elif row.squared > ROOT:
            yield f"{row.name}: a number of {row.squared:,.0f} is squared, which is more than float16 holds."
        if row.lost:
            yield f"{row.name}: {row.lost} tensors have rows that float16 loses at its lower end."


def _verdict(findings: Findings, file: Path) -> str:
    """Sentences that answer the question."""
    said = _answer(findings, file)
    if findings.is_short:
        said = f"As far as {len(findings.text.tokens):,} tokens show: {said}"
    return f"{_refused(findings.beyond)} Apart from that: {said}" if findings.beyond else said


def _refused(beyond: Mapping[str, float]) -> str:
    """That there is no program as long as such weights are in it."""
    named = [f"{name} ({_figure(largest)})" for name, largest in list(beyond.items())[:NAMED]]
    named += [f"{len(beyond) - NAMED} more"] if len(beyond) > NAMED else []
    return (
        f"The compiler refuses this model: float16 ends at {RANGE:,.0f}, and weights are beyond it: {', '.join(named)}."
        " No file changes that; scale them down, and up again what they are multiplied with."
    )


def _answer(findings: Findings, file: Path) -> str:
    """Whether float16 does, and what helps."""
    from QEfficient.verification.numerics import FLOAT16, FLOAT32, WITH_FILE, is_near

    found, wanted = findings.perplexities, findings.perplexities[FLOAT32]
    compiled = "" if findings.compiled is None else f", compiled {findings.compiled:.3f}"
    if not findings.proposal and findings.helps:
        return "float16 holds this model: no node needs fp32, and no file was written."
    if not findings.proposal and is_near(found[FLOAT16], wanted):
        return (
            f"float16 would hold this model, with a perplexity of {found[FLOAT16]:.3f}, in float32 {wanted:.3f}, but"
            f" the compiled program has {findings.compiled:.3f}, and no node was found that explains that: no file was"
            " written."
        )
    if not findings.proposal:
        return (
            f"float16 changes the perplexity from {wanted:.3f} to {found[FLOAT16]:.3f}{compiled}, and no node was found"
            " that would change that: no file was written."
        )
    count = len(findings.proposal)
    nodes = f"{count} nodes to keep in fp32 are in {file}" if count > 1 else f"1 node to keep in fp32 is in {file}"
    result = (
        f"with {'them' if count > 1 else 'it'} the perplexity is {found[WITH_FILE]:.3f}{compiled}, in float32"
        f" {wanted:.3f}, without {found[FLOAT16]:.3f}"
    )
    end = "compile with --node-precision-info" if findings.helps else "which is not all of the loss"
    return f"{nodes}: {result}; {end}."


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _share(error: float) -> str:
    return f"{error:.3%}" if math.isfinite(error) else "overflow"


if __name__ == "__main__":
    from QEfficient.cloud.main import run_alone

    sys.exit(run_alone("numerics"))
