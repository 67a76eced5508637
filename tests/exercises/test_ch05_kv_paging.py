"""Chapter 5: slot_mapping, gather_kv, block_size_sweep; each alone and inside the engine."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.exercises.engine import generate, remembered
from tests.exercises.expect import expect, expect_close, expect_that, expect_unchanged, same_text

# -- ex05a ------------------------------------------------------------------------------------------


def slots_of(ex, table, start, end, block_size):
    """The student's slots, and the call; the table has to be as it was."""
    given, call = list(table), f"slot_mapping({list(table)}, {start}, {end}, block_size={block_size})"
    got = list(ex.slot_mapping(given, start, end, block_size))
    expect_unchanged([given], [list(table)], call)
    return got, call


def check_slots(ex, expected, *arguments):
    got, call = slots_of(ex, *arguments)
    expect(got, expected, call)


@pytest.mark.exercise("ex05a", points=1, hint="block_table[p // block_size] * block_size + p % block_size")
def test_the_example_request_has_these_slots(ex):
    """The request that runs through the whole course: slots 28 to 31, then 8 and 9."""
    check_slots(ex, [28, 29, 30, 31, 8, 9], [7, 2], 0, 6, 4)
    check_slots(ex, [28, 29, 30, 31, 8, 9], [7, 2, 5], 0, 6, 4)  # a table that goes on


@pytest.mark.exercise(
    "ex05a", points=1, hint="With 6 tokens in the cache the next one is at position 6, not 7."
)
def test_a_new_token_goes_behind_the_last(ex):
    """An engine had its decode position off by one for months: each token is written one place too far."""
    check_slots(ex, [10], [7, 2], 6, 7, 4)
    check_slots(ex, [11, 20], [7, 2, 5], 7, 9, 4)
    check_slots(ex, [], [7, 2], 6, 6, 4)


