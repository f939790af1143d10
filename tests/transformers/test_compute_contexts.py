"""Contexts that are read where no list was given: where they start, how they grow, what keeps phases apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from QEfficient.errors import OptionError
from QEfficient.specs import CompileSpec
from QEfficient.transformers.models.card_options import CardConfig, Shapes, shaped
from QEfficient.transformers.models.compute_contexts import MOST, MOST_SHARED, apart, automatic_lists, slow_prompts

K = 1024


@pytest.mark.parametrize(("asked", "found"), [(1, K), (1000, K), (K, K), (K + 1, 2 * K), (4097, 5 * K), (8 * K, 8 * K)])
def test_the_context_is_a_multiple(asked: int, found: int) -> None:
    prefill, decode, context = automatic_lists(asked, 32)
    assert context == decode[-1] == found


@pytest.mark.parametrize(
    ("context", "decode"),
    [
        (K, (K,)),
        (3 * K, (3 * K,)),
        (4 * K, (4 * K,)),
        (5 * K, (4000, 5 * K)),
        (8 * K, (4096, 8 * K)),
        (31 * K, (4000, 8000, 16000, 31 * K)),
        (32 * K, (4096, 8192, 16384, 32 * K)),
        (33 * K, (8000, 16000, 32000, 33 * K)),
        (63 * K, (8000, 16000, 32000, 64000, 63 * K)),
        (64 * K, (8192, 16384, 32768, 64 * K)),
        (65 * K, (16000, 32000, 64000, 65 * K)),
        (128 * K, (16384, 32768, 65536, 128 * K)),
        (512 * K, (16384, 32768, 65536, 131072, 512 * K)),
    ],
)
def test_where_they_start_and_how_they_double(context: int, decode: tuple[int, ...]) -> None:
    assert automatic_lists(context, 32)[1] == decode
    assert len(decode) <= MOST


def test_both_phases_share_a_longer_list_where_prompts_run_token_by_token() -> None:
    prefill, decode, _ = automatic_lists(512 * K, 1)
    assert prefill == decode == (16384, 32768, 65536, 131072, 262144, 512 * K)
    assert len(automatic_lists(1 << 30, 1)[1]) == MOST_SHARED


@pytest.mark.parametrize("context", [*range(K, 66 * K, 3 * K), 128 * K, 512 * K])
def test_phases_have_no_number_in_common(context: int) -> None:
    prefill, decode, _ = automatic_lists(context, 32)
    assert prefill and not set(prefill) & set(decode)
    assert list(prefill) == sorted(prefill) and list(decode) == sorted(decode)
    assert all(number % 32 == 0 for number in prefill)
    assert all(0 < high - low <= 32 for low, high in zip(prefill, decode, strict=True))


@pytest.mark.parametrize(
    ("prefill", "decode", "found"),
    [
        ([256, 512], [1024], (256, 512)),
        ([512, 256, 512], [512], (256, 480)),
        ([500], [500], (480,)),
        ([512], [512, 480, 448], (416,)),
        ([480, 512], [512], (448, 480)),
        ([32], [32], (31,)),
        ([1], [1], ()),
        ([], [64], ()),
    ],
)
def test_what_decoding_has_is_lowered(prefill: list[int], decode: list[int], found: tuple[int, ...]) -> None:
    assert apart(prefill, decode) == found


SPEC = CompileSpec(ctx_len=128, prefill_seq_len=8)
ONE_BY_ONE = CompileSpec(ctx_len=128, prefill_seq_len=1)
CONFIG = CardConfig(compute_context=True)


def lists(config: CardConfig | None = None, geometry: CompileSpec = SPEC, **given: object) -> object:
    found = shaped(geometry, Shapes(**given), config or CardConfig())  # type: ignore[arg-type]
    return found.comp_ctx_lengths_prefill, found.comp_ctx_lengths_decode, found.ctx_len


def test_lists_of_a_compilation() -> None:
    assert lists() == ((), (), 128)
    assert lists(CONFIG) == ((992,), (1024,), 1024)
    assert lists(comp_ctx_lengths_decode="[64, 128]") == ((32, 96), (64, 128), 128)
    assert lists(comp_ctx_lengths_prefill=[64, 128]) == ((32, 96), (64, 128), 128)
    assert lists(geometry=ONE_BY_ONE, comp_ctx_lengths_decode=[64, 128]) == ((64, 128), (64, 128), 128)
    with pytest.raises(OptionError, match="comp_ctx_lengths_decode has 256, which is more than ctx_len 128"):
        lists(comp_ctx_lengths_prefill=[16], comp_ctx_lengths_decode=[256])


def test_a_phase_alone_has_its_list_as_it_is() -> None:
    both = {"comp_ctx_lengths_prefill": [16, 128], "comp_ctx_lengths_decode": [64, 128]}
    assert lists(**both) == ((16, 96), (64, 128), 128)
    assert lists(**both, prefill_only=True) == ((16, 128), (), 128)
    assert lists(**both, prefill_only=False) == ((), (64, 128), 128)
    assert lists(comp_ctx_lengths_decode=[64, 128], prefill_only=True) == ((64, 128), (), 128)
    assert lists(CONFIG, prefill_only=True) == ((1024,), (), 1024)
    for phase in (True, False):  # one shape is both
        assert lists(geometry=ONE_BY_ONE, **both, prefill_only=phase) == ((16, 64, 128), (16, 64, 128), 128)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"comp_ctx_lengths_decode": [32, 64]}, r"\[32, 64\] end at 64.* Add 128 to comp_ctx_lengths_decode"),
        ({"comp_ctx_lengths_prefill": [64]}, r"\[64\] end at 64.* Add 128 to comp_ctx_lengths_decode"),
        ({"comp_ctx_lengths_decode": [64], "prefill_only": False}, "or lower ctx_len to 64"),
        ({"comp_ctx_lengths_prefill": [64], "prefill_only": True}, "Add 128 to comp_ctx_lengths_prefill"),
        ({"comp_ctx_lengths_prefill": [64], "geometry": ONE_BY_ONE}, "ctx_len is 128"),
    ],
)
def test_lists_that_end_before_the_context_are_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        lists(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prefill", "decode", "furthest"),
    [
        ((16,), (64, 128), 96),
        ((90,), (128,), 96),
        ((16,), (96, 128), 64),
        ((96,), (64, 128), None),
        ((120,), (64, 128), None),
        ((128,), (), None),
        ((), (128,), None),
    ],
)
def test_prompts_that_go_on_token_by_token_are_told(
    prefill: tuple[int, ...], decode: tuple[int, ...], furthest: int | None
) -> None:
    said = slow_prompts(replace(SPEC, comp_ctx_lengths_prefill=prefill, comp_ctx_lengths_decode=decode))
    assert bool(said) == (furthest is not None)
    assert furthest is None or f"Ending it with {furthest} would help" in said
