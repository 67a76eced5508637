"""Chapter 10: merge, decode_kernel, split_kv; each alone and inside the engine.

The kernel runs in Triton's interpreter, or compiled where there is a GPU: the same tests. A wrong address would
end the interpreter's process, so every tensor a kernel sees lies in the middle of a large one (`guarded`).
"""

import functools
import math
import re
from contextlib import contextmanager

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.exercises.engine import PROMPTS, generate, remembered
from tests.exercises.expect import expect, expect_close, expect_that, expect_unchanged, same_text

NAN = math.nan
INF = math.inf

# -- what several exercises need --------------------------------------------------------------------


def part_of(scores, values, garbage=NAN):
    """(m, l, acc) of scores (..., n) and values (..., n, D); (-inf, 0, garbage) without keys: it is not written."""
    import torch

    if scores.shape[-1] == 0:
        empty = scores.new_zeros(scores.shape[:-1])
        return empty - INF, empty, scores.new_full((*empty.shape, values.shape[-1]), garbage)
    m = scores.amax(-1)
    p = torch.exp(scores - m[..., None])
    return m, p.sum(-1), (p[..., None] * values).sum(-2)


def attention(scores, values):
    """What all of it is about: softmax(scores) @ values, (..., D)."""
    return (scores.softmax(-1)[..., None] * values).sum(-2)


def draw(rng, *shape, dtype="float64"):
    """Numbers ~ N(0, 1), the same each time, others with `--seed`."""
    import torch

    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(getattr(torch, dtype))


def check_close(got, expected, what, tolerance):
    """As `expect_close`; a wrong dtype is told first, for it may be what makes the numbers differ."""
    import torch

    if isinstance(got, torch.Tensor):
        expect(got.dtype, expected.dtype, f"dtype of {what}")
    expect_close(got, expected, what, tolerance)


# -- ex10a ------------------------------------------------------------------------------------------


def merge(ex, a, b, what):
    """The student's merge; both parts have to be as they were."""
    before = [each.clone() for each in (*a, *b)]
    got = ex.merge(a, b)
    expect_unchanged((*a, *b), before, what)
    return got


def check_merged(got, scores, values, what, tolerance=1e-9):
    """`got` has to be the part of these scores and values, and so give their attention."""
    expect_that(isinstance(got, tuple | list) and len(got) == 3, f"{what} gives (m, l, acc)", got=got)
    for name, ours, theirs in zip(("m", "l", "acc"), got, part_of(scores, values), strict=True):
        check_close(ours, theirs, f"{name} of {what}", tolerance)


@pytest.mark.exercise(
    "ex10a", points=1, hint="m = max(m_a, m_b); then each side times exp(its own m minus the new one)."
)
def test_the_example_merges_by_hand(ex):
    """Scores 0, 2, 1 and values 1, 2, 3: both sums have to be repaired when a larger score joins."""
    import torch

    scores, values = torch.tensor([0.0, 2.0, 1.0]), torch.tensor([[1.0], [2.0], [3.0]])
    for first in (1, 2):
        a, b = (part_of(scores[cut], values[cut]) for cut in (slice(first), slice(first, 3)))
        what = f"merge(part of keys 0..{first - 1}, part of keys {first}..2) of the example"
        check_merged(merge(ex, a, b, what), scores, values, what, 1e-5)
        what += ", the other way round"
        check_merged(merge(ex, b, a, what), scores, values, what, 1e-5)


@pytest.mark.exercise("ex10a", points=2, hint="Keep acc unnormalised: divide by l once, at the very end.")
@given(lengths=st.lists(st.integers(1, 4), min_size=2, max_size=5), seed=st.integers(0, 99))
@example(lengths=[1, 1, 1], seed=0)
def test_any_cut_gives_the_same_attention(ex, lengths, seed):
    """However the keys are cut, and from whichever end they are merged: the attention over all of them."""
    import random

    rng = random.Random(seed)
    scores, values = 4 * draw(rng, 3, sum(lengths)), draw(rng, 3, sum(lengths), 2)  # 3 heads, D = 2
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    cuts = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    parts = [part_of(scores[:, cut], values[:, cut]) for cut in cuts]
    for way, ordered in (("from the left", parts), ("from the right", parts[::-1])):
        got = functools.reduce(ex.merge, ordered)
        check_merged(got, scores, values, f"parts of {lengths} keys, merged one by one {way}")


