"""Constants that decide about no shape here, but have numbers all the same.

The compiler folds whatever has constant operands. Which of that it lets decide about shapes is what `folding` is
careful about; what the numbers are is no question of care, so ONNX's own reference says it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from qaic_simulator.graph.binding import STUMBLES, Program
from qaic_simulator.graph.folding import LARGEST, NEVER


def evaluated(program: Program) -> dict[str, np.ndarray]:
    """All constants whose numbers can be known: neither large, nor made from what is."""
    known = {name: value for name, value in program.bound.constants.items() if value is not None}
    for node in program.nodes:
        if program.is_folded(node) and not set(filter(None, node.output)) <= known.keys() and _fits(program, node):
            known.update(_results(program, node, known))
    return known


def _fits(program: Program, node: onnx.NodeProto) -> bool:
    is_plain = not node.domain and node.op_type not in NEVER
    return is_plain and all(program.bound.elements(name) <= LARGEST for name in node.output if name)


def _results(program: Program, node: onnx.NodeProto, known: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names, made = [name for name in node.input if name], [name for name in node.output if name]
    if not all(name in known for name in names):
        return {}
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(known[name].dtype), known[name].shape)
        for name in dict.fromkeys(names)
    ]
    graph = helper.make_graph([node], "one", given, [helper.make_empty_tensor_value_info(name) for name in made])
    model = helper.make_model(graph, opset_imports=program.bound.model.opset_import)
    try:
        with np.errstate(all="ignore"):
            values = ReferenceEvaluator(model).run(made, {name: known[name] for name in names})
    except STUMBLES:  # an operator that the reference lacks or cannot run: its result stays unknown
        return {}
    return {name: np.asarray(value) for name, value in zip(made, values, strict=True)}
