"""All that a whole compilation leaves, held against `goldens/records`: folders, files, what is in them, the command.

The files there were written from the description of Qualcomm's library (what its hashes and qconfig.json hold, in which
form, where what lies), not by the code under test. A word in braces stands for what cannot be known before: a hash, a
version, a folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qaic_simulator.root import write_root
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices.cloud_ai_100.graph import prepared
from QEfficient.errors import OptionError
from QEfficient.legacy import compile as legacy_compile
from QEfficient.program import load_compiled
from QEfficient.publication import final_place
from QEfficient.specs import Specialization
from QEfficient.verification.tiny_models import tiny_config, tiny_model

RECORDS = sorted((Path(__file__).parent / "goldens" / "records").glob("*.json"))
FORMS = {
    "hash": r"[0-9a-f]{16}",
    "digest": r"[0-9a-f]{64}",
    "version": r"\d+(\.\w+)+(\+\w+)?",
    "scratch": r"graph-\w+",
}
CONTAINER = "programqpc.bin"
pytestmark = pytest.mark.usefixtures("new_sdk")


@pytest.fixture(autouse=True)
def qnn_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = write_root(tmp_path / "qairt", qnn=True)
    monkeypatch.setenv("QNN_SDK_ROOT", str(root))
    return root


@pytest.fixture(scope="module")
def model() -> Any:
    """Heads of whole blocks of MXINT8."""
    config = tiny_config("llama")
    config.head_dim = 32
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


class Places:
    """What the words in braces stand for in one compilation."""

    def __init__(self, folders: dict[str, Path], config: dict[str, Any]) -> None:
        self._exact = {name: str(path) for name, path in folders.items()}
        self._config = config

    def differences(self, golden: Any, found: Any, where: str = "") -> Iterator[str]:
        """Where and how what was found is not what the golden says."""
        if golden == "{config}":
            golden = self._config
        if isinstance(golden, dict) and isinstance(found, dict):
            if set(golden) != set(found):
                yield f"{where}: the keys {sorted(set(golden) ^ set(found))} are on one side only"
            for key in golden.keys() & found.keys():
                yield from self.differences(golden[key], found[key], f"{where}/{key}")
        elif isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
            for number, (one, other) in enumerate(zip(golden, found, strict=True)):
                yield from self.differences(one, other, f"{where}/{number}")
        elif not self._fits(golden, found):
            yield f"{where}: {golden!r} was expected, not {found!r}"

    def _fits(self, golden: Any, found: Any) -> bool:
        if golden == "{number}":
            return type(found) is int
        if golden == "{names}":
            return bool(found) and all(isinstance(name, str) and name for name in found)
        if not isinstance(golden, str) or not isinstance(found, str):
            return type(golden) is type(found) and bool(golden == found)
        words = {**{name: re.escape(path) for name, path in self._exact.items()}, **FORMS}
        pattern = "".join(
            words[part[1:-1]] if part[1:-1] in words and part[:1] == "{" else re.escape(part)
            for part in re.split(r"(\{\w+\})", golden)
        )
        return re.fullmatch(pattern, found) is not None


def files_below(folder: Path) -> list[str]:
    """Without those of programs inside it, and locks."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if not path.parts[0].startswith(("qpc-", ".lock-")))


def content(path: Path) -> Any:
    """JSON, or lines."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else text.split("\n")


def own_hash(record: Any) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_golden(path: Path, model: Any, shared_store: Path, tmp_path: Path, qnn_sdk: Path) -> None:
    golden = json.loads(path.read_text(encoding="utf-8"))
    wrapped = QEFFAutoModelForCausalLM(model, golden["continuous_batching"], golden["qaic_config"])
    returned = Path(wrapped.compile(device="cloud_ai_100", **golden["compile"]))
    exported, compiled = Path(str(wrapped.onnx_path)).parent, returned.parent
    folders = {"home": shared_store, "exported": exported, "compiled": compiled, "returned": returned}
    folders |= {"sdk": tmp_path / "sdk", "qnn_sdk": qnn_sdk, "export_hash": Path(exported.name[-16:])}
    config = json.loads(json.dumps(model.config.to_dict()))
    del config["transformers_version"]
    places = Places(folders, config)
    wrong = [*places.differences(golden["folders"], {name: str(folders[name]) for name in golden["folders"]})]
    assert (files_below(exported), files_below(compiled)) == (golden["exported"], golden["compiled"])
    for name, expected in golden["files"].items():
        lies = exported if name == "hashed_export_params.json" else compiled
        wrong += places.differences(expected, content(lies / name), name)
    report = load_compiled(compiled).report
    wrong += places.differences(golden["commands"], report.get("commands") or [report["command"]], "commands")
    assert not wrong


def test_there_are_goldens() -> None:
    assert len(RECORDS) >= 7


def test_folders_are_named_by_what_the_records_hold(model: Any) -> None:
    """4.2: 16 digits of the SHA-256 of the file's content in its shortest form; the file itself is for people."""
    wrapped = QEFFAutoModelForCausalLM(model)
    compiled = Path(wrapped.compile(device="cloud_ai_100")).parent
    exported = Path(str(wrapped.onnx_path)).parent
    assert wrapped.export_hash == exported.name[-16:]
    for folder, name in ((exported, "hashed_export_params.json"), (compiled, "hashed_compile_params.json")):
        text = (folder / name).read_text()
        assert text == json.dumps(json.loads(text), indent=4) + "\n"
        assert folder.name.endswith(f"-{own_hash(json.loads(text))}")


