from __future__ import annotations

import random

import pytest

from QEfficient.generation.kv_blocks import BlockCounts, KVBlocks, first_key, next_key

A, B, C = (next_key(first_key(), (n,)) for n in range(3))


def cached(blocks: KVBlocks, *keys: bytes) -> list[int]:
    """New blocks with these contents, which were left in this order."""
    taken = [blocks.publish(blocks.take(), key) for key in keys]
    for block in taken:
        blocks.release(block)
    return taken


def test_keys_stand_for_all_that_comes_before() -> None:
    after_a, after_b = next_key(A, (7, 8)), next_key(B, (7, 8))
    assert after_a == next_key(A, [7, 8])
    keys = [after_a, after_b, next_key(A, (7, 9)), next_key(A, (8, 7)), next_key(A, (7,)), A, B]
    keys += [first_key(), first_key("other"), next_key(first_key("other"), (0,))]
    assert len(set(keys)) == len(keys)


def test_counts() -> None:
    blocks = KVBlocks(4)
    assert blocks.counts == BlockCounts(0, 0, 4)
    block, _ = blocks.publish(blocks.take(), A), blocks.take()
    assert blocks.counts == BlockCounts(2, 0, 2)
    blocks.release(block)
    assert blocks.counts == BlockCounts(1, 1, 2)
    assert (blocks.available, blocks.counts.total) == (3, 4)


def test_a_released_block_without_content_is_free() -> None:
    blocks = KVBlocks(1)
    blocks.release(blocks.take())
    assert blocks.counts == BlockCounts(0, 0, 1)


def test_a_block_is_cached_until_nobody_refers_to_it_and_found_again() -> None:
    blocks = KVBlocks(2)
    block = blocks.publish(blocks.take(), A)
    blocks.share(block)
    blocks.release(block)
    assert blocks.counts.cached == 0
    blocks.release(block)
    assert blocks.counts.cached == 1 and blocks.find(A) == block and blocks.find(B) is None
    blocks.share(block)
    assert blocks.counts == BlockCounts(1, 0, 1)


def test_what_was_left_longest_ago_goes_first() -> None:
    blocks = KVBlocks(3)
    first, second, third = cached(blocks, A, B, C)
    blocks.share(first)
    blocks.release(first)
    assert [blocks.take() for _ in range(3)] == [second, third, first]
    assert blocks.evictions == 3
    assert [blocks.find(key) for key in (A, B, C)] == [None] * 3


def test_free_blocks_go_before_cached_ones() -> None:
    blocks = KVBlocks(2)
    (block,) = cached(blocks, A)
    assert blocks.take() != block and blocks.find(A) == block and not blocks.evictions


def test_a_block_of_several_is_not_written() -> None:
    blocks = KVBlocks(3)
    block = blocks.publish(blocks.take(), A)
    blocks.share(block)
    other = blocks.own(block)
    assert other != block and blocks.references(block) == blocks.references(other) == 1
    assert blocks.find(A) == block


def test_a_block_that_is_written_cannot_be_found() -> None:
    blocks = KVBlocks(3)
    block = blocks.publish(blocks.take(), A)
    assert blocks.own(block) == block and blocks.find(A) is None
    blocks.release(block)
    assert blocks.counts.free == 3


def test_equal_contents_become_one_block() -> None:
    blocks = KVBlocks(3)
    first, second = blocks.publish(blocks.take(), A), blocks.take()
    assert blocks.publish(second, A) == first and blocks.references(first) == 2
    assert blocks.counts == BlockCounts(1, 0, 2)
    assert blocks.publish(first, A) == first and blocks.references(first) == 2


@pytest.mark.parametrize("seed", range(5))
def test_against_a_plain_model(seed: int) -> None:
    """Contents are numbers; `written` is what a session would have in each block."""
    random_, blocks, total = random.Random(seed), KVBlocks(8), 8
    keys = [next_key(first_key(), (n,)) for n in range(12)]
    held: list[int] = []
    written: dict[int, int | None] = {}
    for _ in range(3000):
        content = random_.randrange(len(keys))
        choice = random_.random()
        if choice < 0.4 and blocks.available:
            block = blocks.take()
            assert block not in held
            written[block] = content
            held.append(blocks.publish(block, keys[content]) if random_.random() < 0.7 else block)
        elif choice < 0.6 and (found := blocks.find(keys[content])) is not None:
            assert written[found] == content
            blocks.share(found)
            held.append(found)
        elif choice < 0.7 and held and blocks.available:
            index = random_.randrange(len(held))
            held[index] = blocks.own(held[index])
            assert held.count(held[index]) == 1
            written[held[index]] = None
        elif held:
            blocks.release(held.pop(random_.randrange(len(held))))
        assert [blocks.references(block) for block in range(total)] == [held.count(block) for block in range(total)]
        counts = blocks.counts
        assert (counts.used, counts.total, blocks.available) == (len(set(held)), total, total - len(set(held)))
        assert counts.cached == sum(blocks.find(k) is not None and blocks.find(k) not in held for k in keys)
