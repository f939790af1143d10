"""Noise on products and the pace of a card: off by default, and what was asked for where they are on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from test_execution import HALF, images_of, parsed, product, weights, with_constants
from test_qaicrt import activated, adding_images, write

from qaic_simulator.microscaling import round_mxfp6
from qaic_simulator.network_descriptor import Binding, NetworkDescriptor, Shape
from qaic_simulator.runtime.execution import Network
from qaic_simulator.runtime.pacing import Pace, pace_of
from qaic_simulator.runtime.settings import read_settings

PRODUCTS = """
    g (float[64,48] x) => (float[64,32] y, float[64,32] z, float[64,48] s, float[64,32] f) {
        y = MatMul(x, w)
        z = Gemm(x, w)
        s = Add(x, x)
        f = Scan<num_scan_inputs = 1, body = b (float[48] t) => (float[32] d) { d = MatMul(t, w) }>(x)
    }
"""
RUNS = ("y", "z", "f")


@pytest.fixture(autouse=True)
def _cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIC_SIM_STATE", str(tmp_path / "cards.json"))
    for name in ("QAIC_SIM_NOISE", "QAIC_SIM_PACE", "QAIC_SIM_DELAY_MS"):
        monkeypatch.delenv(name, raising=False)


def products(**settings: Any) -> Network:
    return Network(images_of(with_constants(parsed(PRODUCTS), w=weights(48, 32)), **settings))


def units(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """How far apart, in units of the last place of what is exact."""
    return np.abs(found.astype(np.float64) - exact) / np.spacing(np.abs(exact)).astype(np.float64)


@pytest.mark.parametrize("ulps", [1, 3, 20])
def test_products_are_off_by_so_many_units_and_nothing_else_is(ulps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = weights(64, 48)
    exact = products().run({"x": x})
    monkeypatch.setenv("QAIC_SIM_NOISE", str(ulps))
    found = products().run({"x": x})
    assert (found["s"] == exact["s"]).all()
    for name in RUNS:
        off = units(found[name], exact[name])
        assert off.max() <= ulps + 1 and off.max() >= ulps / 2
        assert 0.2 * ulps < off.mean() < ulps and abs((found[name] - exact[name]).mean()) < 0.02 * ulps


def test_noise_is_of_the_node_and_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIC_SIM_NOISE", "4")
    x = {"x": weights(64, 48)}
    first, again = products(), products()
    runs = [first.run(x) for _ in range(3)]
    assert all((run[name] == other[name]).all() for run in runs for other in [again.run(x)] for name in RUNS)
    assert (runs[0]["y"] != runs[1]["y"]).any() and (runs[1]["y"] != runs[2]["y"]).any()
    assert (runs[0]["y"] != runs[0]["z"]).any()


def test_noise_is_what_the_run_says_whatever_ran_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of other sizes, too."""
    text = "g (float[N,48] x) => (float[N,32] y) { y = MatMul(x, w) }"
    model = with_constants(parsed(text), w=weights(48, 32))
    monkeypatch.setenv("QAIC_SIM_NOISE", "4")
    networks = [Network(images_of(model, [{"N": 64}, {"N": 2}])) for _ in range(2)]
    x = weights(64, 48)
    for network, rows in zip(networks, (2, 64), strict=True):
        network.run({"x": x[:rows]})
    found = [network.run({"x": x})["y"] for network in networks]
    assert (found[0] == found[1]).all()


def test_nodes_in_float32_have_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    x = {"x": weights(64, 48)}
    exact = [products(convert_to_fp16=False).run(x)["y"], products(node_precision={"fp32": ["y"]}).run(x)["y"]]
    monkeypatch.setenv("QAIC_SIM_NOISE", "4")
    found = [products(convert_to_fp16=False).run(x)["y"], products(node_precision={"fp32": ["y"]}).run(x)["y"]]
    assert all(map(np.array_equal, found, exact))


