"""`compile(specializations=[…])`: shapes word for word, as scripts of Qualcomm's library give them.

The geometry that sessions go by is read from the list: how many sequences decode together, how long a chunk of a prompt
is. So nothing else has to be said, and nothing else counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from QEfficient.devices.cloud_ai_100.specializations_file import read_specializations
from QEfficient.errors import OptionError
from QEfficient.program import COMPUTE_CONTEXT, KEPT_LOGITS, GraphSpec
from QEfficient.specs import CompileSpec, Specialization
from QEfficient.transformers.models.card_options import Shapes

NEEDED = ("batch_size", "seq_len", "ctx_len")
SLOTS = "full_batch_size"
OF_NO_TENSOR = ("full_batch_exec_size",)
"""Symbols that stand in the file all the same."""


def verbatim_spec(given: Any, device_options: Mapping[str, Any]) -> CompileSpec:
    """The list as a geometry that is compiled for exactly these shapes."""
    entries = read_specializations(given)
    for name in NEEDED:
        _check_all_have(name, entries)
    slots = _shared(SLOTS, entries) if any(SLOTS in entry.symbols for entry in entries) else None
    decoding = [entry for entry in entries if entry.symbols["seq_len"] == entry.symbols.get(KEPT_LOGITS, 1)]
    prefill = [entry for entry in entries if entry not in decoding]
    rows = max(_sizes("batch_size", decoding or prefill)) if slots else _shared("batch_size", entries)
    ahead = tuple(length - 1 for length in _sizes("seq_len", decoding)) if _sizes(KEPT_LOGITS, entries) else ()
    return CompileSpec(
        1 if slots else rows,
        max(_sizes("seq_len", prefill or decoding)),
        _shared("ctx_len", entries),
        rows if slots else None,
        slots,
        device_options,
        ahead,
        _sizes(COMPUTE_CONTEXT, prefill),
        _sizes(COMPUTE_CONTEXT, decoding),
        None if decoding else True,
        entries,
    )


def shapes_of(spec: CompileSpec) -> Shapes:
    """The kinds of calls that such a geometry has, as a user would ask for them."""
    lists = list(spec.comp_ctx_lengths_prefill), list(spec.comp_ctx_lengths_decode)
    return Shapes(spec.num_speculative_tokens, *lists, spec.prefill_only)


def check_symbols(graph: GraphSpec, spec: CompileSpec) -> None:
    """Refuse shapes, given word for word, that say too little or too much for the graph."""
    tensors = (*graph.all_inputs, *graph.all_outputs)
    known = {size for tensor in tensors for size in tensor.shape if isinstance(size, str)}
    for name in sorted(known) if spec.verbatim else ():
        _check_all_have(name, spec.verbatim)
    for entry in spec.verbatim:
        unknown = sorted(set(entry.symbols) - known - set(OF_NO_TENSOR))
        if unknown:
            raise OptionError(
                f"specialization '{entry.name}' has the symbol '{unknown[0]}', but the graph's are"
                f" {', '.join(sorted(known))}. Leave it out."
            )
        for name, size in graph.windows.items():
            if entry.symbols[name] != min(size, spec.ctx_len):
                raise OptionError(
                    f"specialization '{entry.name}' has {name} = {entry.symbols[name]}, but the model's window asks for"
                    f" {min(size, spec.ctx_len)}."
                )


def _sizes(name: str, entries: Sequence[Specialization]) -> tuple[int, ...]:
    return tuple(entry.symbols[name] for entry in entries if name in entry.symbols)


def _shared(name: str, entries: Sequence[Specialization]) -> int:
    """A size that states have, so it is the same in every shape."""
    _check_all_have(name, entries)
    found = sorted(set(_sizes(name, entries)))
    if len(found) > 1:
        raise OptionError(
            f"specializations have {name} = {' and '.join(map(str, found))}, but all shapes of a program share its"
            " state. Give one size."
        )
    return found[0]


def _check_all_have(name: str, entries: Sequence[Specialization]) -> None:
    for entry in entries:
        if name not in entry.symbols:
            raise OptionError(f"specialization '{entry.name}' has no size for '{name}'. Add it.")