# Names that hold


@pytest.mark.parametrize("options", [{}, {"enable_qnn": True, "num_devices": 2}], ids=["native", "qnn"])
def test_nothing_names_the_folder_in_which_a_program_was_made(model: Any, options: dict[str, Any]) -> None:
    compiled = Path(QEFFAutoModelForCausalLM(model).compile(device="cloud_ai_100", **options)).parent
    for path in (path for path in compiled.rglob("*") if path.is_file()):
        assert b".tmp-qeff-" not in path.read_bytes(), path.name
    report = load_compiled(compiled).report
    first = (compiled / "compiler.log").read_text().splitlines()[0]
    assert shlex.split(first) == (report.get("commands") or [report["command"]])[0]
    named = [word for word in re.findall(r"[^\s=]+", (compiled / "compiler.log").read_text()) if str(compiled) in word]
    kept = [Path(word) for word in named if "/graph-" not in word]
    assert kept and all(path.exists() for path in kept)


@pytest.mark.parametrize("options", [{}, {"enable_qnn": True}], ids=["native", "qnn"])
def test_so_where_scripts_of_the_old_function_look(model: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    wrapped = QEFFAutoModelForCausalLM(model)
    made = legacy_compile(wrapped.export(), tmp_path / "here", 16, mos=1, device="cloud_ai_100", **options)
    assert made == str(tmp_path / "here" / "qpcs")
    text = (Path(made) / "compiler.log").read_text()
    assert ".tmp-qeff-" not in text and ".new-" not in text
    named = [Path(word) for word in re.findall(r"[^\s=]+", text) if made in word and "/graph-" not in word]
    assert Path(made) in named and all(path.exists() for path in named)


def test_where_a_folder_will_lie() -> None:
    for name in ("qpc-0123456789abcdef", ".new-qpcs"):
        built = Path("/models") / f".tmp-qeff-89abcdef-{name}"
        assert final_place(built) == Path("/models") / name.removeprefix(".new-")
    assert final_place(Path("/models/compiled")) == Path("/models/compiled")


# Names of what was done


def transforms_of(compiled: Path) -> tuple[list[str], list[str]]:
    recorded = content(compiled / "qconfig.json")["qpc_config"]["QEff_config"]
    return recorded["pytorch_transforms"], recorded["onnx_transforms"]


@pytest.mark.parametrize(
    ("model_type", "export", "options", "of_model", "first", "last"),
    [
        ("llama", {}, {}, ["install_seams", "RetainedModule"], "fold_and_clean", "within_half"),
        ("qwen3_next", {}, {}, ["install_seams", "RetainedModule", "mixers.install"], "fold_and_clean", "within_half"),
        ("gpt_neo", {}, {}, ["install_seams", "gpt_neo.adapt", "RetainedModule"], "fold_and_clean", "within_half"),
        (
            "llama",
            {"use_onnx_subfunctions": True},
            {"num_devices": 2, "mdp_num_partitions": 2},
            ["install_seams", "RetainedModule"],
            "layers_to_functions",
            "with_names",
        ),
    ],
)
def test_qconfig_names_what_was_done(
    model_type: str, export: dict[str, Any], options: dict[str, Any], of_model: list[str], first: str, last: str
) -> None:
    wrapped = QEFFAutoModelForCausalLM(tiny_model(model_type))
    compiled = Path(wrapped.compile(device="cloud_ai_100", prefill_seq_len=8, ctx_len=64, **export, **options)).parent
    found_model, found_graph = transforms_of(compiled)
    assert found_model == of_model
    assert (found_graph[0], found_graph[-1]) == (first, last)
    assert {"add_bodies", "raise_epsilons", "tabulate"} <= set(found_graph)


def test_the_names_are_of_what_prepares_the_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[str] = []

    def recorder(name: str) -> Any:
        return lambda *given: called.append(name)

    for name in prepared.TRANSFORMS[:-1]:
        monkeypatch.setattr(prepared, name, recorder(name))
    monkeypatch.setattr(prepared, "within_half", lambda path, scratch, *changes: [change(None) for change in changes])
    prepared.for_half(tmp_path / "model.onnx", tmp_path, [Specialization("Prefill", {"seq_len": 8})])
    assert (*called, "within_half") == prepared.TRANSFORMS


# One phase


def test_a_program_for_prefill_needs_one_of_two_numbers(model: Any) -> None:
    """1.3.3: `ValueError` where neither is given, `TypeError` for a program of both phases."""
    wrapped = QEFFAutoModelForCausalLM(model, continuous_batching=True)
    one_phase = {"device": "cloud_ai_100", "prefill_only": True}
    with pytest.raises(ValueError, match="full_batch_size or kv_cache_batch_size is needed"):
        wrapped.compile(**one_phase)
    with pytest.raises(TypeError, match="full_batch_size is needed"):
        wrapped.compile(device="cloud_ai_100")
    with pytest.raises(OptionError, match="kv_cache_batch_size 6 needs continuous batching: give full_batch_size"):
        wrapped.compile(device="cloud_ai_100", kv_cache_batch_size=6)
    for number in ({"full_batch_size": 6}, {"kv_cache_batch_size": 6}):
        compiled = Path(wrapped.compile(**one_phase, **number)).parent
        (entry,) = content(compiled / "specializations.json")["specializations"]
        assert (entry["symbols"]["batch_size"], entry["symbols"]["full_batch_size"]) == ("1", "6")
