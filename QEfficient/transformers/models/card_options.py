"""`qaic_config`, and the options of `compile` that decide which shapes a program is compiled for."""

from __future__ import annotations

import ast
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from QEfficient.devices import FOREIGN_OPTIONS, Device
from QEfficient.errors import OptionError, did_you_mean
from QEfficient.specs import PROJECTED, BlockingSpec, CompileSpec, LatentSpec, SamplerSpec, check_compute_contexts
from QEfficient.transformers.config_sizes import layer_numbers
from QEfficient.transformers.models import blocking
from QEfficient.transformers.models.compute_contexts import automatic_lists, of_phases, unreached

logger = logging.getLogger(__name__)

TARGET = "target"
SPECULATIVE_MODEL_TYPES = (TARGET, PROJECTED)
LATENT, LATENT_KEYS = "mla_absorption", ("cache_compressed", "absorption", "online")
SAMPLER = ("include_sampler", "return_pdfs", "include_guided_decoding", "max_top_k_ids")
PROJECTIONS_PLACE = "pretrained_model_name_or_path"
SILENT = (PROJECTIONS_PLACE, *blocking.KEYS)
"""Without effect by themselves."""
DECIDES: Mapping[str, tuple[str, ...]] = {
    "speculative_model_type": ("speculative_target", "projections", "projections_place"),
    "include_sampler": ("sampler",),
    "ccl_enabled": ("compute_context",),
    "replicate_kv_heads": ("replicate_kv_heads",),
    blocking.ENABLE: ("blocking",),
    LATENT: ("latent",),
}
"""A key, with those that belong to it, and the fields of `CardConfig` that follow from it."""
DECIDED_WHEN_OPENED = ("speculative_model_type", "include_sampler")


@dataclass(frozen=True)
class CardConfig:
    """What `qaic_config` asks of the graph."""

    speculative_target: bool = False
    compute_context: bool = False
    replicate_kv_heads: bool = False
    sampler: SamplerSpec | None = None
    blocking: BlockingSpec | None = None
    latent: LatentSpec | None = None
    projections: bool = False
    """A target that guesses by itself, with projections that lie beside its weights."""
    projections_place: str | None = None
    """Of another model than the one that is opened."""


def read_qaic_config(given: Mapping[str, Any] | None) -> CardConfig:
    """Refuses misspelt keys, with a suggestion."""
    known = ("speculative_model_type", "ccl_enabled", "replicate_kv_heads", blocking.ENABLE, LATENT, *SAMPLER, *SILENT)
    used = {key: value for key, value in (given or {}).items() if value not in (None, False)}
    for key in used:
        if key in _for_compile():
            raise OptionError(f"qaic_config has '{key}', which is a keyword of its own: compile({key}={used[key]!r}).")
        if key not in known:
            raise OptionError(f"qaic_config does not know '{key}'.{did_you_mean(key, known)}")
    kind = used.get("speculative_model_type")
    if kind is not None and kind not in SPECULATIVE_MODEL_TYPES:
        raise OptionError(
            f"qaic_config['speculative_model_type'] is {kind!r}; it can be {' or '.join(SPECULATIVE_MODEL_TYPES)}."
        )
    if kind is not None and used.get("include_sampler"):
        raise OptionError("qaic_config: a target of speculative decoding does not choose tokens (include_sampler).")
    return CardConfig(
        kind is not None,
        bool(used.get("ccl_enabled")),
        bool(used.get("replicate_kv_heads")),
        _sampler(used),
        blocking.read_blocking(given or {}),
        _latent(used.get(LATENT)),
        kind == PROJECTED,
        used.get(PROJECTIONS_PLACE),
    )


def _for_compile() -> set[str]:
    """What old scripts said in `qaic_config`."""
    shapes = {each.name for record in (CompileSpec, Shapes) for each in fields(record)}
    return {*shapes, *FOREIGN_OPTIONS} - {"device_options", "verbatim"}


