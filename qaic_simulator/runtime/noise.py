"""Noise on products of matrices, to find what relies on bits that no two devices share.

`QAIC_SIM_NOISE=<ulps>` moves each result of a MatMul or Gemm that is rounded to float16 by at most so many units in the
last place, before it is rounded. What is added follows from the node's output, the place in the result and the number
of the run: the same program gives the same in the same run again.
"""

from __future__ import annotations

import math
import os
import zlib

import onnx
from onnx import helper

from qaic_simulator.runtime.bodies import graphs_within, replace_items
from qaic_simulator.runtime.card_indices import DOMAIN, with_functions
from qaic_simulator.runtime.halving import UNROUNDED

NOISE_VARIABLE = "QAIC_SIM_NOISE"
RUN = f"{DOMAIN}.run"
"""The input of the graph that is the number of the run."""

_ULP = 2**-11
"""The least that a unit in the last place of float16 can be of a number."""
_PRIME = 2**31 - 1
# Two squares of a sum without a pattern, modulo a prime: a number for each place, as good as drawn.
_FUNCTION = """CardNoise <seed> (product, run) => (noisy) {{
    nothing = Constant<value = int64 {{0}}>()
    one = Constant<value = int64 {{1}}>()
    prime = Constant<value = int64 {{{prime}}}>()
    of_node = Constant<value_int: int = @seed>()
    of_place = Constant<value = int64 {{1103515245}}>()
    of_run = Constant<value = int64 {{69621}}>()
    count = Size(product)
    places = Range(nothing, count, one)
    by_place = Mul(places, of_place)
    by_run = Mul(run, of_run)
    by_node = Add(by_run, of_node)
    sums = Add(by_place, by_node)
    first = Mod(sums, prime)
    squares = Mul(first, first)
    again = Add(squares, by_node)
    second = Mod(again, prime)
    more_squares = Mul(second, second)
    third = Mod(more_squares, prime)
    drawn = Cast<to = 1>(third)
    scale = Constant<value = float {{{scale}}}>()
    lowest = Constant<value = float {{{lowest}}}>()
    scaled = Mul(drawn, scale)
    factors = Add(scaled, lowest)
    shape = Shape(product)
    shaped = Reshape(factors, shape)
    noisy = Mul(product, shaped)
}}"""


def noise_ulps() -> float:
    """How much is asked for; 0 is none."""
    asked = os.environ.get(NOISE_VARIABLE) or "0"
    try:
        ulps = float(asked)
    except ValueError:
        ulps = math.nan
    if not 0 <= ulps < 1 / _ULP:
        raise ValueError(f"{NOISE_VARIABLE} is {asked!r}; it can be a number of units from 0 to {1 / _ULP - 1:.0f}.")
    return ulps


def with_noise(model: onnx.ModelProto, ulps: float) -> onnx.ModelProto:
    """A model that was converted to float16, with so much noise and an input for the number of the run."""
    for graph in graphs_within(model.graph):
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            nodes.append(node)
            if node.op_type in ("MatMul", "Gemm") and node.output[0].endswith(UNROUNDED):
                name = node.output[0]
                node.output[0] = f"{name}.exact"
                seed = zlib.crc32(name.encode())
                call = helper.make_node("CardNoise", [node.output[0], RUN], [name], domain=DOMAIN, seed=seed)
                nodes.append(call)
        replace_items(graph.node, nodes)
    model.graph.input.append(helper.make_tensor_value_info(RUN, onnx.TensorProto.INT64, ()))
    largest = ulps * _ULP
    text = _FUNCTION.format(prime=_PRIME, scale=repr(2 * largest / _PRIME), lowest=repr(1 - largest))
    return with_functions(model, {text: "CardNoise"})