@pytest.mark.exercise(
    "ex10a", points=2, hint="-inf - -inf is NaN: where m is -inf, subtract 0. And 0 * NaN is NaN."
)
def test_a_part_without_keys_changes_nothing(ex, rng):
    """A program that got no tokens leaves m = -inf, l = 0 and unwritten memory: it must not count."""
    scores, values = draw(rng, 2, 3), draw(rng, 2, 3, 4)
    full = part_of(scores, values)
    for garbage in (NAN, INF, -INF, 1e30):
        empty = part_of(scores[:, :0], values[:, :0], garbage)
        what = f"merge(a part, a part without keys) (its acc holds {garbage})"
        check_merged(merge(ex, full, empty, what), scores, values, what)
        what = f"merge(a part without keys, a part) (its acc holds {garbage})"
        check_merged(merge(ex, empty, full, what), scores, values, what)
        note = f" (acc holds {garbage})"
        m, l, _ = both = ex.merge(empty, empty)  # noqa: E741
        numbers = [[float(each) for each in row] for row in (m, l)]
        expect(numbers, [[-INF] * 2, [0.0] * 2], "m and l of merge(without keys, without keys)" + note)
        what = "merge(merge(without keys, without keys), a part)" + note
        check_merged(ex.merge(both, full), scores, values, what)


@pytest.mark.exercise(
    "ex10a",
    points=1,
    hint="[..., None] puts D behind any leading dimensions; new tensors take their dtype from a.",
)
def test_any_shape_and_dtype_will_do(ex, rng):
    """One row for each head, or for each head of each sequence; in float32 as in float64."""
    import torch

    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        scores, values = draw(rng, 2, 3, 6).to(dtype), draw(rng, 2, 3, 6, 4).to(dtype)
        for cut in (0, 2, 6):
            a, b = (part_of(scores[..., at], values[..., at, :]) for at in (slice(cut), slice(cut, 6)))
            what = f"merge(part of keys 0..{cut}, part of keys {cut}..6) of 2 sequences and 3 heads, {dtype}"
            check_merged(ex.merge(a, b), scores, values, what, tolerance)


@pytest.mark.exercise(
    "ex10a", points=1, hint="torch.where works row by row; an if looks at all rows at once."
)
def test_some_rows_may_be_without_keys(ex, rng):
    """One head sees nothing of a tile, its neighbour does: each row has its own answer."""
    import torch

    scores, values = draw(rng, 4, 6), draw(rng, 4, 6, 2)
    a, b = part_of(scores[:, :3], values[:, :3]), part_of(scores[:, 3:], values[:, 3:])
    none = part_of(scores[:, :0], values[:, :0])
    row = torch.arange(4)
    a = tuple(full.where((row != 1).view(-1, *[1] * (full.dim() - 1)), gone) for full, gone in zip(a, none))  # noqa: B905
    b = tuple(full.where((row != 2).view(-1, *[1] * (full.dim() - 1)), gone) for full, gone in zip(b, none))  # noqa: B905
    got = ex.merge(a, b)
    for r, cut in enumerate((slice(6), slice(3, 6), slice(3), slice(6))):
        what = f"row {r} of a merge in which row 1 of a and row 2 of b are without keys"
        check_merged(tuple(each[r] for each in got), scores[r, cut], values[r, cut], what)


