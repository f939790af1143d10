"""Models that contradict themselves, files that say a thing twice, and what of both is ignored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from graph_attempts import Attempt, attempt, graph, rule_of, run, two_partitions, with_function, with_weights

from qaic_simulator.graph.file import read_model
from qaic_simulator.profiles import HARDWARE, Profile, profile_of
from qaic_simulator.rules import Refusal
from qaic_simulator.side_files.custom_io import read_custom_io
from qaic_simulator.side_files.partitions import Device, Partition, PartitionConfig
from qaic_simulator.side_files.specializations import read_json
from qaic_simulator.side_files.yaml_file import MOST_PARTS, read_yaml

PROFILE = profile_of("1.22")
LEVELS = "[&a0 [x, x, x, x, x, x, x, x, x, x]{}]"


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("again = Neg(data) again = Abs(data) result = Relu(again)", "graph.twice"),
        ("data = Neg(count) result = Relu(data)", "graph.twice"),
        ("result = Relu(later) later = Neg(data)", "graph.order"),
        ("other = Relu(data)", "graph.order"),
        ("later = Neg(data) result = Relu(later)", ""),
    ],
)
def test_functions_are_graphs_too(body: str, rule: str, tmp_path: Path) -> None:
    assert rule_of(with_function(body), tmp_path) == rule


def test_bodies_are_graphs_too(tmp_path: Path) -> None:
    steps = {"a = Neg(row) a = Abs(row)": "graph.twice", "b = Neg(a) a = Abs(row)": "graph.order", "a = Neg(start)": ""}
    for step, rule in steps.items():
        nodes = f"{step} next = Add(sum, row) out = Identity(next)"
        body = f"step (float[4] sum, float[4] row) => (float[4] next, float[4] out) {{ {nodes} }}"
        first = "start = ReduceMax<axes = [0], keepdims = 0>(x)"
        text = f"{first} last, y = Scan<num_scan_inputs = 1, body = {body}>(start, x)"
        model = graph(text, "float[8, 4] x", opset=13)
        assert rule_of(Attempt(model, entries=({"batch_size": 1},)), tmp_path) == rule, step


def test_domains_are_imported_where_they_are_used(tmp_path: Path) -> None:
    good, inner, outer, twice = (with_function("result = own.Deep(data)") for _ in range(4))
    for tried in (good, inner, outer, twice):
        tried.model.functions.append(
            onnx.parser.parse_function('<domain: "own", opset_import: ["" : 18]> Deep (a) => (b) { b = Relu(a) }')
        )
    del inner.model.functions[0].opset_import[1]
    del outer.model.opset_import[2]
    twice.model.opset_import.append(onnx.helper.make_opsetid("ai.onnx", 17))
    assert rule_of(good, tmp_path) == ""
    assert [rule_of(tried, tmp_path) for tried in (inner, outer, twice)] == ["graph.import"] * 3


@pytest.mark.parametrize(
    ("said", "rule"), [("int8[n, 4] z", "graph.declared"), ("float[n, 5] z", "graph.declared"), ("float[n, 4] z", "")]
)
def test_what_a_graph_says_of_inner_values_is_true(said: str, rule: str, tmp_path: Path) -> None:
    tried = attempt("z = Relu(x) y = Neg(z)")
    tried.model.graph.value_info.extend(graph("y = Relu(z)", said).graph.input)
    assert rule_of(tried, tmp_path) == rule


def test_an_input_has_a_name(tmp_path: Path) -> None:
    tried = attempt("y = Relu(x)", "float[n, 4] x, float[n] nobody")
    tried.model.graph.input[1].name = ""
    assert rule_of(tried, tmp_path) == "graph.malformed"


def test_each_partition_holds_what_its_own_nodes_read(tmp_path: Path) -> None:
    """Matrices that two devices could share, all of which the first is to hold."""
    whole = with_weights(8, rows=1000)  # of two GiB each
    for node in whole.model.graph.node:
        node.name = node.output[0]
    names = [node.name for node in whole.model.graph.node]
    cut = {
        at: PartitionConfig(
            (
                Partition("P0", (Device(0, 16),), tuple(names[:at])),
                Partition("P1", (Device(1, 16),), tuple(names[at:])),
            ),
            (),
        )
        for at in (4, 8)
    }
    found = {at: rule_of(replace(whole, partitions=config, sku="standard"), tmp_path) for at, config in cut.items()}
    assert found == {4: "", 8: "graph.memory"}
    assert run(replace(whole, partitions=cut[4], sku="standard"), tmp_path).bytes_per_device > 8 * 10**9


def test_names_that_no_node_has_are_ignored(tmp_path: Path) -> None:
    tried = two_partitions("first second", "third")
    assert tried.partitions is not None
    parts = [replace(part, nodes=("before", *part.nodes, "behind")) for part in tried.partitions.partitions]
    assert rule_of(replace(tried, partitions=PartitionConfig(tuple(parts), ())), tmp_path) == ""
    swapped = tuple(
        replace(part, nodes=("before", *other.nodes)) for part, other in zip(parts, parts[::-1], strict=True)
    )
    assert rule_of(replace(tried, partitions=PartitionConfig(swapped, ())), tmp_path) == "partitions.order"


def test_a_listed_name_is_that_of_one_node(tmp_path: Path) -> None:
    tried = two_partitions("first second", "third")
    assert rule_of(tried, tmp_path) == ""
    tried.model.graph.node[1].name = "first"
    assert rule_of(tried, tmp_path) == "graph.twice"


def rule_of_file(read: Callable[[Path, Profile], object], path: Path, text: str) -> str:
    """The rule that a file is refused for, or nothing."""
    path.write_text(text, encoding="utf-8")
    try:
        read(path, PROFILE)
    except Refusal as refusal:
        return refusal.rule.id
    return ""


def levels(count: int) -> str:
    return LEVELS.format("".join(f", &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, count)))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (levels(9), "yaml.aliases"),
        (levels(3), ""),
        (f"[{', '.join(['x'] * (MOST_PARTS + 1))}]", ""),
        ("{a: 1, a: 2}", "yaml.repeated"),
        ("[{a: 1}, {a: 2}]", ""),
        ("&a [*a]", "yaml.syntax"),
    ],
)
def test_yaml_is_no_larger_than_it_looks(text: str, rule: str, tmp_path: Path) -> None:
    assert rule_of_file(read_yaml, tmp_path / "file.yaml", text) == rule


def test_a_refusal_does_not_quote_all_that_aliases_stand_for(tmp_path: Path) -> None:
    (tmp_path / "io.yaml").write_text(f"[{{IOName: {levels(4)}}}]", encoding="utf-8")
    with pytest.raises(Refusal) as found:
        read_custom_io(tmp_path / "io.yaml", HARDWARE["ai100"], PROFILE)
    assert found.value.rule.id == "custom-io.item" and len(found.value.message) < 1000


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('{"a": "1", "a": "2"}', "json.repeated"),
        ('[{"a": "1"}, {"a": "2"}]', ""),
        ('{"a": "\\ud800"}', "json.syntax"),
        ('{"\\udc00": "1"}', "json.syntax"),
        ('{"a": "\\ud83d\\ude00"}', ""),
    ],
)
def test_json_is_text_and_says_a_thing_once(text: str, rule: str, tmp_path: Path) -> None:
    assert rule_of_file(read_json, tmp_path / "file.json", text) == rule


@pytest.mark.parametrize("suffix", [".onnxtxt", ".textproto"])
def test_models_in_text_form(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_text(str(attempt("y = Relu(x)").model), encoding="utf-8")
    assert read_model(path, PROFILE).graph.node[0].op_type == "Relu"
    assert rule_of_file(read_model, path, "no model") == "graph.parse"
