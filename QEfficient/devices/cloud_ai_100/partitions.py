"""mdp_*.json: how a program is spread over several devices. Devices are numbered from 0; which they are is said when
the program is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from QEfficient.errors import OptionError


def slices_file(devices: int) -> str:
    """The name of the file for devices that each hold a slice of every layer."""
    return f"mdp_ts_{devices}.json"


def pipeline_file(devices: int, partitions: int) -> str:
    """The name of the file for devices that work through the layers one group after another."""
    return f"mdp_disagg_{devices}d_{partitions}p.json"


def slices_text(devices: int, cores: int) -> str:
    """Every device works on every layer, on a slice of its tensors."""
    return _text(devices, [_partition(0, range(devices), cores)])


def pipeline_text(node_lists: Sequence[Sequence[str]], devices: int, cores: int) -> str:
    """One partition for each list of nodes, on `devices // partitions` devices in a row; the remainder is idle."""
    each = devices // len(node_lists) if node_lists else 0
    if each < 1:
        raise OptionError(f"{len(node_lists)} partitions cannot be spread over {devices} devices: each needs its own.")
    if not all(node_lists):
        raise OptionError("a partition has no nodes. Ask for fewer partitions.")
    partitions = [
        {**_partition(number, range(number * each, (number + 1) * each), cores), "nodeList": list(nodes)}
        for number, nodes in enumerate(node_lists)
    ]
    return _text(each * len(node_lists), partitions)


def layers_per_partition(layers: int, partitions: int) -> tuple[int, ...]:
    """How many layers each partition takes. What is left over goes to the middle first, then to the first partition:
    the last one has the output layer besides."""
    if not 1 <= partitions <= layers:
        raise OptionError(
            f"{layers} layers cannot be spread over {partitions} partitions. Choose from 1 to {layers} of them."
        )
    floor, left = divmod(layers, partitions)
    longer = {*[*range(1, partitions - 1), 0][:left]}
    return tuple(floor + (number in longer) for number in range(partitions))


def _partition(number: int, devices: Iterable[int], cores: int) -> dict[str, Any]:
    listed = [{"deviceId": device, "numCores": cores} for device in devices]
    return {"name": f"Partition{number}", "devices": listed}


def _text(devices: int, partitions: Sequence[dict[str, Any]]) -> str:
    connections = [{"devices": list(range(devices)), "type": "p2p"}]
    return json.dumps({"connections": connections, "partitions": list(partitions)}, indent=4)