@pytest.mark.exercise("ex10a", points=1, hint="exp(m_a - m) with the new m: never exp(m_a) by itself.")
def test_large_scores_do_not_overflow(ex):
    """exp(1000) is infinite in every format: a sum that is not relative to the maximum gives inf / inf."""
    import torch

    values = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    for scores in ([1000.0, 1001.0, 998.0], [-1000.0, -1002.0, -999.0], [-1000.0, 1000.0, 0.0]):
        tensor = torch.tensor(scores, dtype=torch.float64)
        a, b = part_of(tensor[:1], values[:1]), part_of(tensor[1:], values[1:])
        check_merged(ex.merge(a, b), tensor, values, f"merge(key 0, keys 1 and 2) with scores {scores}")
    # Two heads, 2,000 apart: each has its own maximum.
    tensor = torch.tensor([[1000.0, 1001.0, 998.0], [-1000.0, -1002.0, -999.0]], dtype=torch.float64)
    values = torch.stack((values, 2 * values))
    a, b = part_of(tensor[:, :1], values[:, :1]), part_of(tensor[:, 1:], values[:, 1:])
    check_merged(
        ex.merge(a, b),
        tensor,
        values,
        "merge(key 0, keys 1 and 2) of two heads with scores near 1000 and -1000",
    )


def attend_in_parts(parts_to_out):
    """An `attend` for `StudentAttention` that knows the keys of each query only as parts.

    `parts_to_out(n, attend_part)` makes (Hq, D) of the n keys that one query sees.
    """
    import torch

    def attend(query, key, value, scale):
        num_queries, num_heads, _ = query.shape
        group = num_heads // key.shape[1]
        key, value = (each.double().repeat_interleave(group, dim=1).transpose(0, 1) for each in (key, value))
        rows = []
        for row in range(num_queries):
            seen = key.shape[1] - num_queries + row + 1
            scores = torch.einsum("hd,hnd->hn", query[row].double(), key) * scale

            def attend_part(low, high, scores=scores):
                return part_of(scores[:, low:high], value[:, low:high])

            rows.append(parts_to_out(seen, attend_part))
        return torch.stack(rows).to(query.dtype)

    return attend


@pytest.mark.exercise(
    "ex10a", points=2, hint="The engine folds the blocks of each sequence, four keys at a time."
)
def test_the_engine_attends_block_by_block(ex, tiny_model, reference_text):
    """Inside the engine: attention as a fold over blocks, all heads at once, writes the same text."""
    from tests.exercises.backends import StudentAttention

    def fold(seen, attend_part):
        parts = [attend_part(low, min(low + 4, seen)) for low in range(0, seen, 4)]
        _, l, acc = functools.reduce(ex.merge, parts, attend_part(0, 0))  # noqa: E741
        return acc / l[:, None]

    got = generate(tiny_model, attention_backend=StudentAttention(attend=attend_in_parts(fold)))
    same_text(got, reference_text, "the engine with attention merged from blocks by your merge")


# -- ex10b ------------------------------------------------------------------------------------------

GUARD = 1 << 18  # numbers before and after each tensor
UNTOUCHED = 1e6  # what is in `out` before the kernel runs
STALE = (-1, 99)  # table entries that lead nowhere: into the guard


