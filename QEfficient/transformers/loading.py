"""What the user names (a hub name, a folder, the demo, a model object) → config, checkpoint files, skeleton.

Everything that can be wrong with a model's name or files is found here, before any long work, and said in one sentence.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import cached_file

from QEfficient.demo import DEMO_NAME, demo_folder
from QEfficient.errors import ModelError, OptionError, UnsupportedModelError, WeightsError, did_you_mean
from QEfficient.specs import DTYPES
from QEfficient.transformers.checkpoint import CheckpointWeights, LiveWeights
from QEfficient.transformers.signature import dtype_name, torch_dtype
from QEfficient.transformers.skeleton import build_skeleton, fake_mode, skeleton_of
from QEfficient.transformers.tokenizer_files import lacks_tokenizer

logger = logging.getLogger(__name__)

HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "code_revision",
    "subfolder",
    "token",
    "trust_remote_code",
    "variant",
)
ATTENTION, PROXY = "attn_implementation", "enable_proxy"
EAGER = "eager"
IGNORED_OPTIONS = (
    ATTENTION, "device_map", "low_cpu_mem_usage", "max_memory", "offload_buffers", "offload_folder",
    "offload_state_dict", "use_cache", "use_safetensors", "weights_only", PROXY,
)  # fmt: skip
"""Options of transformers that this library decides itself."""
CONFIG = "config"
_QUANTIZED = "weights are not quantized while they are loaded. Leave it out: compile has options for narrower weights."
_DIVIDED = "a model is divided when it is compiled. Leave it out, and give compile num_devices."
REFUSED_OPTIONS = {
    "adapter_kwargs": "adapters are not read. Merge the adapter into the model, and pass that.",
    "device_mesh": _DIVIDED,
    "distributed_config": _DIVIDED,
    "generation_config": "it belongs to one call. Give it to generate.",
    "gguf_file": "quantized GGUF checkpoints are not read by this release. Give the folder or the hub name of the model"
    " with safetensors, without this option.",
    "ignore_mismatched_sizes": "every weight of the model has to be in its checkpoint. Leave it out.",
    "key_mapping": "weights are found by transformers' own names. Load the model with transformers, and pass the"
    " object.",
    "load_in_4bit": _QUANTIZED,
    "load_in_8bit": _QUANTIZED,
    "output_loading_info": "from_pretrained returns the model alone. Leave it out.",
    "quantization_config": _QUANTIZED,
    "state_dict": "weights are read from the files of the checkpoint. Put these into a model of transformers, and pass"
    " the object.",
    "tp_plan": _DIVIDED,
    "tp_size": _DIVIDED,
}
"""Of transformers' `from_pretrained`, with the reason why not; None and False ask for nothing."""
CALLED = "pretrained_model_name_or_path"
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
SHOWN_SHARDS = 3
"""Of those that are missing."""


