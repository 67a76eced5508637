"""The final project, milestone 4: a seat that becomes free is taken in the following call."""

import heapq

import pytest

from tests.exercises.expect import expect, expect_that
from tests.exercises.project import SEATS, Bench, prompts_of, rows_of, started, widest


def workload(rng, count=14):
    """Prompts and lengths of answers, most of them short and some long."""
    max_tokens = [rng.choice([1, 2, 3, 5, 8, 25]) for _ in range(count)]
    return prompts_of(rng, [rng.randint(1, 12) for _ in range(count)]), max_tokens


def fewest_calls(max_tokens, seats):
    """The calls it takes if each request, in order, takes the seat which is free first."""
    ends = [0] * seats
    for count in max_tokens:
        heapq.heappush(ends, heapq.heappop(ends) + count)
    return max(ends)


@pytest.mark.exercise(
    "m4", points=4, key=True, hint="Before every call: while a seat is free and a request waits, let it in."
)
def test_no_seat_is_empty_while_a_request_waits(ex, rng):
    """The next requests are let in only when all are finished, or one of them per call."""
    prompts, max_tokens = workload(rng)
    calls = Bench(ex).run(prompts, max_tokens)
    last_start = max(started(calls, prompts))
    for number, call in enumerate(calls[:last_start]):
        expect_that(
            len(call) == SEATS, f"call {number} has {SEATS} rows: a request still waits", rows=len(call)
        )


@pytest.mark.exercise("m4", points=3, hint="A request leaves in the call that gives its last token, and a new prompt joins the others' next tokens.")  # fmt: skip
def test_there_are_as_few_calls_as_can_be(ex, rng):
    """A call that does nothing but let requests in or out, or that computes prompts only."""
    max_tokens = [rng.randint(1, 8) for _ in range(24)]
    prompts = prompts_of(rng, [rng.randint(1, 12) for _ in max_tokens])
    calls = Bench(ex).run(prompts, max_tokens)
    expect(
        len(calls), fewest_calls(max_tokens, SEATS), f"calls, with {SEATS} seats and answers of {max_tokens}"
    )


@pytest.mark.exercise("m4", points=2, hint="A queue: in at the end, out at the head.")
def test_the_first_that_came_is_the_first_that_starts(ex, rng):
    """Requests taken from the wrong end, or the shortest first: a long one may wait for ever."""
    prompts, max_tokens = workload(rng)
    starts = started(Bench(ex).run(prompts, max_tokens), prompts)
    expect(starts, sorted(starts), "the calls in which the requests start, in the order of the prompts")


@pytest.mark.exercise("m4", points=2, hint="The seat, and with it its slots, goes to the next request.")
def test_memory_for_the_seats_is_enough(ex, rng):
    """Slots that are never used a second time: memory for 4 seats, and 14 requests go through it."""
    bench = Bench(ex, num_slots=3 * 40, max_num_seqs=3, max_model_len=40)
    for _ in range(2):
        calls = bench.run(*workload(rng))
        expect_that(widest(calls) == 3, "three seats are used, and no more", rows=widest(calls))


@pytest.mark.exercise("m4", points=1, hint="Give the answer of a request back when all are there, but free its seat at once.")  # fmt: skip
def test_a_long_answer_does_not_hold_short_ones_up(ex):
    """One long answer, and the seat beside it: the short ones pass through, one after the other."""
    prompts, max_tokens = [[1], [2], [3], [4], [5]], [20, 3, 3, 3, 3]
    calls = Bench(ex, max_num_seqs=2).run(prompts, max_tokens)
    last = rows_of(calls, [5])[-1][0]
    expect(
        last, 11, "number of the call that gives the last token of the fourth short request, counted from 0"
    )
