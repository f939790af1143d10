"""The native linear layer: against exact arithmetic, and to the last bit against itself called in every other way."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper
from openvino.utils.node_factory import NodeFactory

from QEfficient.devices.cpu import native
from QEfficient.devices.cpu.native import direct
from QEfficient.devices.cpu.native.direct import Layer

PATHS = ("avx512", "avx2", "portable")
# (channels, inputs, group): odd and even, less than a tile, less than a group, more than one chunk of activations
SHAPES = [(1, 8, 32), (17, 100, 32), (100, 257, 64), (16, 128, 128), (130, 384, 128), (40, 8200, 128)]

pytestmark = pytest.mark.skipif(
    native.library_path() is None and not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="there is no compiler, so there is no library",
)


@pytest.fixture(autouse=True)
def best_path() -> Iterator[None]:
    yield
    direct.choose_path("best")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    if not direct.choose_path(request.param):
        pytest.skip(f"this processor has no {request.param}")
    return str(request.param)


class Case:
    """Random weights, packed and plain."""

    def __init__(self, channels: int, inputs: int, group: int, bits: int = 4, asymmetric: bool = False) -> None:
        rng = np.random.default_rng(channels + inputs + bits + asymmetric)
        groups = -(-inputs // group)
        self.values = rng.integers(0, 1 << bits, (channels, inputs), dtype=np.uint8)
        self.scales = rng.uniform(-0.02, 0.02, (channels, groups)).astype(np.float16)
        self.zeros = rng.integers(0, 1 << bits, (channels, groups), dtype=np.uint8) if asymmetric else None
        self.layer = Layer.packed(self.values, self.scales, self.zeros, bits, group)

    def activations(self, rows: int) -> np.ndarray:
        rng = np.random.default_rng(rows)
        return rng.standard_normal((rows, self.layer.in_features)).astype(np.float32)

    def grouped(self, array: np.ndarray) -> np.ndarray:
        """`[n, inputs]` → `[n, groups, group]`, padded with zeros."""
        groups, group = self.scales.shape[1], self.layer.group
        padded = np.zeros((len(array), groups * group), array.dtype)
        padded[:, : array.shape[1]] = array
        return padded.reshape(len(array), groups, group)

    def weights(self) -> np.ndarray:
        """`[channels, groups, group]`, exact."""
        zeros = np.full_like(self.scales, 1 << (self.layer.bits - 1)) if self.zeros is None else self.zeros
        plain = self.values - zeros.astype(np.float64).repeat(self.layer.group, axis=1)[:, : self.layer.in_features]
        return self.grouped(plain) * self.scales.astype(np.float64)[..., None]


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers and scales of `[rows, groups, group]`, with the kernel's own roundings."""
    top = np.abs(x).max(-1, keepdims=True)
    return np.rint(x * (np.float32(127) / top)), top / np.float32(127)


def bits_of(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint32)


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_product_of_what_was_quantized(
    shape: tuple[int, int, int], bits: int, asymmetric: bool, path: str
) -> None:
    """Sums within a group are exact; a group adds a rounding of its scale and one of the sum."""
    case = Case(*shape, bits, asymmetric)
    x = case.activations(5)
    integers, scales = quantized(case.grouped(x))
    terms = (
        np.einsum("rgk,cgk->rcg", integers.astype(np.float64), case.weights())
        * scales.astype(np.float64)[:, None, :, 0]
    )
    bound = (terms.shape[-1] + 2) * 2.0**-24 * np.abs(terms).sum(-1) + 1e-30
    assert (np.abs(direct.multiply(case.layer, x) - terms.sum(-1)) <= bound).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_is_near_the_product_of_what_was_given(bits: int) -> None:
    """A value is at most half a step from its integer, and errors of many values cancel."""
    case = Case(130, 1024, 128, bits)
    x = case.activations(20)
    exact = np.einsum("rgk,cgk->rc", case.grouped(x).astype(np.float64), case.weights())
    error = np.abs(direct.multiply(case.layer, x) - exact)
    half_steps = np.abs(case.grouped(x)).max(-1) / 254
    assert (error <= 1.001 * np.einsum("rg,cg->rc", half_steps, np.abs(case.weights()).sum(-1))).all()
    assert np.sqrt((error**2).mean() / (exact**2).mean()) < 0.01


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_paths_agree_to_the_last_bit(shape: tuple[int, int, int], bits: int, asymmetric: bool, path: str) -> None:
    case = Case(*shape, bits, asymmetric)
    x = case.activations(29)
    own = direct.multiply(case.layer, x)
    direct.choose_path("portable")
    assert np.array_equal(bits_of(own), bits_of(direct.multiply(case.layer, x)))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(17, 100, 32), (100, 1000, 128), (40, 8200, 128)], ids=str)
def test_a_row_does_not_depend_on_the_rows_beside_it(shape: tuple[int, int, int], bits: int, path: str) -> None:
    case = Case(*shape, bits, True)
    x = case.activations(200)
    alone = np.concatenate([direct.multiply(case.layer, x[row : row + 1]) for row in range(len(x))])
    for rows in [*range(1, 34), 200]:
        assert np.array_equal(bits_of(direct.multiply(case.layer, x[:rows])), bits_of(alone[:rows])), rows


