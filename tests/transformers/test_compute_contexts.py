"""Contexts that are read where no list was given: where they start, how they grow, what keeps phases apart."""

from __future__ import annotations

import pytest

from QEfficient.errors import OptionError
from QEfficient.specs import CompileSpec
from QEfficient.transformers.models.card_options import CardConfig, Shapes, shaped
from QEfficient.transformers.models.compute_contexts import MOST, MOST_SHARED, apart, automatic_lists

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


def test_lists_of_a_compilation() -> None:
    spec = CompileSpec(ctx_len=128, prefill_seq_len=8)

    def lists(config: CardConfig | None = None, geometry: CompileSpec = spec, **given: object) -> object:
        found = shaped(geometry, Shapes(**given), config or CardConfig())  # type: ignore[arg-type]
        return found.comp_ctx_lengths_prefill, found.comp_ctx_lengths_decode, found.ctx_len

    assert lists() == ((), (), 128)
    assert lists(CardConfig(compute_context=True)) == ((992,), (1024,), 1024)
    assert lists(comp_ctx_lengths_decode="[64, 128]") == ((32, 96), (64, 128), 128)
    assert lists(comp_ctx_lengths_prefill=[64, 128]) == ((32, 96), (64, 128), 128)
    assert lists(comp_ctx_lengths_prefill=[16], comp_ctx_lengths_decode=[64], prefill_only=True) == ((16,), (), 128)
    assert lists(comp_ctx_lengths_prefill=[16], comp_ctx_lengths_decode=[64], prefill_only=False) == ((), (64,), 128)
    shared = CompileSpec(ctx_len=128, prefill_seq_len=1)
    assert lists(geometry=shared, comp_ctx_lengths_decode=[64, 128]) == ((64, 128), (64, 128), 128)
    with pytest.raises(OptionError, match="comp_ctx_lengths_decode has 256, which is more than ctx_len 128"):
        lists(comp_ctx_lengths_prefill=[16], comp_ctx_lengths_decode=[256])
