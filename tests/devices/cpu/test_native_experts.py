"""The native product with chosen matrices: to the last bit what the linear layer gives for each row by itself."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset13
from openvino.utils.node_factory import NodeFactory

from QEfficient.devices.cpu import native
from QEfficient.devices.cpu.native import direct
from QEfficient.devices.cpu.native.direct import Layer

pytestmark = pytest.mark.skipif(
    native.library_path() is None and not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="there is no compiler, so there is no library",
)
EXPERTS, OUTPUTS, INPUTS = 12, 48, 200
SHAPES = [  # places of the inputs, places of the choices, rows of a place
    ((1,), (1,), 1),
    ((6,), (6,), 1),
    ((7, 1), (7, 3), 1),
    ((40, 1), (40, 4), 1),
    ((1,), (12,), 5),
    ((12,), (12,), 5),
    ((2, 3, 1), (3, 2), 2),
]


def stack(bits: int, asymmetric: bool) -> list[Layer]:
    """A matrix for each expert."""
    rng = np.random.default_rng(bits + asymmetric)
    layers, groups = [], -(-INPUTS // 64)
    for _ in range(EXPERTS):
        values = rng.integers(0, 1 << bits, (OUTPUTS, INPUTS), dtype=np.uint8)
        scales = rng.uniform(-0.02, 0.02, (OUTPUTS, groups)).astype(np.float16)
        zeros = rng.integers(0, 1 << bits, (OUTPUTS, groups), dtype=np.uint8) if asymmetric else None
        layers.append(Layer.packed(values, scales, zeros, bits, 64))
    return layers


def operation(layers: list[Layer], x: Any, choice: Any, **changes: int) -> Any:
    factory = NodeFactory()
    factory.add_extension(str(native.library_path()))
    kinds = ("values", "scales") if layers[0].zeros is None else ("values", "scales", "zeros")
    weights = [opset13.constant(np.concatenate([getattr(layer, kind) for layer in layers])) for kind in kinds]
    numbers = {"bits": layers[0].bits, "group": 64, "in_features": INPUTS, "out_features": OUTPUTS, "experts": EXPERTS}
    return factory.create("ExpertLinear", [x, choice, *weights], {**numbers, **changes})


def compiled(layers: list[Layer], rank: int, choices: int, threads: int = 2) -> openvino.CompiledModel:
    core = openvino.Core()
    core.add_extension(str(native.library_path()))
    x = opset13.parameter([-1] * (rank + 1) + [INPUTS], np.float32)
    choice = opset13.parameter([-1] * choices, np.int64)
    model = openvino.Model([operation(layers, x, choice)], [x, choice])
    return core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads})


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_row_is_multiplied_with_what_it_chose(
    shape: tuple[tuple[int, ...], tuple[int, ...], int], bits: int, asymmetric: bool
) -> None:
    given, chosen, rows = shape
    rng = np.random.default_rng(sum(chosen))
    layers = stack(bits, asymmetric)
    x = rng.standard_normal((*given, rows, INPUTS)).astype(np.float32)
    choice = rng.integers(0, EXPERTS, chosen)
    places = np.broadcast_shapes(given, chosen)
    wanted = np.empty((*places, rows, OUTPUTS), np.float32)
    inputs, matrices = np.broadcast_to(x, (*places, rows, INPUTS)), np.broadcast_to(choice, places)
    for place in np.ndindex(places):
        wanted[place] = direct.multiply(layers[matrices[place]], np.ascontiguousarray(inputs[place]))
    for threads in (1, 2):
        found = compiled(layers, len(given), len(chosen), threads)([x, choice])[0]
        assert found.shape == wanted.shape
        assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))


def test_no_places() -> None:
    found = compiled(stack(4, False), 1, 1)([np.empty((0, 1, INPUTS), np.float32), np.empty(0, np.int64)])[0]
    assert found.shape == (0, 1, OUTPUTS)


@pytest.mark.parametrize("wrong", [-1, EXPERTS])
def test_an_expert_that_is_not_there(wrong: int) -> None:
    model = compiled(stack(4, False), 1, 1)
    with pytest.raises(RuntimeError, match=f"expert {wrong} was chosen, but there are {EXPERTS}"):
        model([np.ones((2, 1, INPUTS), np.float32), np.array([0, wrong])])


def test_choices_that_do_not_go_with_the_inputs() -> None:
    model = compiled(stack(4, False), 1, 1)
    with pytest.raises(RuntimeError, match=r"inputs for the places \[2\] and choices for \[3\]"):
        model([np.ones((2, 1, INPUTS), np.float32), np.array([0, 1, 2])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "no kernel for 3 bits"),
        ({"experts": EXPERTS + 1}, "elements are needed"),
        ({"experts": 0}, "there is no expert"),
        ({"in_features": INPUTS - 1}, f"the layer has {INPUTS - 1} inputs"),
    ],
)
def test_numbers_that_do_not_fit(change: dict[str, int], message: str) -> None:
    x, choice = opset13.parameter([-1, 1, INPUTS], np.float32), opset13.parameter([-1], np.int64)
    with pytest.raises(RuntimeError, match=message):
        operation(stack(4, False), x, choice, **change)
