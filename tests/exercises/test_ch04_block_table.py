"""Chapter 4: blocks_needed, append_tokens, free; each alone and inside the engine."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minivllm.block_pool import BlockPool
from minivllm.block_table import BlockTable
from minivllm.kv_cache_manager import KVCacheManager
from tests.exercises.engine import generate
from tests.exercises.expect import expect, expect_raises, expect_that, same_text

# -- ex04a ------------------------------------------------------------------------------------------


@pytest.mark.exercise("ex04a", points=1, hint="Division rounded up. Try 4 tokens and 5 tokens by hand.")
def test_a_started_block_counts_whole(ex):
    """A block that holds one token is taken all the same: rounding down loses the last tokens."""
    for num_tokens, expected in [(1, 1), (3, 1), (5, 2), (6, 2), (9, 3)]:
        expect(ex.blocks_needed(num_tokens, 4), expected, f"blocks_needed({num_tokens}, 4)")


@pytest.mark.exercise(
    "ex04a", points=1, hint="How far is num_tokens // block_size off, and when is it right?"
)
def test_a_full_block_needs_no_second_one(ex):
    """At an exact multiple of the block size nothing is to be added: one block too many is waste, none at 0."""
    for num_tokens, expected in [(4, 1), (8, 2), (400, 100), (0, 0)]:
        expect(ex.blocks_needed(num_tokens, 4), expected, f"blocks_needed({num_tokens}, 4)")


@pytest.mark.exercise("ex04a", points=1, hint="Is the remainder 0? Nothing else about it matters.")
@given(num_tokens=st.integers(0, 10**9), block_size=st.integers(1, 1024))
@example(num_tokens=1025, block_size=1024)
def test_the_blocks_just_hold_the_tokens(ex, num_tokens, block_size):
    """One block fewer would not hold them: a single token in a block of 1024 opens that block."""
    got = ex.blocks_needed(num_tokens, block_size)
    call = f"blocks_needed({num_tokens}, {block_size})"
    expect_that(got * block_size >= num_tokens, f"{call} blocks hold all tokens", got=got)
    expect_that((got - 1) * block_size < num_tokens, f"{call} is not one block too many", got=got)


@pytest.mark.exercise(
    "ex04a", points=1, hint="The engine asks for the blocks of 0 to 64 tokens, block_size 4."
)
def test_the_engine_counts_blocks_with_it(ex, tiny_model, reference_text, monkeypatch):
    """Inside the engine the count decides how much memory a request gets: too little, and a token has no slot."""

    def num_missing_blocks(table, num_tokens):
        return max(0, ex.blocks_needed(num_tokens, table.block_size) - len(table))

    monkeypatch.setattr(BlockTable, "num_missing_blocks", num_missing_blocks)
    same_text(generate(tiny_model), reference_text, "the engine with your blocks_needed")


# -- ex04b ------------------------------------------------------------------------------------------


def slots_of(block_table, positions, block_size):
    """The definition, written out."""
    return [block_table[p // block_size] * block_size + p % block_size for p in positions]


@pytest.mark.exercise("ex04b", points=1, hint="Position 6 is in logical block 6 // 4, at offset 6 % 4.")
def test_the_example_of_the_docstring(ex):
    """Two tokens fit into the last block, the third opens a new one: rest of a block lost, or wrong slots."""
    block_table, free_blocks = [7, 2], [5]
    expect(
        ex.append_tokens(block_table, 6, 3, free_blocks, 4),
        [10, 11, 20],
        "append_tokens([7, 2], 6, 3, [5], 4)",
    )
    expect((block_table, free_blocks), ([7, 2, 5], []), "block_table and free_blocks afterwards")


@pytest.mark.exercise(
    "ex04b", points=1, hint="Compare two counts: blocks needed after this call, blocks held."
)
def test_blocks_are_taken_exactly_when_needed(ex):
    """Token by token over two boundaries: a block taken early is waste, one taken late writes over a neighbour."""
    block_table, free_blocks = [], [3, 9, 6, 1]
    for num_tokens, held in enumerate([1, 1, 1, 1, 2, 2, 2, 2, 3]):
        ex.append_tokens(block_table, num_tokens, 1, free_blocks, 4)
        expect(len(block_table), held, f"blocks held after token number {num_tokens + 1}, block_size 4")
        expect(sorted(block_table + free_blocks), [1, 3, 6, 9], "blocks held and free together")


@pytest.mark.exercise(
    "ex04b", points=1, hint="What if num_tokens is 8 and the table has exactly 2 blocks of 4?"
)
def test_a_prompt_may_end_at_a_block_boundary(ex):
    """A prompt as long as its blocks crashed a well-known engine: no block too many, and the next token fits."""
    for length in (4, 8, 12):
        block_table, free_blocks = [], [3, 9, 6, 1]
        ex.append_tokens(block_table, 0, length, free_blocks, 4)
        expect(len(block_table), length // 4, f"blocks of a prompt of {length} tokens, block_size 4")
        got = ex.append_tokens(block_table, length, 1, free_blocks, 4)
        expect(got, [block_table[-1] * 4], f"slot of the token after a prompt of {length} tokens")
        expect(len(block_table), length // 4 + 1, f"blocks of {length + 1} tokens")


@pytest.mark.exercise(
    "ex04b", points=2, hint="Count what is missing first, and compare with len(free_blocks)."
)
def test_out_of_blocks_changes_nothing(ex):
    """When memory runs out half way, the blocks taken so far must not be lost, nor change places: check, then act."""
    for block_table, num_tokens, num_new, free_blocks in [
        ([], 0, 1, []),
        ([7, 2], 6, 9, [5]),
        ([7], 4, 1, []),
        ([7, 2], 6, 20, [5, 0, 3]),
        ([], 0, 9, [6, 1]),
    ]:
        table, free = list(block_table), list(free_blocks)
        call = f"append_tokens({block_table}, {num_tokens}, {num_new}, {free_blocks}, 4)"
        expect_raises(ValueError, call, ex.append_tokens, table, num_tokens, num_new, free, 4)
        expect((table, free), (block_table, free_blocks), f"block_table and free_blocks after {call} raised")


@pytest.mark.exercise(
    "ex04b", points=1, hint="Blocks are numbered from 0: `if block` is false for the first of them."
)
def test_block_zero_holds_tokens_too(ex):
    """0 is a block number like any other, not "none": taken for none, a slot or the block itself is lost."""
    table, free_blocks = [0], []
    got = ex.append_tokens(table, 2, 2, free_blocks, 4)
    expect((got, table), ([2, 3], [0]), "(slots, block_table) of append_tokens([0], 2, 2, [], 4)")
    table, free_blocks = [3], [0]
    got = ex.append_tokens(table, 4, 1, free_blocks, 4)
    expect(
        (got, table, free_blocks), ([0], [3, 0], []),
        "(slots, block_table, free_blocks) of append_tokens([3], 4, 1, [0], 4)",
    )  # fmt: skip


@pytest.mark.exercise(
    "ex04b", points=2, hint="slot = block_table[position // block_size] * block_size + position % block_size"
)
@given(data=st.data(), block_size=st.integers(1, 7))
def test_no_two_tokens_share_a_slot(ex, data, block_size):
    """Any number of sequences that grow by any steps: every slot follows from its table, none is used twice."""
    free_blocks = data.draw(st.permutations(range(12)))
    tables, lengths, used = [[], [], []], [0, 0, 0], set()
    for _ in range(data.draw(st.integers(1, 12))):
        i, count = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 9))
        if -(-(lengths[i] + count) // block_size) - len(tables[i]) > len(free_blocks):
            continue
        start, lengths[i] = lengths[i], lengths[i] + count
        got = ex.append_tokens(tables[i], start, count, free_blocks, block_size)
        expect(got, slots_of(tables[i], range(start, lengths[i]), block_size),
               f"slots of positions {start} to {lengths[i]} in {tables[i]}, block_size {block_size}")  # fmt: skip
        expect_that(not used & set(got), "no slot is used twice", got=got)
        used |= set(got)
        expect(sorted(sum(tables, free_blocks)), list(range(12)), "all blocks, held and free")


@pytest.mark.exercise(
    "ex04b", points=1, hint="Run the test before this one first: the engine needs all of them."
)
def test_the_block_table_generates_text(ex, tiny_model, reference_text):
    """Inside the engine, in a pool so small that requests are preempted: one wrong slot changes the text."""

    class Manager(KVCacheManager):
        def allocate_slots(self, chunks, computed_blocks=()):
            free_blocks = list(self.pool.free_block_ids)
            for seq, num_tokens in chunks:
                table = self.block_tables.get(seq.seq_id) or BlockTable(self.block_size)
                block_ids = list(table.block_ids)
                try:
                    ex.append_tokens(
                        block_ids, seq.num_computed_tokens, num_tokens, free_blocks, self.block_size
                    )
                except ValueError:
                    return None
                new = [self.pool.blocks[block_id] for block_id in block_ids[len(table) :]]
                self.pool.touch(new)
                table.blocks.extend(new)
                self.block_tables[seq.seq_id] = table
            return []

    got = generate(tiny_model, kv_cache_manager_cls=Manager, num_blocks=10)
    same_text(got, reference_text, "the engine with your append_tokens")


# -- ex04c ------------------------------------------------------------------------------------------


@pytest.mark.exercise("ex04c", points=1, hint="A block joins free_blocks only when its count reaches 0.")
def test_a_shared_block_stays_until_its_last_holder_leaves(ex):
    """A block that another sequence still reads must not be handed out again: its text would change."""
    table, free_blocks, ref_counts = [2, 0], [1], [1, 0, 2, 3]
    ex.free(table, free_blocks, ref_counts)
    expect(ref_counts, [0, 0, 1, 3], "ref_counts after free([2, 0], [1], [1, 0, 2, 3])")
    expect(sorted(free_blocks), [0, 1], "free_blocks, sorted")
    ex.free([2], free_blocks, ref_counts)
    expect(sorted(free_blocks), [0, 1, 2], "free_blocks after the second holder of block 2 has left")


@pytest.mark.exercise(
    "ex04c", points=1, hint="list.clear() empties a list that the caller holds; `= []` does not."
)
def test_the_table_is_empty_afterwards(ex):
    """A freed table that still names its blocks lets a finished sequence read and free what is not its own."""
    table, ref_counts = [3, 1], [0, 1, 0, 1]
    ex.free(table, [0, 2], ref_counts)
    expect(table, [], "block_table after free")
    ex.free(table, [0, 2, 3, 1], ref_counts)
    expect(ref_counts, [0, 0, 0, 0], "ref_counts after freeing an empty table")


@pytest.mark.exercise("ex04c", points=2, hint="Look at all blocks of the table before you change the first.")
def test_a_double_free_is_an_error_and_changes_nothing(ex):
    """A count of -1 never comes back to 0, so the block is lost for good; half a free loses the other half."""
    for table, free_blocks, ref_counts in [
        ([1], [1], [0, 0]),
        ([0, 2], [2, 1], [1, 0, 0]),
        ([2, 0], [2, 1], [1, 0, 0]),
        ([4, 2, 3, 1], [5, 1, 0], [0, 0, 1, 2, 1, 0]),
    ]:
        before = (list(table), list(free_blocks), list(ref_counts))
        call = f"free({table}, {free_blocks}, {ref_counts})"
        expect_raises(ValueError, call, ex.free, table, free_blocks, ref_counts)
        expect(
            (table, free_blocks, ref_counts),
            before,
            f"block_table, free_blocks, ref_counts after {call} raised",
        )


@pytest.mark.exercise(
    "ex04c", points=1, hint="After all sequences have left, every count is 0 and every block is free once."
)
@given(data=st.data())
def test_every_block_comes_back_once(ex, data):
    """Whatever sequences share, and in whatever order they leave: no block is lost and none is free twice."""
    tables = data.draw(st.lists(st.lists(st.integers(0, 7), unique=True), min_size=1, max_size=4))
    ref_counts = [sum(block in table for table in tables) for block in range(8)]
    free_blocks = [block for block in range(8) if ref_counts[block] == 0]
    shown = f"tables {tables}"
    for table in data.draw(st.permutations(tables)):
        ex.free(table, free_blocks, ref_counts)
        expect(
            sorted(free_blocks), [b for b in range(8) if ref_counts[b] == 0], f"free blocks, sorted ({shown})"
        )
    expect(sorted(free_blocks), list(range(8)), f"free blocks after all have left ({shown})")


@pytest.mark.exercise(
    "ex04c", points=1, hint="The engine frees a sequence once, when it ends or is preempted."
)
def test_the_engine_gets_its_blocks_back(ex, tiny_model, reference_text):
    """Inside the engine, a block that does not come back stops it after a few requests."""

    class Pool(BlockPool):
        def free(self, blocks):
            blocks = list(blocks)
            block_ids = [block.block_id for block in reversed(blocks)]
            free_blocks, ref_counts = list(self.free_block_ids), [block.ref_count for block in self.blocks]
            call = f"free({block_ids}, {free_blocks}, {ref_counts})"
            ex.free(block_ids, free_blocks, ref_counts)
            super().free(blocks)
            expect(ref_counts, [block.ref_count for block in self.blocks], f"ref_counts after {call}")
            expect(sorted(free_blocks), sorted(self.free_block_ids), f"free_blocks, sorted, after {call}")

    class Manager(KVCacheManager):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.pool = Pool(self.pool.num_blocks)

    got = generate(tiny_model, kv_cache_manager_cls=Manager, num_blocks=10)
    same_text(got, reference_text, "the engine with your free")
