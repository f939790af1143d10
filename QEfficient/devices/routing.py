"""Programs in which the largest of some numbers decide what is computed next: which experts, which tokens to look at.

There the last bit of a number can bring something else altogether, whatever a device's accuracy.
"""

from __future__ import annotations

import onnx_ir as ir

CHOOSERS = ("TopK", "ArgMax")
BY_POSITION = ("LastToken", "LastTokens")
"""Functions that choose by whole numbers, which are the same everywhere."""


def chooses(model: ir.Model) -> bool:
    """Whether the graph or a function of it has such a choice."""
    functions = (function for function in model.functions.values() if function.name not in BY_POSITION)
    within = [model.graph.all_nodes(), *(function.all_nodes() for function in functions)]
    return any(node.op_type in CHOOSERS for nodes in within for node in nodes)
