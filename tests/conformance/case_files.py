"""Reads the corpus and lays out the files of a case. Needs onnx for graphs, and else the standard library only."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
CODES = {"float32": "f", "float16": "e", "int64": "q", "int32": "i"}
"""How `struct` calls the types of numbers."""
WEIGHTS = "weights.bin"
"""The file of a model's own weights, one after the other."""
STEP, PERIOD, SCALE = 37, 101, 500
"""Weights that nobody looks at: small, different from one another, the same each time."""

Case = dict[str, Any]


def read_cases() -> list[Case]:
    """Every case, its id with the name of its file before it."""
    return [
        {**case, "id": f"{path.stem}/{case['id']}"}
        for path in sorted((FOLDER / "cases").glob("*.json"))
        for case in json.loads(path.read_text(encoding="utf-8"))
    ]


def has_graph(case: Case) -> bool:
    """Whether a file of the case can be written with onnx only."""
    return any(isinstance(content, dict) and {"onnx", "model"} & set(content) for content in case["files"].values())


def weight_bytes(case: Case) -> int:
    """Bytes of the weights in files of their own, however little of them is on a disk."""
    models = [content for content in case["files"].values() if isinstance(content, dict)]
    return sum(int(tensor.get("length", 0)) for model in models for tensor in model.get("external", ()))


def lay_out(case: Case, folder: Path) -> list[str]:
    """Write the files of a case into a folder, and say its command line."""
    for name, content in case["files"].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            _write(path, content)
    return [argument.replace("{dir}", str(folder)) for argument in case["argv"]]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    if "numbers" in content:
        values = [float(value) for value in content["values"]]
        path.write_bytes(_packed(content["numbers"], values))
    elif "zeros" in content:
        path.touch()
        os.truncate(path, content["zeros"])  # sparse: none of these bytes takes room on a disk
    else:
        _write_model(path, _model(content))
        if "size" in content:
            os.truncate(path, content["size"])


def _packed(kind: str, values: list[float]) -> bytes:
    numbers = values if kind.startswith("float") else [int(value) for value in values]
    return struct.pack(f"<{len(numbers)}{CODES[kind]}", *numbers)


def _model(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The description of a model, where it is one of those that several cases have: with the case's edits."""
    if "onnx" in content:
        return content
    described = dict(json.loads((FOLDER / "models.json").read_text(encoding="utf-8"))[content["model"]])
    text = "\n".join(described["onnx"])
    for old, new in content.get("edit", ()):
        if old not in text:
            raise ValueError(f"The model '{content['model']}' has no '{old}' to be replaced.")
        text = text.replace(old, new)
    return {**described, **{key: content[key] for key in content if key not in ("model", "edit")}, "onnx": [text]}


def _write_model(path: Path, described: Mapping[str, Any]) -> None:
    import onnx

    model = onnx.parser.parse_model("\n".join(described["onnx"]))
    weights = list(_own_weights(described.get("weights", {}), path.with_name(WEIGHTS)))
    for tensor in [*weights, *described.get("external", ())]:
        model.graph.initializer.append(_external(tensor))
    model.graph.sparse_initializer.extend(_sparse(name) for name in described.get("sparse", ()))
    for node in model.graph.node:
        node.name = node.name or node.output[0]
    _rename(model.graph, described.get("rename", {}))
    path.write_bytes(model.SerializeToString())


def _own_weights(shapes: Mapping[str, list[int]], path: Path) -> Iterator[dict[str, Any]]:
    """Write the weights of a model, and describe where they lie."""
    numbers: list[float] = []
    for name, dims in shapes.items():
        count = 1
        for size in dims:
            count *= size
        places = {"location": path.name, "offset": 4 * len(numbers), "length": 4 * count}
        numbers += [(index * STEP % PERIOD - PERIOD // 2) / SCALE for index in range(count)]
        yield {"name": name, "type": "float32", "dims": dims, **places}
    if numbers:
        path.write_bytes(_packed("float32", numbers))


def _external(described: Mapping[str, Any]) -> Any:
    """A tensor whose data lie in another file."""
    import onnx

    kinds = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "int64": onnx.TensorProto.INT64}
    tensor = onnx.TensorProto(name=described["name"], data_type=kinds[described["type"]], dims=described["dims"])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key in ("location", "offset", "length"):
        if key in described:
            tensor.external_data.add(key=key, value=str(described[key]))
    return tensor


def _sparse(name: str) -> Any:
    """Four numbers, one of which is written down: the others are zero."""
    from onnx import TensorProto, helper

    one = helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0])
    return helper.make_sparse_tensor(one, helper.make_tensor("", TensorProto.INT64, [1], [2]), [4])


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Give values the names that the notation has no letters for."""
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.name = names.get(node.name, node.name)
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)
