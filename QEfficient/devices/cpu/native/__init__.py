"""The native library: a linear layer with 4- and 8-bit weights, as an OpenVINO extension and as a C function.

It is built for one version of OpenVINO, which stands in its name (`docs/decisions/0007-a-native-linear-layer.md`).
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
PREFIX, SUFFIX = "libqefficient-openvino-", ".so"


@dataclass(frozen=True)
class _Found:
    path: Path | None
    reason: str | None


def library_path() -> Path | None:
    """The library, loaded, if there is one for the OpenVINO that is installed."""
    return _find().path


def why_missing() -> str | None:
    """Why there is none, in a sentence."""
    return _find().reason


@functools.cache
def _find() -> _Found:
    version = _installed_version()
    if version is None:
        return _Found(None, "OpenVINO is not installed (pip install openvino).")
    path = FOLDER / f"{PREFIX}{version}{SUFFIX}"
    reason = _why_not(path, version)
    return _Found(None if reason else path, reason)


def _why_not(path: Path, version: str) -> str | None:
    if not path.is_file():
        others = sorted(other.name[len(PREFIX) : -len(SUFFIX)] for other in FOLDER.glob(f"{PREFIX}*{SUFFIX}"))
        if not others:
            return "the native library was not built (no compiler at installation?): install QEfficient again."
        built = f"built for OpenVINO {' and '.join(others)}, but {version} is installed"
        return f"the native library is {built}: install QEfficient again."
    try:
        _load(path)
    except (ImportError, OSError) as error:
        return f"the native library cannot be loaded: {error}."
    return None


def _installed_version() -> str | None:
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return None


def _load(path: Path) -> None:
    # What it is linked to has to be there first: an editable installation does not lie beside OpenVINO.
    importlib.import_module("openvino")
    ctypes.CDLL(str(path))
