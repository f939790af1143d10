"""Checkpoints and what is made of them, kept in the cache until what they were made from changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conversion import RECORD
from benchmarks.engines import Artifact, Engine
from benchmarks.environment import peers_fingerprint

TOP = Path(__file__).parent.parent


@dataclass(frozen=True)
class Prepared:
    """What a worker opens, and how large it is."""

    folder: Path
    weight_bytes: int
    step_bytes: int
    kv_token_elements: int
    """Numbers that a token adds to keys and values."""


class Preparation:
    """One shape's folder in the cache."""

    def __init__(self, cache: Path, shape: str, threads: int, peers: Callable[[], Path]) -> None:
        self._cache, self._folder, self._shape = cache, cache / "models" / shape, shape
        self._threads, self._peers = threads, peers

    def prepare(self, engine: Engine) -> Prepared:
        model = self._checkpoint()
        config = json.loads((model / "config.json").read_text())
        elements = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
        if engine.artifact is None:
            numbers = sum(path.stat().st_size for path in model.glob("*.safetensors")) // 2
            size = numbers * {"bfloat16": 2, "float32": 4}[engine.options["dtype"]]
            return Prepared(model, size, size, elements)
        folder = self._made(engine.artifact, model)
        record = json.loads((folder / RECORD).read_text())
        return Prepared(folder, record["weight_bytes"], record["step_bytes"], elements)

    def _checkpoint(self) -> Path:
        source = (TOP / "benchmarks" / "checkpoints.py").read_bytes()
        folder = self._folder / f"checkpoint-{hashlib.sha256(source).hexdigest()[:12]}"
        if not (folder / "complete").exists():
            code = (
                "import pathlib, sys\nfrom benchmarks.checkpoints import make_checkpoint, make_tokenizer\n"
                "folder = pathlib.Path(sys.argv[2])\nmake_checkpoint(sys.argv[1], folder)\nmake_tokenizer(folder)"
            )
            self._build(folder, "checkpoint", [sys.executable, "-c", code, self._shape, str(folder)])
            (folder / "complete").touch()
        return folder

    def _made(self, artifact: Artifact, model: Path) -> Path:
        arguments = [str(model), *artifact.arguments]
        if artifact.own:
            arguments.append(str(self._threads))
        if artifact.source is not None:
            arguments.append(str(self._made(artifact.source, model)))
        folder = self._folder / f"{artifact.name}-{_fingerprint(artifact, arguments)}"
        if not (folder / RECORD).exists():
            python = Path(sys.executable) if artifact.own else self._peers()
            command = [str(python), "-m", f"benchmarks.conversion.{artifact.module}", arguments[0], str(folder)]
            self._build(folder, artifact.name, [*command, *arguments[1:]])
        return folder

    def _build(self, folder: Path, name: str, command: list[str]) -> None:
        for outdated in self._folder.glob(f"{name}-????????????"):
            shutil.rmtree(outdated)
        folder.mkdir(parents=True)
        print(f"{self._shape}: making {name} … ", end="", flush=True)
        started = time.perf_counter()
        log = self._cache / "logs" / f"{self._shape}-{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            done = subprocess.run(command, cwd=TOP, env=self._environment(), stdout=output, stderr=output)
        if done.returncode:
            shutil.rmtree(folder)
            print("failed", flush=True)
            raise RuntimeError(f"{name} could not be made ({log}): {tail(log)}")
        print(f"{time.perf_counter() - started:.0f} s", flush=True)

    def _environment(self) -> dict[str, str]:
        store = self._cache / "store" / own_fingerprint()
        for outdated in self._cache.glob("store/*"):
            if outdated != store:
                shutil.rmtree(outdated)
        return {**os.environ, **offline(), "QEFF_HOME": str(store)}


def offline() -> dict[str, str]:
    """For processes that have no business asking a hub about a folder."""
    return {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(TOP)}


def own_fingerprint() -> str:
    """Changes with any source of ours."""
    state = hashlib.sha256()
    for path in sorted(p for kind in ("py", "cpp", "hpp", "so") for p in (TOP / "QEfficient").rglob(f"*.{kind}")):
        state.update(path.read_bytes())
    return state.hexdigest()[:12]


def _fingerprint(artifact: Artifact, arguments: list[str]) -> str:
    maker = own_fingerprint() if artifact.own else peers_fingerprint()
    program = b"".join(path.read_bytes() for path in sorted((TOP / "benchmarks" / "conversion").glob("*.py")))
    said: list[Any] = [maker, arguments, hashlib.sha256(program).hexdigest()]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]


def tail(log: Path, lines: int = 3) -> str:
    """The last lines of a log, on one line."""
    found = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(found[-lines:])[-600:] or "it said nothing"
