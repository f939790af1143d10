"""Where Qualcomm's SDK lies and which version it has: the only file that knows its paths."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from QEfficient.artifacts import ArtifactStore
from QEfficient.errors import DeviceError

logger = logging.getLogger(__name__)

ROOT_VARIABLE = "QEFF_QAIC_ROOT"
SIMULATOR_VARIABLE = "QEFF_QAIC_SIMULATOR"
"""1, or the version of the SDK that is to be simulated."""
SIMULATOR, SIMULATED_VERSION = "qaic_simulator", "1.22"
SIMULATED_VERSIONS = ("1.21", SIMULATED_VERSION)
"""What it can stand in for. It is asked for by its name alone, so that neither needs the other to be installed."""
SIMULATOR_MARK = "SIMULATED"
"""The file that says so, in the root of a simulated SDK."""
DEFAULT_ROOT = Path("/opt/qti-aic")
COMPILERS = (Path("exec/qaic-compile"), Path("exec/qaic-exec"))
"""The present compiler, and the one before it."""
RUNS_AFTER_COMPILING = "qaic-exec"
"""Executes the network that it compiled, unless told not to."""
QUERY_TOOL = Path("tools/qaic-util")
QUERY_SECONDS = 10
VERSIONS = Path("versions")
NAMED_SPECIALIZATIONS_FROM = (1, 22)
LARGEST_VERSION_FILE = 65_536
HARDWARE = ("ai100", "ai200")


@dataclass(frozen=True)
class Sdk:
    """An installed SDK, as far as compiling needs it."""

    root: Path
    compiler: Path
    version: str | None = None
    """Of the Apps SDK; None where its file is absent or unreadable."""
    platform_version: str | None = None

    @property
    def tool(self) -> str:
        """The compiler's name."""
        return self.compiler.name

    @property
    def runs_after_compiling(self) -> bool:
        """Whether the compiler must be told that compiling is all."""
        return self.tool == RUNS_AFTER_COMPILING

    @property
    def reads_named_specializations(self) -> bool:
        """Whether specializations may have names. An unknown version gets the flat form, as older ones need it."""
        return self.version is not None and _numbers(self.version) >= NAMED_SPECIALIZATIONS_FROM


def sdk_root() -> Path:
    """The folder that the SDK is expected in."""
    simulated = simulated_version()
    return simulated_root(simulated) if simulated else Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)


def is_asked_for() -> bool:
    """Whether this machine has a folder for the SDK, or the environment names one or the simulator."""
    return bool(simulated_version() or os.environ.get(ROOT_VARIABLE)) or DEFAULT_ROOT.is_dir()


def simulated_version() -> str | None:
    """The version that the environment wants to have simulated."""
    asked = os.environ.get(SIMULATOR_VARIABLE, "")
    if asked in ("", "0"):
        return None
    return SIMULATED_VERSION if asked == "1" else asked


def query_tool() -> Path:
    """Where the tool that lists and resets devices is expected, with a compiler beside it or without."""
    return sdk_root() / QUERY_TOOL


def ask_query_tool(*arguments: str) -> str:
    """What the tool prints, whatever it ends with. Raises `OSError` or `subprocess.TimeoutExpired` where it cannot be
    asked: a card that hangs may keep it waiting too."""
    done = subprocess.run(  # its bytes are not ours to trust
        [query_tool(), *arguments], capture_output=True, text=True, errors="replace", timeout=QUERY_SECONDS
    )
    return done.stdout


def is_simulated(root: Path) -> bool:
    """Whether the tools in this folder are stand-ins."""
    return (root / SIMULATOR_MARK).is_file()


@functools.cache
def simulated_root(version: str, qnn: bool = False) -> Path:
    """A folder with stand-ins for the SDK, or for QNN's, written on first use. Raises `DeviceError` without the
    simulator."""
    if _simulator_folder() is None:
        raise DeviceError(
            f"the simulator was asked for, but {SIMULATOR} is not installed: pip install 'qefficient[simulator]'."
        )
    if version not in SIMULATED_VERSIONS:
        known = " or ".join(SIMULATED_VERSIONS)
        raise DeviceError(
            f"{SIMULATOR_VARIABLE} is '{version}': give 1, or the version of the SDK to simulate, {known}."
        )
    root = ArtifactStore().root / f"{SIMULATOR}-{'qnn-' if qnn else ''}{version}-{_simulator_digest()}"
    if not is_simulated(root):
        command = [sys.executable, "-m", f"{SIMULATOR}.root", str(root), "--sdk", version, *(["--qnn"] if qnn else [])]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            raise DeviceError(f"the simulator of SDK {version} cannot be set up: {last}")
    logger.warning("Qualcomm's SDK is simulated (%s): nothing runs on a card.", root)
    return root


