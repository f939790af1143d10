"""What prompt lookup finds."""

from __future__ import annotations

import random

import pytest

from QEfficient.generation.decoding.prompt_lookup import KINDS, TokenIndex
from QEfficient.generation.history import TokenCounts


def index(*tokens: int) -> TokenIndex:
    found = TokenIndex()
    found.read(tokens)
    return found


@pytest.mark.parametrize("tokens", [(), (1,), (1, 2), (1, 2, 3), (1, 2, 1), (2, 1, 1), (9, 2, 8, 2)])
def test_nothing_is_found_where_no_pair_comes_again(tokens: tuple[int, ...]) -> None:
    assert index(*tokens).find() == 0


def test_what_followed_before() -> None:
    found = index(5, 6, 7, 8, 9, 5, 6)
    assert found.find() == 2 and found.following(3) == [7, 8, 9]
    found.read([7])
    assert found.find() == 3 and found.following(2) == [8, 9]


def test_what_goes_round_goes_on() -> None:
    found = index(1, 1, 1)
    assert found.find() == 2 and found.following(4) == [1, 1, 1, 1]
    found = index(4, 1, 2, 3, 1, 2, 3, 1, 2)
    assert found.find() == 5 and found.following(8) == [3, 1, 2, 3, 1, 2, 3, 1]


def test_the_longest_agreement_goes_before_the_latest() -> None:
    found = index(9, 1, 2, 50, 8, 1, 2, 60, 9, 1, 2)
    assert found.find() == 3 and found.following(1) == [50]
    found = index(8, 1, 2, 50, 8, 1, 2, 60, 8, 1, 2)
    assert found.find() == 3 and found.following(1) == [60]


def test_agreement_is_what_a_search_finds() -> None:
    own = random.Random(0)
    found, tokens = TokenIndex(), []
    for _ in range(500):
        tokens.append(own.randrange(6))
        found.read(tokens[-1:])
        ends = [n for n in range(2, len(tokens)) if tokens[n - 2 : n] == tokens[-2:]][-8:]
        lengths = [next(k for k in range(2, 10) if k == 8 or tokens[:n][-k - 1 :] != tokens[-k - 1 :]) for n in ends]
        assert found.find() == min(max(lengths, default=0), KINDS[-1])


def test_counts_forget_what_is_taken_back() -> None:
    """As if it had never been said, whatever of it was read."""
    own = random.Random(0)
    for _ in range(200):
        prompt = [own.randrange(8) for _ in range(4)]
        generated: list[int] = []
        counts = TokenCounts(prompt, generated)
        for _ in range(10):
            generated += [own.randrange(12) for _ in range(own.randrange(4))]
            if own.random() < 0.5:
                counts.counts  # noqa: B018
            if own.random() < 0.5:
                length = own.randrange(len(generated) + 1)
                counts.shorten(length)
                del generated[length:]
            fresh = TokenCounts(prompt, generated)
            if own.random() < 0.5:
                assert counts.tokens.tolist() == fresh.tokens.tolist()
                assert counts.counts.tolist() == fresh.counts.tolist()
