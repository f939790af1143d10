"""Which processors are cores, and where they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from QEfficient.devices.cpu.processors import NODES, allowed, bind_to_node, count_cores, parse_list, processors_of
from QEfficient.errors import DeviceError


def test_lists_of_the_kernel() -> None:
    assert parse_list("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert parse_list("\n") == set()


def test_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for number in range(4):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 2},{number % 2 + 2}\n")
    assert count_cores({0, 1, 2, 3}, tmp_path) == 2
    assert count_cores({0, 2}, tmp_path) == 1
    assert count_cores({0, 7}, tmp_path) == 2  # of which nothing is known
    assert 1 <= count_cores(allowed()) <= len(allowed())


def test_a_node_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match="numa_node 99 was asked for, but this machine has"):
        processors_of(99)


def test_processors_that_are_not_allowed(tmp_path: Path) -> None:
    (tmp_path / "node1").mkdir()
    (tmp_path / "node1" / "cpulist").write_text("4000-4001\n")
    with pytest.raises(DeviceError, match="may not use any processor"):
        bind_to_node(1, tmp_path)


@pytest.mark.skipif(not (NODES / "node0").is_dir(), reason="the kernel tells nothing about nodes")
def test_a_process_binds_itself() -> None:
    code = "from QEfficient.devices.cpu.processors import *; bind_to_node(0); print(sorted(allowed()))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(sorted(os.sched_getaffinity(0) & processors_of(0)))
