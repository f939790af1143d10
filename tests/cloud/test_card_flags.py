"""Flags for a card that take more than one form."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli

from QEfficient.cloud._arguments import UsageError
from QEfficient.cloud._preparation import device_options
from QEfficient.cloud.main import command_parser, load_command
from QEfficient.devices.cloud_ai_100.options import _say_dropped

SHAPE = ("--ctx-len", 32, "--prompt-len", 8, "--simulate")
pytestmark = pytest.mark.usefixtures("without_sdk")


@pytest.mark.parametrize(("text", "told"), [("4", 4), ("1,2", [1, 2]), ("[1,2]", [1, 2]), ("-1", None)])
def test_the_splits_of_weights_are_a_number_or_several(text: str, told: Any) -> None:
    read = command_parser("infer", load_command("infer"), "qefficient infer").read
    for words in (["--mos", text], [f"--mos={text}"]):
        assert device_options(read(words)).get("mos") == told
    with pytest.raises(UsageError, match="a list of numbers such as 1,2 is expected, not '1,x'"):
        read(["--mos", "1,x"])


def test_no_devices_are_those_that_are_named() -> None:
    read = command_parser("infer", load_command("infer"), "qefficient infer").read
    assert "num_devices" not in device_options(read(["--num-devices", "0"]))
    assert device_options(read(["--num-devices", "0", "--device-group", "[0,1]"]))["num_devices"] == 2


def test_the_compiler_is_told_all_of_them(cli: Cli, model_folder: Path) -> None:
    _say_dropped.cache_clear()
    made = cli(
        "compile", model_folder, *SHAPE, "--mos", "1,2", "--sdp-cluster-sizes", "2,2", "--num-cores", 4,
        "--compile-only", "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    log = next(Path(value).parent / "compiler.log" for value in _paths(made.json) if value.endswith("/qpc"))
    command = shlex.split(log.read_text().splitlines()[0])
    assert {"-mos=1,2", "-sdp-cluster-sizes=2,2"} <= set(command)
    assert made.err.count("compile_only") == 1
    alone = cli("compile", model_folder, *SHAPE, "--mos", "1,2")
    assert alone.code == 1 and "mos has 2 numbers" in alone.error and "sdp_cluster_sizes has 0" in alone.error


def test_one_phase_needs_the_number_of_slots_alone(cli: Cli, model_folder: Path) -> None:
    made = cli("compile", model_folder, *SHAPE, "--prefill-only", "--kv-cache-batch-size", 6, "--json")
    assert made.code == 0, made.err
    folder = next(Path(value).parent for value in _paths(made.json) if value.endswith("/qpc"))
    (entry,) = json.loads((folder / "specializations.json").read_text())["specializations"]
    assert (entry["name"], entry["symbols"]["full_batch_size"]) == ("Prefill", "6")
    both = cli("compile", model_folder, *SHAPE, "--kv-cache-batch-size", 6)
    assert both.code == 1 and "give full_batch_size too" in both.error


def _paths(record: Any) -> list[str]:
    """Every text in a document."""
    if isinstance(record, str):
        return [record]
    parts = record.values() if isinstance(record, dict) else record if isinstance(record, list) else ()
    return [text for part in parts for text in _paths(part)]