@dataclass
class ModelSource:
    """A model before its weights are touched."""

    name: str
    """As the user gave it; `object` for a live model."""
    location: str
    """What transformers' loaders take; empty for an object without a folder."""
    config: Any
    weights: LiveWeights | CheckpointWeights
    model_class: Any
    dtype: str
    hub: dict[str, Any] = field(default_factory=dict)
    live: Any = None
    called: str | None = None
    """What the user calls a live model: for records, nothing is looked for there."""

    def skeleton(self) -> tuple[Any, Any]:
        """The model with fake parameters, and the mode that they live in."""
        mode = fake_mode()
        dtype = torch_dtype(self.dtype)
        if self.live is not None:
            return skeleton_of(self.live, dtype, mode, self._buffer_types(dtype, mode)), mode
        return build_skeleton(self._build, mode), mode

    def _buffer_types(self, dtype: torch.dtype, mode: Any) -> dict[str, torch.dtype]:
        """In which types the class makes its buffers where its parameters are in `dtype`, if the live model's are not:
        some follow the parameters, others are float32 whatever these are."""
        if dtype in {p.dtype for p in self.live.parameters() if p.dtype.is_floating_point}:
            return {}
        try:
            twin = build_skeleton(lambda: type(self.live)._from_config(self.config, dtype=dtype), mode)
        except UnsupportedModelError:  # a class of the user's own, which only the user can build
            return {}
        return {name: buffer.dtype for name, buffer in twin.named_buffers()}

    def _build(self) -> Any:
        dtype = torch_dtype(self.dtype)
        if self.hub.get("trust_remote_code"):
            return self.model_class.from_config(self.config, dtype=dtype, trust_remote_code=True)
        own = self._own_class()
        return (
            own._from_config(self.config, dtype=dtype)
            if own
            else self.model_class.from_config(self.config, dtype=dtype)
        )

    def _own_class(self) -> Any:
        """The class that the checkpoint names, where transformers' mapping does not know its config: the text part of
        a composite model, saved alone."""
        if type(self.config) in self.model_class._model_mapping:
            return None
        named = [getattr(transformers, name, None) for name in self.config.architectures or ()]
        return next((c for c in named if c is not None and c.config_class is type(self.config)), None)

    def tokenizer(self) -> Any | None:
        """The tokenizer that lies beside the model, or None."""
        if not self.location or lacks_tokenizer(Path(self.location).expanduser()):
            return None
        try:
            return transformers.AutoTokenizer.from_pretrained(self.location, **_hub_only(self.hub))
        except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
            logger.info("no tokenizer beside %s: %s", self.name, error)
            return None


def open_source(model: Any, model_class: Any, options: Mapping[str, Any]) -> ModelSource:
    """Find the model and check all that can be checked without its weights."""
    options = dict(options)
    asked = options.pop("dtype", None) or options.pop("torch_dtype", None)
    options.pop("torch_dtype", None)
    _refuse(options)
    if isinstance(model, torch.nn.Module):
        return _open_object(model, model_class, asked, options)
    return _open_name(str(model), model_class, asked, options)


def _dtype(asked: Any, found: Any) -> str:
    """float32 unless something else is asked for; `auto` is what the checkpoint says."""
    if asked is None:
        return "float32"
    if asked == "auto":
        asked = found or "float32"
    name = dtype_name(asked) if isinstance(asked, torch.dtype) else str(asked).removeprefix("torch.")
    if name not in DTYPES:
        raise OptionError(f"dtype '{name}' is not one of {', '.join(DTYPES)}.{did_you_mean(name, DTYPES)}")
    return name


def _open_object(model: Any, model_class: Any, asked: Any, options: dict[str, Any]) -> ModelSource:
    if not hasattr(model, "config"):
        raise ModelError(f"{type(model).__name__} has no config: a transformers model was expected.")
    called = options.pop(CALLED, None)
    _ignore(options)
    if options:
        raise OptionError(f"'{next(iter(options))}' means nothing for a model that is already loaded.")
    _refuse_quantized(model.config, "the model")
    found = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
    kept = found if found == torch.float16 else None  # bfloat16 is widened unless it is asked for
    dtype, weights = _dtype(asked or kept, found), LiveWeights(model)
    return ModelSource("object", "", model.config, weights, model_class, dtype, live=model, called=called)


def _refuse(options: dict[str, Any]) -> None:
    """Take out what asks for nothing; refuse what asks for something that is not done here."""
    for name, reason in REFUSED_OPTIONS.items():
        value = options.pop(name, None)
        if value is not None and value is not False:
            shown = f"={value!r}" if isinstance(value, (str, int)) else ""
            raise OptionError(f"{name}{shown} was given, but {reason}")
    if options.get(CONFIG, "") is None:
        del options[CONFIG]


