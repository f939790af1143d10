"""Programs cut into groups of layers, which devices work through one after another."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers
from onnx.inliner import inline_local_functions

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices.cloud_ai_100 import CloudAI100
from QEfficient.devices.cloud_ai_100.graph.layer_nodes import with_names
from QEfficient.errors import OptionError
from QEfficient.program import CompiledProgram, ExportedProgram, load_compiled
from QEfficient.specs import CompileSpec
from QEfficient.verification.tiny_models import prompts, tiny_model

GEOMETRY: dict[str, Any] = {"ctx_len": 64, "prefill_seq_len": 8, "full_batch_size": 2}
TWO, FOUR = {"num_devices": 2, "mdp_num_partitions": 2}, {"num_devices": 4, "mdp_num_partitions": 2}


@cache
def model(model_type: str) -> Any:
    return tiny_model(model_type)


def compiled(wrapped: QEFFAutoModelForCausalLM, **options: Any) -> CompiledProgram:
    return load_compiled(wrapped.compile(device="cloud_ai_100", **GEOMETRY, **options))


def answers(wrapped: QEFFAutoModelForCausalLM) -> list[list[int]]:
    info = wrapped.generate(input_ids=prompts(wrapped.model), generation_len=10, ignore_eos=True)
    return [list(found) for found in info.generated_ids]


def content(program: CompiledProgram, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((program.folder / name).read_text())
    return found


# Whole programs


@pytest.mark.parametrize(
    ("model_type", "functions"),
    [
        *((name, False) for name in ("llama", "gpt2", "gemma3_text", "qwen3_next")),
        ("llama", True),  # small layers
        ("mixtral", True),  # large ones
        ("qwen3_next", True),  # both
    ],
)
def test_the_tokens_of_one_device(new_sdk: str, model_type: str, functions: bool) -> None:
    wrapped = QEFFAutoModelForCausalLM(model(model_type), continuous_batching=True)
    compiled(wrapped, use_onnx_subfunctions=functions)
    said = answers(wrapped)
    program = compiled(wrapped, use_onnx_subfunctions=functions, **FOUR)
    assert program.report["devices"] == 4
    assert ("-sub-functions" in program.report["command"]) == functions
    assert answers(wrapped) == said


@cache
def of_four_layers() -> Any:
    config = model("llama").config.to_dict()
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**config, "num_hidden_layers": 4})).eval()


@pytest.mark.parametrize(("devices", "partitions", "used"), [(4, 4, 4), (5, 2, 4)])
def test_more_partitions(new_sdk: str, devices: int, partitions: int, used: int) -> None:
    """Devices that are left over are idle, and not asked for when the program is loaded."""
    wrapped = QEFFAutoModelForCausalLM(of_four_layers(), continuous_batching=True)
    compiled(wrapped)
    said = answers(wrapped)
    program = compiled(wrapped, num_devices=devices, mdp_num_partitions=partitions)
    assert program.report["devices"] == used
    told = next(word for word in program.report["command"] if word.startswith("-mdp-load"))
    assert told.endswith(f"/mdp_disagg_{devices}d_{partitions}p.json")
    assert Path(told.partition("=")[2]).parent == program.folder
    assert answers(wrapped) == said


@pytest.mark.parametrize("config", [None, {"include_sampler": True}], ids=["logits", "sampler"])
def test_every_node_is_where_its_weights_are(new_sdk: str, tmp_path: Path, config: Any) -> None:
    """A sampler keeps states too, which are no layer's."""
    wrapped = QEFFAutoModelForCausalLM(of_four_layers(), True, config)
    program = compiled(wrapped, num_devices=4, mdp_num_partitions=4)
    path = with_names(program.program.onnx_path("lm"), tmp_path)
    graph = inline_local_functions(onnx.load(path, load_external_data=False)).graph
    lists = [part["nodeList"] for part in content(program, "mdp_disagg_4d_4p.json")["partitions"]]
    place = {name: number for number, names in enumerate(lists) for name in names}
    layers = [(node.name, re.findall(r"layers\.(\d+)\.", " ".join(node.input))) for node in graph.node]
    assert [place[name] for name, found in layers if found] == [int(found[0]) for _, found in layers if found]
    ends = [next(n.name for n in graph.node if n.op_type == "Gather"), graph.node[-1].name]
    assert [place[name] for name in ends] == [0, 3]
    kept = [node for node in graph.node if node.name in place]
    assert 0.9 * len(graph.node) < len(kept) < len(graph.node)  # tables have taken the places of others
    assert sum(map(len, lists)) == len(place)


