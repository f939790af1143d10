"""The specialization file: several static shapes of one program, in the form that the release reads."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from qaic_simulator.profiles import Profile

MOST_ENTRIES = 16
LARGEST_SIZE = 2**31 - 1
"""Of one dimension: more than any device has memory for."""
INDISTINGUISHABLE = "No input that uniquely identifies specialization"
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_JSON_NAMES: Mapping[type, str] = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "boolean",
    int: "number",
    float: "number",
    type(None): "null",
}


@dataclass(frozen=True)
class Specialization:
    """One assignment of numbers to symbols; the name is empty in the flat form."""

    name: str
    symbols: Mapping[str, int]


def read_json(path: Path, profile: Profile) -> Any:
    """What a JSON file holds."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(
            text, parse_constant=_refuse_constant, object_pairs_hook=lambda pairs: _object(pairs, profile)
        )
        json.dumps(content, ensure_ascii=False).encode()  # half of a character in two escapes is none
        return content
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError):
        where = "line 1, column 1"
    text = f"[json.exception.parse_error.101] parse error at {where}: syntax error while parsing value"
    profile.refuse("json.syntax", text)
    return None


def _object(pairs: Sequence[tuple[str, Any]], profile: Profile) -> dict[str, Any]:
    """An object; of a key that stands twice, readers disagree which value holds."""
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        profile.refuse("json.repeated", f"The key {repeated!r} stands twice in one object.")
    return found


def _refuse_constant(text: str) -> NoReturn:
    """For NaN and the infinities, which Python reads and JSON does not have."""
    raise ValueError(text)


def type_fault(expected: str, found: Any) -> str:
    """The compiler's JSON library on a value of another type."""
    return f"[json.exception.type_error.302] type must be {expected}, but is {_JSON_NAMES[type(found)]}"


def expect(value: Any, kind: type, profile: Profile, rule: str = "json.type") -> None:
    """Refuse a JSON value that is not of this type; a boolean is no number."""
    if type(value) is not kind:
        profile.refuse(rule, type_fault(_JSON_NAMES[kind], value))


def expect_key(holder: Any, key: str, profile: Profile) -> Any:
    """The value of a key that an object must have."""
    expect(holder, dict, profile)
    if key not in holder:
        profile.refuse("json.key", f"[json.exception.out_of_range.403] key '{key}' not found")
    return holder[key]


def refuse_other_keys(holder: Mapping[str, Any], known: Iterable[str], rule: str, profile: Profile) -> None:
    """Refuse keys that nobody would read."""
    for key in sorted(set(holder) - set(known)):
        profile.refuse(rule, f"Nobody reads the key '{key}'; known are {', '.join(known)}.")


def read_specializations(path: Path, profile: Profile) -> tuple[Specialization, ...]:
    """The entries of a specialization file, each with all its symbols."""
    content = read_json(path, profile)
    listed = expect_key(content, "specializations", profile)
    expect(listed, list, profile)
    refuse_other_keys(content, ("specializations",), "specializations.keys", profile)
    read = _read_named if profile.named_specializations else _read_flat
    entries = tuple(read(entry, profile) for entry in listed)
    _check_entries(entries, profile)
    return entries


def _read_flat(entry: Any, profile: Profile) -> Specialization:
    expect(entry, dict, profile)
    # Types first, of all values: a named entry's name is a string too, and no number.
    for value in entry.values():
        expect(value, str, profile, _rule_of_type(value))
    return Specialization("", {symbol: _read_number(symbol, text, profile) for symbol, text in entry.items()})


def _read_named(entry: Any, profile: Profile) -> Specialization:
    expect(entry, dict, profile)
    if not {"name", "symbols"} & set(entry):
        profile.refuse("specializations.flat", "An entry has neither a name nor symbols: SDK 1.22 needs both.")
        return _read_flat(entry, profile)
    name, symbols = expect_key(entry, "name", profile), expect_key(entry, "symbols", profile)
    expect(name, str, profile)
    if not name:
        profile.refuse("specializations.name", "The name of a specialization is empty.")
    expect(symbols, dict, profile)
    refuse_other_keys(entry, ("name", "symbols"), "specializations.keys", profile)
    return Specialization(name, _read_flat(symbols, profile).symbols)


def _read_number(symbol: str, value: str, profile: Profile) -> int:
    if not _WHOLE_NUMBER.fullmatch(value):
        profile.refuse("specializations.integer", f"Symbol {symbol} needs a whole number, not '{value}'.")
    if int(value) < 1:
        profile.refuse("specializations.positive", f"Symbol {symbol} must be positive, but is {value}.")
    if int(value) > LARGEST_SIZE:
        text = f"Symbol {symbol} is {value}, but no dimension is larger than {LARGEST_SIZE}."
        profile.refuse("specializations.range", text)
    return int(value)


def _rule_of_type(value: Any) -> str:
    if isinstance(value, dict):
        return "specializations.named"
    return "specializations.number" if type(value) in (int, float) else "json.type"


def _check_entries(entries: Sequence[Specialization], profile: Profile) -> None:
    if not entries or not all(entry.symbols for entry in entries):
        profile.refuse("specializations.none", "There is no specialization, or one that binds nothing.")
    if len(entries) > MOST_ENTRIES:
        profile.refuse("specializations.many", f"{len(entries)} specializations are more than {MOST_ENTRIES}.")
    names = [entry.name for entry in entries if entry.name]
    if len(set(names)) < len(names):
        profile.refuse("specializations.name-twice", "Two specializations have the same name.")
    distinct = {tuple(sorted(entry.symbols.items())) for entry in entries}
    if len(distinct) < len(entries):
        profile.refuse("specializations.indistinguishable", INDISTINGUISHABLE)


def check_against(
    symbols_of_live_inputs: Mapping[str, Sequence[str | int]],
    entries: Sequence[Specialization],
    profile: Profile,
) -> None:
    """Refuse entries of which one is not told from all others by the shape of a single input.

    One input, not several together: so says the message, and so do programs that keep the lengths of prefill and
    decode apart although another input differs already.
    """
    shapes = [
        {name: _shape(dimensions, entry) for name, dimensions in symbols_of_live_inputs.items()} for entry in entries
    ]
    for own in shapes:
        others = [shape for shape in shapes if shape is not own]
        if not _is_unique(own, others):
            profile.refuse("specializations.indistinguishable", INDISTINGUISHABLE)


def _shape(dimensions: Sequence[str | int], entry: Specialization) -> tuple[str | int, ...]:
    """The dimensions with their numbers; a symbol that no entry binds tells none from another."""
    return tuple(size if isinstance(size, int) else entry.symbols.get(size, size) for size in dimensions)


def _is_unique(own: Mapping[str, tuple[str | int, ...]], others: Sequence[Mapping[str, tuple[str | int, ...]]]) -> bool:
    """Whether some input has a shape that it has in no other entry."""
    return not others or any(all(shape != other[name] for other in others) for name, shape in own.items())
