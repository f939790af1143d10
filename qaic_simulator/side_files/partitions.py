"""The file that spreads one program over several devices: partitions, their devices, and how these are joined."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qaic_simulator.profiles import Profile
from qaic_simulator.side_files.specializations import expect, expect_key, read_json, refuse_other_keys

MOST_DEVICES = 16
FEWEST_CORES, MOST_CORES = 1, 16
CONNECTION_TYPE = "p2p"
DUMP_OPTION = "mdp-dump-partition-config"


@dataclass(frozen=True)
class Device:
    """A logical device; which card it is, is decided when the program runs."""

    device_id: int
    cores: int


@dataclass(frozen=True)
class Partition:
    """Nodes that run together, their tensors sliced where there are several devices."""

    name: str
    devices: tuple[Device, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class PartitionConfig:
    """A whole file; several partitions run one after the other."""

    partitions: tuple[Partition, ...]
    connections: tuple[tuple[int, ...], ...]
    """Devices that reach one another without the host."""

    @property
    def devices(self) -> tuple[Device, ...]:
        """Those of all partitions."""
        return tuple(device for partition in self.partitions for device in partition.devices)


def read_partitions(path: Path, profile: Profile) -> PartitionConfig:
    """The partitions of a multi-device file, which fit one another."""
    content = read_json(path, profile)
    listed = expect_key(content, "partitions", profile)
    expect(listed, list, profile)
    refuse_other_keys(content, ("connections", "partitions"), "partitions.key", profile)
    joined = content.get("connections", [])
    expect(joined, list, profile)
    config = PartitionConfig(
        tuple(_read_partition(partition, profile) for partition in listed),
        tuple(_read_connection(connection, profile) for connection in joined),
    )
    _check_devices(config, profile)
    _check_partitions(config.partitions, profile)
    _check_connections(config, profile)
    return config


def write_partitions(path: Path, config: PartitionConfig) -> None:
    """Write such a file, all of it or nothing."""
    partitions = [
        {
            "name": partition.name,
            "devices": [{"deviceId": device.device_id, "numCores": device.cores} for device in partition.devices],
            "nodeList": list(partition.nodes),
        }
        for partition in config.partitions
    ]
    connections = [{"devices": list(joined), "type": CONNECTION_TYPE} for joined in config.connections]
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps({"connections": connections, "partitions": partitions}, indent=4) + "\n")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def with_nodes(config: PartitionConfig | None, nodes: Sequence[str], cores: int) -> PartitionConfig:
    """Partitions that name their nodes: those that were loaded, or one that has all of them on one device."""
    if config is None:
        return PartitionConfig((Partition("Partition0", (Device(0, cores),), tuple(nodes)),), ())
    named = [[name for name in nodes if name in set(part.nodes)] if part.nodes else nodes for part in config.partitions]
    listed = (replace(part, nodes=tuple(own)) for part, own in zip(config.partitions, named, strict=True))
    return replace(config, partitions=tuple(listed))


def _read_partition(partition: Any, profile: Profile) -> Partition:
    name = expect_key(partition, "name", profile)
    expect(name, str, profile)
    devices = expect_key(partition, "devices", profile)
    expect(devices, list, profile)
    refuse_other_keys(partition, ("name", "devices", "nodeList"), "partitions.key", profile)
    return Partition(name, tuple(_read_device(device, profile) for device in devices), _read_nodes(partition, profile))


def _read_nodes(partition: dict[str, Any], profile: Profile) -> tuple[str, ...]:
    nodes = partition.get("nodeList", [])
    expect(nodes, list, profile)
    for node in nodes:
        expect(node, str, profile)
    return tuple(nodes)


def _read_device(device: Any, profile: Profile) -> Device:
    number, cores = expect_key(device, "deviceId", profile), expect_key(device, "numCores", profile)
    expect(number, int, profile)
    expect(cores, int, profile)
    refuse_other_keys(device, ("deviceId", "numCores"), "partitions.key", profile)
    return Device(number, cores)


def _read_connection(connection: Any, profile: Profile) -> tuple[int, ...]:
    devices, kind = expect_key(connection, "devices", profile), expect_key(connection, "type", profile)
    expect(devices, list, profile)
    for device in devices:
        expect(device, int, profile)
    refuse_other_keys(connection, ("devices", "type"), "partitions.key", profile)
    if kind != CONNECTION_TYPE:
        profile.refuse("partitions.type", f"A connection has type {kind!r}, not '{CONNECTION_TYPE}'.")
    return tuple(devices)


def _check_devices(config: PartitionConfig, profile: Profile) -> None:
    if not config.partitions or not all(partition.devices for partition in config.partitions):
        profile.refuse("partitions.none", "There is no partition, or one without a device.")
    most = min(MOST_CORES, profile.device_cores)
    for device in config.devices:
        if not FEWEST_CORES <= device.cores <= most:
            profile.refuse("partitions.cores", f"Device {device.device_id} has {device.cores} cores, not 1..{most}.")
    numbers = sorted(device.device_id for device in config.devices)
    if len(set(numbers)) < len(numbers):
        profile.refuse("partitions.shared-device", "A device stands in two partitions, or twice in one.")
    if numbers != list(range(len(numbers))):
        profile.refuse("partitions.logical", f"Device ids are {numbers}, not 0..{len(numbers) - 1}.")
    if len(numbers) > MOST_DEVICES:
        profile.refuse("partitions.devices", f"{len(numbers)} devices are more than {MOST_DEVICES}.")


def _check_partitions(partitions: Sequence[Partition], profile: Profile) -> None:
    if len({partition.name for partition in partitions}) < len(partitions):
        profile.refuse("partitions.name-twice", "Two partitions have the same name.")
    for partition in partitions:
        if len(partitions) > 1 and not partition.nodes:
            profile.refuse("partitions.node-list", f"{partition.name} is one of several, but lists no nodes.")
        if len(partition.devices).bit_count() != 1:
            profile.refuse(
                "partitions.power-of-two",
                f"{partition.name} slices tensors over {len(partition.devices)} devices, which is no power of two.",
            )


def _check_connections(config: PartitionConfig, profile: Profile) -> None:
    known = {device.device_id for device in config.devices}
    for joined in config.connections:
        if len(set(joined)) < 2 or len(set(joined)) < len(joined) or not known.issuperset(joined):
            profile.refuse("partitions.connection", f"{list(joined)} does not join two or more of {sorted(known)}.")
