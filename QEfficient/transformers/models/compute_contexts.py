"""How many slots attention reads in a run: the lists that a program is compiled for where none, or only one, was given.

One input must tell each shape from every other, and of these shapes it can only be the one that is as long as the
slots that are read: so prefill and decoding have no number in common.
"""

from __future__ import annotations

from collections.abc import Sequence

from QEfficient.specs import CompileSpec

GRANULARITY = 1024
"""Contexts of automatic lists are multiples of it, and none is shorter."""
STEP = 32
"""By so much a number is lowered that both phases would have."""
MOST, MOST_SHARED = 5, 10
"""Numbers of a list; of one that both phases share because prefill takes one token too."""
STARTS = ((4_096, None, None), (32_768, 4_096, 4_000), (65_536, 8_192, 8_000), (None, 16_384, 16_000))
"""Up to which context a list starts with which number: for contexts that are powers of two, and for others."""


def automatic_lists(ctx_len: int, prefill_seq_len: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Lists for prefill and decoding, and the context that they need."""
    ctx_len = max(GRANULARITY, -(-ctx_len // GRANULARITY) * GRANULARITY)
    most = MOST_SHARED if prefill_seq_len == 1 else MOST
    decode = _doubling(ctx_len, most)
    prefill = decode if prefill_seq_len == 1 else apart(decode, decode)
    return prefill, decode, ctx_len


def apart(prefill: Sequence[int], decode: Sequence[int]) -> tuple[int, ...]:
    """Prefill's numbers, those lowered that decoding has too."""
    taken = set(decode)
    result: set[int] = set()
    for length in sorted(set(prefill)):
        lower = (*range((length - 1) // STEP * STEP, 0, -STEP), *range(length - 1, 0, -1))
        free = (number for number in (length, *lower) if number not in taken | result)
        result |= {next(free, length)} - taken
    return tuple(sorted(result))


def of_phases(
    prefill: Sequence[int], decode: Sequence[int], prefill_seq_len: int, prefill_only: bool | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lists for the phases that are compiled: one that was not given follows from the other, and only where both have
    shapes of their own are numbers lowered."""
    if prefill_seq_len == 1:
        shared = _sorted(*prefill, *decode)
        return shared, shared
    if prefill_only is not None:
        alone = _sorted(*((prefill or decode) if prefill_only else (decode or prefill)))
        return (alone, ()) if prefill_only else ((), alone)
    decode = decode or prefill
    return apart(prefill or decode, decode), _sorted(*decode)


def unreached(spec: CompileSpec) -> str:
    """Why not all of the context can be used, in a sentence; empty where it can."""
    last = spec.comp_ctx_lengths_decode or spec.comp_ctx_lengths_prefill
    if not last or last[-1] == spec.ctx_len:
        return ""
    return (
        f"ctx_len is {spec.ctx_len:,}, but the compute contexts {list(last)} end at {last[-1]:,}, behind which no run"
        f" could read: generating would fail there. Add {spec.ctx_len} to"
        f" comp_ctx_lengths_{'decode' if spec.comp_ctx_lengths_decode else 'prefill'}, or lower ctx_len to {last[-1]}."
    )


def slow_prompts(spec: CompileSpec) -> str:
    """Which prompts go on token by token that would not have to, in a sentence; empty where none does."""
    prefill, decode = spec.comp_ctx_lengths_prefill, spec.comp_ctx_lengths_decode
    furthest = apart((spec.ctx_len,), decode)
    if not prefill or not decode or not furthest or prefill[-1] >= furthest[-1]:
        return ""
    return (
        f"comp_ctx_lengths_prefill {list(prefill)} ends at {prefill[-1]:,}: where shapes are compiled, prompts that are"
        f" longer go on token by token. Ending it with {furthest[-1]} would help."
    )


def _sorted(*lengths: int) -> tuple[int, ...]:
    return tuple(sorted(set(lengths)))


def _doubling(ctx_len: int, most: int) -> tuple[int, ...]:
    is_power = ctx_len & (ctx_len - 1) == 0
    starts = next(numbers for up_to, *numbers in STARTS if up_to is None or ctx_len <= up_to)
    start = starts[0] if is_power else starts[1]
    if start is None:
        return (ctx_len,)
    lengths = [start]
    while lengths[-1] * 2 < ctx_len:
        lengths.append(lengths[-1] * 2)
    return (*lengths[: most - 1], ctx_len)
