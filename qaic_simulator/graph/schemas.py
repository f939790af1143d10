"""Nodes as ONNX's own operators have them: how many operands, which attributes, of which kind."""

from __future__ import annotations

import onnx
from onnx import defs

from qaic_simulator.graph.file import ONNX_DOMAINS, bodies_of, node_text, nodes_within, opset_of
from qaic_simulator.graph.folding import attribute
from qaic_simulator.profiles import Profile


def check_schemas(model: onnx.ModelProto, profile: Profile) -> None:
    """Refuse operators that the opset does not have, and nodes that are not as the opset says."""
    inside = [node for function in model.functions for node in function.node]
    for node in nodes_within([*model.graph.node, *inside]):
        if node.domain not in ONNX_DOMAINS:
            continue
        fault = _fault(node, opset_of(model))
        if fault:
            profile.refuse("graph.malformed", node_text(node, model, f"{node.op_type}: {fault}"))


def _fault(node: onnx.NodeProto, opset: int) -> str:
    """What is wrong with a node; empty if nothing is."""
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return f"not in opset {opset}."
    if schema.deprecated:
        return f"deprecated in opset {opset}."
    if not schema.min_input <= len(node.input) <= schema.max_input:
        return f"{len(node.input)} inputs."
    if not schema.min_output <= len(node.output) <= schema.max_output:
        return f"{len(node.output)} outputs."
    return _attribute_fault(node, schema) or (_body_fault(node) if bodies_of(node) else "")


def _attribute_fault(node: onnx.NodeProto, schema: defs.OpSchema) -> str:
    given = {attribute.name: attribute for attribute in node.attribute}
    for name, described in schema.attributes.items():
        if described.required and name not in given:
            return f"attribute {name} is missing."
    for name, attribute_given in given.items():
        if name not in schema.attributes:
            return f"attribute {name} is unknown."
        kind = onnx.AttributeProto.AttributeType.Name(attribute_given.type)
        if not str(schema.attributes[name].type).endswith(f".{kind}"):
            return f"attribute {name} is of another type."
    return ""


def _body_fault(node: onnx.NodeProto) -> str:
    """Bodies have as many inputs and outputs as their node says."""
    if node.op_type == "If":
        expected = (0, len(node.output))
    elif node.op_type == "Loop":
        expected = (len(node.input), len(node.output) + 1)
    else:
        expected = (len(node.input), len(node.output))
        scanned = attribute(node, "num_scan_inputs")
        axes = attribute(node, "scan_input_axes", [0] * scanned)
        if not 0 < scanned <= len(node.input) or len(axes) != scanned:
            return "what is scanned does not fit the inputs."
    for body in bodies_of(node):
        if (len(body.input), len(body.output)) != expected:
            return "the body's inputs or outputs do not fit those of the node."
    return ""