def _ignore(options: dict[str, Any]) -> None:
    if options.get(PROXY):
        raise OptionError(
            f"{PROXY}=True was asked for: a model with stand-ins for its embedding and its head, whose answers are"
            " another's. This release makes none: leave it out."
        )
    attention = options.get(ATTENTION, EAGER)
    if attention not in (None, EAGER):
        del options[ATTENTION]
        logger.warning(
            "%s=%r was asked for, but attention is always exported in the form '%s'.", ATTENTION, attention, EAGER
        )
    for name in IGNORED_OPTIONS:
        if name in options:
            logger.info("%s=%r is decided by this library.", name, options.pop(name))


def _hub_only(hub: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in hub.items() if name != "variant"}


def _open_name(name: str, model_class: Any, asked: Any, options: dict[str, Any]) -> ModelSource:
    if CALLED in options:
        raise OptionError(f"{CALLED} was given beside '{name}', which names the model already. Give one of them.")
    _ignore(options)
    if "hf_token" in options:
        options["token"] = options.pop("hf_token")
    given = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
    hub = {key: value for key, value in given.items() if value is not None}
    location = str(demo_folder()) if name == DEMO_NAME else name
    own = options.pop(CONFIG, None)
    _check_folder(name, location, needs_config=own is None)
    config = _read_config(name, location, options, hub) if own is None else _own_config(own, options)
    _refuse_quantized(config, name)
    files = _checkpoint_files(name, location, hub)
    found = getattr(config, "dtype", None)
    return ModelSource(name, location, config, CheckpointWeights(files), model_class, _dtype(asked, found), hub)


def _check_folder(name: str, location: str, needs_config: bool) -> None:
    path = Path(location).expanduser()
    looks_local = location.startswith((".", "/", "~")) or location.count("/") > 1
    if looks_local and not path.is_dir():
        raise ModelError(f"there is no folder {location}. Give a local folder or the name of a model on the hub.")
    if needs_config and path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"the folder {name} has no config.json: it does not hold a transformers model.")


def _read_config(name: str, location: str, overrides: dict[str, Any], hub: dict[str, Any]) -> Any:
    try:
        config, unused = transformers.AutoConfig.from_pretrained(
            location, return_unused_kwargs=True, **overrides, **_hub_only(hub)
        )
    except Exception as error:
        raise _explained(name, location, error) from error
    _refuse_unknown([name for name in unused if name in overrides], config)
    return config


def _own_config(given: Any, overrides: Mapping[str, Any]) -> Any:
    """A copy of the config object that takes the place of the checkpoint's, with the overrides laid on it as
    transformers lays them on one that it reads."""
    if not isinstance(given, transformers.PretrainedConfig):
        raise OptionError(
            f"config must be a config object of transformers, not {type(given).__name__}. Make one with"
            " transformers.AutoConfig.from_pretrained(…), or give single values as options: num_hidden_layers=2."
        )
    config = copy.deepcopy(given)
    _refuse_unknown([name for name in overrides if not hasattr(config, name)], config)
    for name, value in overrides.items():
        part = getattr(config, name)
        if isinstance(part, transformers.PretrainedConfig) and isinstance(value, Mapping):
            value = type(part)(**{**part.to_dict(), **value})
        setattr(config, name, value)
    return config


def _refuse_unknown(names: list[str], config: Any) -> None:
    """Refuse the first of the options that neither this library nor the config knows."""
    if names:
        known = [*HUB_OPTIONS, *IGNORED_OPTIONS, CONFIG, "dtype", "continuous_batching", *config.to_dict()]
        raise OptionError(f"from_pretrained does not know the option '{names[0]}'.{did_you_mean(names[0], known)}")