def guarded(tensor, fill):
    """The same numbers in the middle of a buffer full of `fill`: (view, buffer)."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    buffer = torch.full((tensor.numel() + 2 * GUARD,), fill, dtype=tensor.dtype, device=device)
    view = buffer[GUARD:-GUARD].view(tensor.shape)
    return view.copy_(tensor), buffer


class Batch:
    """One decode batch in which every slot that holds no token is `garbage`, as are all neighbours of the cache.

    `tables` names the blocks of each sequence. `key_step` makes the scores rise: it is added to the first number of
    each key, once more for every position, and the first number of the queries is 1; `key_offset` is added once.
    """

    def __init__(self, rng, lens, tables, heads=(4, 2), head_dim=16, block_size=4, key_step=0.0, key_offset=0.0,
                 layout="slots", garbage=NAN):  # fmt: skip
        import torch

        num_heads, num_kv_heads = heads
        num_blocks = max((block for table in tables for block in table), default=0) + 2
        # "blocks" is (B, 2, S, Hkv, D): K and V of a block side by side, so that a block is further from the next.
        # "heads" is (B, Hkv, S, D): the slots of a head side by side.
        is_shared = layout == "blocks"
        shape = [num_blocks, 2 if is_shared else 1, block_size, num_kv_heads, head_dim]
        if layout == "heads":
            shape[2:4] = num_kv_heads, block_size
        caches = [guarded(torch.full(shape, garbage), garbage)[0] for _ in range(1 if is_shared else 2)]
        if layout == "heads":
            caches = [cache.transpose(2, 3) for cache in caches]
        self.key_cache, self.value_cache = caches[0][:, 0], caches[-1][:, -1]
        self.query = guarded(draw(rng, len(lens), num_heads, head_dim, dtype="float32"), NAN)[0]
        self.query[:, :, 0] = 1.0 if key_step or key_offset else self.query[:, :, 0]
        for cache in (self.key_cache, self.value_cache):
            for length, table in zip(lens, tables, strict=True):
                for position in range(length):
                    token = draw(rng, num_kv_heads, head_dim, dtype="float32").to(cache.device)
                    token[:, 0] += key_offset + key_step * position if cache is self.key_cache else 0.0
                    cache[table[position // block_size], position % block_size] = token
        width = max(len(table) for table in tables) + 1
        rows = [[*table, *(STALE * width)][:width] for table in tables]
        self.block_tables = guarded(torch.tensor(rows, dtype=torch.int32), STALE[0])[0]
        self.seq_lens = guarded(torch.tensor(lens, dtype=torch.int32), 0)[0]
        self.lens, self.tables, self.scale = lens, tables, head_dim**-0.5
        self.heads, self.block_size = heads, block_size

    def expected(self):
        """(R, Hq, D), computed in float64 one head at a time."""
        import torch

        from tests.exercises.backends import attend, gather

        rows = []
        for r, length in enumerate(self.lens):
            if length == 0:
                rows.append(torch.zeros_like(self.query[0]))
                continue
            one = self.block_tables[r : r + 1], self.seq_lens[r : r + 1]
            key, value = gather(self.key_cache, *one), gather(self.value_cache, *one)
            rows.append(attend(self.query[r : r + 1], key, value, self.scale)[0])
        return torch.stack(rows)


@contextmanager
def told_as_it_is():
    """Raise what happened inside a kernel, not Triton's wrapper around it."""
    try:
        yield
    except Exception as error:
        if re.search(r"NotImplementedError\(.ex10b.\)", str(error)):
            raise NotImplementedError("ex10b") from None
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise cause from None


@contextmanager
def reads_outside(tensor):
    """The number of addresses next to `tensor`, in its guard, that kernels load meanwhile: a list of one number.

    Only the interpreter can be watched. Compiled on a GPU, a kernel is checked by its numbers alone.
    """
    from triton.runtime.interpreter import InterpreterBuilder

    load, count = InterpreterBuilder.create_masked_load, [0]
    size = tensor.element_size()
    begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * size

    def counting(builder, pointers, mask, *others):
        read = pointers.data[mask.data.astype(bool)]
        near = (read >= begin - GUARD * size) & (read < end + GUARD * size)
        count[0] += int((near & ((read < begin) | (read >= end))).sum())
        return load(builder, pointers, mask, *others)

    InterpreterBuilder.create_masked_load = counting
    try:
        yield count
    finally:
        InterpreterBuilder.create_masked_load = load


