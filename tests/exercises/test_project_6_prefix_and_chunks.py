"""The final project, milestone 6: known blocks are found again, and long prompts are cut into chunks."""

import pytest

from tests.exercises.expect import expect, expect_that
from tests.exercises.project import (
    Bench,
    expect_blocks,
    expect_once,
    greedy_text,
    num_computed,
    prompts_of,
    rows_of,
    widest,
)

PREFIX = [50, 51, 52, 53, 54, 55, 56, 57]  # two blocks of 4


# -- chunks -----------------------------------------------------------------------------------------


@pytest.mark.exercise(
    "m6", points=2, key=True, hint="Subtract what each row computes from the budget, running requests too."
)
def test_no_call_has_more_tokens_than_the_budget(ex, rng):
    """A long prompt in one call, or tokens of running requests that nothing counts."""
    prompts = prompts_of(rng, [3, 40, 2, 17])
    calls = Bench(ex, max_num_batched_tokens=8).run(prompts, [12, 6, 9, 5])
    most = max(sum(seen.num_new for seen in call) for call in calls)
    expect_that(most <= 8, "no call computes more than max_num_batched_tokens=8 tokens", most=most)
    expect_once(calls, prompts, [12, 6, 9, 5])


@pytest.mark.exercise(
    "m6", points=3, hint="First one token for every request that generates, then the prompts."
)
def test_a_long_prompt_does_not_hold_the_others_up(ex, rng):
    """Chunks of a prompt of 40 tokens that come first, or alone: the text of the other request stops meanwhile."""
    prompts = prompts_of(rng, [3, 40])
    calls = Bench(ex, max_num_batched_tokens=8).run(prompts, [20, 4])
    numbers = [number for number, _ in rows_of(calls, prompts[0])]
    expect(numbers, list(range(20)), "the calls that give the 20 tokens of the short request")


@pytest.mark.exercise("m6", points=2, hint="A chunk is as long as the budget that is left allows.")
def test_the_budget_is_used(ex, rng):
    """Chunks shorter than the budget that is left: a prompt of 40 takes 5 + 7 + 7 + 7 + 7 + 7 beside one other."""
    prompts = prompts_of(rng, [3, 40])
    calls = Bench(ex, max_num_batched_tokens=8).run(prompts, [20, 4])
    chunks = [seen.num_new for _, seen in rows_of(calls, prompts[1])]
    expect(chunks, [5, 7, 7, 7, 7, 7, 1, 1, 1], "new tokens of the long request, call by call")


@pytest.mark.exercise("m6", points=2, hint="A chunk in the middle of a prompt gives no token: the prompt says what comes next.")  # fmt: skip
def test_a_token_comes_from_the_end_of_a_prompt_only(ex, rng):
    """The guess after a chunk taken for the first token of the answer."""
    for budget in (4, 5, 7):
        prompts = prompts_of(rng, [9, 13, 16])
        calls = Bench(ex, max_num_batched_tokens=budget).run(prompts, [3, 1, 4])
        expect_once(calls, prompts, [3, 1, 4])


# -- the prefix cache -------------------------------------------------------------------------------


@pytest.mark.exercise("m6", points=3, hint="Remember full blocks by the text they end; look the prompt's blocks up, from the first on.")  # fmt: skip
def test_a_known_prefix_is_not_computed_again(ex):
    """Blocks forgotten when their request ends; the second prompt shares two blocks with the first."""
    bench = Bench(ex)
    bench.run([[*PREFIX, 1]], [3])
    calls = bench.run([[*PREFIX, 2, 3]], [3])
    expect(num_computed(calls), 4, "positions computed: 2 of the prompt's 10 and 2 of the answer")
    expect_blocks(calls, 4)


@pytest.mark.exercise("m6", points=2, hint="At least one token has to be computed: what follows the prompt is known from there only.")  # fmt: skip
def test_a_prompt_that_is_known_whole_computes_its_last_block(ex):
    """Nothing left to compute, so no token comes; or nothing shared at all."""
    bench = Bench(ex)
    bench.run([PREFIX], [1])
    calls = bench.run([PREFIX], [1])
    expect_that(1 <= num_computed(calls) <= 4, "of 8 known tokens at most the last block is computed", computed=num_computed(calls))  # fmt: skip


@pytest.mark.exercise("m6", points=2, hint="A generated block is a block like any other.")
def test_the_next_turn_of_a_conversation_finds_the_answer(ex):
    """Only blocks of prompts remembered: each turn of a chat would compute the answer before it again."""
    bench = Bench(ex)
    first = [60, 61, 62, 63, 64, 65]
    bench.run([first], [7])
    calls = bench.run([[*first, *greedy_text(first, 7), 1, 2, 3]], [1])
    expect(
        num_computed(calls), 4, "positions computed of 16, when the first 12 were computed in the turn before"
    )


@pytest.mark.exercise("m6", points=2, hint="K and V depend on everything before: the key of a block is the whole text up to its end.")  # fmt: skip
def test_the_same_tokens_after_another_beginning_are_another_block(ex):
    """Blocks known by their own four tokens: the block [9, 9, 8, 8] at position 4 is none for position 0."""
    bench = Bench(ex)
    bench.run([[1, 2, 3, 4, 9, 9, 8, 8, 5]], [2])
    bench.run([[9, 9, 8, 8, 9, 9, 8, 8, 5]], [2])
    bench.run([[1, 2, 3, 4, 1, 2, 3, 4, 9, 9, 8, 8, 5]], [2])


@pytest.mark.exercise(
    "m6", points=2, hint="Share full blocks only. Into a block that is not full, its holder still writes."
)
def test_a_block_that_is_not_full_is_not_shared(ex):
    """The first request is in its second block when the third comes with the same 6 tokens and then others."""
    calls = Bench(ex, max_num_seqs=2).run([PREFIX[:6], [1], [*PREFIX[:6], 9, 9, 9]], [12, 1, 6])
    (_, first), *_ = [row for row in rows_of(calls, [*PREFIX[:6], 9]) if row[1].text[6:7] == bytes([9])]
    expect(first.start, 4, "positions that the third request finds")


@pytest.mark.exercise("m6", points=3, hint="Count the holders of a block; it is free when none is left.")
def test_a_shared_block_stays_until_its_last_holder_leaves(ex):
    """A block given away when the first of its two holders ends, and overwritten under the second."""
    prompts = [[*PREFIX, 1], [0], [*PREFIX, 2], *([100 + i] * 12 for i in range(12))]
    max_tokens = [6, 1, 20, *[2] * 12]
    calls = Bench(ex, num_slots=12 * 4, max_num_seqs=2).run(prompts, max_tokens)
    (number, second), *_ = rows_of(calls, prompts[2])
    expect(second.start, 8, "positions that the second holder finds while the first one runs")
    (first,) = [seen for seen in calls[number] if seen.text.startswith(bytes(prompts[0]))]
    expect(second.slots[:8], first.slots[:8], "the slots of the shared prefix, in the same call")
    expect(widest(calls), 2, "rows of the fullest call")


@pytest.mark.exercise("m6", points=1, hint="A free block keeps its content until it is taken; then the content is forgotten.")  # fmt: skip
def test_what_has_been_overwritten_is_not_found(ex):
    """Content remembered though another request has taken the block since."""
    bench = Bench(ex, num_slots=6 * 4)
    for prompt in ([*PREFIX, 1], [70] * 20, [*PREFIX, 1], [71] * 20, [*PREFIX, 2]):
        bench.run([prompt], [4])
