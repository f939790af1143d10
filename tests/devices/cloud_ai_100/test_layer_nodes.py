"""Which nodes go with which layers, and where a graph is cut between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
from onnx import parser

from QEfficient.devices.cloud_ai_100.graph.layer_nodes import FEWEST_OF_FUNCTION, node_lists, with_names
from QEfficient.errors import OptionError
from QEfficient.program import GraphSpec, StateSpec, TensorSpec

HEAD = """<ir_version: 10, opset_import: ["" : 18{domains}]>
graph (float[1, 4] x, float[1, 4] past_0, float[1, 4] past_1)
    => (float[1, 4] y, float[1, 4] past_0_RetainedState, float[1, 4] past_1_RetainedState)
<float[4] M_0_a = {{1, 1, 1, 1}}, float[4] M_0_b = {{1, 1, 1, 1}}, float[4] M_1_a = {{1, 1, 1, 1}},
 float[4] M_1_b = {{1, 1, 1, 1}}, float[4] OTHER = {{1, 1, 1, 1}}> {{
"""
BODY = """
    [turned] turned = Abs(M_1_a)
    [start] h = Abs(x)
    [norm0] n = Abs(h)
    [scale0] s = Mul(n, M_0_a)
    [state0] past_0_RetainedState = Add(past_0, s)
    [out0] o = Mul(past_0_RetainedState, M_0_b)
    [sum0] h1 = Add(h, o)
    [norm1] n1 = Abs(h1)
    [scale1] s1 = Mul(n1, turned)
    [state1] past_1_RetainedState = Add(past_1, s1)
    [out1] o1 = Mul(past_1_RetainedState, M_1_b)
    [sum1] h2 = Add(h1, o1)
    [end] y = Mul(h2, OTHER)
}
"""
PATHS = {f"M_{layer}_{part}": f"m.layers.{layer}.{part}" for layer in (0, 1) for part in "ab"} | {"OTHER": "head.7.b"}
"""Of the weights: the parser of ONNX's texts knows no dots in names."""
ROW = (1, 4)
STATES = tuple(StateSpec(TensorSpec(f"past_{layer}", "float32", ROW), "key", layer) for layer in (0, 1))


def lists(
    folder: Path, body: str, functions: str = "", domains: str = "", states: Sequence[StateSpec] = STATES
) -> list[list[str]]:
    """What `node_lists` makes two partitions of."""
    model = parser.parse_model(HEAD.format(domains=domains) + body + functions)
    for tensor in model.graph.initializer:
        tensor.name = PATHS[tensor.name]
    for node in model.graph.node:
        node.input[:] = [PATHS.get(name, name) for name in node.input]
    onnx.save(model, folder / "graph.onnx")
    spec = GraphSpec((TensorSpec("x", "float32", ROW),), (TensorSpec("y", "float32", ROW),), tuple(states))
    return node_lists(with_names(folder / "graph.onnx", folder), spec, 2)


def test_a_cut_is_where_one_value_crosses(tmp_path: Path) -> None:
    """Behind the sum, before the norm; that a weight of the second layer is turned first changes nothing."""
    first, second = lists(tmp_path, BODY, states=())
    assert (first[0], first[-1], second[0], second[-1]) == ("turned", "sum0", "norm1", "end")
    assert len(first) + len(second) == BODY.count("[")


def test_constants_do_not_cross(tmp_path: Path) -> None:
    """Nor do they say where a layer begins: what is made of them says it."""
    constants = "[c] c = Abs(OTHER)\n[d] d = Neg(OTHER)\n[start]"
    body = BODY.replace("M_1_b", "OTHER").replace("[start]", constants).replace("Abs(h1)", "Max(h1, c, d)")
    first, second = lists(tmp_path, body, states=())
    assert (first[-1], second[0]) == ("sum0", "norm1")


@pytest.mark.parametrize("weights", [("M_0_a", "M_0_b"), ("OTHER", "OTHER")], ids=["shared", "elsewhere"])
def test_states_where_weights_tell_nothing(tmp_path: Path, weights: tuple[str, str]) -> None:
    """That the sizes of a later state are asked for first changes nothing."""
    body = BODY.replace("M_1_a", weights[0]).replace("M_1_b", weights[1])
    sizes = "\n".join(f"[size{number}] size{number} = Shape(past_1)" for number in range(4))
    first, second = lists(tmp_path, body.replace("[start]", f"{sizes}\n[start]"))
    assert (first[-1], second[0]) == ("sum0", "norm1")


def test_weights_of_several_layers(tmp_path: Path) -> None:
    """They go by the name of one, and say nothing."""
    shared = BODY.replace(
        "[norm0] n = Abs(h)", "[norm0] n = Mul(h, M_1_b)\n [again] n2 = Mul(n, M_1_b)\n [b] n3 = Abs(n2)"
    )
    first, second = lists(tmp_path, shared)
    assert (first[-1], second[0]) == ("sum0", "norm1")


def test_graphs_that_do_not_show_their_layers(tmp_path: Path) -> None:
    body = BODY
    for weight in list(PATHS)[:-1]:
        body = body.replace(weight, "OTHER")
    with pytest.raises(OptionError, match="neither weights nor states of the graph say which layer"):
        lists(tmp_path, body, states=())


def test_nodes_without_a_name(tmp_path: Path) -> None:
    """They get that of what they make, but for one that is taken."""
    body = BODY.replace("[norm1] ", "").replace("[sum0] ", "").replace("[start]", "[h1]")
    first, second = lists(tmp_path, body)
    assert (first[1], first[-1], second[0]) == ("h1", "h1_", "n1")


FUNCTION = """
<domain: "{domain}", opset_import: ["" : 18]>
{name} (a) => (b) {{
{nodes}
    [last] b = Abs(a)
}}
"""


@pytest.mark.parametrize(
    ("domain", "name", "nodes", "is_inlined"),
    [
        ("ours", "Short", FEWEST_OF_FUNCTION - 1, True),
        ("ours", "Long", FEWEST_OF_FUNCTION, False),
        ("com.qti.aisw.onnx", "CustomRMSNorm", 1, False),
    ],
)
def test_small_functions_become_nodes(tmp_path: Path, domain: str, name: str, nodes: int, is_inlined: bool) -> None:
    unused = "\n".join(f"    [inner{number}] c{number} = Abs(a)" for number in range(nodes - 1))
    function = FUNCTION.format(domain=domain, name=name, nodes=unused)
    body = BODY.replace("n1 = Abs(h1)", f"n1 = {domain}.{name}(h1)")
    _, second = lists(tmp_path, body, function, f', "{domain}" : 1')
    inside = [found for found in second if found.startswith(("inner", "last"))]
    assert (second[0] == "norm1", len(inside)) == (not is_inlined, nodes if is_inlined else 0)
