"""The stand-in for `qaic-util`: what the devices are and what is free on them, in the form of the real tool."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from qaic_simulator.runtime.cards import READY, CardUse, look, set_status

USAGE = "usage: qaic-util -q [-d QID] | -s -d QID"
QUERY, RESET, DEVICE = "-q", "-s", "-d"
_IDLE_WATTS, _BOARD_CAP, _CHIP_WATTS, _CHIP_CAP = "48.00", "150.00", "11.00", "31.00"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    action, qids = _parse(list(sys.argv[1:] if arguments is None else arguments))
    if not action:
        print(USAGE, file=sys.stderr)
        return 1
    try:
        if action == RESET:
            set_status(qids[0], READY)
        print("\n".join(block(use) for use in look(qids or None)))
    except KeyError:
        print("Failed to find requested device ID")
        return 1
    return 0


def block(use: CardUse) -> str:
    """What is printed of one device: a line with its QID, then fields with no blank behind the colon."""
    return "\n".join([f"QID {use.card.qid}", *(f"\t{name}:{value}" for name, value in _fields(use))])


def _fields(use: CardUse) -> list[tuple[str, object]]:
    card = use.card
    return [
        ("Status", card.status),
        ("PCI Address", f"0000:{card.qid + 1:02x}:00.0"),
        ("HW Version", "2.0.0.0"),
        ("FW IMAGE_VARIANT", card.firmware),
        ("Board serial", card.board_serial),
        ("Sku Type", card.sku),
        ("Device Capabilities", " ".join(card.capabilities)),
        ("Dram Total", f"{card.dram_mb} MB"),
        ("Dram Free", f"{use.free_dram_mb} MB"),
        ("Nsp Total", card.cores),
        ("Nsp Free", use.free_cores),
        ("Networks Active", use.networks),
        ("NSP Frequency(Mhz)", "1000"),
        # Of the whole board, and so the same for each of its devices.
        ("Board power(Watts)", _IDLE_WATTS),
        ("Board TDP Cap(Watts)", _BOARD_CAP),
        ("SOC power(Watts)", _CHIP_WATTS),
        ("SOC TDP Cap(Watts)", _CHIP_CAP),
    ]


def _parse(arguments: list[str]) -> tuple[str, list[int]]:
    """What is asked, and of which devices; nothing where the arguments make no sense."""
    actions = [argument for argument in arguments if argument in (QUERY, RESET)]
    rest = [argument for argument in arguments if argument not in (QUERY, RESET)]
    named = len(rest) == 2 and rest[0] == DEVICE and rest[1].isdecimal()
    if len(actions) != 1 or (rest and not named) or (actions == [RESET] and not named):
        return "", []
    return actions[0], [int(rest[1])] if named else []


if __name__ == "__main__":
    sys.exit(main())