def test_more_partitions_than_layers(new_sdk: str) -> None:
    wrapped = QEFFAutoModelForCausalLM(model("llama"), continuous_batching=True)
    with pytest.raises(OptionError, match="2 layers cannot be spread over 3 partitions. Choose from 1 to 2"):
        compiled(wrapped, num_devices=4, mdp_num_partitions=3)


# What the compiler has dumped


def test_names_that_the_compiler_has_dumped_too(new_sdk: str, tmp_path: Path) -> None:
    wrapped = QEFFAutoModelForCausalLM(model("llama"), continuous_batching=True)
    name = "mdp_disagg_2d_2p.json"
    whole = [part["nodeList"] for part in content(compiled(wrapped, **TWO), name)["partitions"]]
    known = [names[::3] for names in whole]
    dumped = tmp_path / "dumped.json"
    nodes = [*known[1], "a node of its own", *known[0]]
    dumped.write_text(json.dumps({"partitions": [{"name": "Partition0", "nodeList": nodes}]}))
    options = {**TWO, "mdp_strategy": "intersection", "mdp_compiler_dump_path": str(dumped)}
    assert [part["nodeList"] for part in content(compiled(wrapped, **options), name)["partitions"]] == known
    dumped.write_text(json.dumps({"partitions": [{"name": "Partition0", "nodeList": known[0]}]}))
    with pytest.raises(OptionError, match="nodes leave 1 of 2 partitions empty"):
        compiled(wrapped, **options)


