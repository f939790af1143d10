"""A compiled program with the engine that runs it: opened when it is needed, and again after its device was lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from QEfficient.devices import Device, Session, Watch, get_device
from QEfficient.devices.handover import check_alike, with_prefill
from QEfficient.errors import OptionError
from QEfficient.generation.decoding import Decoding
from QEfficient.generation.decoding.selection import DecodingChoice, close_decoding, make_decoding
from QEfficient.generation.engine import Engine
from QEfficient.generation.scheduler import Scheduler
from QEfficient.program import CompiledProgram


class OpenedProgram:
    """One engine for all that is asked of a program: two would write over each other's tokens."""

    def __init__(
        self,
        compiled: CompiledProgram,
        load: Callable[[CompiledProgram, Sequence[int] | None], Session] | None = None,
        *,
        prefix_cache: bool = True,
    ) -> None:
        """`load`: opens its sessions, in place of the device itself. `prefix_cache`: whether what slots keep of earlier
        prompts may be used."""
        self.compiled = compiled
        self._device: Device = get_device(compiled.device)
        self._load, self._prefix_cache = load or self._device.load, prefix_cache
        self._device_ids: Sequence[int] | None = None
        self._prefill: CompiledProgram | None = None
        self._engine: Engine | None = None
        self._decoding: tuple[DecodingChoice, Decoding] | None = None  # it keeps what it learns from call to call

    @property
    def running(self) -> Engine | None:
        """The engine, if there is one now."""
        return self._engine

    @property
    def decoding(self) -> Decoding | None:
        """How its tokens are found."""
        return None if self._decoding is None else self._decoding[1]

    def engine(
        self,
        wish: DecodingChoice,
        usual_lookup: int | None = None,
        device_ids: Sequence[int] | None = None,
        prefill: CompiledProgram | None = None,
        watch: Watch | None = None,
    ) -> Engine:
        """The engine on these devices, where it is if they are None, with this program for prefill. Another one if it
        was elsewhere, had other prefill, has lost its session, or is to be watched from its first run on.

        What is open goes on with the decoding of this call: that of the model's own config (`usual_lookup`), where it
        can be, if none is wished for.
        """
        if prefill is not None and (self._engine is None or prefill != self._prefill):
            check_alike(self.compiled, prefill)
        if self._engine is not None and self._has_to_go(self._engine, device_ids, prefill, watch):
            self.close()
        if self._engine is None:
            device_ids = device_ids or self._device_ids
            session = self._session(device_ids, prefill, watch)
            self._engine = Engine(session, scheduler=Scheduler(session.limits, prefix_cache=self._prefix_cache))
            self._device_ids, self._prefill = device_ids, prefill
        limits = self._engine.session.limits
        wish = wish.or_usual(usual_lookup, limits)
        if self._decoding is None or self._decoding[0] != wish:
            made = make_decoding(wish, self.compiled, self._engine.session)
            self._engine.use(made)
            self._forget_decoding()
            self._decoding = wish, made
        return self._engine

    def close(self) -> None:
        """Give the device back; the next engine is another one."""
        self._forget_decoding()
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.session.close()

    def _has_to_go(
        self, engine: Engine, device_ids: Sequence[int] | None, prefill: CompiledProgram | None, watch: Watch | None
    ) -> bool:
        if watch is not None and engine.lost is None and not engine.idle:
            raise OptionError(
                "write_io or enable_debug_logs was asked for, but answers are still open: close their iterators first."
            )
        moves = prefill != self._prefill or self._moves(engine, device_ids)
        return engine.lost is not None or moves or watch is not None

    def _moves(self, engine: Engine, device_ids: Sequence[int] | None) -> bool:
        """Whether other devices are asked for than those where the session is."""
        if not self._device.has_ids or not device_ids or device_ids == self._device_ids:
            return False
        if not engine.idle:
            raise OptionError(
                f"device_id is {device_ids}, but answers are still open on {self._device_ids or 'another device'}:"
                " close their iterators first."
            )
        return True

    def _session(
        self, device_ids: Sequence[int] | None, prefill: CompiledProgram | None, watch: Watch | None
    ) -> Session:
        if watch is None:
            session = self._load(self.compiled, device_ids)
        else:
            session = self._device.load_watched(self.compiled, device_ids, watch)
        return session if prefill is None else with_prefill(session, self.compiled, prefill)

    def _forget_decoding(self) -> None:
        if self._decoding is not None:
            close_decoding(*self._decoding)
        self._decoding = None