@pytest.mark.parametrize("rows", [1, 9, 150])
@pytest.mark.parametrize("shape", [(16, 2048, 128), (300, 2048, 128), (3000, 512, 128)], ids=str)
def test_threads_change_nothing(shape: tuple[int, int, int], rows: int) -> None:
    case = Case(*shape)
    x = case.activations(rows)
    single = direct.multiply(case.layer, x)
    for threads in (2, 3, 8):
        out = np.full_like(single, np.nan)
        assert np.array_equal(bits_of(direct.multiply(case.layer, x, threads, out)), bits_of(single)), threads


def test_extreme_integers_do_not_saturate(path: str) -> None:
    case = Case(16, 128, 128, 8)
    case.values[:] = 255
    layer = Layer.packed(case.values, np.ones((16, 1), np.float16), np.zeros((16, 1), np.uint8), 8, 128)
    for sign in (1, -1):
        assert (direct.multiply(layer, np.full((5, 128), sign, np.float32)) == sign * 128 * 255).all()


def test_halves_are_rounded_to_even(path: str) -> None:
    halves = np.concatenate([[127], np.arange(-15.5, 15.5)]).astype(np.float32)
    identity = Layer.packed(
        np.eye(32, dtype=np.uint8), np.ones((32, 1), np.float16), np.zeros((32, 1), np.uint8), 4, 32
    )
    assert np.array_equal(direct.multiply(identity, halves[None])[0], np.rint(halves))


def test_nothing_but_the_outputs_is_written(path: str) -> None:
    case = Case(17, 100, 32)
    x = case.activations(13)
    for before, after in ((0, 0), (1, 5)):
        buffer = np.full(before + 13 * 17 + after, 7, np.float32)
        out = buffer[before : before + 13 * 17].reshape(13, 17)
        direct.multiply(case.layer, x, 1, out)
        assert (buffer[:before] == 7).all() and (buffer[before + 13 * 17 :] == 7).all() and (out != 7).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 37, 99])
def test_what_is_not_finite_spoils_its_own_row(wrong: float, place: int, path: str) -> None:
    case = Case(17, 100, 32)
    x = case.activations(14)
    clean = direct.multiply(case.layer, x)
    x[3, place] = wrong
    spoilt = direct.multiply(case.layer, x)
    assert np.isnan(spoilt[3]).all()
    others = np.arange(14) != 3
    assert np.array_equal(bits_of(spoilt[others]), bits_of(clean[others]))


def test_zeros_and_the_smallest_numbers_give_zeros(path: str) -> None:
    case = Case(17, 100, 32)
    x = case.activations(3)
    x[0], x[1] = 0, np.float32(1e-40)
    y = direct.multiply(case.layer, x)
    assert (bits_of(y[:2]) == 0).all() and (y[2] != 0).all()


def test_no_rows() -> None:
    assert direct.multiply(Case(17, 100, 32).layer, np.empty((0, 100), np.float32)).shape == (0, 17)


def test_a_path_that_does_not_exist_is_not_chosen() -> None:
    before = direct.path_name()
    assert not direct.choose_path("mmx")
    assert direct.path_name() == before and before in PATHS


# As an operation of OpenVINO


