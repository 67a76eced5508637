"""Chapter 9: block_names, SharedBlocks, eviction_order; each alone and inside the engine."""

import functools
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minivllm.block_pool import BlockPool
from minivllm.block_table import BlockTable
from minivllm.kv_cache_manager import KVCacheManager
from tests.exercises.engine import BLOCK_SIZE, PROMPTS, default_prompts, make_llm, remembered, tokenizer_of
from tests.exercises.expect import expect, expect_raises, expect_that, expect_unchanged, same_text

# -- ex09a ------------------------------------------------------------------------------------------


def names_of(ex, token_ids, block_size=4):
    """The student's names; anything that is not a list of dictionary keys is told as such."""
    token_ids, given = list(token_ids), list(token_ids)
    call = f"block_names({token_ids}, {block_size})"
    got = ex.block_names(given, block_size)
    expect_that(isinstance(got, Iterable), f"{call} gives a list of names", got=got)
    got = list(got)
    expect_unchanged([given], [token_ids], call)
    for name in got:
        try:
            hash(name)
        except TypeError:
            kind = type(name).__name__
            message = f"{call}: the name {name!r} is a {kind}, which cannot be the key of a dictionary"
            raise AssertionError(message) from None
    return got


def check_equal_up_to(ex, num_equal, one, other, block_size=4):
    """The first `num_equal` names of two sequences are equal, pair by pair, and no pair after them."""
    names = zip(names_of(ex, one, block_size), names_of(ex, other, block_size), strict=False)
    got = [a == b for a, b in names]
    expected = [index < num_equal for index in range(len(got))]
    expect(got, expected, f"block by block: is the name in {one} that in {other}? (block_size {block_size})")


@pytest.mark.exercise(
    "ex09a", points=1, hint="range(len(token_ids) // block_size): the division rounds down."
)
def test_only_full_blocks_have_names(ex):
    """A block that is not full is still written to: a sequence that finds it by name would see it change."""
    for length, expected in [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2), (9, 2)]:
        got = len(names_of(ex, range(length)))
        expect(got, expected, f"number of names of {length} tokens, block_size 4")


@pytest.mark.exercise(
    "ex09a", points=1, hint="Nothing but the tokens may go into a name: no id, no clock, no counter."
)
def test_an_equal_beginning_has_equal_names(ex):
    """A name that differs from call to call, or with what comes later, is never found again."""
    check_equal_up_to(ex, 1, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3])
    check_equal_up_to(ex, 2, [0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12])
    check_equal_up_to(ex, 1, [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 9, 9, 9, 9])


@pytest.mark.exercise("ex09a", points=2, hint="The name of the block before goes into the name of this one.")
def test_equal_tokens_after_another_beginning_have_another_name(ex):
    """K and V of a token depend on all before it: without the parent, a prompt gets another prompt's KV."""
    check_equal_up_to(ex, 0, [7, 7, 7, 7, 9, 9, 9, 9], [0, 1, 2, 3, 9, 9, 9, 9])
    check_equal_up_to(ex, 0, [7, 7, 7, 7, 5, 5, 5, 5, 9, 9, 9, 9], [0, 1, 2, 3, 5, 5, 5, 5, 9, 9, 9, 9])
    one_sequence = names_of(ex, [9, 9, 9, 9, 9, 9, 9, 9])
    expect_that(
        one_sequence[0] != one_sequence[1],
        "the two blocks of [9, 9, 9, 9, 9, 9, 9, 9] have different names",
        got=one_sequence,
    )


@pytest.mark.exercise(
    "ex09a", points=1, hint="Tokens are a sequence: do not sort them, add them or make a set of them."
)
def test_the_order_of_the_tokens_counts(ex):
    """ "dog bites man" and "man bites dog" have the same words, and not the same keys and values."""
    check_equal_up_to(ex, 0, [1, 2, 3, 4], [4, 3, 2, 1])
    check_equal_up_to(ex, 1, [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 6, 5, 7, 8])


@pytest.mark.exercise(
    "ex09a",
    points=1,
    hint="Where does one token end and the next begin? Give each the same room, or keep them apart.",
)
def test_tokens_do_not_run_into_each_other(ex):
    """Digits in a row: 1, 23 and 12, 3 are both "123". One byte per token: 0 and 256 are the same."""
    check_equal_up_to(ex, 0, [1, 23, 4, 5], [12, 3, 4, 5])
    check_equal_up_to(ex, 0, [1, 2, 3, 4], [257, 2, 3, 4])
    check_equal_up_to(ex, 1, [1, 2, 3, 4, 70000, 1, 1, 1], [1, 2, 3, 4, 4464, 1, 1, 1])


