"""What a script says: of its prompts, and of its program, held against what that is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from QEfficient.devices.choosing import RANDOM, SETTINGS
from QEfficient.errors import OptionError, PromptError, did_you_mean
from QEfficient.generation.masks import Always, MaskedParams
from QEfficient.program import (
    ACCEPTED_TOKENS,
    COMPUTE_CONTEXT,
    KEPT_LOGITS,
    MARKED_PRESENCE,
    MARKED_REPETITION,
    NEXT_TOKENS,
    PROBABILITIES,
    TOKEN_BITMASKS,
    CompiledProgram,
)
from QEfficient.specs import SamplingParams

logger = logging.getLogger(__name__)

SAMPLER = frozenset((ACCEPTED_TOKENS, *SETTINGS, MARKED_REPETITION, MARKED_PRESENCE))
"""The inputs of a program that chooses tokens on the card."""

SHOWN_BY = {
    "include_sampler": NEXT_TOKENS,
    "sampling_params": NEXT_TOKENS,
    "return_pdfs": PROBABILITIES,
    "include_guided_decoding": TOKEN_BITMASKS,
}
"""Which tensor of a program shows that it does what a keyword asks for."""

FIELDS = {
    "repetition_penalties": "repetition_penalty",
    "presence_penalties": "presence_penalty",
    "temperatures": "temperature",
    "top_ks": "top_k",
    "top_ps": "top_p",
    "min_ps": "min_p",
}
"""Arrays of `sampling_params`, and what each says of one prompt. Random numbers are drawn anew for every token."""


@dataclass(frozen=True)
class Wishes:
    """What a script asks for."""

    full_batch_size: int | None = None
    comp_ctx_lengths_prefill: tuple[int, ...] = ()
    comp_ctx_lengths_decode: tuple[int, ...] = ()
    is_tlm: bool = False
    sampler: bool = False
    guided: bool = False
    sampling_params: Mapping[str, Any] = field(default_factory=dict)


def check_wishes(wishes: Wishes, compiled: CompiledProgram) -> None:
    """Refuse what the program is not. A sampler that it has not is done without, as scripts expect."""
    inputs = frozenset(tensor.name for tensor in compiled.program.graphs["lm"].spec.all_inputs)
    _check_batching(wishes.full_batch_size, compiled)
    _check_sampler(wishes, inputs)
    if inputs & SAMPLER:
        _check_bitmasks(wishes.sampling_params, compiled)
    if wishes.is_tlm and KEPT_LOGITS not in inputs:
        raise OptionError(
            f"is_tlm was asked for, but the program has no input '{KEPT_LOGITS}': it gives the logits of one token at a"
            " time. Compile the target of speculative decoding for it."
        )
    check_contexts(wishes, compiled)


def check_contexts(wishes: Wishes, compiled: CompiledProgram) -> None:
    """Refuse compute contexts that the program has no shape for. A number that `compile` lowered for prefill, since
    decoding has it too, may still be said."""
    decode = compiled.spec.comp_ctx_lengths_decode
    known = {
        "comp_ctx_lengths_prefill": tuple(sorted({*compiled.spec.comp_ctx_lengths_prefill, *decode})),
        "comp_ctx_lengths_decode": decode,
    }
    for name, found in known.items():
        asked = getattr(wishes, name)
        if not set(asked) <= set(found):
            advice = "Give those, or leave it out." if found else f"Compile it with {name}, or leave it out."
            raise OptionError(
                f"{name} {list(asked)} was asked for, but the program was compiled for {list(found) or 'none'}"
                f" (input '{COMPUTE_CONTEXT}'). {advice}"
            )


def check_sampler_keywords(given: Mapping[str, Any], compiled: CompiledProgram) -> None:
    """Refuse what only a program does that was exported for it. None and empty are not said."""
    spec = compiled.program.graphs["lm"].spec
    tensors = {tensor.name for tensor in (*spec.all_inputs, *spec.all_outputs)}
    if given.get("include_sampler") is False and spec.chooses_tokens:
        raise OptionError(
            "include_sampler=False was given, but the program chooses tokens on the card. Leave it out, or load the"
            " model without include_sampler in its qaic_config."
        )
    for name, tensor in SHOWN_BY.items():
        if given.get(name) and tensor not in tensors:
            config = dict.fromkeys(("include_sampler", *({name} - {"sampling_params"})), True)
            instead = "the card chooses tokens, and does no more"
            if not spec.chooses_tokens:
                instead = "tokens are chosen on the host, as temperature=, top_k= and so on say"
            raise OptionError(
                f"{name} was given, but the program has no '{tensor}': {instead}. Leave {name} out, or load the model"
                f" with qaic_config={config} and compile it for a Cloud AI 100."
            )
    _check_bitmasks(given.get("sampling_params") or {}, compiled)


def check_iteration(given: Any) -> int:
    """How often all prompts run; once where nothing is said."""
    if given is None:
        return 1
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise OptionError(f"iteration must be a positive whole number, not {given!r}.")
    return given


def _check_batching(asked: int | None, compiled: CompiledProgram) -> None:
    spec = compiled.spec
    if asked is None or asked in (spec.full_batch_size, spec.slots if spec.continuous_batching else None):
        return
    found = f"for {spec.full_batch_size or spec.slots}" if spec.continuous_batching else "without continuous batching"
    raise OptionError(f"full_batch_size {asked} was asked for, but the program was compiled {found}. Leave it out.")


def _check_sampler(wishes: Wishes, inputs: frozenset[str]) -> None:
    found = inputs & SAMPLER
    if found and found != SAMPLER:
        raise OptionError(f"the program has a part of a sampler only: it lacks {', '.join(sorted(SAMPLER - found))}.")
    if found and not wishes.sampler:
        raise OptionError("the program chooses tokens on the card: say so with include_sampler=True.")
    if not found and (wishes.sampler or wishes.guided or wishes.sampling_params):
        logger.warning("the program has no sampler: the likeliest tokens are taken, and sampling_params not read.")
    elif wishes.guided and TOKEN_BITMASKS not in inputs:
        raise OptionError(f"include_guided_decoding was asked for, but the program has no input '{TOKEN_BITMASKS}'.")


def chosen_params(usual: SamplingParams, given: Mapping[str, Any], number: int) -> SamplingParams:
    """How the tokens of one prompt are chosen: its line of each array. One line, or several that say the same, are for
    all prompts."""
    known = (*FIELDS, RANDOM, TOKEN_BITMASKS)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise OptionError(
            f"sampling_params has '{unknown[0]}', which is no input of a sampler.{did_you_mean(unknown[0], known)}"
            f" There are {', '.join(known)}."
        )
    found = {FIELDS[name]: _line(name, array, number).item() for name, array in given.items() if name in FIELDS}
    if given.get(TOKEN_BITMASKS) is None:
        return replace(usual, **found)
    said = {each.name: getattr(usual, each.name) for each in fields(SamplingParams)}
    return MaskedParams(**{**said, **found}, mask=Always(_line(TOKEN_BITMASKS, given[TOKEN_BITMASKS], number)))


def for_every_batch(given: Mapping[str, Any], prompts: int, batch: int) -> dict[str, Any]:
    """Arrays with a line for each row of a batch, for several batches one after another: rows mean the same in each."""
    arrays = {name: _lines(name, array) for name, array in given.items() if array is not None}
    several = {name: len(lines) == batch < prompts for name, lines in arrays.items()}
    return {n: np.resize(a, (prompts, *a.shape[1:])) if several[n] else a for n, a in arrays.items()}


def _lines(name: str, array: Any) -> np.ndarray:
    """The array with what it says of each prompt in its first axis."""
    lines = np.atleast_2d(np.asarray(array)) if name in (TOKEN_BITMASKS, RANDOM) else np.ravel(array)
    if not lines.size:
        raise OptionError(f"sampling_params has no line in '{name}'. Give one for each prompt, or one for all.")
    return lines


def _line(name: str, array: Any, number: int) -> np.ndarray:
    lines = _lines(name, array)
    if number >= len(lines) and (lines != lines[0]).any():
        raise OptionError(
            f"sampling_params has {len(lines)} lines in '{name}', which differ, and there are more prompts: which of"
            " them gets which line would follow from which answer ends first. Give a line for each prompt, or one for"
            " all."
        )
    line: np.ndarray = lines[number if number < len(lines) else 0]
    return line


def _check_bitmasks(given: Mapping[str, Any], compiled: CompiledProgram) -> None:
    """Refuse masks that a program does not read, or that are not of its tokens."""
    array = given.get(TOKEN_BITMASKS)
    if array is None:
        return
    spec = compiled.program.graphs["lm"].spec
    width = next((tensor.shape[-1] for tensor in spec.all_inputs if tensor.name == TOKEN_BITMASKS), None)
    if width is None:
        raise OptionError(
            f"sampling_params has '{TOKEN_BITMASKS}', but the program has no such input. Leave it out, or load the"
            " model with qaic_config={'include_sampler': True, 'include_guided_decoding': True}."
        )
    lines = _lines(TOKEN_BITMASKS, array)
    if lines.ndim != 2 or lines.shape[1] != width:
        raise OptionError(
            f"sampling_params has '{TOKEN_BITMASKS}' of shape {list(np.shape(array))}, but the program has {width}"
            f" tokens: [prompts, {width}] is expected, True where a token may come."
        )


def read_prompts(prompt: str | Sequence[str] | None, path: str | Path | None) -> list[str]:
    """The lines of the file, if one is named; else the prompts."""
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"the prompts in {path} cannot be read: {error}.") from error
        prompt = [line.strip() for line in lines if line.strip()]
    prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
    if not prompts:
        raise PromptError("there is no prompt: give prompt=, or prompts_txt_file_path= with a prompt per line.")
    return prompts


def pad_right(tokenizer: Any) -> None:
    """Say to the tokenizer how scripts that go on with it expect it to pad."""
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