@pytest.mark.exercise("ex05a", points=2, hint="Block number and offset: which of the two is p // block_size?")
@given(data=st.data(), block_size=st.integers(1, 6), num_blocks=st.integers(1, 5))
def test_every_position_has_a_slot_of_its_own(ex, data, block_size, num_blocks):
    """From a slot, block and offset follow back to the position: block and offset swapped share slots."""
    table = data.draw(st.permutations(range(num_blocks)))
    end = data.draw(st.integers(0, num_blocks * block_size))
    start = data.draw(st.integers(0, end))
    got, call = slots_of(ex, table, start, end, block_size)
    expect_that(
        all(0 <= slot < num_blocks * block_size for slot in got), f"{call} gives slots that exist", got=got
    )
    back = [table.index(slot // block_size) * block_size + slot % block_size for slot in got]
    expect(back, list(range(start, end)), f"positions that the slots {got} of {call} belong to")


@pytest.mark.exercise(
    "ex05a", points=2, hint="The engine asks for a whole prompt once, then for one token at a time."
)
def test_the_engine_writes_where_it_says(ex, tiny_model, reference_text, monkeypatch):
    """Inside the engine: K and V go where your function says, and attention reads them by the block table."""
    import torch

    from minivllm.model_runner import ModelRunner

    prepare = ModelRunner.prepare_inputs

    def prepare_inputs(runner, plan):
        inputs, size = prepare(runner, plan), runner.kv_cache.block_size
        slots = [
            slot
            for row in plan.scheduled
            for slot in ex.slot_mapping(list(row.block_ids), row.start, row.start + row.num_tokens, size)
        ]
        num_slots = runner.kv_cache.num_blocks * size
        wrong = [slot for slot in slots if not 0 <= slot < num_slots]
        expect_that(not wrong, f"all slots are in [0, {num_slots}), the cache of the engine", wrong=wrong)
        return replace(inputs, metadata=replace(inputs.metadata, slot_mapping=torch.tensor(slots)))

    monkeypatch.setattr(ModelRunner, "prepare_inputs", prepare_inputs)
    got = generate(tiny_model, num_blocks=12)  # so few that blocks are used again, in another order
    same_text(got, reference_text, "the engine with your slot_mapping")


# -- ex05b ------------------------------------------------------------------------------------------


def paged(rng, block_tables, seq_lens, dtype="float32", block_size=4, num_blocks=9, garbage=1e6):
    """(cache, tables, lengths, the packed keys that went in): what is not written holds `garbage`."""
    import torch

    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    dtype = getattr(torch, dtype)
    # Drawn in float64, which has more digits than float32 holds. (tokens, Hkv, D)
    contiguous = (9 * torch.randn(sum(seq_lens), 2, 3, generator=generator, dtype=torch.float64)).to(dtype)
    cache = torch.full((num_blocks, block_size, 2, 3), garbage, dtype=torch.float64).to(dtype)
    rows = iter(contiguous)
    for table, seq_len in zip(block_tables, seq_lens, strict=True):
        for position in range(seq_len):
            cache[table[position // block_size], position % block_size] = next(rows)
    widest = max(len(table) for table in block_tables)
    tables = torch.tensor([table + [0] * (widest - len(table)) for table in block_tables], dtype=torch.int32)
    return cache, tables, torch.tensor(seq_lens, dtype=torch.int32), contiguous


def check_gather(ex, rng, block_tables, seq_lens, dtype="float32", **sizes):
    cache, tables, lengths, contiguous = paged(rng, block_tables, seq_lens, dtype, **sizes)
    before = cache.clone(), tables.clone(), lengths.clone()
    got = ex.gather_kv(cache, tables, lengths)
    call = f"gather_kv with block_tables {tables.tolist()} and seq_lens {seq_lens}"
    expect_close(got, contiguous, call, 0.0)
    expect(got.dtype, contiguous.dtype, f"dtype of {call}, key_cache in {dtype}")
    expect_unchanged((cache, tables, lengths), before, call)


@pytest.mark.exercise("ex05b", points=1, hint="key_cache.flatten(0, 1) is the same memory as a row of slots.")
def test_one_sequence_comes_back_in_order(ex, rng):
    """The blocks lie anywhere; the text has one order. Blocks read as they lie in memory give another."""
    check_gather(ex, rng, [[7, 2]], [8])
    check_gather(ex, rng, [[5, 1, 6]], [12])


@pytest.mark.exercise("ex05b", points=1, hint="Cut to seq_len tokens after the blocks are put in order.")
def test_nothing_behind_the_end_comes_along(ex, rng):
    """The rest of the last block holds old data (1e6, or NaN): attention to it is attention to another sequence."""
    check_gather(ex, rng, [[7, 2]], [6])
    check_gather(ex, rng, [[3]], [1])
    check_gather(ex, rng, [[7, 2], [3]], [6, 1], garbage=float("nan"))


@pytest.mark.exercise(
    "ex05b", points=2, hint="Sequence r: row r of the table, seq_lens[r] tokens. Pack them with torch.cat."
)
def test_a_ragged_batch_is_packed(ex, rng):
    """Sequences of different lengths share a batch: no padding between them, and each from its own blocks."""
    check_gather(ex, rng, [[7, 2], [5]], [6, 3])
    check_gather(ex, rng, [[4], [7, 2, 1], [5, 8]], [4, 9, 5])
    check_gather(ex, rng, [[7, 2], [3], [5]], [6, 0, 3])


@pytest.mark.exercise(
    "ex05b", points=1, hint="How many entries count follows from seq_lens, not from the entries."
)
def test_block_zero_is_a_block_like_any_other(ex, rng):
    """Tables are padded with 0, but a 0 among the first entries names block 0: without it a sequence has a hole."""
    check_gather(ex, rng, [[0]], [4])
    check_gather(ex, rng, [[0, 4], [6]], [7, 2])
    check_gather(ex, rng, [[3, 0, 5], [7, 1, 8]], [9, 12])
    check_gather(ex, rng, [[3, 0]], [8])


@pytest.mark.exercise(
    "ex05b", points=1, hint="Index or concatenate the cache itself: nothing is computed here."
)
def test_the_dtype_of_the_cache_is_kept(ex, rng):
    """A result made by torch.zeros is float32: twice the memory of float16, half the digits of float64. Empty ones too."""
    for dtype in ("float16", "bfloat16", "float64", "int8"):
        check_gather(ex, rng, [[7, 2], [5]], [6, 3], dtype)
        check_gather(ex, rng, [[7, 2], [5]], [0, 0], dtype)


@pytest.mark.exercise("ex05b", points=1, hint="Read the block size from key_cache.shape, do not assume 4.")
def test_any_block_size_will_do(ex, rng):
    """The block size is the cache's second dimension; a number written into the code fits one cache only."""
    for block_size in (1, 2, 3, 16):
        check_gather(ex, rng, [[6, 0, 3], [1, 8]], [2 * block_size + 1, block_size], block_size=block_size)


@pytest.mark.exercise(
    "ex05b", points=2, hint="The engine calls it for K and for V, in each layer, with 6 sequences."
)
def test_the_engine_reads_with_it(ex, tiny_model, reference_text):
    """Inside the engine: attention over what you gathered must give the same text as before."""
    from tests.exercises.backends import StudentAttention

    got = generate(tiny_model, num_blocks=12, attention_backend=StudentAttention(gather=ex.gather_kv))
    same_text(got, reference_text, "the engine with your gather_kv")


# -- ex05c ------------------------------------------------------------------------------------------


def check_sweep(ex, expected, num_tokens):
    got = ex.block_size_sweep(list(num_tokens), list(expected))
    expect(dict(got), expected, f"block_size_sweep({num_tokens}, {list(expected)})")


@pytest.mark.exercise("ex05c", points=1, hint="Slots held = blocks * block_size; empty = held - tokens.")
def test_the_example_of_the_sweep(ex):
    """Small blocks mean long tables, large ones empty slots: both numbers, for the same sequences."""
    check_sweep(ex, {1: (0, 9), 4: (3, 3), 16: (23, 2)}, [6, 3])


@pytest.mark.exercise("ex05c", points=1, hint="What is 8 % 4, and how many slots are empty then?")
def test_a_full_last_block_wastes_nothing(ex):
    """block_size - n % block_size is a whole block at an exact multiple, where nothing is empty."""
    check_sweep(ex, {4: (0, 3), 8: (4, 2), 2: (0, 6)}, [8, 4])
    check_sweep(ex, {4: (3, 1)}, [0, 1])


@pytest.mark.exercise("ex05c", points=1, hint="Each sequence has a last block of its own.")
@given(num_tokens=st.lists(st.integers(0, 40), max_size=6), block_size=st.sampled_from([1, 2, 4, 16, 64]))
@example(num_tokens=[1, 1], block_size=4)
def test_each_sequence_has_its_own_blocks(ex, num_tokens, block_size):
    """Two sequences never share a block here: rounding up their sum is rounding too little."""
    blocks = sum(-(-count // block_size) for count in num_tokens)
    check_sweep(ex, {block_size: (blocks * block_size - sum(num_tokens), blocks)}, num_tokens)


@pytest.mark.exercise(
    "ex05c", points=2, hint="The numbers are read from the engine's own tables after each step."
)
def test_the_engine_of_this_chapter_counts_the_same(ex, tiny_model):
    """Measured, not believed: what an engine holds after each step, for three block sizes."""
    from minivllm.viz.trace import Trace

    def measure(block_size):
        trace = Trace()
        generate(tiny_model, trace=trace, block_size=block_size, num_blocks=256 // block_size)
        return trace.steps

    for block_size in (1, 4, 16):
        steps = remembered(("steps", tiny_model, block_size), lambda size=block_size: measure(size))
        for record in steps:
            held = sum(record.reserved.values()), sum(len(table) for table in record.block_tables.values())
            filled = list(record.filled.values())
            check_sweep(ex, {block_size: (held[0] - sum(filled), held[1])}, filled)
