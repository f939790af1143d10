"""A folder that looks like an installed SDK, in which the tools are stand-ins.

`python -m qaic_simulator.root FOLDER [--sdk 1.21] [--qnn]` writes one: of the Apps SDK, or of QNN (QAIRT).
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from qaic_simulator.profiles import SDKS

DEFAULT_SDK = "1.22"
QNN_VERSION = "2.34.0"
"""What the SDK says of itself; nothing here depends on it."""
QNN_HOST = "x86_64-linux-clang"
"""The only machine that QNN's tools for this device run on."""
EXECUTABLE = 0o755


@dataclass(frozen=True)
class Installation:
    """What the files of a root say: which release it is, and which Python runs its tools."""

    sdk: str
    python: str

    @property
    def version(self) -> str:
        """The release as the SDK writes it, in three numbers."""
        return f"{self.sdk}.0"


def _script(code: str) -> Callable[[Installation], str]:
    """A tool that runs a line of Python with this package."""

    def text(installation: Installation) -> str:
        package = shlex.quote(str(Path(__file__).resolve().parent.parent))
        return "\n".join(
            [
                "#!/bin/sh",
                "# A stand-in: no Qualcomm tool runs here.",
                f"QAIC_SIM_SDK={shlex.quote(installation.sdk)}",
                f"PYTHONPATH={package}${{PYTHONPATH:+:$PYTHONPATH}}",
                "export QAIC_SIM_SDK PYTHONPATH",
                f'exec {shlex.quote(installation.python)} -c {shlex.quote(code)} "$@"',
                "",
            ]
        )

    return text


def _compiler(tool: str) -> Callable[[Installation], str]:
    return _script(f"import sys; from qaic_simulator.compiler import main; sys.exit(main(tool='{tool}'))")


def _versions(part: str) -> Callable[[Installation], str]:
    """The file that names the release of one part of the SDK."""

    def text(installation: Installation) -> str:
        base = f"<base_version>{installation.version}</base_version>"
        return (
            f'<?xml version="1.0"?>\n<versions>\n  <{part}>{base}<build_id>simulator</build_id></{part}>\n</versions>\n'
        )

    return text


def _version_tool(installation: Installation) -> str:
    """Prints the release of each part, or of the one that is asked for."""
    return "\n".join(
        [
            "#!/bin/sh",
            'case "$1" in',
            f'  --apps) echo "apps:{installation.version}" ;;',
            f'  --platform) echo "platform:{installation.version}" ;;',
            f'  "") echo "platform:{installation.version}"; echo "apps:{installation.version}" ;;',
            '  *) echo "usage: qaic-version-util [--apps | --platform]" >&2; exit 1 ;;',
            "esac",
            "",
        ]
    )


def _module(name: str) -> Callable[[Installation], str]:
    """A module of the SDK that is one of this package."""

    def text(installation: Installation) -> str:
        package = str(Path(__file__).resolve().parent.parent)
        return (
            f"import sys\n\nif {package!r} not in sys.path:\n    sys.path.append({package!r})\n"
            f"from qaic_simulator.runtime.{name} import *  # noqa: E402, F403\n"
        )

    return text


def _qnn_tool(main: str) -> Callable[[Installation], str]:
    return _script(f"import sys; from qaic_simulator.qnn.tools import {main}; sys.exit({main}())")


def _qnn_versions(installation: Installation) -> str:
    return f"product: QAIRT\nversion: {QNN_VERSION}\n"


def _qnn_library(installation: Installation) -> str:
    """No library: the stand-ins look at its name only, and a real tool could not load it."""
    return "A stand-in: this is no library.\n"


def _mark(installation: Installation) -> str:
    """Says what this folder is, last of all files: where it is, all others are."""
    return f"Stand-ins for the Cloud AI SDK {installation.sdk}: nothing in this folder is Qualcomm's.\n"


FILES: Mapping[str, Callable[[Installation], str]] = MappingProxyType(
    {
        "exec/qaic-compile": _compiler("qaic-compile"),
        "exec/qaic-exec": _compiler("qaic-exec"),
        "versions/apps.xml": _versions("apps"),
        "versions/platform.xml": _versions("platform"),
        "tools/qaic-version-util": _version_tool,
        "tools/qaic-util": _script(
            "import sys; from qaic_simulator.runtime.util_tool import main; sys.exit(main(sys.argv[1:]))"
        ),
        f"dev/lib/{platform.machine()}/qaicrt.py": _module("qaicrt"),
        "dev/python/QAicApi_pb2.py": _module("QAicApi_pb2"),
        "SIMULATED": _mark,
    }
)
"""What is in a root of the Apps SDK: each file's place, and what makes its text."""
QNN_FILES: Mapping[str, Callable[[Installation], str]] = MappingProxyType(
    {
        "sdk.yaml": _qnn_versions,
        f"bin/{QNN_HOST}/qairt-converter": _qnn_tool("main_converter"),
        f"bin/{QNN_HOST}/qnn-context-binary-generator": _qnn_tool("main_generator"),
        f"lib/{QNN_HOST}/libQnnAic.so": _qnn_library,
        f"lib/{QNN_HOST}/libQnnAicNetRunExtensions.so": _qnn_library,
        "SIMULATED": _mark,
    }
)
"""The same of QNN's SDK."""
EXECUTABLES = ("exec", "tools", "bin")
"""Folders whose files are programs."""


def write_root(folder: Path, sdk: str = DEFAULT_SDK, python: str = sys.executable, qnn: bool = False) -> Path:
    """Write the files of a root into a folder, and return that folder."""
    if sdk not in SDKS:
        raise ValueError(f"SDK '{sdk}' has no profile: {', '.join(SDKS)} have.")
    installation = Installation(sdk, python)
    for place, text in (QNN_FILES if qnn else FILES).items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(installation), encoding="utf-8")
        if Path(place).parts[0] in EXECUTABLES:
            path.chmod(EXECUTABLE)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Write a root where the command line says."""
    parser = argparse.ArgumentParser(prog="python -m qaic_simulator.root", description=write_root.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sdk", choices=SDKS, default=DEFAULT_SDK)
    parser.add_argument("--qnn", action="store_true", help="the SDK of QNN in place of the Apps SDK")
    given = parser.parse_args(argv)
    print(write_root(given.folder, given.sdk, qnn=given.qnn))
    return 0


if __name__ == "__main__":
    sys.exit(main())
