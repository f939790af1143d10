"""Replays the corpus with an installed compiler: every case in a folder of its own, none stopping the next.

`run_on_real.sh` calls it. What is done is kept in progress.jsonl, so that a second run does only what is left; at the
end conformance.json has everything. The standard library is enough, and onnx for cases with a graph.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib
import json
import os
import pickle
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from case_files import Case, has_graph, lay_out, read_cases, weight_bytes

sys.path.append(str(Path(__file__).parents[2]))

from qaic_simulator.rules import GRAPH_RULES, RULES

PROGRAM = "programqpc.bin"
LAST_LINES = 15
FIRST_NAMED = (1, 22)
"""The release from which on specializations have names."""
DESCRIBED = (
    "programs/decoder-prefill-and-decode",
    "programs/continuous-batching",
    "programs/decoder-with-cache-in-mxint8",
)
"""Cases whose programs' inputs and outputs are kept as the runtime describes them; each is there in two forms."""
OTHER_CARDS = ("standard",)
Result = dict[str, Any]


@dataclass(frozen=True)
class Installation:
    """The SDK that is asked."""

    root: Path
    version: str
    simulated: bool

    @property
    def profile(self) -> str:
        """The release whose cases are replayed."""
        numbers = tuple(int(part) for part in re.findall(r"\d+", self.version)[:2])
        return "1.21" if numbers and numbers < FIRST_NAMED else "1.22"


def find_installation(root: Path, saved: str) -> Installation:
    """What is installed there, by its own files, or by what its version tool said."""
    path = root / "versions" / "apps.xml"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else saved
    found = re.search(r"\d+\.\d+\.\d+(\.\d+)?", text)
    return Installation(root, found[0] if found else "unknown", (root / "SIMULATED").is_file())


def reason_to_skip(case: Case, installation: Installation, with_onnx: bool) -> str:
    """Why a case cannot be replayed here; empty if it can."""
    if installation.profile not in case["sdk"]:
        return f"for release {' and '.join(case['sdk'])}"
    if case.get("only") == "arguments":
        return "its files are placeholders: a case for the arguments alone"
    if case.get("sku") in OTHER_CARDS and not installation.simulated:
        return f"for a card of kind {case['sku']}"
    if has_graph(case) and not with_onnx:
        return "onnx is missing"
    if 2 * weight_bytes(case) > free_memory() and not installation.simulated:
        return f"the compiler would read {weight_bytes(case) / 2**30:.0f} GiB, which is much for this machine"
    if not (installation.root / "exec" / case["tool"]).is_file():
        return f"{case['tool']} is not installed"
    return ""