def check_kernel(ex, batch, block_n=16, tolerance=1e-4):
    """Launch the student's kernel on a batch and compare with the definition, in float64."""
    import torch

    what = (
        f"decode_kernel with seq_lens {batch.lens}, block_tables {batch.tables}, S = {batch.block_size}, "
        f"BLOCK_N = {block_n}, (Hq, Hkv) = {batch.heads}"
    )
    out, buffer = guarded(torch.full_like(batch.query, UNTOUCHED), UNTOUCHED)
    tensors = (batch.query, batch.key_cache, batch.value_cache, batch.block_tables, batch.seq_lens)
    before = [tensor.clone() for tensor in tensors]
    with told_as_it_is(), reads_outside(batch.block_tables) as entries:
        ex.decode_attention(*tensors, batch.scale, block_n, out)
    expect_that(
        entries == [0], f"{what} reads no entry outside of block_tables", entries_read_there=entries[0]
    )
    expect_unchanged(tensors, before, what)
    outside = torch.cat([buffer[:GUARD], buffer[-GUARD:]]) != UNTOUCHED
    expect_that(not outside.any().item(), f"{what} writes to out only", numbers_elsewhere=int(outside.sum()))
    missing = [tuple(i) for i in (out == UNTOUCHED).any(-1).nonzero().tolist()]
    expect_that(not missing, f"{what} writes out[sequence, head] for each", not_written=missing)
    lost = [tuple(i) for i in (~out.isfinite()).any(-1).nonzero().tolist()]
    expect_that(
        not lost,
        f"{what} gives finite numbers (slots that hold no token of the sequence are NaN or infinite: is one read, "
        f"or 0 / 0 computed?)",
        sequence_and_head=lost,
    )
    expect_close(out.cpu(), batch.expected().cpu(), f"out of {what}", tolerance)


@pytest.mark.exercise(
    "ex10b",
    points=1,
    hint="Begin with one tile: load, scores, -inf where n >= seq_len, exp, two sums, store. "
    "If the process ends, an address is far off: print it.",
)
def test_the_example_request(ex, rng):
    """Six tokens in blocks 7 and 2, one tile: the blocks as the table names them, not as they lie."""
    check_kernel(ex, Batch(rng, [6], [[7, 2]], heads=(1, 1)))
    check_kernel(ex, Batch(rng, [8], [[7, 2]], heads=(2, 1)))


@pytest.mark.exercise(
    "ex10b", points=2, hint="tl.where(exists, scores, -inf): a key loaded as 0 has the score 0, not none."
)
def test_only_tokens_of_the_sequence_count(ex, rng):
    """One token, one short of a tile, a full tile, one more: what lies behind the end takes no share."""
    check_kernel(ex, Batch(rng, [1], [[3]], heads=(2, 1)))
    check_kernel(ex, Batch(rng, [15, 16, 17], [[5, 0, 2, 7], [1, 4, 6, 3], [8, 11, 9, 10, 12]], heads=(1, 1)))
    for garbage in (INF, -INF):
        check_kernel(ex, Batch(rng, [1, 17], [[3], [5, 4, 2, 7, 1]], heads=(1, 1), garbage=garbage))


@pytest.mark.exercise(
    "ex10b", points=1, hint="mask=n < seq_len, other=0 for the load of the block numbers, too."
)
def test_the_table_is_read_under_a_mask(ex, rng):
    """A tile is longer than the row of the table: behind the last row is memory that is not the table's."""
    check_kernel(ex, Batch(rng, [5], [[2, 1]], heads=(1, 1)), block_n=16)
    check_kernel(ex, Batch(rng, [3, 9], [[4], [0, 3, 5]], heads=(1, 1), block_size=4), block_n=32)


@pytest.mark.exercise(
    "ex10b",
    points=2,
    hint="m starts at -inf and not at 0; what does not exist has the score -inf and not -100.",
)
def test_scores_far_from_zero_count_as_any_other(ex, rng):
    """All scores near -200, or -20,000: beside a maximum of 0, or a mask of -100 or -10,000, exp(-200) is nothing."""
    for offset in (-800.0, 800.0):  # times the scale, 1/4
        batch = Batch(rng, [6, 17], [[7, 2], [5, 0, 3, 1, 4]], heads=(1, 1), key_offset=offset)
        check_kernel(ex, batch, tolerance=1e-3)
        check_kernel(ex, batch, block_n=4, tolerance=1e-3)
    for offset in (-64_000.0, 64_000.0):
        steps = {"key_offset": offset, "key_step": offset / 80}  # so far apart that rounding decides nothing
        check_kernel(
            ex, Batch(rng, [6, 17], [[7, 2], [5, 0, 3, 1, 4]], heads=(1, 1), **steps), tolerance=1e-3
        )