def test_noise_on_compressed_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIC_SIM_NOISE", "0.5")
    x = weights(64, 48)
    found = products(mxfp6=True).run({"x": x})["y"]
    wanted = product(x, round_mxfp6(weights(48, 32), -2))
    assert (found != wanted).any()
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("asked", ["-1", "much", "nan", "5000"])
def test_noise_that_cannot_be(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIC_SIM_NOISE", asked)
    with pytest.raises(ValueError, match=rf"QAIC_SIM_NOISE is '{asked}'; it can be"):
        products()


# Pace

PUBLISHED = {
    "one SoC, fp16": (Pace(8 * 10**9, 16e9, 604e6, 36, 1), (1, 1), 1 / 6.05),
    "four, one user": (Pace(8 * 10**9, 6.25e9, 311e6, 36, 4), (1, 1), 1 / 50.2),
    "four, sixteen users": (Pace(8 * 10**9, 6.25e9, 311e6, 36, 4), (16, 1), 16 / 454),
    "four, prompt of 1,024": (Pace(8 * 10**9, 6.25e9, 311e6, 36, 4), (1, 1024), 0.44),
    "one, prompt of 128": (Pace(8 * 10**9, 6.25e9, 311e6, 36, 1), (1, 128), 0.14),
}
"""Figures of a model with 9.0 billion parameters, a tenth of which is its table, with contexts of 4,096."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_pace_is_near_published_figures(name: str) -> None:
    pace, shape, published = PUBLISHED[name]
    assert pace.seconds([(16,), shape, (shape[0], 1), (3, *shape)]) == pytest.approx(published, rel=0.25)


def of_model(model: onnx.ModelProto, **settings: Any) -> Pace:
    text = images_of(model, types={"past": HALF, "past_RetainedState": HALF}, **settings)
    descriptor = NetworkDescriptor(
        "test",
        (Binding("i", Shape(7, (2, 1))), Binding("past", Shape(HALF, (4, 2, 32, 64)))),
        (Binding("past_RetainedState", Shape(HALF, (4, 2, 32, 64))),),
    )
    return pace_of(text["sim.onnx"], descriptor, read_settings(text["sim.json"]))


MODEL = """
    g (int64[2,1] i, float[4,2,32,64] past) => (float[2,1,100] y, float[4,2,32,64] past_RetainedState) {
        past_RetainedState = Add(past, past)
        e = Gather<axis = 0>(table, i)
        a = MatMul(e, w)
        which = Constant<value = int64 {1}>()
        one = Gather<axis = 0>(bank, which)
        b = MatMul(a, one)
        turned = Transpose<perm = [1, 0]>(table)
        c = Scan<num_scan_inputs = 1, body = s (float[1,8] t) => (float[1,8] d) { d = MatMul(t, v) }>(b)
        y = MatMul(c, turned)
    }
"""
MATRICES = {"table": (100, 8), "w": (8, 8), "bank": (5, 8, 8), "v": (8, 8)}


def test_what_is_counted_of_a_model() -> None:
    """Weights of bodies; of a bank one matrix; the table where it is the head; a state, one row of it."""
    model = with_constants(parsed(MODEL), **{name: weights(*shape) for name, shape in MATRICES.items()})
    elements = 100 * 8 + 3 * 8 * 8
    assert of_model(model) == Pace(elements, elements * 2, 2 * 32 * 64 * 2, 1, 1)
    compressed = of_model(model, mxfp6=True, devices=4, custom_io={"past": "mxint8", "past_RetainedState": "mxint8"})
    assert compressed == Pace(elements, elements * 6.25 / 8, 2 * 32 * 64 * 8.25 / 8, 1, 4)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long runs waited, which here takes no time."""
    found: list[float] = []
    monkeypatch.setattr("qaic_simulator.runtime.activation.time.sleep", found.append)
    monkeypatch.setattr("qaic_simulator.runtime.pacing.COLLECTIVE", 500.0)
    return found


@pytest.mark.parametrize(("asked", "devices", "least"), [("1", 2, 900), ("1", 1, 0), ("0", 2, 0)])
def test_a_run_waits_until_a_card_would_be_done(
    asked: str, devices: int, least: float, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several SoCs add up their parts twice per layer, of which a state makes one."""
    monkeypatch.setenv("QAIC_SIM_PACE", asked)
    host = activated(
        write(tmp_path / "adding", adding_images(devices=devices)),
        qids=tuple(range(devices)),
        mapping="0:1" if devices > 1 else "0",
    )
    activation = host.program._activation
    assert activation is not None
    activation.timeout_ms = 10**7  # longer than the run is said to take
    host.run(
        host.exec_obj(), {"x": np.ones(4, np.float32), "past": np.zeros(4, np.float16), "y": np.zeros(4, np.float32)}
    )
    assert least <= max(waits) <= (1000 if least else 1)


def test_a_pace_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIC_SIM_PACE", "fast")
    with pytest.raises(ValueError, match=r"QAIC_SIM_PACE is 'fast'; it can be"):
        Network(adding_images())