def free_memory() -> int:
    """Bytes that nobody uses now."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Replay:
    """Where cases are replayed, and how long each may take."""

    installation: Installation
    output: Path
    timeout: float

    def run(self, case: Case) -> Result:
        """What became of a case; a fault of ours is a result too."""
        folder = self.output / "scratch" / re.sub(r"\W", "_", case["id"])
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "run").mkdir(parents=True)
        try:
            return self._run(case, folder.resolve())
        except Exception as error:  # whatever it is, the other cases are still to be replayed
            return {"ran": False, "why": f"{type(error).__name__}: {error}"}
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, case: Case, folder: Path) -> Result:
        arguments = lay_out(case, folder)
        ended = self._call([str(self.installation.root / "exec" / case["tool"]), *arguments], folder / "run", case)
        targets = [
            Path(argument.partition("=")[2]) for argument in arguments if argument.startswith("-aic-binary-dir=")
        ]
        given = {folder / name for name in case["files"]}
        written = [path for target in targets for path in sorted(target.rglob("*")) if path not in given]
        has_program = any(path.name == PROGRAM for path in written)
        accepted = ended["exit_code"] == 0 and (has_program or not targets)
        result = {"ran": True, "verdict": "accept" if accepted else "refuse", **ended}
        result |= {"program": has_program, "files": [path.name for path in written]}
        if "writes" in case:
            result["beside"] = {name: _text(folder / name) for name in case["writes"]}
        if has_program and case["id"].rpartition("-")[0] in DESCRIBED:
            result["descriptor"] = self._describe(targets[0])
        return result

    def _call(self, command: Sequence[str], folder: Path, case: Case) -> Result:
        started = time.monotonic()
        environment = {**os.environ, "QAIC_SIM_SKU": case.get("sku", "ultra")}  # for stand-ins; others ignore it
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            said, complained = process.communicate(timeout=self.timeout)
            timed_out = False
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, complained = process.communicate()
            timed_out = True
        return {
            "exit_code": process.returncode,
            "timed_out": timed_out,
            "seconds": round(time.monotonic() - started, 1),
            "stdout": _last_lines(said, folder.parent),
            "stderr": _last_lines(complained, folder.parent),
        }

    def _describe(self, program: Path) -> Result:
        """In another process: the runtime is a library that may end the one it is in."""
        command = [sys.executable, __file__, "--root", str(self.installation.root), "--describe", str(program)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=self.timeout, check=False)
        if done.returncode:
            return {"why": "\n".join(done.stderr.splitlines()[-LAST_LINES:]) or f"exit code {done.returncode}"}
        return {"pickle": done.stdout.strip()}


def _text(path: Path) -> str | None:
    """What a compiler wrote, or nothing."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _last_lines(text: bytes, folder: Path) -> list[str]:
    """Without the folder, which is another one each time."""
    lines = text.decode("utf-8", "replace").replace(str(folder), "{dir}").splitlines()
    return lines[-LAST_LINES:]


def describe(root: Path, program: Path) -> str:
    """The runtime's own description of a program's inputs and outputs: bytes, pickled, as base64."""
    sys.path[:0] = [str(root / "dev" / "lib" / platform.machine()), str(root / "dev" / "python")]
    runtime = importlib.import_module("qaicrt")
    _, content = runtime.Qpc(str(program)).getIoDescriptor()
    return base64.b64encode(pickle.dumps(bytes(content))).decode()


def judge(case: Case, result: Result) -> Result:
    """The result beside what was expected; a stand-in has to name the rules too, also of what it only warns about."""
    judged = {"id": case["id"], "digest": digest(case), "expected": case["verdict"], "rule": case["rule"], **result}
    if result["ran"]:
        named = re.findall(r"^simulator rule: (\S+)", "\n".join(result["stderr"]), re.MULTILINE)
        judged["named_rule"] = named[0] if named else ""
        warned = re.findall(r"^Warning: .*\[simulator rule: (\S+) ", "\n".join(result["stderr"]), re.MULTILINE)
        judged["named_warnings"] = warned
        judged["agrees"] = (
            result["verdict"] == case["verdict"]
            and (not named or named[0] == case["rule"])
            and (not warned or bool(named) or warned == case.get("warns", []))
            and None not in result.get("beside", {}).values()
        )
    return judged


def digest(case: Case) -> str:
    """Tells a case from what it was when it was replayed before."""
    return hashlib.sha256(json.dumps(case, sort_keys=True).encode()).hexdigest()[:16]


def read_progress(path: Path) -> dict[str, Result]:
    """What earlier runs did, by the id of the case; a line that was cut short does not count."""
    done = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        done[result["id"]] = result
    return done


def replay(cases: Sequence[Case], replaying: Replay, with_onnx: bool) -> list[Result]:
    """Results of all cases, those of earlier runs among them."""
    progress = replaying.output / "progress.jsonl"
    done, results = read_progress(progress), []
    for number, case in enumerate(cases, 1):
        result = done.get(case["id"], {})
        if not result.get("ran") or result.get("digest") != digest(case):
            why = reason_to_skip(case, replaying.installation, with_onnx)
            result = judge(case, {"ran": False, "why": why} if why else replaying.run(case))
            with progress.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(f"[{number}/{len(cases)}] {case['id']}: {_told(result)}", flush=True)
        results.append(result)
    return results