@pytest.mark.exercise(
    "ex10b", points=2, hint="alpha = exp(m - m_new) repairs both l and acc, before the new tile is added."
)
def test_a_new_maximum_repairs_what_was_there(ex, rng):
    """Scores that rise from tile to tile: each brings a new maximum, and the sums were relative to the old one."""
    check_kernel(ex, Batch(rng, [13], [[2, 0, 3, 1]], heads=(2, 1), key_step=2.0), block_n=4)
    check_kernel(ex, Batch(rng, [13], [[2, 0, 3, 1]], heads=(2, 1), key_step=-2.0), block_n=4)
    # 100 and more: exp of it overflows in float32
    check_kernel(ex, Batch(rng, [9], [[2, 0, 3]], heads=(1, 1), key_step=60.0), block_n=4, tolerance=1e-3)


@pytest.mark.exercise("ex10b", points=1, hint="Query head h reads KV head h // G; its row of out is still h.")
def test_query_heads_read_the_kv_head_of_their_group(ex, rng):
    """With 4 query and 2 KV heads: 0 and 1 share the first. `h % Hkv` is another model, and gives fluent text."""
    for heads in ((4, 2), (4, 1), (3, 3)):
        check_kernel(ex, Batch(rng, [6], [[1, 0]], heads=heads))


@pytest.mark.exercise(
    "ex10b", points=1, hint="Multiply by stride_block, stride_slot and stride_head; do not work them out."
)
def test_addresses_use_the_strides(ex, rng):
    """In one cache of vLLM's K and V of a block lie side by side, in another the slots of each head: ask the strides."""
    for layout in ("blocks", "heads"):
        check_kernel(ex, Batch(rng, [10, 3], [[4, 1, 2], [0]], layout=layout))


@pytest.mark.exercise("ex10b", points=1, hint="softmax(q . K * scale): multiply the scores, or q, once.")
def test_the_scale_is_applied_once(ex, rng):
    """Without it the softmax is too sharp, and the larger the heads, the more: D = 64 shows it best."""
    batch = Batch(rng, [7], [[1, 3]], heads=(2, 1), head_dim=64)
    check_kernel(ex, batch)
    batch.scale = 0.5
    check_kernel(ex, batch)


