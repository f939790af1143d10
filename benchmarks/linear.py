"""Linear layers with 4- and 8-bit weights: the native operation beside OpenVINO's kernels, interleaved.

    python -m benchmarks.linear                      all linear layers of a 1B model, 4 bits, 1 to 512 rows
    python -m benchmarks.linear --bits 8 --rows 1 16

Both get the same weights in groups of 128, ours as `CompressedLinear`, OpenVINO's as `com.microsoft::MatMulNBits`. A
layer's inputs are a slice of the outputs before it, so that one model runs all. GB/s counts the bytes of the weights
once a run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import openvino
import torch
from onnx import TensorProto, helper, numpy_helper

from QEfficient.devices.cpu.native import library_path, why_missing
from QEfficient.devices.cpu.packing import pack, pack_groups

GROUP = 128
HIDDEN, INTERMEDIATE, VOCABULARY = 2048, 8192, 128256
BLOCK = ((HIDDEN, 3072), (HIDDEN, HIDDEN), (HIDDEN, 2 * INTERMEDIATE), (INTERMEDIATE, HIDDEN))
KINDS = ("ours", "OpenVINO")
ROWS = (1, 2, 4, 8, 16, 64, 128, 512)


def layers(blocks: int) -> list[tuple[int, int]]:
    return [*BLOCK * blocks, (HIDDEN, VOCABULARY)]


def weights(blocks: int, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Values and scales of each layer, around zero, so that outputs are about as large as inputs."""
    rng = np.random.default_rng(0)
    deviation = (1 << bits) / 12**0.5
    for inputs, outputs in layers(blocks):
        values = rng.integers(1, 1 << bits, (outputs, inputs), dtype=np.uint8)
        scales = rng.uniform(0.5, 1.5, (outputs, inputs // GROUP)) / (deviation * inputs**0.5)
        yield values, scales.astype(np.float16)


def ours(number: int, values: np.ndarray, scales: np.ndarray, bits: int) -> tuple[onnx.NodeProto, list[np.ndarray]]:
    outputs, inputs = values.shape
    numbers = {"bits": bits, "group": GROUP, "in_features": inputs, "out_features": [outputs]}
    node = helper.make_node("CompressedLinear", [], [f"y{number}"], domain="qefficient", **numbers)
    return node, [pack(values, bits, GROUP), pack_groups(scales)]


def theirs(number: int, values: np.ndarray, scales: np.ndarray, bits: int) -> tuple[onnx.NodeProto, list[np.ndarray]]:
    outputs, inputs = values.shape
    numbers = {"bits": bits, "block_size": GROUP, "K": inputs, "N": outputs, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", [], [f"y{number}"], domain="com.microsoft", **numbers)
    packed = values[:, ::2] | values[:, 1::2] << 4 if bits == 4 else values
    return node, [packed.reshape(outputs, inputs // GROUP, -1), scales.astype(np.float32).reshape(-1)]


def write_models(folder: Path, blocks: int, bits: int) -> int:
    """`<kind>.onnx` for each kind; the bytes of the weights that ours reads."""
    size = 0
    for kind, make in zip(KINDS, (ours, theirs), strict=True):
        nodes, arrays, last = [], {"zero": np.array([0]), "axis": np.array([-1])}, "x"
        for number, (values, scales) in enumerate(weights(blocks, bits)):
            node, tensors = make(number, values, scales, bits)
            arrays[f"end{number}"] = np.array([values.shape[1]])
            nodes.append(helper.make_node("Slice", [last, "zero", f"end{number}", "axis"], [f"x{number}"]))
            names = [f"w{number}.{place}" for place in range(len(tensors))]
            arrays |= dict(zip(names, tensors, strict=True))
            node.input.extend([f"x{number}", *names])
            nodes.append(node)
            last = f"y{number}"
            size += sum(tensor.nbytes for tensor in tensors) if kind == "ours" else 0
        _save(folder / f"{kind}.onnx", nodes, arrays, last)
    return size


def _save(path: Path, nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray], last: str) -> None:
    graph = helper.make_graph(
        nodes,
        "linear_layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", HIDDEN])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["rows", VOCABULARY])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    imports = [
        helper.make_opsetid(name, version) for name, version in (("", 18), ("qefficient", 1), ("com.microsoft", 1))
    ]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")


def compiled(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    core = openvino.Core()
    core.add_extension(str(library_path()))
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(path, "CPU", settings).create_infer_request()

    def run(x: np.ndarray) -> np.ndarray:
        request.infer({"x": x}, share_inputs=True)
        return request.get_output_tensor().data

    return run


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def run(bits: int, rows: Sequence[int], rounds: int, threads: int, blocks: int) -> None:
    if library_path() is None:
        raise SystemExit(str(why_missing()))
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="benchmark-linear-") as name:
        size = write_models(Path(name), blocks, bits)
        products = sum(inputs * outputs for inputs, outputs in layers(blocks))
        print(f"{bits} bits, {len(layers(blocks))} layers, {size / 1e6:.0f} MB of weights, {threads} threads")
        models = {}
        for kind in KINDS:
            start = time.perf_counter()
            models[kind] = compiled(Path(name) / f"{kind}.onnx", threads)
            models[kind](np.ones((1, HIDDEN), np.float32))
            print(f"{kind}: opened and run once in {time.perf_counter() - start:.2f} s")
        for count in rows:
            _compare(models, count, rounds, size, products)


def _compare(
    models: dict[str, Callable[[np.ndarray], np.ndarray]], rows: int, rounds: int, size: int, products: int
) -> None:
    x = np.random.default_rng(rows).standard_normal((rows, HIDDEN)).astype(np.float32)
    buffer = torch.ones(2**27, dtype=torch.int32)  # 0.54 GB, to see what the memory gives in the same minute
    outputs = [model(x).copy() for model in models.values()]
    apart = np.linalg.norm(outputs[0] - outputs[1]) / np.linalg.norm(outputs[1])
    times: dict[str, list[float]] = {kind: [] for kind in (*models, "memory")}
    for _ in range(rounds):
        times["memory"].append(seconds(buffer.max))
        for kind, model in models.items():
            times[kind].append(seconds(lambda model=model: model(x)))
    line = [f"{rows:4d} rows"]
    for kind in models:
        median, best = statistics.median(times[kind]), min(times[kind])
        speed, work = size / best / 1e9, 2 * products * rows / best / 1e9
        line.append(f"{kind} {median * 1e3:8.2f} ms (best {best * 1e3:8.2f}: {speed:4.1f} GB/s, {work:5.0f} GOP/s)")
    line.append(f"{statistics.median(times['OpenVINO']) / statistics.median(times['ours']):.2f} times as fast")
    line.append(f"memory reads {buffer.nbytes / min(times['memory']) / 1e9:.0f} GB/s; outputs {apart:.1%} apart")
    print("; ".join(line), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=16, help="transformer blocks before the head")
    given = parser.parse_args(arguments)
    run(given.bits, given.rows, given.rounds, given.threads, given.blocks)


if __name__ == "__main__":
    main()
