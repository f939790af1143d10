"""What goes wrong on a card, by name: the one place that knows what the runtime's numbers and words mean.

The runtime tells little: 300 is a card that has failed as well as shapes that were not compiled. What `qaic-util` says
of the card decides then; where it says nothing, neither do we.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from QEfficient.devices.cloud_ai_100 import sdk
from QEfficient.devices.cloud_ai_100.container import FILE, read_description
from QEfficient.devices.cloud_ai_100.sdk import ask_query_tool, query_tool
from QEfficient.devices.cloud_ai_100.shares import held_here
from QEfficient.errors import (
    ArtifactError,
    CoresTakenError,
    DeviceBusyError,
    DeviceError,
    DeviceLostError,
    DeviceMemoryError,
    DeviceTimeoutError,
)

TRY_AGAIN, NO_MEMORY, BUSY, NO_DEVICE, NO_SPACE, BAD_DESCRIPTOR, TIMED_OUT = 2, 3, 4, 5, 7, 8, 9
"""Those of the runtime's numbers that say what is the matter."""
NO_CORES = "NSP"
"""Stands in what the runtime says when there are not enough cores."""
READY = "Ready"
SUBMIT_RETRIES = 5
"""How often the runtime itself submits again by default."""
RETRY_SECONDS = 0.01
GONE = "The session is closed, and what it kept there is gone"


@dataclass(frozen=True)
class Placement:
    """Which program is where."""

    program: Path
    devices: tuple[int, ...]
    timeout_ms: int

    @property
    def where(self) -> str:
        plural = "s" if len(self.devices) > 1 else ""
        return f"device{plural} {', '.join(map(str, self.devices))}"


def is_busy(status: Any) -> bool:
    """Whether the same call may succeed a moment later."""
    return int(status) in (TRY_AGAIN, BUSY)


def run_fault(status: Any, placement: Placement) -> DeviceError | None:
    """What the status of a call means; None: nothing that is the device's."""
    number = int(status)
    if is_busy(status):
        return DeviceBusyError(
            f"{placement.where} took no run in {SUBMIT_RETRIES + 1} attempts (status {status}): others keep it busy."
            " Try again later, or choose another device."
        )
    if number in (NO_MEMORY, NO_SPACE):
        return _out_of_memory(placement)
    if number == TIMED_OUT:
        return _timed_out(placement)
    return _lost(placement, f"status {status}" if number in (NO_DEVICE, BAD_DESCRIPTOR) else "")


def opening_fault(status: Any, said: str, placement: Placement) -> DeviceError | None:
    """Why a program cannot be brought onto its devices. `said`: the text of the runtime's exception, if any."""
    if NO_CORES in said:
        return _out_of_cores(placement)
    return run_fault(status, placement) or (_out_of_cores(placement) if _lacks_cores(placement) else None)


def named(error: BaseException, otherwise: str) -> DeviceError:
    """The error of our tree for one that a session raised as scripts know it."""
    if isinstance(error.__cause__, DeviceError):
        return error.__cause__
    found = DeviceError(f"{otherwise}: {error}")
    found.__cause__ = error
    return found


def silence() -> str:
    """A sentence that says why the cards do not tell what they are; empty where they do, or nobody here could ask."""
    try:
        ask_query_tool("-q")
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{query_tool()} cannot be started: {error.strerror}."
    except subprocess.TimeoutExpired:
        return (
            f"{query_tool()} did not answer within {sdk.QUERY_SECONDS} s, so a card or its driver hangs. Reset the"
            " card, or start this machine again."
        )
    return ""


def _timed_out(placement: Placement) -> DeviceTimeoutError:
    first = placement.devices[0]
    return DeviceTimeoutError(
        f"a run of the program in {placement.program} did not end within {placement.timeout_ms / 1000:g} s on"
        f" {placement.where}. {GONE}: open the program again. If it does not end then either, reset the device with"
        f" `{query_tool()} -s -d {first}`."
    )


def _lost(placement: Placement, reason: str) -> DeviceLostError | None:
    """By what the cards are, or for a `reason` that is enough by itself."""
    states = {device: _card(device).get("Status", "") for device in placement.devices}
    failed = [device for device, state in states.items() if state not in ("", READY)]
    if not failed and not reason:
        return None
    device = (failed or placement.devices)[0]
    found = f"its status is {states[device]}" if failed else f"the runtime ended with {reason}"
    return DeviceLostError(
        f"device {device}, which the program in {placement.program} is for, has failed: {found}. {GONE}. Reset the"
        f" device with `{query_tool()} -s -d {device}`, then open the program again."
    )


def _out_of_memory(placement: Placement) -> DeviceMemoryError:
    return DeviceMemoryError(
        f"the program in {placement.program} does not fit into the memory of {placement.where}"
        f"{_left(placement, 'Dram')}. {_others(placement)}. Choose another device, or compile for less: mxfp6_matmul,"
        " mxint8_kv_cache, a smaller ctx_len, more devices (num_devices)."
    )


def _out_of_cores(placement: Placement) -> CoresTakenError:
    needed = _cores_needed(placement)
    return CoresTakenError(
        f"the program in {placement.program} needs {needed or 'more'} cores, but {placement.where} has not as many left"
        f"{_left(placement, 'Nsp')}. {_others(placement)}. Choose another device, or compile with fewer num_cores."
        f" `{query_tool()} -q` shows what is free."
    )


def _others(placement: Placement) -> str:
    """Who is to make room, and how."""
    own = ", ".join(map(str, held_here(placement.devices)))
    if not own:
        return "Other programs hold the rest: end those"
    return (
        f"Sessions of this process hold some, with answers open, or opened by hand, for {own}: close the iterators of"
        " those answers, `unload()` those sessions"
    )


def _left(placement: Placement, resource: str) -> str:
    """` (device 0: 4 of 16 free)`, as far as it is known."""
    cards = {device: _card(device) for device in placement.devices}
    told = [
        f"device {device}: {card[f'{resource} Free']} of {card[f'{resource} Total']} free"
        for device, card in cards.items()
        if f"{resource} Free" in card and f"{resource} Total" in card
    ]
    return f" ({'; '.join(told)})" if told else ""


def _lacks_cores(placement: Placement) -> bool:
    needed = _cores_needed(placement)
    free = [_card(device).get("Nsp Free", "") for device in placement.devices]
    return any(count.isdecimal() and int(count) < needed for count in free)


def _cores_needed(placement: Placement) -> int:
    """0 where nobody can say."""
    with contextlib.suppress(ArtifactError):
        return read_description(placement.program / FILE).cores
    return 0


def _card(device: int) -> Mapping[str, str]:
    """What the tool says of a card, by name; nothing where it cannot be asked."""
    try:
        said = ask_query_tool("-q", "-d", str(device))
    except (OSError, subprocess.TimeoutExpired):
        return {}
    fields = (line.partition(":") for line in said.splitlines())
    return {name.strip(): value.strip() for name, colon, value in fields if colon}