def onnx_file(case: Case, path: Path, **changes: Any) -> Path:
    layer = case.layer
    arrays = {"values": layer.values, "scales": layer.scales}
    arrays |= {} if layer.zeros is None else {"zeros": layer.zeros}
    numbers = {
        "bits": layer.bits,
        "group": layer.group,
        "in_features": layer.in_features,
        "out_features": [layer.out_features],
    }
    node = helper.make_node("CompressedLinear", ["x", *arrays], ["y"], domain="qefficient", **{**numbers, **changes})
    graph = helper.make_graph(
        [node],
        "one_layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", layer.in_features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "tokens", layer.out_features])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("qefficient", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    return path


@pytest.fixture
def core() -> openvino.Core:
    core = openvino.Core()
    core.add_extension(str(native.library_path()))
    return core


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_openvino_runs_it(bits: int, asymmetric: bool, precision: str, core: openvino.Core, tmp_path: Path) -> None:
    case = Case(130, 1000, 128, bits, asymmetric)
    model = core.compile_model(onnx_file(case, tmp_path / "m.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": precision})
    x = case.activations(14)
    y = model({"x": x.reshape(2, 7, -1)})[0]
    assert y.shape == (2, 7, 130)
    assert np.array_equal(bits_of(y.reshape(14, -1)), bits_of(direct.multiply(case.layer, x)))
    assert model({"x": x.reshape(2, 7, -1)[:, :0]})[0].shape == (2, 0, 130)


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_layers_fed_alike_share_a_node(asymmetric: bool, rows: int, core: openvino.Core) -> None:
    cases = [Case(channels, 1000, 128, 4, asymmetric) for channels in (130, 16, 7, 300)]
    factory = NodeFactory()
    factory.add_extension(str(native.library_path()))
    x = openvino.opset13.parameter([-1, 1000], np.float32)
    arrays = [(c.layer.values, c.layer.scales, *([c.layer.zeros] if asymmetric else [])) for c in cases]
    weights = [openvino.opset13.constant(array) for layer in arrays for array in layer]
    attributes = {"bits": 4, "group": 128, "in_features": 1000, "out_features": [c.layer.out_features for c in cases]}
    node = factory.create("CompressedLinear", [x, *weights], attributes)
    given = cases[0].activations(rows)
    found = core.compile_model(openvino.Model(node.outputs(), [x]), "CPU")(given)
    for number, case in enumerate(cases):
        assert np.array_equal(bits_of(found[number]), bits_of(direct.multiply(case.layer, given)))


def test_openvino_keeps_it_in_its_own_format(core: openvino.Core, tmp_path: Path) -> None:
    case = Case(130, 1000, 128, 4, True)
    model = core.read_model(onnx_file(case, tmp_path / "m.onnx"))
    openvino.save_model(model, tmp_path / "m.xml", compress_to_fp16=False)
    x = case.activations(3)[None]
    one, other = (core.compile_model(m, "CPU")({"x": x})[0] for m in (model, tmp_path / "m.xml"))
    assert np.array_equal(bits_of(one), bits_of(other))


def built_in_python(core: openvino.Core, layer: Layer, shape: list[int]) -> openvino.CompiledModel:
    factory = NodeFactory()
    factory.add_extension(str(native.library_path()))
    x = openvino.opset13.parameter(shape, np.float32)
    weights = [openvino.opset13.constant(array) for array in (layer.values, layer.scales)]
    attributes = {name: getattr(layer, name) for name in ("bits", "group", "in_features")}
    node = factory.create("CompressedLinear", [x, *weights], {**attributes, "out_features": [layer.out_features]})
    return core.compile_model(openvino.Model([node], [x]), "CPU")


def test_python_builds_it(core: openvino.Core) -> None:
    case = Case(130, 1000, 128)
    rows = case.activations(3)
    y = built_in_python(core, case.layer, [-1, 1000])(rows)[0]
    assert np.array_equal(bits_of(y), bits_of(direct.multiply(case.layer, rows)))


def test_a_width_known_only_when_it_runs_is_checked_then(core: openvino.Core) -> None:
    model = built_in_python(core, Case(130, 1000, 128).layer, [-1, -1])
    assert model(np.ones((2, 1000), np.float32))[0].shape == (2, 130)
    with pytest.raises(RuntimeError, match="the layer has 1000 inputs"):
        model(np.ones((2, 500), np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "no kernel for 3 bits in groups of 128"),
        ({"out_features": [130, 130]}, "3 inputs, not one and 2 or 3 for each of 2 layers"),
        ({"group": 48}, "no kernel for 4 bits in groups of 48"),
        ({"out_features": [200]}, "elements are needed"),
        ({"in_features": 999}, "the layer has 999 inputs"),
    ],
)
def test_openvino_refuses_numbers_that_do_not_fit(
    change: dict[str, int], message: str, core: openvino.Core, tmp_path: Path
) -> None:
    path = onnx_file(Case(130, 1000, 128), tmp_path / "m.onnx", **change)
    with pytest.raises(RuntimeError, match=message):
        core.read_model(path)


IN_PLACE = """
import re, sys
import numpy as np, openvino
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e3
core = openvino.Core()
core.add_extension(sys.argv[1])
core.compile_model(sys.argv[2], "CPU")({"x": np.ones((1, 1, 64), np.float32)})
before = anonymous()
model = core.compile_model(sys.argv[3], "CPU")
model({"x": np.ones((1, 1, 4096), np.float32)})
print(anonymous() - before)
"""


def test_weights_stay_in_the_mapped_file(tmp_path: Path) -> None:
    """Opening and running 140 MB of weights takes next to no memory of the process's own."""
    small = onnx_file(Case(64, 64, 64), tmp_path / "small.onnx")
    large = onnx_file(Case(2**15, 4096, 128, 8), tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx.data").stat().st_size > 135e6
    command = [sys.executable, "-c", IN_PLACE, str(native.library_path()), str(small), str(large)]
    megabytes = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert megabytes < 15


# Where the library is missing


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    native._find.cache_clear()
    yield tmp_path
    native._find.cache_clear()


def test_it_is_there() -> None:
    assert native.why_missing() is None and native.library_path() is not None


def test_not_built(folder: Path) -> None:
    assert native.library_path() is None and "was not built" in str(native.why_missing())


def test_built_for_another_openvino(folder: Path) -> None:
    (folder / "libqefficient-openvino-2025.1.0.so").touch()
    installed = openvino.get_version().partition("-")[0]
    assert native.library_path() is None
    assert f"built for OpenVINO 2025.1.0, but {installed} is installed" in str(native.why_missing())


def test_not_loadable(folder: Path) -> None:
    installed = openvino.get_version().partition("-")[0]
    (folder / f"libqefficient-openvino-{installed}.so").write_text("nothing")
    assert native.library_path() is None and "cannot be loaded: " in str(native.why_missing())
