"""The stand-in for `qaic-compile` and `qaic-exec -compile-only`: refuses what the compiler would, and writes a program.

Environment: `QAIC_SIM_SDK` and `QAIC_SIM_SKU` say what it stands for, `QAIC_SIM_LENIENT=1` leaves rules out that are
ours or Glow's, `QAIC_SIM_COMPILER_FAULT` makes it fail (abort, exit255, full, slow:<seconds>), and
`QAIC_SIM_LEAVE_PARTIAL=1` makes a failure leave a folder without a program. `QAIC_SIM_SHUFFLE=1` makes the order of
inputs and outputs another one than the graph's.

It ends with 0 where a program was written, 255 for JSON of another form, 1 for all else that is refused, and for
faults of its own, which are reported as internal compiler errors, without a rule.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from qaic_simulator.command_line.arguments import Arguments
from qaic_simulator.command_line.checking import Checked, check
from qaic_simulator.command_line.options import OPTIONS
from qaic_simulator.graph.checks import Imported, check_graph
from qaic_simulator.graph.file import read_model
from qaic_simulator.graph.operators import OPERATORS
from qaic_simulator.profiles import TOOLS, Profile, profile_of
from qaic_simulator.program_file import PROGRAM, program_images, program_settings, write_program
from qaic_simulator.rules import Refusal, Warned
from qaic_simulator.side_files.partitions import DUMP_OPTION, with_nodes, write_partitions

SIMULATOR_LINE = "qaic simulator: no Qualcomm compiler ran"
FAULT_VARIABLE = "QAIC_SIM_COMPILER_FAULT"
FAULTS = ("abort", "exit255", "full", "slow")
INTERNAL_ERROR = 1
PARTIAL = "partial"
UNFINISHED = "qaic-simulator"
OPERATORS_FILE = "OnnxSupportedOperators.txt"


class Breakdown(Exception):
    """A failure that was asked for."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"asked for by the environment, exit code {exit_code}")
        self.exit_code = exit_code


def main(argv: Sequence[str] | None = None, tool: str = TOOLS[0]) -> int:
    """Run the tool with these arguments, without its own name, and return its exit code."""
    print(SIMULATOR_LINE, flush=True)
    try:
        profile = environment_profile()
        fault = environment_fault(FAULT_VARIABLE)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        checked = check(list(sys.argv[1:] if argv is None else argv), profile, tool)
    except Refusal as refusal:
        return _report(refusal, refusal.message)
    except Exception as error:  # Whatever is wrong with a file, who called the tool sees a message and an exit code.
        return _report_internal(error)
    if checked.arguments is None or checked.arguments.action != "compile":
        return _tell(checked.arguments)
    return _compile(checked, checked.arguments, profile, fault)


def environment_profile() -> Profile:
    """What is stood in for, as the environment says. Raises `ValueError` for what there is no profile of."""
    sdk = os.environ.get("QAIC_SIM_SDK", "1.22")
    is_strict = os.environ.get("QAIC_SIM_LENIENT") != "1"
    return profile_of(sdk, os.environ.get("QAIC_SIM_SKU", "ultra"), is_strict)


def environment_fault(variable: str, known: Sequence[str] = FAULTS) -> str:
    """The failure that the environment asks for. Raises `ValueError` for one that nobody knows."""
    fault = os.environ.get(variable, "")
    kind, _, seconds = fault.partition(":")
    if fault and (kind not in known or not seconds.replace(".", "", 1).isdecimal() and kind == "slow"):
        raise ValueError(f"{variable} '{fault}' is none of {', '.join(known)}:<seconds>.")
    return fault


def _tell(arguments: Arguments | None) -> int:
    """What is asked of the tool itself: its options, or the operators that it knows."""
    if arguments is not None and arguments.action == "operators":
        Path(OPERATORS_FILE).write_text("\n".join(sorted(OPERATORS)) + "\n", encoding="utf-8")
        print(f"Supported operators are written to {OPERATORS_FILE}")
        return 0
    for option in OPTIONS.values():
        print(f"  -{option.name}{'=<value>' if option.takes_value else ''}")
    return 0


def _report(refusal: Refusal, text: str) -> int:
    rule = refusal.rule
    print(text, file=sys.stderr)
    print(f"simulator rule: {rule.id} ({rule.severity}, {rule.source})", file=sys.stderr)
    return refusal.exit_code