def _told(result: Mapping[str, Any]) -> str:
    if not result["ran"]:
        return f"not run, {result['why']}"
    return f"{result['verdict']}{'' if result['agrees'] else ', NOT AS EXPECTED'} ({result['seconds']} s)"


def write_report(installation: Installation, output: Path, results: Sequence[Result], with_onnx: bool) -> Path:
    """Everything in one file."""
    tools = {path.stem: path.read_text(encoding="utf-8", errors="replace") for path in (output / "tools").glob("*.txt")}
    report = {
        "format": 1,
        "sdk": installation.version,
        "profile": installation.profile,
        "simulated": installation.simulated,
        "python": platform.python_version(),
        "has_onnx": with_onnx,
        "tools": tools,
        "counts": counts(results),
        "verdicts": results,
    }
    path = output / "conformance.json"
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(report, indent=1, sort_keys=True), encoding="utf-8")
    unfinished.replace(path)
    return path


def counts(results: Iterable[Result]) -> dict[str, int]:
    """How many agree, do not, and were not run."""
    told = Counter("not run" if not r["ran"] else "as expected" if r["agrees"] else "not as expected" for r in results)
    return {name: told[name] for name in ("as expected", "not as expected", "not run")}


def summary(results: Sequence[Result]) -> str:
    """A line for each rule, then the cases that went another way than expected."""
    rules = {**RULES, **GRAPH_RULES}
    lines = [_row("rule", "severity", "source", "cases", "agree", "differ", "not run")]
    for name in ["", *rules]:
        own = [result for result in results if result["rule"] == name]
        first = (name, rules[name].severity, rules[name].source) if name else ("(accepted)", "", "")
        if own:
            lines.append(_row(*first, len(own), *counts(own).values()))
    lines.append(_row("all", "", "", len(results), *counts(results).values()))
    for result in results:
        if result["ran"] and not result["agrees"]:
            last = (result["stderr"] or result["stdout"] or [""])[-1]
            lines.append(f"{result['id']}: {result['expected']} expected, {result['verdict']} found: {last}")
    return "\n".join(lines)


def _row(*cells: object) -> str:
    widths = (36, 11, 7, 6, 6, 7, 8)
    padded = [
        f"{cell!s:<{width}}" if index < 3 else f"{cell!s:>{width}}"
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "".join(padded).rstrip()


def has_onnx() -> bool:
    """Whether graphs can be written; says so where they cannot."""
    try:
        importlib.import_module("onnx")
    except ImportError as error:
        print(f"onnx is missing ({error}): cases with a graph are NOT replayed. `pip install onnx`, then run again.")
        return False
    return True


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="where the SDK is installed")
    parser.add_argument("--output", type=Path, help="where results are written")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that a compilation may take (%(default)s)")
    parser.add_argument("--only", action="append", default=[], help="cases whose id has this text; may be repeated")
    parser.add_argument("--describe", type=Path, help="print the description of a program, and do nothing else")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Replay what is left, write the report, print the summary."""
    given = read_arguments(argv)
    root = given.root.resolve()
    if given.describe:
        print(describe(root, given.describe))
        return 0
    if given.output is None:
        sys.exit("--output is missing.")
    given.output.mkdir(parents=True, exist_ok=True)
    output = given.output.resolve()
    saved = output / "tools" / "versions.txt"
    installation = find_installation(root, saved.read_text(encoding="utf-8") if saved.is_file() else "")
    cases = [case for case in read_cases() if not given.only or any(text in case["id"] for text in given.only)]
    print(f"SDK {installation.version} at {root}: {len(cases)} cases, those of release {installation.profile} run.")
    with_onnx = has_onnx()
    results = replay(cases, Replay(installation, output, given.timeout), with_onnx)
    print(summary(results))
    print(f"Send back {write_report(installation, output, results, with_onnx)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
