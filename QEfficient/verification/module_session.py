"""The retained module as a session: the same batches as a device, run eagerly by PyTorch in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from QEfficient.devices.slotted import SlottedSession
from QEfficient.errors import DeviceError, VerificationError
from QEfficient.program import GraphSpec
from QEfficient.specs import CompileSpec
from QEfficient.transformers.replay import ReplayModule
from QEfficient.transformers.retained_module import RetainedModule

StatefulModule = RetainedModule | ReplayModule
Feeds = dict[str, np.ndarray]


class ModuleSession(SlottedSession):
    """Its state starts as that of another session (`states`), as NaN, or as large numbers that would be noticed."""

    def __init__(
        self,
        module: StatefulModule,
        graph: GraphSpec,
        spec: CompileSpec,
        poison: bool = False,
        states: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        super().__init__(spec, graph)
        if len(module.plans) != len(graph.states):
            raise VerificationError(
                f"the transformed module keeps {len(module.plans)} states, the program {len(graph.states)}."
            )
        self.module: StatefulModule | None = module
        self._names = [state.tensor.name for state in graph.states]
        symbols = spec.specializations(graph.windows)[-1].symbols
        shapes = [state.tensor.resolve(symbols) for state in graph.states]
        made = [_garbage(shape, plan.dtype, poison) for shape, plan in zip(shapes, module.plans, strict=True)]
        if states:
            given = (torch.from_numpy(states[name]) for name in self._names)
            made = [value.to(old.dtype) for value, old in zip(given, made, strict=True)]
        self._states = made
        self.watch: Callable[[Feeds], AbstractContextManager[None]] = lambda feeds: nullcontext()
        """What is around each call of the module."""

    def _execute(self, feeds: Feeds) -> np.ndarray:
        if self.module is None:
            raise DeviceError("the session is closed.")
        fed: dict[str, Any] = {name: torch.from_numpy(array) for name, array in feeds.items()}
        try:
            with torch.no_grad(), self.watch(feeds):
                tokens = fed.pop("input_ids"), fed.pop("position_ids"), fed.pop("batch_index", None)
                output = self.module(*tokens, fed, self._states)
        except (IndexError, RuntimeError) as error:
            raise DeviceError(f"the transformed module could not run: {error}") from error
        self._states = list(output[1:])
        logits: np.ndarray = output[0].float().numpy()
        return logits

    def states(self) -> dict[str, np.ndarray]:
        return {name: state.numpy().copy() for name, state in zip(self._names, self._states, strict=True)}

    def close(self) -> None:
        self.module, self._states = None, []


def _garbage(shape: tuple[int, ...], dtype: torch.dtype, poison: bool) -> torch.Tensor:
    if not dtype.is_floating_point:
        return torch.ones(shape, dtype=dtype)
    if poison:
        return torch.full(shape, torch.nan, dtype=dtype)
    return torch.from_numpy(np.resize(np.linspace(-1e3, 1e3, 997), shape)).to(dtype)