def _report_internal(error: Exception) -> int:
    """Something that no rule foresaw: a fault of the stand-in's own."""
    text = f"Internal compiler error: {type(error).__name__}: {error}"
    print(f"QAIC_ERROR:\nError message:  {text}\nUnable to Compile", file=sys.stderr)
    return INTERNAL_ERROR


def _importer_text(message: str) -> str:
    return f"QAIC_ERROR:\nError message:  {message}\nQAICException:Unable to AddNodesToGraphFromModel"


def _compile(checked: Checked, arguments: Arguments, profile: Profile, fault: str) -> int:
    folder = Path(arguments.text("aic-binary-dir"))
    tell(arguments.warnings)
    print(f"Reading ONNX Model from {arguments.text('m')}")
    print("Compile started ...", flush=True)
    if arguments.has("convert-to-fp16"):
        print("Compiling model with FP16 precision.", flush=True)
    try:
        break_down(fault)
        tell(write_binary(folder, checked, profile, fault))
    except Refusal as refusal:
        _leave_partial(folder)
        return _report(refusal, _importer_text(refusal.message))
    except (OSError, Breakdown) as error:
        _leave_partial(folder)
        print(f"QAIC_ERROR:\nError message:  {error}\nUnable to Compile", file=sys.stderr)
        return error.exit_code if isinstance(error, Breakdown) else 1
    except Exception as error:  # The same: the rules are not all that can go wrong.
        _leave_partial(folder)
        return _report_internal(error)
    print(f"Generated binary is present at {folder}")
    return 0


def tell(warnings: Sequence[Warned], before: str = "") -> None:
    """Print warnings, each with its rule."""
    for warning in warnings:
        print(f"{before}{warning.line}", file=sys.stderr, flush=True)


def break_down(fault: str) -> None:
    """Fail, or take long, as the environment asks."""
    kind, _, seconds = fault.partition(":")
    if kind == "slow":
        time.sleep(float(seconds))
    elif kind == "abort":
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGABRT)
    elif kind == "exit255":
        raise Breakdown(255)


def _leave_partial(folder: Path) -> None:
    if os.environ.get("QAIC_SIM_LEAVE_PARTIAL") == "1":
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PARTIAL).write_text("The compiler failed.\n", encoding="utf-8")


def write_binary(folder: Path, checked: Checked, profile: Profile, fault: str) -> tuple[Warned, ...]:
    """Check the graph and write the program beside its folder, which gets its name when all is there. Returns what is
    to be told of the graph."""
    path = Path((checked.arguments or Arguments("", {})).text("m"))
    model = read_model(path, profile)
    imported = check_graph(model, path, checked, profile)
    images = program_images(model, path, checked, imported)
    target = folder.absolute()
    unfinished = target.with_name(f".{target.name}.{UNFINISHED}.{os.getpid()}")
    _clear_stale(unfinished)
    unfinished.mkdir(parents=True)
    try:
        write_program(unfinished, images, checked, program_settings(checked, imported, profile))
        if fault == "full":
            _fill_disk(unfinished / PROGRAM)
        _dump_partitions(checked, imported)
        _publish(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return imported.warnings


def _dump_partitions(checked: Checked, imported: Imported) -> None:
    """Write which nodes there are, where that was asked for."""
    arguments = checked.arguments
    if arguments is not None and arguments.has(DUMP_OPTION):
        path = Path(arguments.text(DUMP_OPTION))
        cores = arguments.integer("aic-num-cores", 1)
        write_partitions(path, with_nodes(checked.partitions, imported.nodes, cores))
        print(f"MDP partition file generated: {path}")


def _clear_stale(unfinished: Path) -> None:
    """Remove what a compiler left that was killed while it wrote into the same folder."""
    for left in unfinished.parent.glob(f"{unfinished.stem}.*"):
        process = left.suffix[1:]
        if process.isdecimal() and not _is_running(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def _fill_disk(program: Path) -> None:
    os.truncate(program, program.stat().st_size // 2)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _publish(unfinished: Path, target: Path) -> None:
    if target.is_dir() and any(target.iterdir()):  # lenient: the rule about it is ours
        for path in sorted(unfinished.iterdir()):
            path.replace(target / path.name)
        return
    unfinished.rename(target)


if __name__ == "__main__":
    sys.exit(main())
