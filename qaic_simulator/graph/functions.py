"""Sub-functions that are compiled once for all their calls: no shape in them may hang on what a call passes."""

from __future__ import annotations

import onnx

from qaic_simulator.graph.file import node_text, nodes_within
from qaic_simulator.graph.operators import CONSTANCY, CUSTOM_DOMAINS
from qaic_simulator.profiles import Profile


def check_functions(model: onnx.ModelProto, profile: Profile) -> None:
    """Refuse functions in which a parameter's value decides about a shape.

    Those in the compiler's own domains it knows by name and replaces, whatever their bodies say.
    """
    for function in model.functions:
        if function.domain not in CUSTOM_DOMAINS:
            _check_function(function, model, profile)


def _check_function(function: onnx.FunctionProto, model: onnx.ModelProto, profile: Profile) -> None:
    passed = set(function.input)  # and what follows from the value, not only the shape, of one
    for node in nodes_within(function.node):
        for requirement in CONSTANCY.get(node.op_type, ()) if not node.domain else ():
            operands = [node.input[place] for place in requirement.operands if place < len(node.input)]
            if passed & set(operands):
                text = f"{node.op_type}: Non-constant {requirement.what} tensor not supported: a function's parameter."
                rule = "constancy.parameter-range" if node.op_type == "Range" else "constancy.parameter"
                profile.refuse(rule, node_text(node, model, text))
        if passed & set(node.input) and node.op_type not in ("Shape", "Size"):
            passed |= set(node.output)