def _simulator_folder() -> Path | None:
    spec = importlib.util.find_spec(SIMULATOR)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _simulator_digest() -> str:
    """Of what writes the folder and of who runs its tools: with others it is another folder."""
    folder = _simulator_folder()
    assert folder is not None
    writer = (folder / "root.py").read_bytes()
    return hashlib.sha256(writer + str(folder).encode() + sys.executable.encode()).hexdigest()[:8]


def find_sdk() -> Sdk:
    """The SDK of this machine. Raises `DeviceError` where there is none."""
    root = sdk_root()
    compiler = next((root / path for path in COMPILERS if (root / path).is_file()), None)
    if compiler is None:
        raise DeviceError(_absence(root))
    if not os.access(compiler, os.X_OK):
        raise DeviceError(f"the compiler {compiler} cannot be executed by this user. Check its permissions.")
    if not compiler.stat().st_size:
        raise DeviceError(f"the compiler {compiler} is an empty file. Install the Apps SDK again.")
    sdk = Sdk(root, compiler, _version(root, "apps"), _version(root, "platform"))
    if sdk.version is None:
        _say_unknown_version(root)
    return sdk


@functools.cache
def _say_unknown_version(root: Path) -> None:
    """Once for each: the SDK is looked for many times."""
    first = ".".join(map(str, NAMED_SPECIALIZATIONS_FROM))
    logger.warning(
        "the version of the SDK in %s cannot be read: %s is missing, or holds none. It is taken for one before %s,"
        " whose compiler reads specializations without names; a later one will refuse them. Install the SDK again.",
        *(root, VERSIONS / "apps.xml", first),
    )


def installed_hardware() -> str:
    """The generation of this machine's cards; the older where nobody can say."""
    try:
        return hardware_version(ask_query_tool("-q"))
    except subprocess.TimeoutExpired:
        found = hardware_version("")
        logger.warning(
            "%s did not answer within %s s, so a card or its driver hangs. Compiling for %s; aic_hw_version names"
            " another generation (%s).",
            *(query_tool(), QUERY_SECONDS, found, ", ".join(HARDWARE)),
        )
        return found
    except OSError:
        return hardware_version("")


def hardware_version(query: str) -> str:
    """The generation of the devices that the output of `qaic-util -q` describes."""
    images = [line for line in query.splitlines() if "IMAGE_VARIANT" in line]
    return "ai200" if any("AIC200" in line for line in images) else "ai100"


def _absence(root: Path) -> str:
    found = f"the folder {root} holds no {' and no '.join(map(str, COMPILERS))}"
    if not root.is_dir():
        found = f"there is no folder {root}"
    return (
        f"compiling for the Cloud AI 100 needs the compiler of Qualcomm's Apps SDK, but {found}."
        f" Install the Apps SDK, or set {ROOT_VARIABLE} to the folder that it lies in."
        f" {SIMULATOR_VARIABLE}=1, or --simulate with a command, takes the simulator in its place"
        " (pip install 'qefficient[simulator]')."
    )


def _version(root: Path, part: str) -> str | None:
    """The first text of the file that looks like a version: the one part of its form that is known."""
    try:
        text = (root / VERSIONS / f"{part}.xml").read_bytes()
    except OSError:
        return None
    if len(text) > LARGEST_VERSION_FILE or b"<!" in text.replace(b"<!--", b""):  # no entities: they can grow
        return None
    try:
        elements = list(ElementTree.fromstring(text).iter())
    except ElementTree.ParseError:
        return None
    texts = ((element.text or "").strip() for element in elements)
    return next((found for found in texts if re.fullmatch(r"\d+(\.\d+){1,4}", found)), None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))
