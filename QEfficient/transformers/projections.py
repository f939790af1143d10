"""A checkpoint's projections: what its output embedding will see some tokens further on, guessed from what it sees now.

They lie beside the model (`speculator_config.json`, `speculator.safetensors`), in the form that Qualcomm's library
calls `turbo`: for each token ahead a chain of layers as wide as the model. Each layer adds the SiLU of a linear one to
what it is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from QEfficient.errors import ModelError, UnsupportedModelError, WeightsError, first_line
from QEfficient.specs import PROJECTED, ProjectionSpec
from QEfficient.transformers.checkpoint import LazyTensor, Sink, file_identity, open_safetensors
from QEfficient.transformers.skeleton import build_skeleton

CONFIG, WEIGHTS = "speculator_config.json", "speculator.safetensors"
HEADS, LAYERS = "turbo_num_heads", "turbo_num_layers"
PREFIX = "projections."


class ProjectionLayer(torch.nn.Module):
    """One layer of a chain."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width, dtype=dtype)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + torch.nn.functional.silu(self.linear(hidden))


class Projections(torch.nn.ModuleList):
    """A chain for each token ahead, the next but one first."""

    def __init__(self, spec: ProjectionSpec, width: int, dtype: torch.dtype) -> None:
        chains = ([ProjectionLayer(width, dtype) for _ in range(spec.layers)] for _ in range(spec.heads))
        super().__init__(torch.nn.Sequential(*chain) for chain in chains)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[b, s, n]` as it is, and by each chain: `[b, s, 1 + heads, n]`."""
        return torch.stack([hidden, *(chain(hidden) for chain in self)], dim=2)

    def tie_weights(self) -> None:
        """Nothing is tied; a skeleton asks."""


@dataclass(frozen=True)
class ProjectionFiles:
    """The two files, read as far as they say what they hold."""

    spec: ProjectionSpec
    config: Mapping[str, Any]
    weights: Path

    def identity(self) -> dict[str, Any]:
        """What tells these weights from others."""
        return file_identity(self.weights)

    def skeleton(self, width: int, dtype: torch.dtype, mode: Any) -> Projections:
        """Over fake parameters; refuses weights of another width or form."""
        made: Projections = build_skeleton(lambda: Projections(self.spec, width, dtype), mode)
        self._check(made)
        return made

    def stream(self, sink: Sink, place: str) -> None:
        """Hand over every tensor, named as it is called in a module that has the projections in `place`."""
        for name, tensor in self._tensors().items():
            sink(f"{place}.{name}", tensor)

    def _tensors(self) -> dict[str, LazyTensor]:
        return {name.replace(PREFIX, ""): tensor for name, tensor in open_safetensors(self.weights).items()}

    def _check(self, made: Projections) -> None:
        wanted = {name: tuple(parameter.shape) for name, parameter in made.named_parameters()}
        found = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        wrong = next((name for name in [*wanted, *found] if wanted.get(name) != found.get(name)), None)
        if wrong is not None:
            expected = list(wanted[wrong]) if wrong in wanted else "nothing of that name"
            there = list(found[wrong]) if wrong in found else "nothing"
            raise WeightsError(
                f"{self.weights}: for {self.spec.heads} projections of {self.spec.layers} layer(s), '{wrong}' should be"
                f" {expected}, but is {there}. {CONFIG} describes other weights, or they belong to another model."
            )


def read_projections(name: str, config: Path | None, weights: Path | None) -> ProjectionFiles:
    """From the two files of the model `name`; refuses what is missing, damaged or of another kind."""
    for file, path in ((CONFIG, config), (WEIGHTS, weights)):
        if path is None:
            raise ModelError(
                f"the model '{name}' has no {file}: qaic_config['speculative_model_type'] = '{PROJECTED}' needs a"
                " checkpoint with projections beside its weights."
            )
    assert config is not None and weights is not None
    said = _read_config(config)
    kind = said.get("model_type", PROJECTED)
    if kind != PROJECTED:
        raise UnsupportedModelError(f"{config} describes a speculator of type '{kind}'; '{PROJECTED}' was asked for.")
    spec = ProjectionSpec(*(_count(config, said, key) for key in (HEADS, LAYERS)))
    whole = {**said, "model_type": kind, "num_speculative_tokens": spec.heads}
    return ProjectionFiles(spec, whole, weights)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {first_line(error)}. Fetch the model again.") from error
    if not isinstance(said, dict):
        raise ModelError(f"{path} is damaged: it is no JSON object. Fetch the model again.")
    return said


def _count(path: Path, said: Mapping[str, Any], key: str) -> int:
    value = said.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{path}: '{key}' must be a positive whole number, not {value!r}.")
    return value
