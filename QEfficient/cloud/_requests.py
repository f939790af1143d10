"""Which artifact answered a command line before, so that the same command answers again without loading torch.

Only for models in local folders: the key covers the name, size and times of every file there, the options and the
versions of the libraries, so it changes whenever the artifact's own fingerprint would. What is noted is a folder and no
more; the store still decides whether that folder is whole.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from QEfficient import __version__
from QEfficient.artifacts import ArtifactStore, fingerprint
from QEfficient.cloud._writing import replace_text
from QEfficient.demo import DEMO_NAME, demo_folder
from QEfficient.program import FORMAT_VERSION

logger = logging.getLogger(__name__)

FOLDER = ".requests"
LIBRARIES = ("torch", "transformers", "tokenizers", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "openvino")


class Requests:
    """Notes in the artifact store: request → folder."""

    def __init__(self, store: ArtifactStore, model: str, options: Mapping[str, Any]) -> None:
        files = None if options.get("trust_remote_code") else _files(model)
        self._store = store
        self._note = None
        if files is not None:
            digest = fingerprint({"model": model, "files": files, "options": options, "versions": _versions()})
            self._note = store.root / FOLDER / f"{digest}.json"

    def find(self, kind: str) -> Path | None:
        """The folder, if it is there and complete. `kind`: exported | compiled."""
        try:
            folder = Path(json.loads(self._note.read_text(encoding="utf-8"))[kind]) if self._note else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return folder if folder and self._store.is_complete(folder) else None

    def keep(self, kind: str, folder: Path) -> None:
        """Note which folder it is."""
        if self._note is None:
            return
        try:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self._note, json.dumps({kind: str(folder)}))
        except OSError as error:  # nothing is lost but time
            logger.info("the request was not noted: %s", error)


def _files(model: str) -> list[tuple[str, int, int, int]] | None:
    """Name, size and times of every file of a local model; None if it is not local."""
    folder = demo_folder() if model == DEMO_NAME else Path(model).expanduser().absolute()
    if not (folder / "config.json").is_file():
        return None
    found = [(str(folder), 0, 0, 0)]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            stat = path.stat()
            found.append((str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return found


def _versions() -> dict[str, Any]:
    def of(library: str) -> str:
        try:
            return version(library)
        except PackageNotFoundError:
            return ""

    return {"qefficient": __version__, "format": FORMAT_VERSION, **{library: of(library) for library in LIBRARIES}}
