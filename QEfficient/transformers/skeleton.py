"""A model without its weights: parameters fake, buffers real.

Buffers (rotary frequencies, ALiBi slopes, position tables) are computed when a module is built and stand in no
checkpoint; they are small, so they are computed for real and become constants of the graph.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers.initialization import no_init_weights

from QEfficient.errors import UnsupportedModelError, first_line, raise_if_memory

LARGE = 2**24
"""Numbers of a tensor."""


def fake_mode() -> FakeTensorMode:
    """A mode for one skeleton; fake parameters meet real buffers in it."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def _fake_parameter(parameter: torch.nn.Parameter, mode: FakeTensorMode) -> torch.nn.Parameter:
    with mode:
        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
    return torch.nn.Parameter(empty, requires_grad=False)


@contextmanager
def _fake_parameters(mode: FakeTensorMode) -> Iterator[None]:
    """Inside, every parameter that a module registers is replaced by a fake one at once."""
    register = torch.nn.Module.register_parameter

    def register_fake(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and type(parameter) is torch.nn.Parameter:
            module._parameters[name] = _fake_parameter(parameter, mode)

    torch.nn.Module.register_parameter = register_fake  # type: ignore[method-assign, assignment]
    try:
        with _LargeOnMeta():
            yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


class _LargeOnMeta(TorchFunctionMode):
    """Large tensors that are made empty get no memory: they are going to be parameters, which become fake."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.empty and kwargs.get("device") is None and "out" not in kwargs:
            size = kwargs.get("size", args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
            if math.prod(size) > LARGE:
                kwargs["device"] = "meta"
        return function(*args, **kwargs)


def build_skeleton(build: Callable[[], Any], mode: FakeTensorMode) -> Any:
    """What `build` makes, with fake parameters; nothing is initialised, tied parameters stay tied."""
    try:
        with _fake_parameters(mode), no_init_weights():
            model = build()
    except Exception as error:  # whatever a model's own constructor raises
        raise_if_memory(error, "build the model without its weights")
        raise UnsupportedModelError(
            f"transformers {transformers.__version__} cannot build the model from its config: {first_line(error)}"
        ) from error
    model.tie_weights()
    return model.eval()


def skeleton_of(
    model: torch.nn.Module, dtype: torch.dtype, mode: FakeTensorMode, buffers: Mapping[str, torch.dtype]
) -> Any:
    """A copy of a live model with fake parameters in `dtype`, and these `buffers` in types of their own; the model
    itself is not touched."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        kept = parameter.dtype if not parameter.dtype.is_floating_point else dtype
        with mode:
            empty = torch.empty(parameter.shape, dtype=kept)
        memo[id(parameter)] = torch.nn.Parameter(empty, requires_grad=False)
    for name, buffer in model.named_buffers():
        memo[id(buffer)] = buffer.detach().to(buffers.get(name, buffer.dtype))
    return copy.deepcopy(model, memo).eval()