def test_a_dump_is_not_lost_with_the_compiler_s_folder(
    new_sdk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrapped = QEFFAutoModelForCausalLM(model("llama"), continuous_batching=True)
    program = compiled(wrapped, num_devices=2, mdp_dump_partition_config="dump.json")
    assert f"-mdp-dump-partition-config={tmp_path}/dump.json" in program.report["command"]
    assert program.report["devices"] == 1  # nothing tells the compiler of the other
    assert answers(wrapped)
    options = {**TWO, "mdp_strategy": "intersection", "mdp_compiler_dump_path": "dump.json"}
    cut = content(compiled(wrapped, **options), "mdp_disagg_2d_2p.json")["partitions"]
    (whole,) = json.loads(Path("dump.json").read_text())["partitions"]
    assert whole["devices"] == [{"deviceId": 0, "numCores": 16}]
    assert [name for part in cut for name in part["nodeList"]] == whole["nodeList"]
    nodes = [part["nodeList"] for part in content(compiled(wrapped, **TWO), "mdp_disagg_2d_2p.json")["partitions"]]
    assert all(0 < len(part["nodeList"]) < len(all_of_them) for part, all_of_them in zip(cut, nodes, strict=True))
    assert answers(wrapped)


def test_other_strategies(new_sdk: str) -> None:
    wrapped = QEFFAutoModelForCausalLM(model("llama"), continuous_batching=True)
    with pytest.raises(OptionError, match="not one of onnx, intersection. Did you mean 'intersection'"):
        compiled(wrapped, mdp_strategy="intersect", **TWO)


# A file of the user's own


def partition(*devices: Any, cores: Any = 16, **more: Any) -> dict[str, Any]:
    listed = [{"deviceId": device, "numCores": cores} for device in devices]
    return {"name": f"Partition{devices[:1]}", "devices": listed, **more}


def test_partitions_of_the_user(new_sdk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found from where the user stands; the session opens on as many devices as it names."""
    monkeypatch.chdir(tmp_path)
    wrapped = QEFFAutoModelForCausalLM(model("llama"), continuous_batching=True)
    compiled(wrapped)
    said = answers(wrapped)
    own = compiled(wrapped, **FOUR).folder / "mdp_disagg_4d_2p.json"
    Path("mine.json").write_text(own.read_text())
    Path("slices.json").write_text(json.dumps({"partitions": [partition(0, 1)]}))
    for name, devices, more in (("mine.json", 4, {}), ("slices.json", 2, {"num_devices": 2})):
        program = compiled(wrapped, mdp_load_partition_config=name, **more)
        assert program.report["devices"] == devices
        loaded = [word for word in program.report["command"] if word.startswith("-mdp-load")]
        assert loaded == [f"-mdp-load-partition-config={tmp_path}/{name}"]
        assert answers(wrapped) == said
    with pytest.raises(OptionError, match=r"slices.json.* is for 2 device\(s\), but num_devices is 4. Make them one"):
        compiled(wrapped, mdp_load_partition_config="slices.json", num_devices=4)


BROKEN = [
    ("", "cannot be read as JSON"),
    ([], "an object with a list of 'partitions'"),
    ({"partitions": []}, "an object with a list of 'partitions'"),
    ({"partitions": [1]}, "each partition has a 'name'"),
    ({"partitions": [{"name": "P", "devices": []}]}, "each partition has a 'name'"),
    ({"partitions": [partition(True)]}, "each partition has a 'name'"),
    ({"partitions": [partition(0, cores=17)]}, "each partition has a 'name'"),
    ({"partitions": [partition(0, nodeList=[1])]}, "each partition has a 'name'"),
    ({"partitions": [partition(0, nodeList=["a"]), partition(1)]}, "each of several partitions has a 'nodeList'"),
    ({"partitions": [partition(0, nodeList=["a"]), partition(0, nodeList=["b"])]}, r"in one partition, not \[0, 0\]"),
    ({"partitions": [partition(1, 2)]}, r"not \[1, 2\]"),
    ({"partitions": [partition(*range(17))]}, "16 at most"),
    ({"partitions": [partition(0, 1)], "connections": [{"devices": [0, 2], "type": "p2p"}]}, "each connection"),
    ({"partitions": [partition(0, 1)], "connections": [{"devices": [0, 1], "type": "bus"}]}, "each connection"),
    ({"partitions": [partition(0, 1)], "connections": {}}, "each connection"),
    (
        {"partitions": [partition(0, nodeList=["a"], cores=14), partition(1, nodeList=["b"])]},
        "gives 14 and 16 cores to a device, but num_cores is 16",
    ),
]


@pytest.mark.parametrize(("written", "message"), BROKEN)
def test_files_that_are_none_of_partitions(tmp_path: Path, written: Any, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(written) if written != "" else "{")
    with pytest.raises(OptionError, match=message):
        CloudAI100().own_options({"mdp_load_partition_config": str(path)})


def test_cores_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"partitions": [partition(0, 1, cores=14)]}))
    given: dict[str, Any] = {"mdp_load_partition_config": str(path)}
    assert CloudAI100().own_options(given) == {**given, "num_cores": 14}
    with pytest.raises(OptionError, match="gives 14 cores to a device, but num_cores is 12. Make them one number"):
        CloudAI100().own_options({**given, "num_cores": 12})


def test_files_are_refused_before_any_work(new_sdk: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text("{}")
    program = ExportedProgram.__new__(ExportedProgram)  # nothing may look at it
    spec = CompileSpec(device_options={"mdp_load_partition_config": str(path)})
    with pytest.raises(OptionError, match="no file of partitions"):
        CloudAI100().compile(program, spec, tmp_path)
