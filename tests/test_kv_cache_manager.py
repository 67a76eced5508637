"""The KV cache manager: allocate or None, fork, copy-on-write, prefix hits, swap."""

import pytest

from minivllm.kv_cache_manager import KVCacheManager
from minivllm.sequence import Sequence
from tests.helpers import make_group


def computed(manager, seq, num_tokens):
    """Allocate slots for `num_tokens` more tokens and pretend that they have been computed."""
    copies = manager.allocate_slots([(seq, num_tokens)])
    assert copies is not None
    start = seq.num_computed_tokens
    seq.num_computed_tokens += num_tokens
    manager.cache_blocks(seq, start)
    manager.check_invariants()
    return copies


def forked(manager, parent, seq_id):
    child = parent.fork(seq_id, index=1, seed=1)
    manager.fork(parent, child)
    manager.check_invariants()
    return child


def test_blocks_are_allocated_on_demand_one_at_a_time():
    """Would catch allocation a token early (at a full block) or a token late."""
    manager = KVCacheManager(8, 4)
    seq = Sequence(0, [1] * 20, seed=0)
    computed(manager, seq, 3)
    lengths = []
    for _ in range(7):
        computed(manager, seq, 1)
        lengths.append(len(manager.block_tables[0]))
    assert lengths == [1, 2, 2, 2, 2, 3, 3]  # 4, 5, 6, 7, 8, 9, 10 tokens


def test_a_request_that_does_not_fit_changes_nothing():
    """Would catch a partial allocation that is left behind, or copies that are forgotten on retry."""
    manager = KVCacheManager(2, 4)
    seq = Sequence(0, [1] * 9, seed=0)
    assert manager.allocate_slots([(seq, 9)]) is None
    assert manager.pool.num_free == 2
    assert manager.block_tables == {}
    assert manager.allocate_slots([(seq, 8)]) == []


def test_a_newcomer_leaves_the_watermark_free_and_those_who_run_may_use_it():
    """Would catch a reserve that no sequence may use, one that newcomers use up, and an empty pool kept shut."""
    manager = KVCacheManager(8, 4, watermark=0.26)  # int(2.08) = 2 blocks
    first, second = Sequence(0, [1] * 40, seed=0), Sequence(1, [2] * 40, seed=0)
    assert (
        manager.allocate_slots([(first, 7 * 4)]) is not None
    )  # no other sequence holds blocks: all 8 may be taken
    first.num_computed_tokens = 28
    assert manager.allocate_slots([(second, 1)]) is None  # 1 is free, and has to stay so
    assert manager.allocate_slots([(first, 4)]) is not None
    manager.free(first)
    first.num_computed_tokens = 0
    computed(manager, first, 3 * 4)
    assert manager.allocate_slots([(second, 3 * 4 + 1)]) is None  # 5 are free, 4 would leave 1
    computed(manager, second, 3 * 4)  # leaves 2
    computed(manager, second, 2 * 4)  # it runs now
    assert manager.pool.num_free == 0


def test_a_group_which_computes_nothing_in_a_step_gets_nothing():
    """Would catch a look at the first of no sequences: a group that cannot sample as a whole has no chunks."""
    manager = KVCacheManager(2, 4, watermark=0.5)
    computed(manager, Sequence(0, [1] * 5, seed=0), 5)
    assert manager.allocate_slots([]) == []


def test_a_group_is_allocated_as_a_whole_or_not_at_all():
    """Would catch a loop over sequences that gives blocks to the first and fails at the second."""
    manager = KVCacheManager(3, 4)
    first, second = Sequence(0, [1] * 8, seed=0), Sequence(1, [2] * 8, seed=0)
    assert manager.allocate_slots([(first, 8), (second, 8)]) is None
    assert manager.pool.num_free == 3
    assert manager.allocate_slots([(first, 8), (second, 4)]) == []


