"""specializations.json: the shapes that a program is compiled for, in the form that the SDK's version reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from QEfficient.devices.cloud_ai_100.sdk import Sdk
from QEfficient.errors import OptionError
from QEfficient.specs import Specialization

FILE = "specializations.json"
NAME_KEY = "_graph_name"
"""Names an entry of a flat list; no symbol."""
TOKENS = ("batch_size", "seq_len")
"""The symbols of `input_ids`."""
VARIANT_KEY = "model_type"
"""A symbol that tells the variants of one module apart."""

Entry = Specialization | Mapping[str, Any]
"""A record, a flat mapping of symbols, or a mapping with `name` and `symbols`."""


@dataclass(frozen=True)
class _Named:
    name: str
    symbols: Mapping[str, str]
    given: bool
    """Whether the name was written down by the user, so that it stays as it is."""


def specializations_text(entries: Iterable[Entry], sdk: Sdk, module: str | None = None) -> str:
    """The text of the file. `module` names the entries that have no name of their own."""
    named = _all_named(entries, module)
    if sdk.reads_named_specializations:
        listed: list[Mapping[str, Any]] = [{"name": entry.name, "symbols": entry.symbols} for entry in named]
    else:
        listed = [entry.symbols for entry in named]
    return json.dumps({"specializations": listed}, indent=4)


def check_told_apart(entries: Sequence[Specialization]) -> None:
    """Refuse shapes of which no single input tells which is meant: several that do so together are not enough."""
    symbols = {symbol for entry in entries for symbol in entry.symbols}
    inputs = [TOKENS, *((symbol,) for symbol in sorted(symbols - set(TOKENS)))]
    shapes = {names: [tuple(entry.symbols.get(name) for name in names) for entry in entries] for names in inputs}
    if all(len(set(found)) < len(entries) for found in shapes.values()):
        tokens = ", ".join("x".join(map(str, shape)) for shape in shapes[TOKENS])
        raise OptionError(
            f"the compiler needs one input whose shape is another in each of the {len(entries)} shapes, but input_ids"
            f" is {tokens}, and no other input is either. Choose a prefill_seq_len that is no num_speculative_tokens +"
            " 1, or other comp_ctx_lengths for prefill than for decoding."
        )


def read_specializations(given: Any) -> tuple[Specialization, ...]:
    """A user's list, in one of the forms that the file has; every size is a positive whole number, or its text."""
    if not isinstance(given, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in given):
        raise OptionError(f"specializations must be a list of mappings from symbols to sizes, not {given!r}.")
    return tuple(
        Specialization(entry.name, {symbol: _size(entry.name, symbol, text) for symbol, text in entry.symbols.items()})
        for entry in _all_named(given)
    )


def _size(name: str, symbol: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise OptionError(f"specialization '{name}' has {symbol} = {text!r}, which is no positive whole number.")
    return int(text)


def _all_named(entries: Iterable[Entry], module: str | None = None) -> list[_Named]:
    named = _unique([_named(entry, index, module) for index, entry in enumerate(entries)])
    if not named:
        raise OptionError("the list of specializations is empty; a program needs at least one.")
    return named


def _named(entry: Entry, index: int, module: str | None) -> _Named:
    if isinstance(entry, Specialization):
        return _Named(entry.name, _strings(entry.symbols), given=False)
    if "symbols" in entry:
        if set(entry) != {"name", "symbols"} or not isinstance(entry["symbols"], Mapping):
            raise OptionError(f"specialization {index} must have a name and a mapping of symbols, not {dict(entry)!r}.")
        return _Named(str(entry["name"]), _strings(entry["symbols"]), given=True)
    symbols = _strings({key: value for key, value in entry.items() if key != NAME_KEY})
    return _Named(str(entry.get(NAME_KEY) or _name(symbols, index, module)), symbols, given=False)


def _strings(symbols: Mapping[str, Any]) -> dict[str, str]:
    """The compiler takes no numbers, only texts that hold them."""
    return {symbol: str(value) for symbol, value in symbols.items() if value is not None}


def _name(symbols: Mapping[str, str], index: int, module: str | None) -> str:
    if module is not None:
        return f"{module}_{VARIANT_KEY}_{symbols[VARIANT_KEY]}" if VARIANT_KEY in symbols else module
    if "seq_len" in symbols:
        return "Decode" if symbols["seq_len"] == "1" else "Prefill"
    if "encoder_ctx_len" in symbols:
        return "Encoder"
    return "Embedding" if "sequence_length" in symbols else f"Graph_{index}"


def _unique(entries: Sequence[_Named]) -> list[_Named]:
    """A name that several entries share gets `_0`, `_1`, …; names that were written down stay."""
    fixed = Counter(entry.name for entry in entries if entry.given)
    twice = [name for name, times in fixed.items() if times > 1]
    if twice:
        raise OptionError(f"two specializations are called '{twice[0]}'. Give each a name of its own.")
    times = Counter(entry.name for entry in entries)
    taken = {entry.name for entry in entries if entry.given or times[entry.name] == 1}
    result = []
    for entry in entries:
        if not entry.given and times[entry.name] > 1:
            entry = _Named(_free(entry.name, taken), entry.symbols, given=False)
            taken.add(entry.name)
        result.append(entry)
    return result


def _free(name: str, taken: set[str]) -> str:
    number = 0
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"