def _explained(name: str, location: str, error: Exception) -> Exception:
    """One sentence for what went wrong while a config was read."""
    text = str(error)
    kinds = {type(e).__name__ for e in _causes(error)}
    if "GatedRepoError" in kinds or "gated" in text.lower():
        return ModelError(
            f"the model '{name}' is gated. Ask for access on its page, then log in (`hf auth login`) or pass token=."
        )
    if "JSONDecodeError" in kinds or "not a valid JSON" in text:
        return ModelError(f"the config.json of '{name}' is damaged: it is no valid JSON. Fetch the model again.")
    if "trust_remote_code" in text:
        return ModelError(
            f"the model '{name}' brings code of its own, which was not run. Read it, then pass trust_remote_code=True"
            " if you trust it."
        )
    if isinstance(error, (ValueError, KeyError)) and ("model type" in text or "model_type" in text):
        kind = _raw_model_type(location)
        if kind is None:
            return ModelError(f"the config.json of '{name}' is damaged: it is no JSON object. Fetch the model again.")
        return UnsupportedModelError(
            f"the model '{name}' is of type '{kind}', which transformers {transformers.__version__} does not know."
            " Upgrade transformers, or pass trust_remote_code=True if the model brings its own code."
        )
    if "LocalEntryNotFoundError" in kinds or "OfflineModeIsEnabled" in kinds or "couldn't connect" in text.lower():
        return ModelError(
            f"the model '{name}' is neither a local folder nor in the local cache, and the hub cannot be reached."
        )
    if isinstance(error, OSError):
        return ModelError(f"there is no model '{name}', neither as a folder nor on the hub: check the spelling.")
    return ModelError(f"the config of '{name}' cannot be read: {_reason(error)}")


def _reason(error: Exception) -> str:
    """The first line of it, and what a first line that ends in a colon leads to."""
    if isinstance(error, ZeroDivisionError):
        return f"a number of it is 0 that is divided by ({error})."
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {more[0].strip()}" if first.endswith(":") and more else first


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _raw_model_type(location: str) -> str | None:
    """As the file says it; None if that holds something else than names and values."""
    try:
        return str(json.loads((Path(location) / "config.json").read_text())["model_type"])
    except TypeError:
        return None
    except (OSError, ValueError, KeyError):
        return "unknown"


def _refuse_quantized(config: Any, name: str) -> None:
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        record = quantization if isinstance(quantization, dict) else vars(quantization)
        method = record.get("quant_method", "unknown")
        raise UnsupportedModelError(
            f"{name} is a checkpoint quantized with '{method}', which this release does not read."
            " Use the model's unquantized checkpoint."
        )


def _checkpoint_files(name: str, location: str, hub: dict[str, Any]) -> list[Path]:
    """safetensors before pickle, one file before shards."""
    for single in _SINGLE_FILES:
        found = find_file(location, single, hub)
        if found:
            return [found]
        index = find_file(location, f"{single}.index.json", hub)
        if index:
            return _shards(name, location, index, hub)
    raise WeightsError(
        f"the model '{name}' has no weights: neither {_SINGLE_FILES[0]} nor {_SINGLE_FILES[1]}, whole or in shards."
    )


def find_file(location: str, file: str, hub: Mapping[str, Any]) -> Path | None:
    """A file of a model, in its folder or from the hub; None if it has none of that name."""
    folder = Path(location).expanduser()
    if folder.is_dir():
        path = folder / hub.get("subfolder", "") / file
        return path if path.is_file() else None
    options = {key: value for key, value in hub.items() if key not in ("variant", "trust_remote_code", "code_revision")}
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_gated_repo": True}
    try:
        found = cached_file(location, file, **missing, **options)
    except OSError as error:
        raise _explained(location, location, error) from error
    return Path(found) if found else None


def _shards(name: str, location: str, index: Path, hub: dict[str, Any]) -> list[Path]:
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    shards = [(shard, find_file(location, shard, hub)) for shard in names]
    missing = [shard for shard, path in shards if path is None]
    if missing:
        listed = ", ".join(missing[:SHOWN_SHARDS]) + (", …" if len(missing) > SHOWN_SHARDS else "")
        found = f"the model '{name}' lacks {len(missing)} of its {len(names)} weight files: {listed}"
        raise WeightsError(f"{found}. Fetch the model again.")
    return [path for _, path in shards if path is not None]