@pytest.mark.exercise(
    "ex09a", points=1, hint="4 bytes for each token: token.to_bytes(4, 'little'); or the numbers."
)
def test_every_bit_of_a_token_counts(ex):
    """Vocabularies of 128,256 and more: ids that agree in their lowest 8, 16 or 24 bits are still other words."""
    for base in (0, 5, 128_255, 2**31 - 1):
        for bit in range(31):
            other = base ^ (1 << bit)
            names = names_of(ex, [base, 2, 3, 4]), names_of(ex, [other, 2, 3, 4])
            expect_that(names[0] != names[1], f"[{base}, 2, 3, 4] and [{other}, 2, 3, 4] have different names",
                        got=names)  # fmt: skip


@pytest.mark.exercise(
    "ex09a",
    points=2,
    hint="How many different names can there be? 2 bytes: 65,536. hashlib.sha256 has 32 bytes.",
)
def test_a_hundred_thousand_blocks_have_as_many_names(ex, rng):
    """A server holds more blocks than a checksum has values: two that collide, and one user reads another's text."""
    for largest in (3, 2**31 - 1):  # few different tokens, and any
        sequences, seen = [], {}  # seen: name -> number of the sequence
        for number in range(7_500):
            # The number makes each beginning, and so each name, different.
            drawn = memoryview(rng.randbytes(4 * 78)).cast("I")
            sequences.append([number % 128, number // 128, *(each & largest for each in drawn)])
            names = list(ex.block_names(list(sequences[-1]), 4))
            if len(set(names)) < len(names) or not seen.keys().isdisjoint(names):
                raise AssertionError(same_name(ex, names, sequences, seen))
            seen.update(dict.fromkeys(names, number))


def same_name(ex, names, sequences, seen):
    """In words: which two blocks share a name, one of them in the last of the sequences."""
    for index, name in enumerate(names):
        number = len(sequences) - 1 if name in names[:index] else seen.get(name)
        if number is not None:
            other = list(ex.block_names(list(sequences[number]), 4)).index(name)
            one, two = sequences[-1][: 4 * index + 4], sequences[number][: 4 * other + 4]
            return f"two sequences whose last blocks have one name, {name!r}\n  {one}\n  {two}"
    return "names differ from call to call"


# Beginnings with one value of Python's `hash`: of the four tokens; of 0 and the tokens; of None and the tokens (from
# Python 3.12 on). Two million random pairs of tokens are enough to find one: the third token makes up the difference.
SAME_HASH = [
    ([37_266, 17_553, 90_112_910, 7], [10_282, 17_073, 0, 7]),
    ([34_778, 28_461, 90_112_910, 7], [7_794, 27_981, 0, 7]),
    ([42_687, 20_598, 90_112_910, 7], [15_703, 20_118, 0, 7]),
]


@pytest.mark.exercise(
    "ex09a",
    points=1,
    hint="Python's hash has 64 bits and no secret. hashlib.sha256, or tuples that hold the tokens themselves.",
)
def test_names_cannot_be_made_to_collide(ex):
    """vLLM's default was `hash` until 0.10.2. Two prompts with one name take a second to find, and are found below."""
    for one, other in SAME_HASH:
        check_equal_up_to(ex, 0, one, other)
        check_equal_up_to(ex, 0, [*one, 5, 6, 7, 8], [*other, 5, 6, 7, 8])


@pytest.mark.exercise(
    "ex09a",
    points=2,
    hint="The rule, written out: equal names at i if and only if a[:(i + 1) * size] == b[:(i + 1) * size].",
)
@given(
    one=st.lists(st.integers(0, 2), max_size=9),
    other=st.lists(st.integers(0, 2), max_size=9),
    size=st.integers(1, 3),
)
@example(one=[0, 0, 1, 1], other=[1, 1, 1, 1], size=2)
def test_a_name_stands_for_the_whole_beginning_and_for_nothing_else(ex, one, other, size):
    """Any two sequences of few different tokens: names are equal exactly where the beginnings are."""
    names = names_of(ex, one, size), names_of(ex, other, size)
    for sequence, each in zip((one, other), names, strict=True):
        expect(len(each), len(sequence) // size, f"number of names of {sequence}, block_size {size}")
    for i, a in enumerate(names[0]):
        for j, b in enumerate(names[1]):
            same = one[: (i + 1) * size] == other[: (j + 1) * size]
            expect(a == b, same, f"block_names({one}, {size})[{i}] == block_names({other}, {size})[{j}]")


# Prompts that a wrong name takes for one another, served one after the other. The search for a prompt's blocks
# ends at the first that is not found, so it takes three prompts to find the wrong block behind a right one.
LOOK_ALIKE = [
    [9, 9, 9, 9, 1, 2, 3, 4, 5], [7, 7, 7, 7, 6, 6], [7, 7, 7, 7, 1, 2, 3, 4, 5],  # equal second blocks
    [11, 12, 13, 14, 15, 16], [14, 13, 12, 11, 15, 16],  # other order
    [1, 23, 4, 5, 6, 7], [12, 3, 4, 5, 6, 7],  # equal digits
    [31, 32, 33, 34, 35, 36, 37], [31, 32, 33, 34, 38], PROMPTS[5], PROMPTS[5],  # these are real hits
]  # fmt: skip


def prompts_for(model, prompts):
    """`prompts`; for the real model three sentences, each of them twice, so that there is something to find."""
    return prompts if tokenizer_of(model) is None else default_prompts(model)[:3] * 2


def print_real_text(model, prompts, texts):
    """What the real model writes; the tiny one writes nothing that one could read."""
    if (tokenizer := tokenizer_of(model)) is not None:
        for prompt, text in zip(prompts, texts, strict=True):
            print(tokenizer.decode(prompt) + " ->" + tokenizer.decode(text).replace("\n", "\\n"))


def run_with_prefix_cache(model, prompts, max_tokens=6, **options):
    """Token ids and the number of prompt tokens found, one each for every prompt."""
    from minivllm import SamplingParams

    llm = make_llm(model, enable_prefix_caching=True, **options)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": each} for each in prompts], params, use_tqdm=False)
    blocks_are_back(llm)
    return [list(each.outputs[0].token_ids) for each in outputs], [each.num_cached_tokens for each in outputs]


def blocks_are_back(llm):
    """After the last request no sequence holds a block."""
    kv = llm.llm_engine.scheduler.kv
    kv.check_invariants()
    expect(kv.pool.num_used, 0, "blocks that were never given back to the engine")


@pytest.mark.exercise(
    "ex09a",
    points=2,
    hint="Find the first prompt whose text differs, and which earlier prompt looks like it.",
)
def test_the_engine_finds_what_is_equal_and_nothing_else(ex, tiny_model, reference_text):
    """Inside the engine's prefix cache: a name too wide gives wrong text, a name too narrow finds nothing."""
    prompts = prompts_for(tiny_model, LOOK_ALIKE)
    expected, found = remembered(
        ("look-alikes", tiny_model), lambda: run_with_prefix_cache(tiny_model, prompts, max_num_seqs=1)
    )

    class Named:
        """A sequence whose blocks bear the student's names; all else is the sequence's own."""

        def __init__(self, seq):
            self.seq = seq
            self.names = names_of(ex, seq.token_ids, BLOCK_SIZE)

        def __getattr__(self, name):
            return getattr(self.seq, name)

        def block_hash(self, index, block_size):
            return self.names[index]

    class Manager(KVCacheManager):
        def get_computed_blocks(self, seq, max_tokens):
            return super().get_computed_blocks(Named(seq), max_tokens)

        def allocate_slots(self, chunks, computed_blocks=()):
            return super().allocate_slots([(Named(seq), count) for seq, count in chunks], computed_blocks)

        def cache_blocks(self, seq, start):
            super().cache_blocks(Named(seq), start)

    got, got_found = run_with_prefix_cache(tiny_model, prompts, max_num_seqs=1, kv_cache_manager_cls=Manager)
    print_real_text(tiny_model, prompts, got)
    same_text(got, expected, "the engine with your block_names")
    expect(got_found, found, "prompt tokens found in the prefix cache, one number per prompt")


# -- ex09b ------------------------------------------------------------------------------------------


def example_blocks(ex, tables=None, block_size=4, num_blocks=8):
    """`SharedBlocks` with these tables; every other block is free."""
    tables = {0: [7, 2]} if tables is None else tables
    ref_counts = [sum(block in table for table in tables.values()) for block in range(num_blocks)]
    free_blocks = [
        block for block in (4, 1, 0, 3, 6, 5, 7, 2) if block < num_blocks and not ref_counts[block]
    ]
    return ex.SharedBlocks(tables, ref_counts, free_blocks, block_size)


def append(blocks, seq_id, position):
    """(slot, copy) of the student's `append`; a copy may be any pair. Anything else is told as such."""
    got = blocks.append(seq_id, position)
    what = f"append({seq_id}, {position}) gives (slot, copy)"
    expect_that(isinstance(got, tuple | list) and len(got) == 2, what, got=got)
    slot, copy = got
    return slot, tuple(copy) if isinstance(copy, list) else copy


def books_agree(blocks, when):
    """Each block is counted once for each table it is in, and is free exactly if it is in none."""
    counted = [
        sum(block in table for table in blocks.tables.values()) for block in range(len(blocks.ref_counts))
    ]
    expect(list(blocks.ref_counts), counted, f"ref_counts {when}, tables {blocks.tables}")
    free = [block for block, count in enumerate(counted) if count == 0]
    expect(sorted(blocks.free_blocks), free, f"free_blocks, sorted, {when}, tables {blocks.tables}")


@pytest.mark.exercise(
    "ex09b", points=1, hint="One more holder for each block of the parent's table; no block is taken."
)
def test_a_fork_shares_every_block(ex):
    """A fork costs no memory: it is counting. One block not counted is freed while the child still reads it."""
    blocks = example_blocks(ex)
    expect(blocks.fork(0, 1), [7, 2], "fork(0, 1) of tables {0: [7, 2]}")
    expect(blocks.tables, {0: [7, 2], 1: [7, 2]}, "tables after fork(0, 1)")
    books_agree(blocks, "after fork(0, 1)")
    blocks.fork(1, 2)
    books_agree(blocks, "after fork(0, 1) and fork(1, 2)")


@pytest.mark.exercise(
    "ex09b", points=1, hint="`b = a` gives a list a second name. `list(a)` makes a second list."
)
def test_the_child_has_a_table_of_its_own(ex):
    """Two names for one list: the block that one sequence adds would appear in the other's table as well."""
    blocks = example_blocks(ex, {0: [7]})
    blocks.fork(0, 1)
    blocks.append(1, 4)
    expect(blocks.tables[0], [7], "table of the parent after fork(0, 1), append(1, 4), block_size 4")
    expect(len(blocks.tables[1]), 2, "number of blocks of the child")


@pytest.mark.exercise(
    "ex09b", points=2, hint="ref_counts[block] > 1: take a free block, and put it into this table only."
)
def test_the_first_writer_copies_and_the_last_writes_in_place(ex):
    """The example of the docstring: without a copy two texts share one slot; the last holder needs none."""
    blocks = example_blocks(ex)
    blocks.fork(0, 1)
    slot, copy = append(blocks, 0, 6)
    new = blocks.tables[0][1]
    expect_that(new not in (2, 7), "append(0, 6) after fork(0, 1) gives sequence 0 a block of its own",
                tables=blocks.tables)  # fmt: skip
    expect(copy, (2, new), "the copy that append(0, 6) asks for: (source, destination)")
    expect(slot, new * 4 + 2, f"slot of position 6 in {blocks.tables[0]}")
    books_agree(blocks, "after fork(0, 1), append(0, 6)")
    expect(append(blocks, 1, 6), (10, None), "append(1, 6) after that: the last holder of block 2")
    expect(blocks.tables, {0: [7, new], 1: [7, 2]}, "tables at the end")
    books_agree(blocks, "after append(1, 6)")


@pytest.mark.exercise(
    "ex09b", points=1, hint="Copy the block in which `position` lies: table[position // block_size]."
)
def test_only_the_block_written_to_is_copied(ex):
    """Three shared blocks and one write: the full ones stay shared, that is the whole saving."""
    blocks = example_blocks(ex, {0: [5, 7, 2]})
    blocks.fork(0, 1)
    blocks.fork(0, 2)
    slot, copy = append(blocks, 2, 9)
    new = blocks.tables[2][-1]
    expect(
        blocks.tables, {0: [5, 7, 2], 1: [5, 7, 2], 2: [5, 7, new]}, "tables after two forks, append(2, 9)"
    )
    expect((slot, copy), (new * 4 + 1, (2, new)), "append(2, 9)")
    books_agree(blocks, "after append(2, 9)")


@pytest.mark.exercise(
    "ex09b", points=1, hint="Ask first whether the position opens a new block; then nothing is shared."
)
def test_a_new_block_needs_no_copy(ex):
    """At a block boundary the write goes to a fresh block: copying the full one before it would be waste."""
    blocks = example_blocks(ex, {0: [7, 2]})
    blocks.fork(0, 1)
    for seq_id in (0, 1):
        slot, copy = append(blocks, seq_id, 8)
        expect(copy, None, f"the copy that append({seq_id}, 8) asks for, both blocks of 4 full")
        expect(blocks.tables[seq_id][:2], [7, 2], f"the shared blocks of sequence {seq_id}")
        expect(slot, blocks.tables[seq_id][2] * 4, f"slot of position 8 in {blocks.tables[seq_id]}")
        books_agree(blocks, f"after append({seq_id}, 8)")


@pytest.mark.exercise("ex09b", points=1, hint="Is a block needed? Is one free? Only then change anything.")
def test_no_free_block_changes_nothing(ex):
    """Out of memory half way: if the shared block is let go first, a sequence is left with a hole in its table."""
    for tables, position in [({0: [1, 0], 1: [1, 0]}, 6), ({0: [1, 0]}, 8)]:
        blocks = example_blocks(ex, {key: list(table) for key, table in tables.items()}, num_blocks=2)
        before = list(blocks.ref_counts)
        call = f"append(0, {position}) with tables {tables} and no free block"
        expect_raises(ValueError, call, blocks.append, 0, position)
        expect(
            (blocks.tables, list(blocks.ref_counts)), (tables, before), f"tables and ref_counts after {call}"
        )
    blocks = example_blocks(ex, {0: [1, 0]}, num_blocks=2)
    expect(
        append(blocks, 0, 6), (2, None), "append(0, 6) with tables {0: [1, 0]}, no free block: none is needed"
    )


@pytest.mark.exercise(
    "ex09b", points=2, hint="What each sequence has written, it must read: no other may have written there."
)
@given(data=st.data(), size=st.integers(1, 4))
def test_every_sequence_reads_what_it_has_written(ex, data, size):
    """Any forks and writes, on memory that is really written and copied: each sequence finds its own text."""
    blocks = ex.SharedBlocks({0: []}, [0] * 24, list(range(24)), size)
    memory, texts = [None] * (24 * size), {0: []}
    for number in range(data.draw(st.integers(1, 14))):
        seq_id = data.draw(st.sampled_from(sorted(texts)))
        if data.draw(st.booleans()) and len(texts) < 4:
            child = len(texts)
            blocks.fork(seq_id, child)
            texts[child] = list(texts[seq_id])
        elif len(texts[seq_id]) < 5 * size:
            slot, copy = append(blocks, seq_id, len(texts[seq_id]))
            if copy is not None:
                source, destination = copy
                memory[destination * size : (destination + 1) * size] = memory[
                    source * size : (source + 1) * size
                ]
            memory[slot] = f"{seq_id}.{number}"
            texts[seq_id].append(memory[slot])
        books_agree(blocks, f"block_size {size}")
        for each, text in texts.items():
            table = blocks.tables[each]
            got = [memory[table[p // size] * size + p % size] for p in range(len(text))]
            expect(got, text, f"what sequence {each} reads through {table}, block_size {size}")


def manager_with(ex):
    """A KVCacheManager whose forks and decode steps are the student's."""

    class Manager(KVCacheManager):
        def shared(self):
            tables = {seq_id: list(table.block_ids) for seq_id, table in self.block_tables.items()}
            counts = [block.ref_count for block in self.pool.blocks]
            return ex.SharedBlocks(tables, counts, list(self.pool.free_block_ids), self.block_size)

        def take_over(self, shared):
            old = [block for table in self.block_tables.values() for block in table.blocks]
            self.block_tables = {
                seq_id: BlockTable(self.block_size, [self.pool.blocks[block_id] for block_id in table])
                for seq_id, table in shared.tables.items()
            }
            # The new holders first: no block is without any on the way.
            self.pool.touch([block for table in self.block_tables.values() for block in table.blocks])
            self.pool.free(old)
            counts = [block.ref_count for block in self.pool.blocks]
            expect(list(shared.ref_counts), counts, f"ref_counts in the engine, tables {shared.tables}")
            free_blocks = sorted(self.pool.free_block_ids)
            expect(sorted(shared.free_blocks), free_blocks, f"free_blocks, sorted, tables {shared.tables}")

        def fork(self, parent, child):
            shared = self.shared()
            shared.fork(parent.seq_id, child.seq_id)
            self.take_over(shared)

        def allocate_slots(self, chunks, computed_blocks=()):
            if any(seq.seq_id not in self.block_tables or count > 1 for seq, count in chunks):
                return super().allocate_slots(chunks, computed_blocks)
            shared, copies = self.shared(), []
            for seq, _ in chunks:
                _, copy = append(shared, seq.seq_id, seq.num_computed_tokens)
                copies += [] if copy is None else [copy]
            self.take_over(shared)
            return copies

    return Manager


@pytest.mark.exercise("ex09b", points=2, hint="The tests before this one are smaller; get them right first.")
def test_completions_and_beams_share_with_it(ex, tiny_model, reference_text):
    """Inside the engine: three completions and three beams of one prompt, the same text as with the engine's own."""
    from minivllm import SamplingParams
    from minivllm.sampling_params import BeamSearchParams

    prompts = [prompts_for(tiny_model, PROMPTS)[index] for index in (0, 2, 4)]
    params = SamplingParams(n=3, temperature=2.0, seed=1, max_tokens=7, ignore_eos=True)
    beams = BeamSearchParams(beam_width=3, max_tokens=9, ignore_eos=True)

    def run(**options):
        llm = make_llm(tiny_model, **options)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = llm.generate(asked, params, use_tqdm=False) + llm.beam_search(asked, beams)
        blocks_are_back(llm)
        return [list(each.token_ids) for output in outputs for each in output.outputs]

    expected = remembered(("completions and beams", tiny_model), run)
    got = run(kv_cache_manager_cls=manager_with(ex))
    print_real_text(tiny_model, prompts, got[9::3])  # nine completions, then three beams a prompt, best first
    same_text(got, expected, "the engine with your SharedBlocks")


# -- ex09c ------------------------------------------------------------------------------------------


def check_order(ex, expected, history, num_blocks):
    given, call = (
        [(event, list(blocks)) for event, blocks in history],
        f"eviction_order({history}, {num_blocks})",
    )
    got = list(ex.eviction_order(given, num_blocks))
    expect(got, expected, call)
    expect_unchanged([given], [[(event, list(blocks)) for event, blocks in history]], call)


@pytest.mark.exercise("ex09c", points=1, hint="reversed(block_ids) when a sequence gives its blocks back.")
def test_the_tail_goes_before_the_head(ex):
    """If the head of a chain is overwritten, the rest can never be found again: it is memory lost to both."""
    check_order(ex, [3, 4, 2, 1, 0], [("take", [0, 1, 2]), ("free", [0, 1, 2])], 5)
    check_order(ex, [1, 2, 0, 3], [("take", [3, 0, 2, 1]), ("free", [3, 0, 2, 1])], 4)


@pytest.mark.exercise(
    "ex09c", points=1, hint="Freed blocks go to the end; the block at the front is overwritten next."
)
def test_what_was_used_longest_ago_goes_first(ex):
    """The content freed a moment ago is the likeliest to be asked for again: overwriting it first finds nothing."""
    history = [("take", [0]), ("take", [1]), ("take", [2]), ("free", [1]), ("free", [2]), ("free", [0])]
    check_order(ex, [1, 2, 0], history, 3)
    check_order(ex, [3, 1, 2, 0], history, 4)
    check_order(ex, [0, 1, 2], [], 3)


@pytest.mark.exercise(
    "ex09c", points=2, hint="A free block that is taken leaves the queue, and comes back at its end."
)
def test_a_hit_makes_a_block_young_again(ex):
    """A prefix that all requests use must outlive one that was used once, though it is older."""
    history = [("take", [0, 1]), ("free", [0, 1]), ("take", [2, 3]), ("free", [2, 3])]
    check_order(ex, [1, 0, 3, 2], history, 4)
    check_order(ex, [0, 3, 2], [*history, ("take", [1])], 4)
    check_order(ex, [1, 3, 2, 0], [*history, ("take", [0]), ("free", [0])], 4)


@pytest.mark.exercise(
    "ex09c", points=2, hint="Count holders; only the last one to leave puts the block into the queue."
)
def test_a_shared_block_is_free_when_its_last_holder_leaves(ex):
    """A block that a sequence still reads must not be overwritten, even if all others have left."""
    history = [("take", [0, 1]), ("take", [0, 2]), ("free", [0, 1])]
    check_order(ex, [3, 1], history, 4)
    check_order(ex, [3, 1, 2, 0], [*history, ("free", [0, 2])], 4)
    check_order(ex, [3], [*history, ("take", [0, 1]), ("free", [0, 2]), ("take", [2])], 4)


@pytest.mark.exercise(
    "ex09c",
    points=2,
    hint="For each free block: when did its last holder leave, and how deep in that table was it?",
)
@given(data=st.data())
def test_the_order_is_that_of_last_use(ex, data):
    """Any history, against the definition: sorted by when the last holder left, the deeper block first."""
    num_blocks = data.draw(st.integers(1, 7))
    history, alive = [], []
    # The definition: (number of the event, -depth in that table); blocks never held come first, by number.
    left = {block: (-1, block) for block in range(num_blocks)}
    holders = [0] * num_blocks
    for number in range(data.draw(st.integers(0, 9))):
        if alive and data.draw(st.booleans()):
            table = alive.pop(data.draw(st.integers(0, len(alive) - 1)))
            history.append(("free", table))
            for depth, block in enumerate(table):
                holders[block] -= 1
                left[block] = (number, -depth)
        else:
            table = data.draw(st.lists(st.integers(0, num_blocks - 1), max_size=num_blocks, unique=True))
            history.append(("take", table))
            alive.append(table)
            for block in table:
                holders[block] += 1
    expected = sorted((block for block in left if holders[block] == 0), key=left.get)
    check_order(ex, expected, history, num_blocks)


@pytest.mark.exercise(
    "ex09c", points=2, hint="The same prompts, the same memory: only what was overwritten differs."
)
def test_the_engine_finds_as_much_with_it(ex, tiny_model, reference_text):
    """Inside the engine with 12 blocks: with the wrong block overwritten, fewer tokens of later prompts are found."""

    class Pool(BlockPool):
        """After each change: the student's order of the whole history has to be the engine's own."""

        def __init__(self, num_blocks):
            super().__init__(num_blocks)
            self.history = []

        def note(self, event, blocks):
            self.history.append((event, [block.block_id for block in blocks]))
            order = ex.eviction_order([(name, list(ids)) for name, ids in self.history], self.num_blocks)
            expect(list(order), list(self.free_block_ids), f"eviction_order after {len(self.history)} events in the "
                   f"engine, the last of them {self.history[-1]}")  # fmt: skip

        def allocate(self, count):
            blocks = super().allocate(count)
            self.note("take", blocks)
            return blocks

        def touch(self, blocks):
            blocks = list(blocks)
            super().touch(blocks)
            self.note("take", blocks)

        def free(self, blocks):
            blocks = list(blocks)  # the engine gives the last block first
            super().free(blocks)
            self.note("free", blocks[::-1])

    class Manager(KVCacheManager):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.pool = Pool(self.pool.num_blocks)

    system, other = list(range(40, 52)), list(range(100, 112))
    prompts = [[*system, 1], [*system, 3, 4], [*other, 2], list(range(60, 76)), [*system, 5], [*other, 6],
               list(range(80, 90)), [*system, 7], list(range(60, 76))]  # fmt: skip
    prompts = prompts_for(tiny_model, prompts)
    for seats in (1, 2):  # two at once share blocks while they run
        options = {"max_tokens": 3, "num_blocks": 12, "max_num_seqs": seats}
        own = functools.partial(run_with_prefix_cache, tiny_model, prompts, **options)
        expected, found = remembered(("evictions", tiny_model, seats), own)
        got, got_found = run_with_prefix_cache(tiny_model, prompts, **options, kv_cache_manager_cls=Manager)
        same_text(got, expected, f"the engine with your eviction_order, {seats} at once")
        expect(
            got_found,
            found,
            f"prompt tokens found in the prefix cache, one number per prompt, {seats} at once",
        )
    print_real_text(tiny_model, prompts, got)