def with_compile_config(opened: CardConfig, given: Mapping[str, Any] | None, exported: bool) -> CardConfig:
    """`opened` with what `compile` was told beside. Refuses what comes too late: behind an export by somebody else, or
    where the model was opened for another thing."""
    found = read_qaic_config(given)
    found = replace(found, projections_place=found.projections_place or opened.projections_place)
    taken: dict[str, Any] = {}
    for key, names in DECIDES.items():
        asked, had = ({name: getattr(config, name) for name in names} for config in (found, opened))
        if given is None or given.get(key) is None or asked == had:
            continue
        said = f"compile was given qaic_config['{key}'] = {given[key]!r}"
        if any(had.values()):
            raise OptionError(
                f"{said}, which is {_shown(asked)}, but the model was opened with {_shown(had)}. Say it once, when the"
                " model is opened (from_pretrained)."
            )
        if key in DECIDED_WHEN_OPENED:
            raise OptionError(f"{said}, which must be known when the model is opened. Give it to from_pretrained.")
        if exported:
            raise OptionError(
                f"{said}, which shapes the graph, but onnx_path names that already. Leave one of them out."
            )
        taken |= asked
    return replace(opened, **taken)


def _shown(said: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in said.items())


def _sampler(used: Mapping[str, Any]) -> SamplerSpec | None:
    if not used.get("include_sampler"):
        for name in ("return_pdfs", "include_guided_decoding"):
            if name in used:
                raise OptionError(f"qaic_config['{name}'] goes with include_sampler=True only.")
        return None
    widest = used.get("max_top_k_ids", SamplerSpec.max_top_k_ids)
    return SamplerSpec(widest, bool(used.get("return_pdfs")), bool(used.get("include_guided_decoding")))


