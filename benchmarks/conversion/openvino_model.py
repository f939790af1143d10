"""optimum-intel's export with nncf's weight compression, as `optimum-cli export openvino` does it.

python -m benchmarks.conversion.openvino_model MODEL OUT int8
python -m benchmarks.conversion.openvino_model MODEL OUT int4          groups of 128, the head and embedding as well
python -m benchmarks.conversion.openvino_model MODEL OUT int4-head8    groups of 128, head and embedding in int8
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from benchmarks.conversion import write_record

GROUPS = {"bits": 4, "group_size": 128, "sym": True, "ratio": 1.0}
FORMATS: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8, "sym": True},
    "int4": {**GROUPS, "all_layers": True},
    "int4-head8": GROUPS,
}


def convert(model: Path, out: Path, kind: str) -> None:
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    chosen = OVWeightQuantizationConfig(**FORMATS[kind])
    exported = OVModelForCausalLM.from_pretrained(model, export=True, compile=False, quantization_config=chosen)
    exported.save_pretrained(out)


def record(out: Path) -> None:
    """Bytes of the constants; those that are only gathered from are not read by a step."""
    import openvino

    model = openvino.Core().read_model(out / "openvino_model.xml")
    large = [op for op in model.get_ops() if op.get_type_name() == "Constant" and _bytes(op) >= SMALL]
    total = sum(map(_bytes, large))
    looked_up = sum(_bytes(op) for op in large if _users(op) <= {"Gather"})
    kinds: dict[str, int] = {}
    for op in large:
        kind = op.get_output_element_type(0).get_type_name()
        kinds[kind] = kinds.get(kind, 0) + _bytes(op)
    write_record(out, total, total - looked_up, kinds=kinds)


SMALL = 1024
"""Bytes: what is smaller is a constant of the graph rather than a weight."""
DECOMPRESSION = ("Convert", "Subtract", "Multiply", "Reshape")


def _bytes(constant: Any) -> int:
    return math.prod(constant.get_output_shape(0)) * int(constant.get_output_element_type(0).bitwidth) // 8


def _users(constant: Any) -> set[str]:
    """The kinds of operations that use a constant's values, behind what only decompresses them."""
    found, todo = set(), [constant]
    while todo:
        for port in todo.pop().output(0).get_target_inputs():
            user = port.get_node()
            if user.get_type_name() in DECOMPRESSION:
                todo.append(user)
            else:
                found.add(user.get_type_name())
    return found


def main(model: str, out: str, kind: str) -> None:
    convert(Path(model), Path(out), kind)
    record(Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
