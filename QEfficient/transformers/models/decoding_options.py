"""The forms in which `generate` is told how tokens are to be found, made into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from QEfficient.errors import OptionError
from QEfficient.generation.decoding import Decoding
from QEfficient.generation.decoding.selection import DecodingChoice
from QEfficient.program import CompiledProgram
from QEfficient.transformers.models.auto_model import AutoModel


def read_decoding(
    named: str | Decoding | None, models: Sequence[Any], lookups: tuple[int | None, int | None]
) -> DecodingChoice:
    """From `decoding=`, the draft model by each of its names, and `prompt_lookup_num_tokens` as a keyword and of the
    config of this call, which anything else replaces."""
    given, configured = lookups
    drafts = {id(model): model for model in models if model is not None}
    if len(drafts) > 1:
        raise OptionError("draft_model= and assistant_model= are two names of one thing. Give one of them.")
    draft = next((compiled_program(model, "draft model") for model in drafts.values()), None)
    if given is not None or (configured is not None and named is None and draft is None):
        named = "prompt_lookup" if named is None else named
    if named == "prompt_lookup":
        return DecodingChoice(named, draft, configured if given is None else given)
    return DecodingChoice(named, draft, given)


def compiled_program(model: Any, what: str) -> CompiledProgram:
    """The program of another model that takes part."""
    if not isinstance(model, AutoModel):
        raise OptionError(f"a {what} must be a QEFFAutoModelForCausalLM, not {type(model).__name__}.")
    compiled = model.compiled
    if not isinstance(compiled, CompiledProgram):
        raise OptionError(f"the {what} is not compiled. Call its compile first, for the same device and ctx_len.")
    return compiled
