"""How large a model is, before any weight is read: by a run without weights, or by its config and the headers of its
weight files where it cannot be run so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import transformers

from QEfficient.demo import DEMO_NAME
from QEfficient.errors import ModelError, UnsupportedModelError, WeightsError, first_line
from QEfficient.transformers.checkpoint import CheckpointWeights, open_pickle, open_safetensors
from QEfficient.transformers.config_sizes import Shape, impossible_number, is_of_text, model_sizes
from QEfficient.transformers.loading import ModelSource, open_source
from QEfficient.transformers.observed_sizes import Asked, observed_sizes
from QEfficient.transformers.size_records import FileCounts, ModelSizes

WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
"""Of which a folder has one if it has weights, or a part of them."""
ANYTHING = Asked()


def read_model(name: str, options: Mapping[str, Any], asked: Asked = ANYTHING) -> ModelSizes:
    """The sizes of a local folder, the demo or a model of the hub, of which no weights are fetched."""
    local = name == DEMO_NAME or Path(name).expanduser().is_dir() or name.startswith((".", "/", "~"))
    try:
        only_here = {} if local else {"local_files_only": True}
        source = open_source(name, transformers.AutoModelForCausalLM, {**options, **only_here})
    except UnsupportedModelError:
        raise
    except ModelError as error:
        is_bare = isinstance(error, WeightsError) and not _has_weights(Path(name).expanduser())
        if local and not is_bare:
            raise
        return _sizes(_by_config(name, options), asked, dict if local else lambda: _hub_headers(name, options))
    return _with_files(source, asked)


def _has_weights(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in WEIGHTS)


def _sizes(source: ModelSource, asked: Asked, headers: Callable[[], Mapping[str, Shape]]) -> ModelSizes:
    """As a run of the model without its weights shows them; where that fails, as config and headers tell."""
    if wrong := impossible_number(source.config):
        raise ModelError(
            f"the config of '{source.name}' says that {wrong}: no model has that. Correct its config.json."
        )
    try:
        return observed_sizes(source, asked)
    except UnsupportedModelError as error:
        if asked.latent is not None:  # which the config and the headers say nothing of
            raise
        found = headers()
        if not found:
            reason = str(error).rstrip(".")
            raise UnsupportedModelError(f"{reason}. Nor do headers of weight files tell how large it is.") from error
        sizes = model_sizes(source.config, found)
        return replace(sizes, state=replace(sizes.state, not_observed=str(error)))


def _with_files(source: ModelSource, asked: Asked) -> ModelSizes:
    """With what the headers of its files say, whether or not that is needed."""
    try:
        headers, unreadable = _local_headers(source), ""
    except WeightsError as error:
        headers, unreadable = {}, str(error)
    own = {name: shape for name, shape in headers.items() if is_of_text(name)}
    counted = FileCounts(len(own), sum(map(prod, own.values())), unreadable)
    return replace(_sizes(source, asked, lambda: headers), files=counted)


def _local_headers(source: ModelSource) -> dict[str, Shape]:
    headers: dict[str, Shape] = {}
    for file in getattr(source.weights, "files", ()):
        headers.update(read_headers(file))
    return headers


def read_headers(file: Path) -> dict[str, Shape]:
    """The shape of every tensor of a file, by name."""
    opened = open_safetensors if file.suffix == ".safetensors" else open_pickle
    try:
        return {name: tuple(tensor.shape) for name, tensor in opened(file).items()}
    except Exception as error:  # of whatever kind: damaged files mislead parsers and unpicklers alike
        found = str(error).partition(" Fetch ")[0] if isinstance(error, WeightsError) else first_line(error)
        reason = found.rstrip(".") if file.stat().st_size else "the file is empty"
        raise WeightsError(f"the header of {file} cannot be read: {reason}. Fetch the file again.") from error


def _by_config(name: str, options: Mapping[str, Any]) -> ModelSource:
    """By its config alone, in a folder or on the hub: a plan comes before the download of the weights."""
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
