"""The model's own functions: what they are, and what they may be where each is compiled once for all its calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from qaic_simulator.graph.file import ONNX_DOMAINS, node_text, nodes_within, opset_of
from qaic_simulator.graph.operators import CONSTANCY, CUSTOM_DOMAINS
from qaic_simulator.profiles import Profile

Key = tuple[str, str, str]
"""Domain, name and overload of a function."""


def check_definitions(model: onnx.ModelProto, profile: Profile) -> None:
    """Refuse functions that cannot stand where they are called, whatever they do."""
    _check_imports(model.opset_import, [*model.graph.node, *model.functions], "The model", profile)
    own: dict[Key, onnx.FunctionProto] = {}
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        if key in own:
            profile.refuse("graph.twice", f"Two functions are called {function.domain}.{function.name}.")
        own[key] = function
        _check_imports(function.opset_import, function.node, f"Function {function.name}", profile)
        _check_opset(function, model, profile)
    for key, function in own.items():
        if key in _called_within(function, own):
            profile.refuse("graph.recursion", f"Function {function.domain}.{function.name} calls itself.")


def _check_imports(
    imports: Iterable[onnx.OperatorSetIdProto],
    holders: Iterable[onnx.NodeProto | onnx.FunctionProto],
    who: str,
    profile: Profile,
) -> None:
    """Refuse a domain of nodes or functions whose version is not said, or said twice."""
    said = ["" if opset.domain in ONNX_DOMAINS else opset.domain for opset in imports]
    used = nodes_within(holder for holder in holders if isinstance(holder, onnx.NodeProto))
    domains = {node.domain for node in used} | {f.domain for f in holders if isinstance(f, onnx.FunctionProto)}
    for domain in sorted({"" if domain in ONNX_DOMAINS else domain for domain in domains}):
        if said.count(domain) != 1:
            profile.refuse("graph.import", f"{who} says {said.count(domain)} times which '{domain}' it uses.")


def _check_opset(function: onnx.FunctionProto, model: onnx.ModelProto, profile: Profile) -> None:
    for opset in function.opset_import:
        if opset.domain in ONNX_DOMAINS and opset.version != opset_of(model):
            text = f"Function {function.name} uses opset {opset.version} of ONNX, but the model uses {opset_of(model)}."
            profile.refuse("graph.opset", text)


def _called_within(function: onnx.FunctionProto, own: Mapping[Key, onnx.FunctionProto]) -> set[Key]:
    """The functions that one calls, or that are called by those."""
    called: set[Key] = set()
    pending = [function]
    while pending:
        keys = {(node.domain, node.op_type, node.overload) for node in nodes_within(pending.pop().node)}
        found = (keys & own.keys()) - called
        called |= found
        pending += [own[key] for key in found]
    return called


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