@pytest.mark.exercise(
    "ex10b", points=2, hint="n // S and n % S for each of the BLOCK_N positions n by itself."
)
def test_a_tile_is_not_a_block(ex, rng):
    """A tile spans several blocks, or is a part of one, and blocks of 3 slots fit no tile at all."""
    for block_size, block_n in ((4, 16), (8, 4), (3, 8)):
        tables = [[5, 0, 3, 2][: -(-10 // block_size)], [4, 1][: -(-5 // block_size)]]
        check_kernel(ex, Batch(rng, [10, 5], tables, heads=(1, 1), block_size=block_size), block_n)


@pytest.mark.exercise(
    "ex10b", points=2, hint="Row r of the table, seq_lens[r], and tl.where(l > 0, l, 1.0) before dividing."
)
def test_each_sequence_has_its_own_length_and_table(ex, rng):
    """A ragged batch, two sequences that share a block, and a row of padding, whose output is zeros."""
    check_kernel(ex, Batch(rng, [9, 2, 0, 5], [[6, 1, 3], [0], [], [2, 5]], heads=(2, 1)), block_n=8)
    check_kernel(ex, Batch(rng, [8, 4], [[2, 0], [2]], heads=(2, 2)), block_n=8)


class KernelAttention:
    """Writes K and V as the engine does, then asks the student's kernel, each query token as a row of its own."""

    name = "student"

    def __init__(self, decode_attention):
        self._decode_attention = decode_attention

    def prepare(self, metadata):
        return metadata

    def forward(self, query, key, value, kv_cache, layer, metadata, scale):
        import torch

        kv_cache.write(layer, key, value, metadata.slot_mapping)
        # A token of a prompt is a decode step of a shorter sequence.
        query_lens = metadata.query_start_loc.diff().tolist()
        tables, seq_lens = [], []
        for row, (count, seq_len) in enumerate(zip(query_lens, metadata.seq_lens.tolist(), strict=True)):
            tables += [metadata.block_tables[row]] * count
            seq_lens += range(seq_len - count + 1, seq_len + 1)
        tensors = (kv_cache.key[layer], kv_cache.value[layer], torch.stack(tables).to(query.device))
        seq_lens = torch.tensor(seq_lens, dtype=torch.int32, device=query.device)
        with told_as_it_is():
            return self._decode_attention(query.contiguous(), *tensors, seq_lens, scale, 32)


@pytest.mark.exercise(
    "ex10b", points=2, hint="Pools are small here, so blocks are used again: is a stale table entry followed?"
)
def test_the_engine_attends_with_the_kernel(ex, tiny_model):
    """Inside the engine: every attention of two requests by your kernel, prompts too; the same text."""
    prompts, options = [PROMPTS[4], PROMPTS[1]], {"max_tokens": 3, "num_blocks": 6, "dtype": "float32"}
    expected = remembered(("two short texts", tiny_model), lambda: generate(tiny_model, prompts, **options))
    got = generate(tiny_model, prompts, attention_backend=KernelAttention(ex.decode_attention), **options)
    same_text(got, expected, "the engine with your decode_kernel")


# -- ex10c ------------------------------------------------------------------------------------------


def run_split(ex, seq_len, num_splits, tile, scores, values, garbage=NAN):
    """(what, out, ranges): one call of the student's function, and the ranges for which it asked."""
    import torch

    what, ranges = f"split_kv({seq_len}, num_splits={num_splits}, tile={tile}, ...)", []

    def attend_part(low, high):
        low, high = int(low), int(high)
        expect_that(
            low >= high or 0 <= low < high <= seq_len,
            f"{what} asks for tokens that exist",
            asked_for=[low, high],
        )
        ranges.append((low, high))
        return part_of(scores[:, low : max(low, high)], values[:, low : max(low, high)], garbage)

    out = ex.split_kv(seq_len, num_splits, tile, attend_part)
    expect_that(isinstance(out, torch.Tensor), f"{what} gives a tensor", got=out)
    return what, out, ranges


def check_ranges(what, ranges, seq_len, num_splits, tile):
    """The ranges have to be a fair partition into whole tiles."""
    expect_that(len(ranges) <= num_splits, f"{what} asks for at most {num_splits} parts", asked_for=ranges)
    used = sorted((low, high) for low, high in ranges if low < high)
    covered = [position for low, high in used for position in range(low, high)]
    expect_that(
        covered == list(range(seq_len)), f"{what} attends to each of {seq_len} tokens once", asked_for=ranges
    )
    torn = [low for low, _ in used if low % tile]
    expect_that(
        not torn, f"{what} keeps tiles whole: each range begins at a multiple of {tile}", asked_for=ranges
    )
    num_tiles = -(-seq_len // tile)
    most = -(-num_tiles // num_splits)
    largest = max(-(-(high - low) // tile) for low, high in used)
    expect_that(
        largest <= most, f"{what} gives no program more than {most} tiles", largest=largest, asked_for=ranges
    )


def check_split(ex, rng, seq_len, num_splits, tile, factor=1.0, garbage=NAN, dtype="float64"):
    scores, values = factor * draw(rng, 2, seq_len, dtype=dtype), draw(rng, 2, seq_len, 3, dtype=dtype)
    what, out, ranges = run_split(ex, seq_len, num_splits, tile, scores, values, garbage)
    check_ranges(what, ranges, seq_len, num_splits, tile)
    tolerance = 1e-9 if dtype == "float64" else 1e-5
    check_close(out, attention(scores, values), f"result of {what} for 2 heads, D = 3, in {dtype}", tolerance)


@pytest.mark.exercise("ex10c", points=1, hint="Round up twice: tokens to tiles, then tiles to a range.")
def test_the_example_is_divided_fairly(ex, rng):
    """2,900 tokens in 46 tiles for 4 programs: the one with most tiles decides when all are done."""
    check_split(ex, rng, 2900, 4, 64)
    check_split(ex, rng, 12, 3, 2)


@pytest.mark.exercise(
    "ex10c", points=2, hint="The last range ends at seq_len, wherever its last tile would end."
)
@given(seq_len=st.integers(1, 40), num_splits=st.integers(1, 9), tile=st.sampled_from([1, 2, 4, 8, 16]))
@example(seq_len=1, num_splits=1, tile=16)
@example(seq_len=17, num_splits=2, tile=16)
@example(seq_len=9, num_splits=2, tile=4)
@example(seq_len=13, num_splits=2, tile=4)
def test_every_token_is_attended_to_once(ex, seq_len, num_splits, tile):
    """Any length, any number of programs: nothing lost at the end, nothing twice, no tile in two pieces."""
    import random

    check_split(ex, random.Random(seq_len), seq_len, num_splits, tile)


@pytest.mark.exercise("ex10c", points=2, hint="Weights exp(m_i - M), for acc and for l; divide once.")
def test_parts_weigh_what_their_scores_say(ex, rng):
    """Parts are not equals: one key with a large score outweighs a hundred; an average of averages is wrong."""
    for factor in (1.0, 5.0):
        for num_splits in (1, 2, 4, 8):
            check_split(ex, rng, 61, num_splits, 4, factor)
    check_split(ex, rng, 61, 4, 4, dtype="float32")


@pytest.mark.exercise("ex10c", points=1, hint="Subtract the largest m before exp.")
def test_scores_of_any_size_can_be_merged(ex, rng):
    """exp(m_i) by itself is infinite for m_i = 1000, or 0 for all parts when m_i = -1000."""
    for shift in (1000.0, -1000.0):
        scores, values = draw(rng, 2, 20) + shift, draw(rng, 2, 20, 3)
        what, out, _ = run_split(ex, 20, 4, 4, scores, values)
        check_close(out, attention(scores, values), f"result of {what} with scores near {shift:g}", 1e-9)
    scores[0] += 2000.0  # the other head stays near -1000: each has its own maximum
    what, out, _ = run_split(ex, 20, 4, 4, scores, values)
    check_close(
        out, attention(scores, values), f"result of {what} with scores near 1000 and -1000 in two heads", 1e-9
    )


@pytest.mark.exercise("ex10c", points=1, hint="Where l is 0, take 0 for acc before you multiply.")
def test_splits_without_tokens_do_not_count(ex, rng):
    """The number of splits is fixed before the lengths are known, so short sequences leave some of them empty."""
    for seq_len, num_splits in ((1, 8), (5, 4), (8, 3), (9, 16)):
        for garbage in (NAN, INF, -INF):
            check_split(ex, rng, seq_len, num_splits, 4, garbage=garbage)


@pytest.mark.exercise(
    "ex10c", points=2, hint="The engine asks with 3 splits and tiles of 2, for one query at a time."
)
def test_the_engine_attends_in_splits(ex, tiny_model, reference_text):
    """Inside the engine: each sequence, even a short one, cut into three and put together again; the same text."""
    from tests.exercises.backends import StudentAttention

    def split(seen, attend_part):
        return ex.split_kv(seen, 3, 2, lambda low, high: attend_part(int(low), max(int(low), int(high))))

    got = generate(tiny_model, attention_backend=StudentAttention(attend=attend_in_parts(split)))
    same_text(got, reference_text, "the engine with attention in splits by your split_kv")
