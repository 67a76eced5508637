"""Chapter 14: first_flip, in_tiles; alone and inside the engine."""

import pytest
import torch

from minivllm.layers import Linear
from tests.exercises.engine import generate
from tests.exercises.expect import expect, expect_close, expect_that, expect_unchanged, same_text


def flip(ex, ours, theirs):
    """Call it, and check the form of what comes."""
    got = ex.first_flip(torch.tensor(ours), torch.tensor(theirs))
    call = f"first_flip({ours}, {theirs})"
    if got is not None:
        expect_that(isinstance(got, tuple | list) and len(got) == 2, f"{call} is a pair or None", got=got)
    return got, call


def expect_flip(ex, ours, theirs, row, gap):
    got, call = flip(ex, ours, theirs)
    expect_that(got is not None, f"{call} finds a difference", got=got)
    expect(int(got[0]), row, f"the row of {call}")
    what = f"{call} gives two numbers and no tensors"
    expect_that(not any(isinstance(each, torch.Tensor) for each in got), what, got=got)
    expect_that(abs(got[1] - gap) < 1e-5 * gap, f"the gap of {call} is {gap}", got=got[1])


@pytest.mark.exercise("ex14a", points=1, hint="argmax over the last dimension of both, then compare.")
def test_the_first_difference_counts(ex):
    """After the first difference the two have read different tokens: what follows says nothing."""
    expect_flip(ex, [[1.0, 3, 2], [5, 4.5, 0]], [[1.0, 3, 2], [4.5, 5, 0]], 1, 0.5)
    expect_flip(ex, [[3.0, 1], [0, 2], [4, 0]], [[1.0, 3], [2, 0], [0, 4]], 0, 2.0)


@pytest.mark.exercise("ex14a", points=1, hint="Both numbers of the gap come from `theirs`.")
def test_the_gap_is_between_two_tokens_of_theirs(ex):
    """A gap across two programs mixes their rounding with the question of how close the call was."""
    expect_flip(ex, [[9.0, 8, 0]], [[2.0, 2.25, 7]], 0, 5.0)
    expect_flip(ex, [[1.0, 100, 0]], [[6.0, 4, 5.5]], 0, 2.0)


@pytest.mark.exercise("ex14a", points=1, hint="Compare the choices; no torch.allclose, no tolerance.")
def test_a_tie_is_a_difference_too(ex):
    """This is the case the question is about: rows that agree to six digits, and the text parts all the same."""
    bit = 2.0**-20
    expect_flip(ex, [[0.0, 1], [1, 1 + bit]], [[0.0, 1], [1 + bit, 1]], 1, bit)


@pytest.mark.exercise("ex14a", points=1, hint="None only if the choices agree in every row.")
def test_numbers_may_differ_as_long_as_the_choice_is_the_same(ex):
    """Logits of two programs never agree to the last bit; a text differs only where a choice does."""
    got, call = flip(ex, [[1.0, 3], [4, 2]], [[0.5, 9], [1, 0.75]])
    expect(got, None, call)


def counting(weight, calls):
    """A product whose result depends on the number of rows, as a library's does, and much more visibly."""

    def product(rows):
        calls.append(tuple(rows.shape))
        return rows @ weight + len(rows) / 1000

    return product


@pytest.mark.exercise("ex14b", points=1, hint="split(tile) cuts; the last piece may be short.")
def test_every_call_has_the_same_number_of_rows(ex):
    """One number of rows, one order of additions: that is all the trick."""
    weight = torch.arange(6.0).view(3, 2)
    for count, tile in ((5, 4), (4, 4), (1, 8), (9, 2), (3, 1)):
        calls = []
        ex.in_tiles(torch.ones(count, 3), counting(weight, calls), tile)
        expect(
            calls,
            [(tile, 3)] * -(-count // tile),
            f"shapes that product saw, {count} rows in tiles of {tile}",
        )


@pytest.mark.exercise("ex14b", points=1, hint="Cut off the results of the rows you added.")
def test_each_row_gets_its_own_result(ex):
    """Rows that are added for the shape must not come out, and the order must be kept."""
    torch.manual_seed(0)
    weight, x = torch.randn(3, 2), torch.randn(7, 3)
    before = x.clone()
    for tile in (1, 2, 4, 16):
        got = ex.in_tiles(x, lambda rows: rows @ weight, tile)
        expect_close(got, x @ weight, f"in_tiles of 7 rows in tiles of {tile}", 1e-5)
    expect_unchanged([x], [before], "in_tiles")


@pytest.mark.exercise(
    "ex14b", points=1, hint="Zeros for the rows that are missing: torch.zeros, not torch.empty."
)
def test_what_fills_the_tile_up_is_zero(ex):
    """Memory that was not written may hold a NaN; zeros in float32 would make a bfloat16 layer's rows float32 as well."""
    for dtype in (torch.float32, torch.bfloat16):
        seen = []

        def product(rows, seen=seen):
            seen.append(rows.clone())
            return rows

        got = ex.in_tiles(torch.ones(5, 2, dtype=dtype), product, 4)
        dtypes = {rows.dtype for rows in (*seen, got)}
        expect(dtypes, {dtype}, f"dtypes of the rows that product saw, and of the result; x is {dtype}")
        sums = torch.cat(seen).sum(dim=1).tolist()
        expect(sums, [2.0] * 5 + [0.0] * 3, f"sum of each row that product saw; x is {dtype}")


@pytest.mark.exercise("ex14b", points=2, hint="Inside the engine a tile has 16 rows.")
def test_the_engine_writes_the_same_text_with_it(ex, tiny_model, reference_text):
    """All products of a Llama go through it, in batches of every size, and the text is that of before."""

    def prepare(model):
        for module in model.modules():
            if isinstance(module, Linear):
                kernel = module.kernel
                module.kernel = lambda x, kernel=kernel: ex.in_tiles(x, kernel, 16)

    same_text(generate(tiny_model, prepare=prepare), reference_text, "the engine with your in_tiles")