def _latent(given: Any) -> LatentSpec | None:
    """What `mla_absorption` asks for; `online`: by each query, not by their projection, which is larger then."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise OptionError(f"qaic_config['{LATENT}'] must be a dict of {', '.join(LATENT_KEYS)}, not {given!r}.")
    for key, value in given.items():
        if key not in LATENT_KEYS:
            raise OptionError(f"qaic_config['{LATENT}'] does not know '{key}'.{did_you_mean(str(key), LATENT_KEYS)}")
        if not isinstance(value, bool):
            raise OptionError(f"qaic_config['{LATENT}']['{key}'] must be True or False, not {value!r}.")
    if not given.get("cache_compressed"):
        logger.warning("qaic_config['%s'] has no effect: its 'cache_compressed' is not True.", LATENT)
        return None
    return LatentSpec(given.get("absorption", False), not given.get("online", False))


def kv_head_copies(config: Any, devices: int) -> int:
    """How often a state must hold each head of keys so that as many devices share them evenly. Where layers differ, in
    the layer with the fewest."""
    queries = layer_numbers(config, "num_attention_heads")
    if not queries:
        raise OptionError("the model's config tells of no heads of attention: leave replicate_kv_heads out.")
    heads = min(queries)
    kv_heads = min(layer_numbers(config, "num_key_value_heads") or queries)
    for copies in range(1, heads // kv_heads + 1):
        if (kv_heads * copies) % devices == 0 and heads % (kv_heads * copies) == 0:
            return copies
    raise OptionError(
        f"{devices} devices are to share each layer, but {kv_heads} heads of keys for {heads} of queries cannot be"
        " copied so that they share them evenly. Choose another num_devices, or leave replicate_kv_heads out."
    )


@dataclass(frozen=True)
class Shapes:
    """Which kinds of calls a program is wanted for, as a user says it."""

    num_speculative_tokens: int | list[int] | tuple[int, ...] | None = None
    comp_ctx_lengths_prefill: list[int] | str | None = None
    comp_ctx_lengths_decode: list[int] | str | None = None
    prefill_only: bool | None = None

    @property
    def reads_less(self) -> bool:
        """Whether attention is to read less than the whole context."""
        return bool(self.comp_ctx_lengths_prefill or self.comp_ctx_lengths_decode)


def graph_options(
    config: CardConfig, shapes: Shapes, model_config: Any, devices: int, spec: CompileSpec
) -> dict[str, Any]:
    """What `export` is told for these kinds of calls on as many devices."""
    asked = config.blocking
    blocks = {} if asked is None else {"blocking": blocking.with_sizes(asked, model_config, spec, devices)}
    return {
        **blocks,
        "compute_context": config.compute_context or shapes.reads_less,
        "kv_head_copies": kv_head_copies(model_config, devices) if config.replicate_kv_heads else 1,
    }


def sharing(options: Mapping[str, Any]) -> int:
    """How many devices work on each layer together: with a pipeline, those of one stage."""
    return max(1, (options.get("num_devices") or 1) // (options.get("mdp_num_partitions") or 1))


def check_device(config: CardConfig, device: Device) -> None:
    """Refuse a device that runs no such program, before one is made."""
    if config.sampler is not None and not device.pads_calls:
        raise OptionError(
            f"include_sampler was asked for, but for device '{device.name}' tokens are chosen on the host, where every"
            " option of sampling works. Leave include_sampler out."
        )
    if config.projections and not device.pads_calls:
        raise OptionError(
            f"speculative_model_type '{PROJECTED}' was asked for, but device '{device.name}' runs no"
            " projections. Leave it out and use prompt lookup or a draft model, which need no other program there."
        )


def shaped(spec: CompileSpec, shapes: Shapes, config: CardConfig) -> CompileSpec:
    """`spec` with these shapes too."""
    if shapes.prefill_only is not None and not isinstance(shapes.prefill_only, bool):
        raise TypeError(f"prefill_only must be True, False or None, not {shapes.prefill_only!r}.")
    ahead = numbers("num_speculative_tokens", shapes.num_speculative_tokens)
    if config.speculative_target and not config.projections and not ahead:
        raise TypeError(
            "num_speculative_tokens is needed: the model was loaded as the target of speculative decoding"
            " (qaic_config['speculative_model_type'])."
        )
    if not config.speculative_target and not any(ahead) and not spec.verbatim:
        ahead = ()  # without tokens tried ahead, 0 says what is so anyway
    if ahead and not config.speculative_target:
        raise OptionError(
            "num_speculative_tokens needs a model that was loaded with"
            f" qaic_config={{'speculative_model_type': '{TARGET}'}}, but {shapes.num_speculative_tokens!r} was asked"
            " for of one that was not. Load it so, or leave num_speculative_tokens out (0 is the same)."
        )
    prefill = numbers("comp_ctx_lengths_prefill", shapes.comp_ctx_lengths_prefill)
    decode = numbers("comp_ctx_lengths_decode", shapes.comp_ctx_lengths_decode)
    ctx_len = spec.ctx_len
    for name, given in (("comp_ctx_lengths_prefill", prefill), ("comp_ctx_lengths_decode", decode)):
        check_compute_contexts(name, given, ctx_len)  # as they were given: one may follow from the other
    if config.compute_context and not prefill and not decode:
        _, decode, ctx_len = automatic_lists(ctx_len, spec.prefill_seq_len)
    prefill, decode = of_phases(prefill, decode, spec.prefill_seq_len, shapes.prefill_only)
    found = replace(
        spec,
        ctx_len=ctx_len,
        num_speculative_tokens=ahead,
        comp_ctx_lengths_prefill=prefill,
        comp_ctx_lengths_decode=decode,
        prefill_only=shapes.prefill_only,
    )
    if unreached(found):
        raise OptionError(unreached(found))
    return found


def numbers(name: str, given: Any) -> tuple[int, ...]:
    """A number, several, or their text."""
    if isinstance(given, str):
        try:
            given = ast.literal_eval(given)
        except (ValueError, SyntaxError):
            raise OptionError(f"{name} must be a list of whole numbers, not '{given}'.") from None
    if given is None:
        return ()
    if isinstance(given, int) and not isinstance(given, bool):
        given = (given,)
    try:
        found = tuple(given)
    except TypeError:
        raise OptionError(f"{name} must be a list of whole numbers, not {given!r}.") from None
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in found):
        raise OptionError(f"{name} must be a list of whole numbers, not {given!r}.")
    return found
