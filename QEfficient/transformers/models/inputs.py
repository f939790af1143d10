"""The forms in which `generate` takes its prompts, made into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from QEfficient.errors import OptionError
from QEfficient.generation.script_options import read_prompts as prompts_of
from QEfficient.generation.text import TextGenerator
from QEfficient.transformers.models.script_keywords import PROMPTS_FILE

Messages = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Prompts:
    """Texts, conversations or token ids; exactly one of them."""

    texts: tuple[str, ...] | None = None
    chats: tuple[Messages, ...] | None = None
    ids: tuple[tuple[int, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.texts or self.chats or self.ids or ())

    def encoded(self, text: TextGenerator, template_options: Mapping[str, Any] | None = None) -> list[list[int]]:
        """Each prompt's tokens."""
        if self.chats is not None:
            return [text.encode_chat(messages, template_options) for messages in self.chats]
        if self.texts is not None:
            return [text.encode(prompt) for prompt in self.texts]
        return [list(ids) for ids in self.ids or ()]


def read_prompts(positional: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Prompts, Any | None]:
    """Prompts and, if one was given, the tokenizer. Accepts `(text)`, `(texts)`, `(tokenizer, texts)`, the messages of
    one conversation or of several, a `BatchEncoding`, and by name `tokenizer=`, `prompts=` (or `prompt=`), `input_ids=`
    with `attention_mask=`, or `prompts_txt_file_path=`, a file with a text per line."""
    given = {name: value for name, value in named.items() if value is not None}
    tokenizer, path = given.pop("tokenizer", None), given.get(PROMPTS_FILE)
    candidates = []
    for value in positional:
        if value is None:
            continue
        if is_tokenizer(value):
            tokenizer = value
        else:
            candidates.append(value)
    candidates += [given[name] for name in ("prompts", "prompt", "inputs") if name in given]
    if "input_ids" in given:
        candidates.append({"input_ids": given["input_ids"], "attention_mask": given.get("attention_mask")})
    if path is not None:  # it goes before prompts, as in scripts and on the command line
        return Prompts(texts=tuple(prompts_of(None, path))), tokenizer
    if len(candidates) != 1:
        found = "none" if not candidates else f"{len(candidates)} of them"
        forms = "a text, texts, messages, a BatchEncoding or input_ids="
        raise OptionError(f"generate takes prompts once ({forms}); found {found}.")
    return _prompts(candidates[0]), tokenizer


def by_position(values: tuple[Any, ...], first: int, named: Mapping[str, Any]) -> tuple[tuple[Any, ...], list[Any]]:
    """The first values are about prompts; those behind them are `named` options, given by position as in scripts of
    Qualcomm's library. Returns both, the options as far as they were given either way."""
    own, behind = values[:first], values[first:]
    if len(behind) > len(named):
        raise TypeError(
            f"generate takes {first + len(named)} values by position, the last {len(named)} of which are"
            f" {', '.join(named)}; {len(values)} were given."
        )
    found = dict(named)
    for name, value in zip(named, behind, strict=False):
        if found[name] not in (None, True):  # which are the defaults
            raise TypeError(f"generate was given {name} by position and by name. Give it once.")
        found[name] = value
    return own, list(found.values())


def is_tokenizer(value: Any) -> bool:
    return callable(value) and hasattr(value, "decode")


def _prompts(value: Any) -> Prompts:
    if isinstance(value, str):
        return Prompts(texts=(value,))
    if isinstance(value, Mapping) or hasattr(value, "input_ids"):
        if "input_ids" not in value:
            raise OptionError("a dict must have input_ids; messages are given as a list of dicts, also one alone.")
        return Prompts(ids=_ids(value["input_ids"], value.get("attention_mask")))
    if isinstance(value, Sequence) and value and all(isinstance(item, str) for item in value):
        return Prompts(texts=tuple(value))
    if _is_conversation(value):
        return Prompts(chats=(_messages(value),))
    if isinstance(value, Sequence) and value and all(_is_conversation(item) for item in value):
        return Prompts(chats=tuple(_messages(item) for item in value))
    return Prompts(ids=_ids(value, None))


def _is_conversation(value: Any) -> bool:
    """Whether it is a list of dicts, which can only be messages."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _messages(value: Sequence[Mapping[str, Any]]) -> Messages:
    for message in value:
        if "role" not in message:
            found = ", ".join(map(str, message)) or "nothing"
            raise OptionError(f"a message is a dict with 'role' and 'content', but one has {found}.")
    return tuple(dict(message) for message in value)


def _rows(value: Any) -> list[list[int]]:
    """Nested lists of whole numbers, from a list, an array or a tensor; a flat list is one prompt."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise OptionError(f"prompts must be texts or token ids, not {type(value).__name__}.")
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in value]
    if rows and not isinstance(rows[0], Sequence):
        rows = [rows]
    for row in rows:
        if any(isinstance(token, bool) or not isinstance(token, (int, np.integer)) for token in row):
            raise OptionError("input_ids must be whole numbers: one list of them for each prompt.")
    return [[int(token) for token in row] for row in rows]


def _ids(ids: Any, mask: Any) -> tuple[tuple[int, ...], ...]:
    """One tuple per prompt; what the mask hides, left or right, is dropped."""
    rows = _rows(ids)
    if mask is None:
        return tuple(tuple(row) for row in rows)
    kept = _rows(mask)
    if [len(row) for row in kept] != [len(row) for row in rows]:
        raise OptionError("attention_mask must have the shape of input_ids.")
    return tuple(
        tuple(t for t, keep in zip(row, flags, strict=True) if keep) for row, flags in zip(rows, kept, strict=True)
    )
