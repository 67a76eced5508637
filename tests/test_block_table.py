"""Logical to physical arithmetic, and the worked example that README, docs and notebooks use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.block_pool import KVCacheBlock
from minivllm.block_table import BlockTable, cdiv
from tests.helpers import add, make_scheduler, run_model


def table_of(block_size, *block_ids):
    return BlockTable(block_size, [KVCacheBlock(block_id) for block_id in block_ids])


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_cdiv_rounds_up_and_exact_multiples_need_no_extra_block(tokens, blocks):
    """Would catch n // size + 1, which allocates a block too early at every multiple."""
    assert cdiv(tokens, 4) == blocks


def test_slots_of_the_worked_example():
    """Would catch div and mod swapped: 6 tokens in blocks 7 and 2 of 4 slots."""
    table = table_of(4, 7, 2)
    assert table.slots(0, 6) == [28, 29, 30, 31, 8, 9]
    assert table.slot(6) == 10


@given(st.integers(1, 20), st.permutations(range(8)))
def test_slots_are_a_bijection(block_size, block_ids):
    """Would catch two positions in one slot, for any block size and order of blocks."""
    table = table_of(block_size, *block_ids)
    assert sorted(table.slots(0, 8 * block_size)) == list(range(8 * block_size))


@pytest.mark.parametrize("position", [-1, 8, 100])
def test_a_position_without_a_block_is_refused(position):
    """Would catch Python's negative index, which silently reads the last block."""
    with pytest.raises(IndexError, match=r"position .* has no block: the table covers positions \[0, 8\)"):
        table_of(4, 7, 2).slot(position)


@given(st.integers(1, 9), st.integers(0, 60), st.integers(0, 10))
def test_missing_blocks_are_exactly_enough(block_size, num_tokens, num_held):
    """Would catch len % block_size == 1 and every other boundary rule that is right only sometimes."""
    table = table_of(block_size, *range(num_held))
    missing = table.num_missing_blocks(num_tokens)
    total = num_held + missing
    assert total * block_size >= num_tokens
    assert missing == 0 or (total - 1) * block_size < num_tokens


def test_worked_example_with_its_literal_ids():
    """The example of the README, step by step: would catch a change that the documents do not follow."""
    scheduler = make_scheduler(num_blocks=8, block_size=4)
    pool = scheduler.kv.pool
    blocks = pool.allocate(8)
    pool.free([blocks[7]])
    pool.free([blocks[2]])  # two free blocks: 7 is taken first, then 2
    group = add(scheduler, "example", 6, max_tokens=3)
    seq = group.seqs[0]

    plan = scheduler.schedule()
    (row,) = plan.scheduled
    assert (row.start, row.num_tokens, row.block_ids, row.num_samples) == (0, 6, (7, 2), 1)
    assert scheduler.kv.block_tables[seq.seq_id].slots(0, 6) == [28, 29, 30, 31, 8, 9]
    scheduler.update_from_output(plan, run_model(scheduler, plan))
    assert (seq.num_computed_tokens, len(seq)) == (6, 7)

    plan = scheduler.schedule()
    (row,) = plan.scheduled
    assert (row.start, row.num_tokens, row.block_ids) == (6, 1, (7, 2)), "cdiv(7, 4) = 2: nothing to allocate"
    assert pool.num_free == 0
    scheduler.update_from_output(plan, run_model(scheduler, plan))
    assert (seq.num_computed_tokens, len(seq)) == (7, 8)

    plan = scheduler.schedule()
    assert plan.scheduled[0].block_ids == (7, 2), "position 7 is the last slot of block 2"
    scheduler.update_from_output(plan, run_model(scheduler, plan))
    assert not scheduler.has_unfinished
    assert pool.free_block_ids == (2, 7), "the tail is freed first"