def test_fork_shares_every_block_and_allocates_none():
    """Would catch an eager copy, and a fork that does not count its references."""
    manager = KVCacheManager(8, 4)
    parent = Sequence(0, [1] * 7, seed=0)
    computed(manager, parent, 6)
    child = forked(manager, parent, 1)
    assert manager.pool.num_used == 2
    assert manager.num_blocks_saved == 2
    assert manager.block_tables[0].block_ids == manager.block_tables[1].block_ids
    assert all(block.ref_count == 2 for block in manager.block_tables[child.seq_id].blocks)


def test_the_first_writer_copies_and_the_last_writes_in_place():
    """Would catch a missing copy (siblings overwrite each other) and one copy too many."""
    manager = KVCacheManager(8, 4)
    parent = Sequence(0, [1] * 7, seed=0)
    computed(manager, parent, 6)
    child = forked(manager, parent, 1)
    shared = manager.block_tables[0].block_ids[1]
    (copy,) = computed(manager, parent, 1)
    assert copy == (shared, manager.block_tables[0].block_ids[1])
    assert computed(manager, child, 1) == []
    assert manager.block_tables[1].block_ids[1] == shared


def test_three_siblings_writing_in_one_step_need_two_copies():
    """Would catch counting each sharer as the last one, or none of them."""
    manager = KVCacheManager(8, 4)
    parent = Sequence(0, [1] * 7, seed=0)
    computed(manager, parent, 6)
    seqs = [parent, forked(manager, parent, 1), forked(manager, parent, 2)]
    copies = manager.allocate_slots([(seq, 1) for seq in seqs])
    assert len(copies) == 2
    last_blocks = [manager.block_tables[seq.seq_id].block_ids[-1] for seq in seqs]
    assert len(set(last_blocks)) == 3
    manager.check_invariants()


def test_a_full_shared_block_is_never_copied():
    """Would catch a copy at the block boundary, where the next token opens a new block anyway."""
    manager = KVCacheManager(8, 4)
    parent = Sequence(0, [1] * 9, seed=0)
    computed(manager, parent, 8)
    child = forked(manager, parent, 1)
    assert manager.allocate_slots([(parent, 1), (child, 1)]) == []
    assert manager.block_tables[0].block_ids[:2] == manager.block_tables[1].block_ids[:2]


def test_copy_on_write_counts_as_a_block_to_find_room_for():
    """Would catch an allocation check that forgets the copies and then raises half-way."""
    manager = KVCacheManager(2, 4)
    parent = Sequence(0, [1] * 7, seed=0)
    computed(manager, parent, 6)
    child = forked(manager, parent, 1)
    assert manager.allocate_slots([(parent, 1), (child, 1)]) is None
    manager.check_invariants()


def test_a_prompt_that_begins_the_same_finds_the_full_blocks():
    """Would catch a hash without its parent, and a hit that covers a partial block."""
    manager = KVCacheManager(8, 4)
    computed(manager, Sequence(0, list(range(10)), seed=0), 10)
    again = Sequence(1, list(range(10)), seed=0)
    hit = manager.get_computed_blocks(again, max_tokens=9)
    assert [block.block_id for block in hit] == [0, 1]
    assert manager.allocate_slots([(again, 2)], hit) == []
    assert manager.block_tables[1].block_ids[:2] == (0, 1)
    manager.check_invariants()


def test_equal_tokens_after_another_beginning_are_not_a_hit():
    """Would catch a block hash that leaves out the parent: the KV of tokens depends on all before them."""
    manager = KVCacheManager(8, 4)
    computed(manager, Sequence(0, [9, 9, 9, 9, 1, 2, 3, 4], seed=0), 8)
    other = Sequence(1, [1, 2, 3, 4, 9], seed=0)
    assert manager.get_computed_blocks(other, max_tokens=4) == []
    swapped = Sequence(2, [1, 2, 3, 4, 9, 9, 9, 9], seed=0)
    assert manager.get_computed_blocks(swapped, max_tokens=8) == []


@pytest.mark.parametrize(("length", "blocks"), [(7, 1), (8, 1), (9, 2), (5, 1), (4, 0), (1, 0)])
def test_a_hit_never_covers_the_last_token(length, blocks):
    """Would catch a prompt that is found whole: no token is computed, so there are no logits (#144)."""
    manager = KVCacheManager(8, 4)
    computed(manager, Sequence(0, list(range(12)), seed=0), 12)
    seq = Sequence(1, list(range(length)), seed=0)
    assert len(manager.get_computed_blocks(seq, max_tokens=len(seq) - 1)) == blocks


