"""`qaic-util`: blocks that scripts can take apart, of the devices as they are now."""

from __future__ import annotations

from pathlib import Path

import pytest

from qaic_simulator.runtime import cards
from qaic_simulator.runtime.util_tool import main


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIC_SIM_STATE", str(tmp_path / "cards.json"))
    monkeypatch.delenv("QAIC_SIM_CARDS", raising=False)


def blocks(text: str) -> dict[int, dict[str, str]]:
    """The fields of each device."""
    found: dict[int, dict[str, str]] = {}
    for line in text.splitlines():
        if line.startswith("QID "):
            fields = found[int(line.removeprefix("QID "))] = {}
        else:
            name, _, value = line.strip().partition(":")
            fields[name] = value
    return found


def test_every_device_has_a_block(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q"]) == 0
    found = blocks(capsys.readouterr().out)
    assert list(found) == [0, 1, 2, 3]
    wanted = {
        "Status": "Ready",
        "Nsp Total": "16",
        "Nsp Free": "16",
        "Dram Total": "32768 MB",
        "Dram Free": "32768 MB",
        "Networks Active": "0",
        "Sku Type": "PCIe Ultra",
        "Board serial": cards.look([0])[0].card.board_serial,
        "Board power(Watts)": "48.00",
    }
    assert all(wanted.items() <= fields.items() for fields in found.values())
    assert all({"HybridBoot+", "MDP+"} <= set(fields["Device Capabilities"].split()) for fields in found.values())
    assert all(fields["FW IMAGE_VARIANT"].startswith("AIC100") for fields in found.values())
    assert len({fields["PCI Address"] for fields in found.values()}) == 4


def test_no_blank_stands_behind_a_colon(capsys: pytest.CaptureFixture[str]) -> None:
    main(["-q", "-d", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "QID 0" and all(":" in line and ": " not in line for line in lines[1:])


def test_what_is_taken_shows(capsys: pytest.CaptureFixture[str]) -> None:
    taken = cards.reserve([1], cores=6, dram_mb=768)
    assert main(["-q", "-d", "1"]) == 0
    fields = blocks(capsys.readouterr().out)[1]
    assert (fields["Nsp Free"], fields["Dram Free"], fields["Networks Active"]) == ("10", "32000 MB", "1")
    cards.release(taken)


def test_a_reset_makes_a_device_ready(capsys: pytest.CaptureFixture[str]) -> None:
    cards.set_status(2, cards.FAILED)
    main(["-q", "-d", "2"])
    assert blocks(capsys.readouterr().out)[2]["Status"] == "Error"
    assert main(["-s", "-d", "2"]) == 0
    assert blocks(capsys.readouterr().out)[2]["Status"] == "Ready"


def test_an_unknown_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q", "-d", "4"]) == 1
    assert capsys.readouterr().out == "Failed to find requested device ID\n"


@pytest.mark.parametrize(
    "arguments", [[], ["-x"], ["-q", "-d"], ["-q", "-d", "one"], ["-q", "-q"], ["-s"], ["-d", "0"], ["-q", "0"]]
)
def test_arguments_that_make_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("usage:")
