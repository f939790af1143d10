"""mdp_*.json: how a program is spread over several devices. Devices are numbered from 0; which they are is said when
the program is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from QEfficient.devices.cloud_ai_100.options import CORES, DEVICES, CompilerOptions, check_sharing
from QEfficient.errors import OptionError

CONNECTION_TYPE = "p2p"


WRITTEN = ("mdp_ts_*.json", "mdp_disagg_*.json")
"""Files of the names below, and of the old `compile` function's."""


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


def check_file(path: Path, cores: int) -> None:
    """Refuse a file that somebody else wrote, if it is none for a compilation with so many cores of each device."""
    content = _read(path)
    partitions, joined = content["partitions"], content.get("connections", [])
    if not all(map(_is_partition, partitions)):
        raise _refusal(path, "each partition has a 'name', and 'devices' with a 'deviceId' and 'numCores' (1 to 16)")
    if len(partitions) > 1 and not all(partition.get("nodeList") for partition in partitions):
        raise _refusal(path, "each of several partitions has a 'nodeList', the names of its nodes")
    numbers = sorted(_device_ids(partitions))
    if numbers != list(range(len(numbers))) or len(numbers) > DEVICES:
        raise _refusal(path, f"devices are 0, 1, 2 and so on, {DEVICES} at most, each in one partition, not {numbers}")
    for partition in partitions:
        shared = len(partition["devices"])
        check_sharing(shared, f"{path} gives {shared} devices to the partition '{partition['name']}'")
    if not _is_list(joined, _is_connection) or not all(set(numbers).issuperset(one["devices"]) for one in joined):
        raise _refusal(path, "each connection has 'devices', which are those of partitions, and 'type': 'p2p'")
    given = sorted({device["numCores"] for partition in partitions for device in partition["devices"]})
    if given != [cores]:
        listed = " and ".join(map(str, given))
        raise OptionError(f"{path} gives {listed} cores to a device, but num_cores is {cores}. Make them one number.")


def check_number(path: Path, devices: int) -> None:
    """Refuse a file of partitions for another number of devices than was asked for."""
    try:
        found = devices_in(path)
    except (KeyError, TypeError):
        return  # no file of partitions: what is wrong with it is said by who looks at all of it
    if found != devices:
        raise OptionError(
            f"{path}, which is mdp_load_partition_config, is for {found} device(s), but num_devices is {devices}. Make"
            " them one number, or leave num_devices out."
        )


def with_cores_of_file(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options, with the number of cores that a user's own file says, where nothing else says one. What is wrong with
    the file is said by who looks at all of it."""
    path, cores = given.get("mdp_load_partition_config"), given.get("num_cores", given.get("num-cores"))
    if path is None or cores is not None or given.get("enable_qnn"):
        return given
    try:
        devices = [device for partition in _read(Path(path))["partitions"] for device in partition["devices"]]
        numbers = {device["numCores"] for device in devices if _is_device(device)}
    except (OptionError, KeyError, TypeError):
        return given
    return {**given, "num_cores": numbers.pop()} if len(numbers) == 1 else given


def devices_of(options: CompilerOptions) -> int:
    """On how many devices a program runs that is compiled with these options."""
    if options.mdp_load_partition_config:
        return devices_in(Path(options.mdp_load_partition_config))
    if options.is_pipeline:
        return options.num_devices // options.mdp_num_partitions * options.mdp_num_partitions
    return options.num_devices if options.slices_tensors else 1


def devices_in(path: Path) -> int:
    """How many devices a file that was checked, or written here, is for."""
    return len(_device_ids(_read(path)["partitions"]))


def check_dump(path: Path) -> None:
    """Refuse a file that `only_known` could not read."""
    _read(path)


def only_known(node_lists: Sequence[Sequence[str]], path: Path) -> list[list[str]]:
    """The names that the compiler has dumped into the file, too."""
    listed = [partition.get("nodeList") for partition in _read(path)["partitions"] if isinstance(partition, dict)]
    known = {name for names in listed if isinstance(names, list) for name in names if isinstance(name, str)}
    found = [[name for name in names if name in known] for names in node_lists]
    if not all(found):
        raise OptionError(
            f"mdp_compiler_dump_path names {path}, whose {len(known):,} nodes leave"
            f" {sum(not names for names in found)} of {len(found)} partitions empty. Give what"
            " mdp_dump_partition_config had the compiler write for this very program, or leave mdp_strategy out."
        )
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _refusal(path, f"it cannot be read as JSON ({error})") from error
    if not isinstance(content, dict) or not content.get("partitions") or not isinstance(content["partitions"], list):
        raise _refusal(path, "an object with a list of 'partitions' is expected")
    return content


def _refusal(path: Path, reason: str) -> OptionError:
    return OptionError(f"{path} is no file of partitions: {reason}. Correct it, or have one written by num_devices.")


def _device_ids(partitions: Sequence[dict[str, Any]]) -> list[int]:
    return [device["deviceId"] for partition in partitions for device in partition["devices"]]


def _is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_partition(value: Any) -> bool:
    named = isinstance(value, dict) and _is_text(value.get("name")) and _is_list(value.get("nodeList", []), _is_text)
    return named and bool(value.get("devices")) and _is_list(value["devices"], _is_device)


def _is_device(value: Any) -> bool:
    numbers = isinstance(value, dict) and _is_number(value.get("deviceId")) and _is_number(value.get("numCores"))
    return numbers and 1 <= value["numCores"] <= CORES


def _is_connection(value: Any) -> bool:
    typed = isinstance(value, dict) and value.get("type") == CONNECTION_TYPE
    return typed and _is_list(value.get("devices"), _is_number)


def _partition(number: int, devices: Iterable[int], cores: int) -> dict[str, Any]:
    listed = [{"deviceId": device, "numCores": cores} for device in devices]
    return {"name": f"Partition{number}", "devices": listed}


def _text(devices: int, partitions: Sequence[dict[str, Any]]) -> str:
    connections = [{"devices": list(range(devices)), "type": CONNECTION_TYPE}]
    return json.dumps({"connections": connections, "partitions": list(partitions)}, indent=4)
