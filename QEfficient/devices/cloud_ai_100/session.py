"""A compiled program on the card, behind the same session as everywhere: rows of a batch in, logits out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakMethod

import numpy as np

from QEfficient.devices import Batch
from QEfficient.devices.cloud_ai_100 import faults
from QEfficient.devices.cloud_ai_100.container import FILE, read_description
from QEfficient.devices.cloud_ai_100.inference_session import QAICInferenceSession, program_folder
from QEfficient.devices.slotted import SlottedSession
from QEfficient.errors import DeviceError, SessionLostError
from QEfficient.program import CompiledProgram

ROLE = "lm"

logger = logging.getLogger(__name__)


class CloudSession(SlottedSession):
    """The state stays on the card: neither goes it there, nor does it come back."""

    def __init__(
        self,
        compiled: CompiledProgram,
        device_ids: Sequence[int] | None = None,
        opener: Callable[..., QAICInferenceSession] = QAICInferenceSession,
    ) -> None:
        graph = compiled.program.graphs[ROLE].spec
        super().__init__(compiled.spec, graph)
        folder = program_folder(compiled.folder)
        self._allowed = read_description(folder / FILE).sizes()
        devices = compiled.report.get("devices", 1)  # which is not known of what others compiled
        self._inference: Any = _opened(opener, folder, device_ids or (range(devices) if devices > 1 else None))
        self._states = {state.input.name: state.output.name for state in graph.states}
        self._answer = graph.answer
        self._inference.skip_buffers([tensor.name for tensor in graph.outputs if tensor.name != self._answer])
        self._keep_states()
        self._lost: SessionLostError | None = None
        self._begun: set[int] | None = None  # slots that hold something, where it has rested

    @property
    def lost(self) -> SessionLostError | None:
        return self._lost

    def offer(self, owner: Callable[[], bool]) -> None:
        self._inference.share.owner = WeakMethod(owner)

    def rest(self) -> bool:
        if self._inference is None or not self._inference.share.held:
            return False
        self._inference.unload()
        self._begun = set()
        return True

    def run(self, batch: Batch) -> np.ndarray:
        self._check_begun(batch)
        return super().run(batch)

    def _check_begun(self, batch: Batch) -> None:
        """Refuse to go on from what was given up when the session rested."""
        if self._begun is None:
            return
        gone = [row.slot for row in batch.rows if row.start and row.slot not in self._begun]
        if gone:
            raise DeviceError(
                f"slot {gone[0]} is to go on from what it kept, but the session gave the device to another program"
                " meanwhile. Start its tokens anew, from position 0."
            )
        self._begun |= {row.slot for row in batch.rows}

    def _keep_states(self) -> None:
        """From now on they stay on the card: nothing is copied there, and nothing comes back."""
        self._inference.skip_buffers([*self._states, *self._states.values()])

    def _execute(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        return self._run_call(feeds)[self._answer]

    def _run_call(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._check_open()
        answer = self._sizes(feeds)[self._answer]
        self._inference.set_buffers({self._answer: np.zeros(answer, self._inference.buffer_types[self._answer])})
        try:
            outputs: dict[str, np.ndarray] = self._inference.run(feeds)
        except (MemoryError, ValueError, RuntimeError) as error:
            found = faults.named(error, "the card could not run the program")
            if isinstance(found, SessionLostError):
                self._lose(found)
            raise found from found.__cause__
        except BaseException:
            if not self._inference.active:
                self._lose(SessionLostError(f"a run was interrupted before its end. {faults.GONE}."))
            raise
        return outputs

    def _check_open(self) -> None:
        if self._lost is not None:
            raise SessionLostError(f"the session is closed: open the program again. {self._lost}") from self._lost
        if self._inference is None:
            raise DeviceError("the session is closed: open the program again.")

    def _lose(self, reason: SessionLostError) -> None:
        self._lost = reason
        self.close()

    def states(self) -> dict[str, np.ndarray]:
        blank = {output: self._blank(name, output) for name, output in self._states.items()}
        outputs = self._run_idle(blank)
        return {name: outputs[output].copy() for name, output in self._states.items()}

    def restore(self, states: Mapping[str, np.ndarray]) -> None:
        kinds = self._inference.buffer_types
        self._run_idle({name: states[name].astype(kinds[name], copy=False) for name in self._states})
        self._begun = None  # every slot holds something now

    def _run_idle(self, buffers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Only a run takes a state to the card, or brings it back. One without a token changes nothing."""
        self._inference.set_buffers(buffers)
        try:
            return self._run_call(self._idle_feeds())
        finally:
            if self._inference is not None:
                self._keep_states()

    def _blank(self, name: str, output: str) -> np.ndarray:
        return np.zeros(self._allowed[0][name], self._inference.buffer_types[output])

    def _sizes(self, feeds: dict[str, np.ndarray]) -> Mapping[str, tuple[int, ...]]:
        """Those of all there is in a call. The card would answer a wrong combination with a number only, and late."""
        shapes = {name: array.shape for name, array in feeds.items()}
        for sizes in self._allowed:
            if all(sizes.get(name) == shape for name, shape in shapes.items()):
                return sizes
        listed = [{name: sizes.get(name) for name in shapes} for sizes in self._allowed]
        raise DeviceError(f"a call has the shapes {shapes}, but the program was compiled for {listed}.")

    def close(self) -> None:
        inference, self._inference = self._inference, None
        if inference is None:
            return
        try:
            inference.unload()
        except RuntimeError as error:  # which must not hide what led here
            logger.warning("%s It is given back when nothing refers to it any more.", error)


def _opened(
    opener: Callable[..., QAICInferenceSession], folder: Path, device_ids: Sequence[int] | None
) -> QAICInferenceSession:
    try:
        return opener(folder, device_ids)
    except ImportError as error:
        raise DeviceError(str(error)) from error
    except RuntimeError as error:
        found = faults.named(error, f"the program in {folder} cannot be brought onto the card")
        raise found from found.__cause__
