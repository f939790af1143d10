"""The processors that this process may use: which are the same core, and which belong to a node of memory."""

from __future__ import annotations

import os
from pathlib import Path

from QEfficient.errors import DeviceError

CPUS = Path("/sys/devices/system/cpu")
NODES = Path("/sys/devices/system/node")


def allowed() -> set[int]:
    """By the process's affinity, which `taskset`, `numactl` and containers set; all where there is none."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def count_cores(processors: set[int], cpus: Path = CPUS) -> int:
    """How many different cores these are: two threads of one core share its arithmetic and its way to the memory."""
    return len({_siblings(number, cpus) for number in processors})


def bind_to_node(node: int, nodes: Path = NODES) -> None:
    """Let this process run on the processors of one node of memory only; what it allocates from now on lies there."""
    there = processors_of(node, nodes)
    if not allowed() & there:
        raise DeviceError(f"numa_node {node} was asked for, but this process may not use any processor of it.")
    os.sched_setaffinity(0, allowed() & there)


def processors_of(node: int, nodes: Path = NODES) -> set[int]:
    path = nodes / f"node{node}" / "cpulist"
    if not path.is_file():
        known = sorted(int(folder.name[4:]) for folder in nodes.glob("node[0-9]*")) or "none that could be told apart"
        raise DeviceError(f"numa_node {node} was asked for, but this machine has {known}.")
    return parse_list(path.read_text())


def parse_list(text: str) -> set[int]:
    """`0-3,8,10-11` as the kernel writes it."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _siblings(number: int, cpus: Path) -> str:
    path = cpus / f"cpu{number}" / "topology" / "thread_siblings_list"
    return path.read_text().strip() if path.is_file() else str(number)
