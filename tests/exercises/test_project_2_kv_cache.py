"""The final project, milestone 2: every position is computed once."""

import pytest

from tests.exercises.expect import expect
from tests.exercises.project import Bench, expect_once, prompts_of


@pytest.mark.exercise(
    "m2", points=3, key=True, hint="New are the tokens that no call has computed: len(tokens) - computed."
)
def test_every_position_is_computed_once(ex, rng):
    """The last old token computed again each time, or the last new one computed though nothing follows it."""
    prompts, max_tokens = prompts_of(rng, [6, 1, 4]), [9, 5, 1]
    calls = Bench(ex).run(prompts, max_tokens)
    expect_once(calls, prompts, max_tokens)


@pytest.mark.exercise("m2", points=2, hint="All tokens of a prompt are known at once.")
def test_a_prompt_takes_one_call(ex):
    """A prompt computed token by token: right, and as many calls as it has tokens."""
    calls = Bench(ex).run([[7, 3, 200, 41, 19, 88]], [5])
    expect([seen.num_new for call in calls for seen in call], [6, 1, 1, 1, 1], "new tokens of each call, prompt 6, max_tokens 5")  # fmt: skip


@pytest.mark.exercise("m2", points=1, hint="The first row of a request has as many slots as new tokens.")
def test_a_new_prompt_reads_nothing_of_the_one_before(ex):
    """A count of computed tokens that the next prompt takes over."""
    bench = Bench(ex)
    for prompt in ([7, 3, 200, 41], [9, 8], [1]):
        calls = bench.run([prompt], [3])
        expect(calls[0][0].start, 0, "positions read in the first call of a new prompt")
