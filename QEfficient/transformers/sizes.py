"""How large a model is, before any weight is read: by a run without weights, or by its config and the headers of its
weight files where it cannot be run so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers

from QEfficient.demo import DEMO_NAME
from QEfficient.errors import ModelError, UnsupportedModelError, WeightsError, first_line
from QEfficient.transformers.checkpoint import CheckpointWeights, open_pickle
from QEfficient.transformers.config_sizes import Shape, model_sizes
from QEfficient.transformers.loading import ModelSource, open_source
from QEfficient.transformers.observed_sizes import observed_sizes
from QEfficient.transformers.size_records import ModelSizes


def read_model(name: str, options: Mapping[str, Any]) -> ModelSizes:
    """The sizes of a local folder, the demo or a model of the hub, of which no weights are fetched."""
    local = name == DEMO_NAME or Path(name).expanduser().is_dir() or name.startswith((".", "/", "~"))
    try:
        only_here = {} if local else {"local_files_only": True}
        source = open_source(name, transformers.AutoModelForCausalLM, {**options, **only_here})
    except (UnsupportedModelError, WeightsError):
        raise
    except ModelError:
        if local:
            raise
        source = _hub_source(name, options)
        return _sizes(source, lambda: _hub_headers(name, options))
    return _sizes(source, lambda: _local_headers(source))


def _sizes(source: ModelSource, headers: Callable[[], Mapping[str, Shape]]) -> ModelSizes:
    """As a run of the model without its weights shows them; where that fails, as config and headers tell."""
    try:
        return observed_sizes(source)
    except UnsupportedModelError as error:
        sizes = model_sizes(source.config, headers())
        return replace(sizes, state=replace(sizes.state, not_observed=str(error)))


def _local_headers(source: ModelSource) -> dict[str, Shape]:
    headers: dict[str, Shape] = {}
    for file in getattr(source.weights, "files", ()):
        headers.update(read_headers(file))
    return headers


def read_headers(file: Path) -> dict[str, Shape]:
    """The shape of every tensor of a file, by name."""
    if file.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in open_pickle(file).items()}
    try:
        with open(file, "rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise WeightsError(
            f"the header of {file} cannot be read: {first_line(error)}. Fetch the file again."
        ) from error


def _hub_source(name: str, options: Mapping[str, Any]) -> ModelSource:
    """By its config alone: a plan comes before the download of the weights."""
    own = {key: options[key] for key in ("cache_dir", "trust_remote_code") if key in options}
    try:
        config = transformers.AutoConfig.from_pretrained(name, token=options.get("hf_token"), **own)
    except Exception as error:  # of many kinds: the hub's, the network's, those of a config's own code
        raise _not_there(name, error) from error
    if getattr(config, "quantization_config", None):
        raise UnsupportedModelError(f"{name} is a quantized checkpoint. Use the model's unquantized checkpoint.")
    model_class = transformers.AutoModelForCausalLM
    return ModelSource(name, name, config, CheckpointWeights([]), model_class, "float32", own)


def _hub_headers(name: str, options: Mapping[str, Any]) -> dict[str, Shape]:
    """By small requests."""
    from huggingface_hub import get_safetensors_metadata

    try:
        files = get_safetensors_metadata(name, token=options.get("hf_token")).files_metadata.values()
    except Exception as error:  # the hub's and the network's
        raise _not_there(name, error) from error
    return {tensor: tuple(info.shape) for file in files for tensor, info in file.tensors.items()}


def _not_there(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"the model '{name}' is neither a local folder nor in the local cache, and its config and headers cannot be"
        f" read from the hub: {first_line(error)}"
    )
