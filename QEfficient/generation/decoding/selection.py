"""Which decoding was asked for, made for a session; refused where it cannot be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from QEfficient.devices import Limits, Session, get_device
from QEfficient.errors import OptionError, did_you_mean
from QEfficient.generation.decoding import Decoding, Drafting
from QEfficient.generation.decoding.draft_model import LOOKAHEAD as DRAFT_LOOKAHEAD
from QEfficient.generation.decoding.draft_model import DraftModel
from QEfficient.generation.decoding.on_device import OnDevice
from QEfficient.generation.decoding.one_token import OneToken
from QEfficient.generation.decoding.projections import ProjectionDrafts
from QEfficient.generation.decoding.prompt_lookup import LOOKAHEAD, PromptLookup
from QEfficient.program import CompiledProgram
from QEfficient.specs import CompileSpec

NAMES = ("plain", "prompt_lookup", "projections")


@dataclass(frozen=True)
class DecodingChoice:
    """What was asked for; by default plain decoding, unless the program guesses. Two that are equal mean one."""

    named: str | Decoding | None = None
    draft: CompiledProgram | None = None
    """The program of a draft model."""
    lookahead: int | None = None
    """Most tokens to try ahead; None: what is usual."""

    def __post_init__(self) -> None:
        if self.draft is not None and self.named is not None:
            raise OptionError("a draft model and another decoding were both asked for. Give one of them.")
        if isinstance(self.named, str) and self.named not in NAMES:
            raise OptionError(
                f"there is no decoding '{self.named}'; known are {', '.join(NAMES)}, and draft models."
                f"{did_you_mean(self.named, NAMES)}"
            )
        if not isinstance(self.named, (str, Decoding, type(None))):
            raise OptionError(f"decoding must be a name or a Decoding, not {type(self.named).__name__}.")
        if self.lookahead is not None and self.named != "prompt_lookup" and self.draft is None:
            raise OptionError("a number of tokens to try ahead goes with prompt lookup or a draft model only.")

    @property
    def speculative(self) -> bool:
        named = isinstance(self.named, str) and self.named != "plain"
        return self.draft is not None or named or isinstance(self.named, Drafting)

    def or_usual(self, lookahead: int | None, limits: Limits) -> DecodingChoice:
        """Prompt lookup in place of nothing, if the model's own config wants it and the session can do it."""
        said = self.named is not None or self.draft is not None
        if lookahead is None or said or limits.guesses or why_not_ahead(limits):
            return self
        return DecodingChoice("prompt_lookup", lookahead=lookahead)


def make_decoding(choice: DecodingChoice, compiled: CompiledProgram, session: Session) -> Decoding:
    """The decoding for a session of `compiled`. A draft model's session is opened for it."""
    limits = session.limits
    obstacle = why_not_ahead(limits, compiled.spec) if choice.speculative else ""
    if obstacle:
        raise OptionError(
            f"tokens cannot be tried ahead on device '{compiled.device}': {obstacle} Leave prompt lookup or the draft"
            " model out."
        )
    if limits.choice is not None:
        return OnDevice(limits.choice)
    if choice.draft is not None:
        return _draft_model(choice.draft, compiled, DRAFT_LOOKAHEAD if choice.lookahead is None else choice.lookahead)
    if choice.named == "prompt_lookup":
        return PromptLookup(LOOKAHEAD if choice.lookahead is None else choice.lookahead)
    if choice.named == "projections" or (choice.named is None and limits.guesses and not why_not_ahead(limits)):
        return ProjectionDrafts(session)
    return OneToken() if isinstance(choice.named, str) or choice.named is None else choice.named


def close_decoding(choice: DecodingChoice, decoding: Decoding) -> None:
    """Close the session that was opened for a draft model; objects that were given stay as they are."""
    if choice.draft is not None and isinstance(decoding, DraftModel):
        decoding.close()


def why_not_ahead(limits: Limits, spec: CompileSpec | None = None) -> str:
    """Why a session cannot tell whether drafts are right, and what could; empty if it can. `spec`: what its program was
    compiled for, where that is known."""
    if limits.paging is not None and not limits.paging.shareable:
        return "the model has recurrent states, or states in slots, which cannot go back behind a draft that was wrong."
    if limits.choice is not None:
        return "this program chooses tokens itself."
    if min(limits.logits, limits.chunk) < 2:
        return f"{_one_at_a_time(spec)}, or, if its states allow, for device 'cpu'."
    return ""


def _one_at_a_time(spec: CompileSpec | None) -> str:
    """Why a program gives the logits of one token of a sequence at a time, and how to compile it otherwise."""
    if spec is not None and spec.prefill_only:
        return (
            "this program was compiled with prefill_only=True: all that it has are the calls for prompts, which give"
            " the logits of their last token. Compile it without prefill_only, and with num_speculative_tokens"
        )
    if spec is not None and spec.num_speculative_tokens == (0,):
        return (
            "this program was compiled with num_speculative_tokens=[0], to try none. Compile it with a larger number"
            " beside it"
        )
    return "this program gives the logits of one token of a sequence at a time. Compile it with num_speculative_tokens"


def _draft_model(draft: CompiledProgram, compiled: CompiledProgram, lookahead: int) -> DraftModel:
    check_vocabularies(compiled, draft)
    session = get_device(draft.device).load(draft)
    try:
        return DraftModel(session, lookahead)
    except BaseException:
        session.close()
        raise


def check_vocabularies(compiled: CompiledProgram, draft: CompiledProgram) -> None:
    """Refuse a draft model that means other texts by the same tokens."""
    ours, theirs = compiled.program.model, draft.program.model
    advice = "Take a draft model of the same family."
    if theirs.task != "causal-lm":
        raise OptionError(f"the draft model {draft.folder} computes {theirs.task}; it does not generate text.")
    if theirs.vocab_size != ours.vocab_size:
        raise OptionError(
            f"the draft model {theirs.name} has a vocabulary of {theirs.vocab_size:,} tokens, but {ours.name} has"
            f" {ours.vocab_size:,}. {advice}"
        )
    mine, other = _tokens(compiled), _tokens(draft)
    if mine is not None and other is not None and mine != other:
        raise OptionError(f"the tokenizers of the draft model {theirs.name} and of {ours.name} differ. {advice}")


def _tokens(compiled: CompiledProgram) -> Mapping[str, Any] | None:
    """The model of the tokenizer that came with a program, where it can be read."""
    path = compiled.program.folder / "tokenizer" / "tokenizer.json"
    if not path.is_file():
        return None
    found: Mapping[str, Any] | None = json.loads(path.read_text(encoding="utf-8")).get("model")
    return found