def test_freed_content_is_found_until_it_is_overwritten():
    """Would catch eviction that keeps a stale hash: the next prompt would attend to foreign KV."""
    manager = KVCacheManager(3, 4)
    first = Sequence(0, list(range(8)), seed=0)
    computed(manager, first, 8)
    manager.free(first)
    again = Sequence(1, list(range(9)), seed=0)
    assert len(manager.get_computed_blocks(again, 8)) == 2
    computed(manager, Sequence(2, [50] * 8, seed=0), 8)  # takes the unused block, then the old tail
    assert len(manager.get_computed_blocks(again, 8)) == 1, "the tail is overwritten first"
    manager.check_invariants()


def test_reviving_cached_blocks_counts_against_the_free_blocks():
    """Would catch counting cached blocks as free although the hit is about to take them."""
    manager = KVCacheManager(3, 4)
    first = Sequence(0, list(range(8)), seed=0)
    computed(manager, first, 8)
    manager.free(first)
    again = Sequence(1, list(range(17)), seed=0)
    hit = manager.get_computed_blocks(again, 16)
    assert len(hit) == 2
    assert manager.allocate_slots([(again, 9)], hit) is None  # needs 3 more, 1 is left
    assert manager.allocate_slots([(again, 4)], hit) == []
    manager.check_invariants()


def test_prefix_caching_can_be_turned_off():
    """Would catch a switch that stops lookups but not hits, or the other way round."""
    manager = KVCacheManager(8, 4, enable_prefix_caching=False)
    computed(manager, Sequence(0, list(range(8)), seed=0), 8)
    assert manager.get_computed_blocks(Sequence(1, list(range(9)), seed=0), 8) == []
    assert all(block.block_hash is None for block in manager.pool.blocks)


def test_swapping_keeps_the_sharing():
    """Would catch a swap that moves a shared block once for each holder."""
    manager = KVCacheManager(8, 4, num_cpu_blocks=3)
    parent = Sequence(0, [1] * 11, seed=0)
    computed(manager, parent, 10)
    child = forked(manager, parent, 1)
    moves = manager.swap_out([parent, child])
    assert moves == [(0, 0), (1, 1), (2, 2)]
    assert (manager.pool.num_used, manager.cpu_pool.num_used) == (0, 3)
    manager.check_invariants()
    back = manager.swap_in([parent, child])
    assert [source for source, _ in back] == [0, 1, 2]
    assert manager.block_tables[0].block_ids == manager.block_tables[1].block_ids
    assert (manager.pool.num_used, manager.cpu_pool.num_used) == (3, 0)
    manager.check_invariants()


def test_a_swap_that_does_not_fit_changes_nothing():
    """Would catch a half-moved group."""
    manager = KVCacheManager(8, 4, num_cpu_blocks=2)
    seq = Sequence(0, [1] * 11, seed=0)
    computed(manager, seq, 10)
    assert manager.swap_out([seq]) is None
    assert manager.pool.num_used == 3
    assert manager.cpu_pool.num_used == 0
    manager.check_invariants()


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "n", "blocks"),
    [
        (6, 1, 1, 2),  # 6 computed
        (6, 3, 1, 2),  # 8 computed: the last sampled token is never computed
        (6, 4, 1, 3),
        (8, 1, 1, 2),
        (6, 3, 2, 3),  # one full prompt block shared, then 2 x 1
        (8, 5, 3, 5),  # two shared, then 3 x 1
    ],
)  # fmt: skip
def test_the_most_blocks_a_request_can_hold_is_exact(prompt, max_tokens, n, blocks):
    """Would catch refusing a request that fits, or accepting one that never will."""
    manager = KVCacheManager(64, 4)
    assert manager.max_blocks(make_group("a", prompt, max_tokens, n=n)) == blocks
