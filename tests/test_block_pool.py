"""The block pool: ownership, reference counts, LRU order, findable content."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from minivllm.block_pool import BlockPool


def ids(blocks):
    return [block.block_id for block in blocks]


def test_a_fresh_pool_hands_out_blocks_in_order():
    """Would catch a free queue that starts in another order than documented."""
    pool = BlockPool(4)
    assert ids(pool.allocate(3)) == [0, 1, 2]
    assert (pool.num_free, pool.num_used) == (1, 3)


def test_the_block_freed_longest_ago_is_reused_first():
    """Would catch a LIFO free list, which overwrites the most recently used prefix first."""
    pool = BlockPool(4)
    blocks = pool.allocate(4)
    pool.free([blocks[2]])
    pool.free([blocks[0]])
    assert ids(pool.allocate(2)) == [2, 0]


def test_asking_for_too_many_blocks_takes_none():
    """Would catch a loop that pops until the queue is empty and then raises."""
    pool = BlockPool(2)
    with pytest.raises(ValueError, match=r"Out of memory! No free blocks are available.*3 asked for, 2 of 2"):
        pool.allocate(3)
    assert pool.num_free == 2
    pool.check_invariants()


def test_freeing_a_free_block_is_refused():
    """Would catch a reference count that goes to -1 and a block that is queued twice."""
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.free([block])
    with pytest.raises(ValueError, match=r"Double free! .*block_id=0.* is already freed"):
        pool.free([block])
    pool.check_invariants()


def test_a_shared_block_is_free_only_when_its_last_holder_lets_go():
    """Would catch a free that ignores the reference count."""
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.touch([block])
    pool.free([block])
    assert pool.num_free == 0
    pool.free([block])
    assert pool.num_free == 1


def test_a_freed_block_can_be_found_and_taken_back_from_the_middle_of_the_queue():
    """Would catch a pool that forgets content on free, or leaves a revived block in the free queue."""
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    pool.cache(blocks[1], b"content")
    pool.free(blocks)
    found = pool.lookup(b"content")
    assert found is blocks[1]
    pool.touch([found])
    assert pool.free_block_ids == (0, 2)
    pool.check_invariants()


def test_reusing_a_block_forgets_its_content():
    """Would catch a stale hash: a later prompt would be given another prompt's KV."""
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.cache(block, b"old")
    pool.free([block])
    (again,) = pool.allocate(1)
    assert again is block
    assert again.block_hash is None
    assert pool.lookup(b"old") is None


def test_of_two_blocks_with_equal_content_the_first_is_found():
    """Would catch a duplicate that replaces the registered block and leaves its hash dangling."""
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.cache(first, b"same")
    pool.cache(second, b"same")
    assert pool.lookup(b"same") is first
    assert second.block_hash is None
    pool.free([second])
    assert pool.lookup(b"same") is first
    pool.check_invariants()


def test_reset_cache_forgets_content_but_not_owners():
    """Would catch a reset that frees blocks which running sequences hold."""
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.cache(block, b"x")
    pool.reset_cache()
    assert pool.lookup(b"x") is None
    assert pool.num_used == 1
    pool.check_invariants()


@pytest.mark.parametrize(
    "damage",
    [
        lambda pool: setattr(pool.blocks[0], "ref_count", 0),  # leaked: without a holder, not queued
        lambda pool: setattr(pool.blocks[2], "ref_count", 1),  # held and queued
        lambda pool: setattr(pool.blocks[1], "block_hash", b"y"),  # found under another name
    ],
)
def test_check_invariants_notices_damage(damage):
    """Negative control of every test that relies on check_invariants."""
    pool = BlockPool(3)
    pool.cache(pool.allocate(2)[1], b"x")
    pool.check_invariants()
    damage(pool)
    with pytest.raises(AssertionError):
        pool.check_invariants()


class PoolMachine(RuleBasedStateMachine):
    """Random operations against a model that is a plain list of holders."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(6)
        self.held = []  # one entry a reference
        self.next_hash = 0

    @rule(count=st.integers(0, 7))
    def allocate(self, count):
        free = 6 - len({block.block_id for block in self.held})
        if count > free:
            with pytest.raises(ValueError, match="Out of memory"):
                self.pool.allocate(count)
        else:
            blocks = self.pool.allocate(count)
            assert not {block.block_id for block in blocks} & {block.block_id for block in self.held}
            assert all(block.block_hash is None for block in blocks)
            self.held += blocks

    @rule(data=st.data())
    def touch(self, data):
        if self.held:
            block = data.draw(st.sampled_from(self.held))
            self.pool.touch([block])
            self.held.append(block)

    @rule(data=st.data())
    def free(self, data):
        if self.held:
            block = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            self.pool.free([block])

    @rule(data=st.data())
    def cache(self, data):
        if self.held:
            block = data.draw(st.sampled_from(self.held))
            self.pool.cache(block, data.draw(st.sampled_from([b"a", b"b", b"c"])))

    @rule(key=st.sampled_from([b"a", b"b", b"c"]))
    def revive(self, key):
        block = self.pool.lookup(key)
        if block is not None:
            self.pool.touch([block])
            self.held.append(block)

    @invariant()
    def counts_agree(self):
        self.pool.check_invariants()
        for block in self.pool.blocks:
            assert block.ref_count == sum(held is block for held in self.held)


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase
