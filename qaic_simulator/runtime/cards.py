"""Simulated cards: what they are, how much of each is taken, and by whom; shared by all processes through one file.

The file is `QAIC_SIM_STATE`, or one in the user's temporary folder. It begins as the cards that `QAIC_SIM_CARDS`
describes (a JSON list of objects with the fields of `Card`, all optional), or as one board of four. What a process
took comes back when it ends, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

STATE_VARIABLE = "QAIC_SIM_STATE"
CARDS_VARIABLE = "QAIC_SIM_CARDS"
READY, FAILED = "Ready", "Error"
CORES, MEMORY = "cores", "DRAM"
BOARD_SIZE = 4
"""Devices on one Ultra board, which share its serial number."""


@dataclass(frozen=True)
class Card:
    """One device: on an Ultra board, a quarter of it."""

    qid: int
    board_serial: str = "SIM0000000"
    cores: int = 16
    dram_mb: int = 32768
    sku: str = "PCIe Ultra"
    capabilities: tuple[str, ...] = ("HybridBoot+", "MDP+")
    status: str = READY
    firmware: str = "AIC100.PROD.SIM"


@dataclass(frozen=True)
class Holding:
    """What one process holds on one device."""

    id: str
    qid: int
    cores: int
    dram_mb: int
    process: int
    started: str
    """When the process began, so that a later process with its number does not inherit."""


@dataclass(frozen=True)
class Reservation:
    """A handle on what was reserved together; it remembers the file that it was written to."""

    path: Path
    id: str


@dataclass(frozen=True)
class CardUse:
    """A device and what is left of it."""

    card: Card
    free_cores: int
    free_dram_mb: int
    networks: int
    """Programs that hold cores now."""


class CardShortage(RuntimeError):
    """A device has less left than was asked for; `resource` says of what."""

    def __init__(self, resource: str, message: str) -> None:
        super().__init__(message)
        self.resource = resource


@dataclass
class _State:
    cards: list[Card]
    holdings: list[Holding]


def state_path() -> Path:
    """The file that the cards are kept in."""
    named = os.environ.get(STATE_VARIABLE)
    return Path(named) if named else Path(tempfile.gettempdir()) / f"qaic-simulator-{os.getuid()}" / "cards.json"


def look(qids: Sequence[int] | None = None) -> tuple[CardUse, ...]:
    """These devices, in their order, or all of them; unknown ones are a `KeyError`."""
    with _opened(state_path()) as state:
        known = {card.qid: _use(card, state.holdings) for card in state.cards}
    return tuple(known[qid] for qid in (sorted(known) if qids is None else qids))


def reserve(qids: Sequence[int], cores: int = 0, dram_mb: int = 0) -> Reservation:
    """Take as much on each of the devices, for this process; on all of them or on none."""
    path = state_path()
    with _opened(path) as state:
        known = {card.qid: _use(card, state.holdings) for card in state.cards}
        for qid in qids:
            _check_left(known[qid], cores, dram_mb)
        name, process = uuid.uuid4().hex, os.getpid()
        started = _start_time(process) or ""
        state.holdings += [Holding(name, qid, cores, dram_mb, process, started) for qid in qids]
    return Reservation(path, name)


def release(reservation: Reservation) -> None:
    """Give back what was reserved; a second time does nothing, nor does a child of the process that has it.

    An object that is forgotten releases what it has whenever the garbage is collected, also in the middle of `_opened`:
    then it is done behind that, because a lock of this very thread would be waited for without end.
    """
    if _here.opened:
        _here.late.append(reservation)
        return
    if not reservation.path.exists():
        return
    own = (reservation.id, os.getpid())
    with _opened(reservation.path) as state:
        state.holdings = [holding for holding in state.holdings if (holding.id, holding.process) != own]


def set_status(qid: int, status: str) -> None:
    """Mark a device as ready or failed; unknown ones are a `KeyError`."""
    look([qid])
    with _opened(state_path()) as state:
        state.cards = [replace(card, status=status) if card.qid == qid else card for card in state.cards]


def _check_left(use: CardUse, cores: int, dram_mb: int) -> None:
    for resource, wanted, left in ((CORES, cores, use.free_cores), (MEMORY, dram_mb, use.free_dram_mb)):
        if wanted > left:
            raise CardShortage(resource, f"Device {use.card.qid} has {left} of {resource} left, not {wanted}.")


def _use(card: Card, holdings: Sequence[Holding]) -> CardUse:
    own = [holding for holding in holdings if holding.qid == card.qid]
    return CardUse(
        card,
        card.cores - sum(holding.cores for holding in own),
        card.dram_mb - sum(holding.dram_mb for holding in own),
        sum(holding.cores > 0 for holding in own),
    )


class _Here(threading.local):
    """What this thread is about."""

    def __init__(self) -> None:
        self.opened = False
        self.late: list[Reservation] = []


_here = _Here()


@contextmanager
def _opened(path: Path) -> Iterator[_State]:
    """The state, while nobody else has it; what changed is written, and a failure writes nothing."""
    _here.opened = True
    try:
        with _locked(path) as state:
            yield state
    finally:
        _here.opened = False
        while _here.late:
            release(_here.late.pop())


@contextmanager
def _locked(path: Path) -> Iterator[_State]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = path.read_text() if path.exists() else None
        state = _first_state() if before is None else _parse(json.loads(before))
        state.holdings = [holding for holding in state.holdings if _start_time(holding.process) == holding.started]
        yield state
        after = json.dumps({name: [asdict(record) for record in records] for name, records in vars(state).items()})
        if after != before:
            _replace_file(path, after)


def _replace_file(path: Path, text: str) -> None:
    """Write beside the file and rename, so that a process that dies here leaves the old one."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text)
    beside.replace(path)


def _first_state() -> _State:
    described = os.environ.get(CARDS_VARIABLE)
    if not described:
        return _State([Card(qid) for qid in range(BOARD_SIZE)], [])
    records = json.loads(Path(described).read_text())
    return _State([_card({"qid": qid, **record}) for qid, record in enumerate(records)], [])


def _parse(content: dict[str, Any]) -> _State:
    return _State([_card(record) for record in content["cards"]], [Holding(**record) for record in content["holdings"]])


def _card(record: dict[str, Any]) -> Card:
    card = Card(**record)
    return replace(card, capabilities=tuple(card.capabilities))


def _start_time(process: int) -> str | None:
    """When a running process began, in the system's own count, or none if it has ended."""
    try:
        # Behind the command's name, which may hold blanks and brackets itself.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    ended = fields[0] in "ZX"
    return None if ended else fields[19]
