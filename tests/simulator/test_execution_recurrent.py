"""Our recurrent layers, a Scan over time within a function, with the numbers of the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from test_execution import images_of, relocated

from qaic_simulator.graph.file import nodes_within
from qaic_simulator.network_descriptor import decode_descriptor
from qaic_simulator.runtime.execution import Network, card_model
from qaic_simulator.runtime.settings import read_settings
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.verification.tiny_models import tiny_model

ENTRIES = [{"batch_size": 1, "full_batch_size": 3, "ctx_len": 32, "seq_len": length} for length in (8, 1)]
STATE = "_RetainedState"


@pytest.fixture(scope="module", params=["lfm2", "falcon_mamba"])
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What makes the images of a model with slots."""
    model = QEFFAutoModelForCausalLM(tiny_model(request.param), continuous_batching=True)
    graph, constants = relocated(Path(model.export(tmp_path_factory.mktemp(request.param) / "exported")))
    states = [value.name for value in graph.graph.output if value.name.endswith(STATE)]
    names = [*states, *(name.removesuffix(STATE) for name in states)]

    def make(**settings: Any) -> dict[str, bytes]:
        half = settings.get("convert_to_fp16", True)
        types = dict.fromkeys(names, 1) if half else {}
        return images_of(graph, ENTRIES, types, constants, **settings)

    return make


def generated(network: Network) -> np.ndarray:
    """Logits of a prompt of 5 tokens, padded, and of two more, in a slot that held garbage."""
    states = {name: network.garbage(name) for name in network.states}
    found = []
    for start, ids, length in ((0, [3, 50, 7, 120, 9], 8), (5, [11], 1), (6, [200], 1)):
        tokens, positions = np.zeros((1, length), np.int64), np.full((1, length), -1)
        tokens[0, : len(ids)], positions[0, : len(ids)] = ids, np.arange(start, start + len(ids))
        feeds = {"input_ids": tokens, "position_ids": positions, "batch_index": np.array([[1]])}
        outputs = network.run({**feeds, **states})
        states = {entry: outputs[output] for entry, output in network.states.items()}
        found.append(outputs["logits"].astype(np.float32).reshape(-1))
    return np.stack(found)


def test_generation_in_float16_is_near_float32(images: Any) -> None:
    half, compressed, single = (
        generated(Network(images(**settings))) for settings in ({}, {"mxfp6": True}, {"convert_to_fp16": False})
    )
    spread = np.ptp(single)
    assert 0 < np.abs(half - single).max() < 0.01 * spread < np.abs(compressed - single).max()
    assert np.isfinite(compressed).all()


def test_bodies_have_no_float32_but_what_is_computed_and_rounded(images: Any) -> None:
    made = images()
    model = card_model(made, decode_descriptor(made["networkdesc.bin"]), read_settings(made["sim.json"]))
    scans = [node for node in model.graph.node if node.op_type == "Scan"]
    assert scans and {"ScatterND", "MatMul"} <= {node.op_type for node in nodes_within(model.graph.node)}
    for scan in scans:
        (body,) = (given.g for given in scan.attribute if given.name == "body")
        kinds = {value.type.tensor_type.elem_type for value in (*body.input, *body.output)}
        assert kinds <= {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64} and not body.value_info
        assert not [tensor for tensor in body.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
