"""What we tell the compiler passes its stand-in: every golden command, with the files that belong to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qaic_simulator.command_line.checking import check_command
from qaic_simulator.command_line.options import OPTIONS
from QEfficient.devices.cloud_ai_100.options import CONSUMED, PASSED

GOLDENS = sorted((Path(__file__).parents[1] / "devices" / "cloud_ai_100" / "goldens").glob("*.json"))
PARTITIONS = {"connections": [], "partitions": [{"name": "P0", "devices": [{"deviceId": 0, "numCores": 16}]}]}
THEIRS = {  # files of the user, by the option that names them
    "-node-precision-info": "FP32NodeInstanceNames:\n  - norm\n",
    "-mdp-load-partition-config": json.dumps(PARTITIONS),
    "-custom-IO-list-file": " - IOName: past_key.0\n   Precision: float16\n\n",
}
REFUSED = {  # what a golden command is refused for, and rightly
    "bfloat16": "required.fp16",  # the AI 100 has no bfloat16
    "bfloat16_mxint8": "required.fp16",
}
LET_THROUGH = {"-some-new-option=7", "-another-flag"}
"""Stand in two golden commands on purpose; all else there must be right."""
NEVER_SENT = {"enable_qnn", "qnn_config", "mdp_num_partitions", "mdp_strategy", "mdp_compiler_dump_path"}
SPELT = {
    "num_cores": "aic-num-cores",
    "num_devices": "mdp-load-partition-config",
    "mxint8_kv_cache": "custom-IO-list-file",
}


def written(record: dict[str, Any], folder: Path) -> list[str]:
    """The command in another folder, in which all its files are."""
    arguments = []
    for argument in record["argv"][1:]:
        name, is_given, value = argument.partition("=")
        if is_given and value.startswith("/"):
            path = folder / Path(value).name
            text = record["files"].get(path.name)
            if name != "-aic-binary-dir":
                path.write_text("\n".join(text) if text else THEIRS.get(name, ""))
            argument = f"{name}={path}"
        arguments.append(argument)
    return arguments


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_accepted(path: Path, tmp_path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    version = record["sdk"]["version"] or "1.21"
    sdk, tool, arguments = ".".join(version.split(".")[:2]), record["sdk"]["compiler"], written(record, tmp_path)
    checked = check_command([a for a in arguments if a not in LET_THROUGH], sdk, tool)
    assert checked.rule == REFUSED.get(path.stem, ""), checked.refusal
    if LET_THROUGH & set(arguments):
        assert check_command(arguments, sdk, tool).rule == "arguments.unknown"


def test_the_stand_in_knows_every_option_that_we_send() -> None:
    ours = {SPELT.get(name, name.replace("_", "-")) for name in {*CONSUMED, *PASSED} - NEVER_SENT}
    assert not ours - set(OPTIONS)
