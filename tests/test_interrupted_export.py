"""Real exports in processes of their own: killed in their stages, and two at once.

QEFF_KILLS says how many are killed; each takes some ten seconds, most of them to start.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from QEfficient.artifacts import ArtifactStore

KILLS = int(os.environ.get("QEFF_KILLS", "2"))
EXPORT = """
import sys
from QEfficient import QEFFAutoModelForCausalLM
model = QEFFAutoModelForCausalLM.from_pretrained(sys.argv[1])
model.progress = lambda stage: print(stage, flush=True)
print("begin", flush=True)
print(model.export(), flush=True)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some ten megabytes, so that writing takes part of the time."""
    folder = tmp_path_factory.mktemp("checkpoint")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 4000}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).save_pretrained(folder)
    return folder


def start(checkpoint: Path, root: Path) -> subprocess.Popen[str]:
    """An export on its way: it has read the checkpoint's config, and begins."""
    environment = {**os.environ, "QEFF_HOME": str(root)}
    command = [sys.executable, "-c", EXPORT, str(checkpoint)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begin\n"
    return process


def content(root: Path) -> dict[str, bytes]:
    files = [f for f in root.rglob("*") if f.is_file() and not f.name.startswith(".lock")]
    return {f.relative_to(root).as_posix(): f.read_bytes() for f in files}


def kill_in(stage: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert f"{stage}\n" in process.stdout, stage  # reads until it is told
    process.kill()
    process.communicate()


def test_kill_9_during_an_export(checkpoint: Path, tmp_path: Path) -> None:
    """By the stages that it tells, not by the clock: the next export may be faster than the one that was timed."""
    said = start(checkpoint, tmp_path / "undisturbed").communicate()[0].splitlines()
    reference = content(tmp_path / "undisturbed")
    stages, path = said[:-1], said[-1]
    assert stages[0] == "trace" and Path(path).is_file()

    store, seed = ArtifactStore(tmp_path / "store"), random.randrange(10**9)
    chance = random.Random(seed)
    for number in range(KILLS):
        stage = chance.choice(stages) if number else "trace"
        kill_in(stage, start(checkpoint, store.root))
        entries = store.entries()
        assert all(entry.complete and store.verify(entry.path) == [] for entry in entries), f"{stage}, seed {seed}"
        assert stage != "trace" or not entries, "seconds before anything is written"
        for entry in entries:
            store.remove(entry)
    start(checkpoint, store.root).communicate()
    assert content(store.root) == reference


def test_of_two_exports_at_once_one_works_and_both_get_it(checkpoint: Path, tmp_path: Path) -> None:
    processes = [start(checkpoint, tmp_path) for _ in range(2)]
    said = [process.communicate()[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said[0][-1] == said[1][-1]
    assert sorted("trace" in lines for lines in said) == [False, True], said
    assert [entry.complete for entry in ArtifactStore(tmp_path).entries()] == [True]
