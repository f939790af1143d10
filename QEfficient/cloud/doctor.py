"""`qefficient doctor`: what there is to work with here, and what is missing."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from QEfficient.cloud._arguments import Parser, add_simulate

HELP = "Show versions, devices, the artifact store and this machine; say what is missing."
EXAMPLES = """\
  qefficient doctor
  qefficient doctor --online --json                  also asks the model hub for an answer"""

PACKAGES = (
    "torch", "transformers", "tokenizers", "huggingface_hub", "onnx", "onnxscript", "onnx-ir", "onnxruntime",
    "openvino", "numpy", "safetensors", "rich",
)  # fmt: skip
NEEDED = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy", "safetensors", "rich")
CPU_FEATURES = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8",
    "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
HUB = "https://huggingface.co"
TIMEOUT = 5.0
USABLE, COMPILES_ONLY = "usable", "compiles, but cannot run"
LEAST_FREE = 10**9
"""Bytes; with less there is hardly a model that can be exported."""


def add_arguments(parser: Parser) -> None:
    add_simulate(parser)
    parser.add_argument("--online", action="store_true", help="ask the model hub whether it can be reached")


def run(arguments: argparse.Namespace) -> int:
    from QEfficient.cloud._presentation import document, note, table

    found: dict[str, dict[str, Any]] = {
        "versions": _versions(),
        "devices": _devices(),
        "software": _software(),
        "store": _store(),
        "hub": _hub(arguments.online),
        "machine": _machine(),
    }
    problems = _problems(found)
    if arguments.json:
        document({**found, "simulated": _simulated(found["devices"]), "problems": problems})
    else:
        table(("what", "name", "found"), [(what, *item) for what, items in found.items() for item in items.items()])
        for problem in problems:
            note(f"problem: {problem}")
    return 1 if problems else 0


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    from QEfficient import __version__

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    return {"QEfficient": __version__, "python": platform.python_version(), **{name: of(name) for name in PACKAGES}}


def _devices() -> dict[str, str]:
    """`usable`, or the sentence that says what is missing."""
    from QEfficient.devices import device_class, device_names

    return {name: device_class(name).availability() or _lacks_to_run(name) or USABLE for name in device_names()}


def _lacks_to_run(name: str) -> str:
    """What is missing besides where a device can compile."""
    from QEfficient.devices import device_class

    lacking = device_class(name).lacks_to_run(asking=True)
    return f"{COMPILES_ONLY}: {lacking}" if lacking else ""


def _software() -> dict[str, str]:
    """What is installed beside Python's packages, by the device that works with it."""
    from QEfficient.devices import device_class, device_names

    found = {name: device_class(name).software() for name in device_names()}
    return {name: text for name, text in found.items() if text}


def _simulated(devices: dict[str, str]) -> bool:
    """Whether stand-ins answer for one of the devices that can be used."""
    from QEfficient.devices import device_class

    return any(device_class(name).simulated() for name, state in devices.items() if state == USABLE)


def _store() -> dict[str, Any]:
    from QEfficient.artifacts import ArtifactStore, format_size
    from QEfficient.errors import StorageError

    store = ArtifactStore()
    existing = next(folder for folder in (store.root, *store.root.parents) if folder.is_dir())
    found: dict[str, Any] = {"root": str(store.root), "free": format_size(shutil.disk_usage(existing).free)}
    try:
        store.check_writable(LEAST_FREE)
    except StorageError as error:
        return {**found, "writable": str(error)}
    entries = store.entries()
    return {**found, "writable": "yes", "artifacts": len(entries), "size": format_size(sum(e.size for e in entries))}


def _hub(online: bool) -> dict[str, str]:
    address = os.environ.get("HF_ENDPOINT") or HUB
    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "off", "no")
    state = "switched off by HF_HUB_OFFLINE" if offline else _answer(address) if online else "not asked (--online)"
    return {"address": address, "reachable": state}


def _answer(address: str) -> str:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(address, method="HEAD"), timeout=TIMEOUT):
            return "yes"
    except HTTPError as error:
        return f"yes (it answers with status {error.code})"
    except (OSError, ValueError) as error:
        return f"no ({getattr(error, 'reason', error)})"


def _machine() -> dict[str, Any]:
    from QEfficient.artifacts import format_size

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    described = _processor()
    return {
        "system": platform.platform(),
        "processor": described.get("model name", platform.machine()),
        "cores": cores,
        "memory": format_size(memory),
        "features": " ".join(f for f in CPU_FEATURES if f in described.get("flags", "").split()) or "unknown",
    }


def _processor() -> dict[str, str]:
    """The first processor as Linux describes it; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {"flags": found.get("Features", ""), **found}  # "Features" on ARM


def _problems(found: dict[str, dict[str, Any]]) -> list[str]:
    missing = [name for name in NEEDED if found["versions"][name] == "not installed"]
    problems = [f"the package {name} is not installed (pip install {name})." for name in missing]
    if all(state != USABLE for name, state in found["devices"].items() if name != "null"):
        problems.append("no device can be used here, so programs can be exported but not run.")
    problems += [f"{name} {state}" for name, state in found["devices"].items() if state.startswith(COMPILES_ONLY)]
    problems += [
        f"device '{name}' was set up here, and cannot be used: {state}"
        for name, state in _unusable_ones(found["devices"])
    ]
    if found["store"]["writable"] != "yes":
        problems.append(found["store"]["writable"])
    if found["hub"]["reachable"].startswith("no ("):
        problems.append(f"the model hub {found['hub']['address']} cannot be reached: {found['hub']['reachable']}.")
    return problems


def _unusable_ones(devices: dict[str, str]) -> list[tuple[str, str]]:
    """Those that this machine was set up for, and what they lack."""
    from QEfficient.devices import device_class

    fine = (USABLE, COMPILES_ONLY)
    return [(n, state) for n, state in devices.items() if not state.startswith(fine) and device_class(n).expected()]


if __name__ == "__main__":
    from QEfficient.cloud.main import run_alone

    sys.exit(run_alone("doctor"))
