"""The final project, milestone 3: requests share their calls."""

import pytest

from tests.exercises.expect import expect, expect_that
from tests.exercises.project import SEATS, Bench, expect_once, prompts_of, widest

LENGTHS, MAX_TOKENS = [5, 2, 9, 3, 4, 7], [4, 9, 2, 6, 8, 3]


@pytest.mark.exercise(
    "m3", points=3, key=True, hint="One call of forward takes the rows of all running requests."
)
def test_requests_share_their_calls(ex, rng):
    """Requests that are computed one after the other: each call reads all weights for a single token."""
    calls = Bench(ex).run(prompts_of(rng, LENGTHS), MAX_TOKENS)
    expect(widest(calls), SEATS, f"rows of the fullest call, with max_num_seqs={SEATS} and 6 requests")


@pytest.mark.exercise(
    "m3", points=2, hint="A batch takes as many calls as the longest of its answers has tokens."
)
def test_a_batch_ends_with_its_longest_answer(ex, rng):
    """Batches that are not full, or prompts that are computed in calls of their own."""
    calls = Bench(ex).run(prompts_of(rng, LENGTHS), MAX_TOKENS)
    most = max(MAX_TOKENS[:SEATS]) + max(MAX_TOKENS[SEATS:])
    expect_that(len(calls) <= most, "two static batches take at most 9 + 8 calls", calls=len(calls))


@pytest.mark.exercise("m3", points=3, hint="Leave finished requests out of the call.")
def test_a_finished_request_is_not_computed_any_more(ex, rng):
    """Short answers that are carried along, and cut, until the longest of the batch is ready."""
    prompts = prompts_of(rng, LENGTHS)
    calls = Bench(ex).run(prompts, MAX_TOKENS)
    expect_once(calls, prompts, MAX_TOKENS)


@pytest.mark.exercise(
    "m3", points=1, hint="model.num_slots // max_model_len sequences of any length fit into memory."
)
def test_memory_decides_how_many_seats_there_are(ex, rng):
    """A seat beyond the end of memory: there is room for two of the longest sequences, and three may run."""
    bench = Bench(ex, num_slots=2 * 24, max_num_seqs=3, max_model_len=24)
    calls = bench.run(prompts_of(rng, [4, 3, 5]), [20, 20, 19])
    expect_that(widest(calls) >= 2, "two requests share a call", rows=widest(calls))


@pytest.mark.exercise("m3", points=1, hint="Two requests of a batch must not share a slot.")
def test_every_seat_has_room_for_the_longest_sequence(ex, rng):
    """Seats as wide as the prompts: the answer of one request overwrites the prompt of the next."""
    calls = Bench(ex, num_slots=3 * 24, max_num_seqs=3, max_model_len=24).run(
        prompts_of(rng, [4, 3, 5]), [20, 20, 19]
    )
    expect_that(widest(calls) <= 3, "no call has more rows than max_num_seqs=3", rows=widest(calls))
