"""Chapter 12: admission control, clients that give up, and a queue that is fair to users."""

from collections import deque

import pytest

from minivllm.scheduler_output import StepDraft
from tests.exercises.expect import expect, expect_that, expect_unchanged, same_text
from tests.exercises.simulate import Job, expected_tokens
from tests.helpers import add, check_invariants, make_group, make_scheduler, step

SLOW = 400  # steps after which a run is given up


# -- ex12a ------------------------------------------------------------------------------------------


def check_wait(ex, expected, running, waiting, seats):
    given, call = (list(running), list(waiting)), f"steps_until_seat({running}, {waiting}, seats={seats})"
    expect(ex.steps_until_seat(*given, seats), expected, call)
    expect_unchanged(given, (list(running), list(waiting)), call)


def by_counting(running, waiting, seats):
    """Step after step: seats that become free are taken in the next one."""
    running, waiting, steps = list(running), [*waiting, None], 0
    while True:
        while len(running) < seats:
            first = waiting.pop(0)
            if first is None:
                return steps
            running.append(first)
        running = [left - 1 for left in running if left > 1]
        steps += 1


@pytest.mark.exercise("ex12a", points=1, hint="A seat that nothing holds is free after 0 steps.")
def test_a_free_seat_means_no_wait(ex):
    """A server that is half empty must not refuse anything."""
    check_wait(ex, 0, [], [], 1)
    check_wait(ex, 0, [4, 9], [], 3)
    check_wait(ex, 0, [4], [7], 3)


@pytest.mark.exercise("ex12a", points=1, hint="Which seat becomes free first?")
def test_the_first_seat_to_become_free_is_the_newcomers(ex):
    """Without a queue, the shortest rest decides; not the longest, and not the mean."""
    check_wait(ex, 3, [3, 5], [], 2)
    check_wait(ex, 1, [9, 1, 9], [], 3)


@pytest.mark.exercise(
    "ex12a", points=2, hint="Each waiting request takes the seat that is free first, for its steps."
)
def test_those_that_wait_take_their_seats_first(ex, rng):
    """With a queue: the same as counting step by step, on loads that you do not know."""
    check_wait(ex, 5, [3, 5], [4], 2)
    check_wait(ex, 10, [2], [3, 5], 1)
    for _ in range(40):
        seats = rng.randint(1, 5)
        running = [rng.randint(1, 9) for _ in range(rng.randint(0, seats))]
        waiting = [rng.randint(1, 9) for _ in range(rng.randint(0, 8))]
        check_wait(ex, by_counting(running, waiting, seats), running, waiting, seats)


# -- ex12b ------------------------------------------------------------------------------------------


def scheduler_of(cls, **options):
    """One seat, much memory, unless the options say otherwise."""
    kv = make_scheduler(num_blocks=options.pop("num_blocks", 64)).kv
    return cls(kv, **({"max_num_seqs": 1, "max_num_batched_tokens": 64} | options))


def run(scheduler):
    """Step until nothing is left."""
    for _ in range(SLOW):
        if not scheduler.has_unfinished:
            check_invariants(scheduler)
            expect(scheduler.kv.pool.num_used, 0, "blocks held when all is over")
            return
        step(scheduler)
    pytest.fail(f"requests {sorted(scheduler.groups)} are not finished after {SLOW} steps", pytrace=False)


def status(group):
    return group.seqs[0].status.finish_reason


@pytest.mark.exercise(
    "ex12b", points=2, hint="Compare steps, not positions in the queue: now - arrival >= patience."
)
def test_a_client_that_waited_too_long_costs_nothing_more(ex):
    """One seat, taken for 30 steps: a request that has waited 10 steps is gone, and none of its tokens is computed."""
    scheduler = scheduler_of(ex.Impatient)
    first = add(scheduler, 0, 3, 30)
    late = add(scheduler, 1, 8, 5)
    for number in range(1, 31):
        step(scheduler)
        expect(
            status(late),
            "abort" if number > 10 else None,
            f"how the second request has ended after step {number}",
        )
    run(scheduler)
    expect(status(first), "length", "how the running request has ended")
    computed = scheduler.stats.num_computed_prompt_tokens
    expect(computed, 3, "prompt tokens computed: those of the first request")


@pytest.mark.exercise("ex12b", points=1, hint="Each request has an arrival of its own.")
def test_patience_begins_when_a_request_comes(ex):
    """A request that comes at step 15 waits until step 25, however old the server is."""
    scheduler = scheduler_of(ex.Impatient)
    first = add(scheduler, 0, 3, 18)
    for _ in range(15):
        step(scheduler)
    second = add(scheduler, 1, 3, 4)
    run(scheduler)
    expect([status(first), status(second)], ["length", "length"], "how the two have ended")
    expect(second.seqs[0].output_token_ids, expected_tokens(Job(0, 3, 4)), "output of the second request")


@pytest.mark.exercise(
    "ex12b", points=1, hint="self.patience; and what you note belongs to `self`, not to the class."
)
def test_each_engine_has_its_own_patience(ex):
    """A 10 in the code is another engine's patience, and arrivals that are kept in the class are another engine's."""

    class Hasty(ex.Impatient):
        patience = 3

    scheduler = scheduler_of(Hasty)
    add(scheduler, 0, 3, 9)
    late = add(scheduler, 1, 8, 5)
    for number in range(1, 6):
        step(scheduler)
        what = f"how a request that waits for the only seat has ended after step {number}, patience 3"
        expect(status(late), "abort" if number > 3 else None, what)
    run(scheduler)
    scheduler = scheduler_of(Hasty)
    add(scheduler, 0, 3, 8)
    for _ in range(6):
        step(scheduler)
    second = add(scheduler, 1, 3, 4)
    run(scheduler)
    what = 'how request "1" of a second engine has ended, which comes at step 6 and has waited for 2 steps at step 8'
    expect(status(second), "length", what)


@pytest.mark.exercise(
    "ex12b",
    points=1,
    hint="Go through self.waiting only; what tells whether a client has seen something is a token.",
)
def test_only_the_queue_is_left(ex):
    """A prompt whose computation was begun in time is not thrown away; one that has lost it waits like a new one."""
    for is_preempted in (False, True):
        scheduler = scheduler_of(ex.Impatient, max_num_batched_tokens=8)
        add(scheduler, 0, 3, 9)
        long = add(scheduler, 1, 40, 2)  # gets the seat after 9 steps, and needs 5 more for its prompt
        for _ in range(10):
            step(scheduler)
        expect_that(0 < long.seqs[0].num_computed_tokens < 40, "the second request is in the middle of its prompt",
                    computed=long.seqs[0].num_computed_tokens)  # fmt: skip
        if is_preempted:
            scheduler.preempt(long, StepDraft(0))
        step(scheduler)
        what = "how a request has ended after 11 steps whose prompt was begun in step 10"
        expect(status(long), "abort" if is_preempted else None, what + (" and then preempted" * is_preempted))
        run(scheduler)


@pytest.mark.exercise(
    "ex12b", points=2, hint="len(group.seqs[0]) > group.num_prompt_tokens: it has tokens already."
)
def test_a_client_that_reads_already_is_not_left(ex):
    """In little memory requests are preempted and wait again, longer than their patience: they have seen a token."""
    scheduler = scheduler_of(ex.Impatient, max_num_seqs=2, num_blocks=9)
    groups = [add(scheduler, 0, 4, 28), add(scheduler, 1, 4, 28)]
    run(scheduler)
    expect_that(scheduler.stats.num_preemptions > 0, "memory ran out", got=scheduler.stats.num_preemptions)
    expect([status(group) for group in groups], ["length"] * 2, "how the two have ended")
    same_text(
        [group.seqs[0].output_token_ids for group in groups], [expected_tokens(Job(0, 4, 28))] * 2, "ex12b"
    )


# -- ex12c ------------------------------------------------------------------------------------------


def order_of_first_tokens(scheduler, groups):
    """Names in the order in which they are admitted; those of one step in the order of the plan."""
    order = []
    for _ in range(SLOW):
        if not scheduler.has_unfinished:
            break
        order += [row.request_id for row in step(scheduler).scheduled if row.request_id not in order]
    expect(sorted(order), sorted(group.request_id for group in groups), "requests that were served at all")
    return order


def ask(scheduler, text):
    """Queue "ann/0:5 ben/0:3@30": names, the tokens that each asks for, and the prompt's (3 if not said)."""
    groups = []
    for each in text.split():
        name, _, rest = each.partition(":")
        tokens, _, prompt = rest.partition("@")
        groups.append(make_group(name, int(prompt or 3), int(tokens), seq_id=scheduler.new_seq_id()))
        scheduler.add(groups[-1])
    return groups


@pytest.mark.exercise(
    "ex12c", points=2, hint="Sums per user, of what has been admitted; ann has 5 after her first."
)
def test_one_request_of_another_user_does_not_wait_for_forty(ex):
    """The example, and a crowd: first come, first served would serve ben last."""
    scheduler = scheduler_of(ex.FairQueue)
    groups = ask(scheduler, "ann/0:5 ann/1:5 ann/2:5 ben/0:5")
    expect(
        order_of_first_tokens(scheduler, groups),
        ["ann/0", "ben/0", "ann/1", "ann/2"],
        "order of admission, one seat",
    )
    scheduler = scheduler_of(ex.FairQueue)
    groups = ask(scheduler, " ".join(f"ann/{i}:3" for i in range(12)) + " ben/0:3")
    expect(order_of_first_tokens(scheduler, groups).index("ben/0"), 1, "place of ben's only request among 13")


@pytest.mark.exercise(
    "ex12c",
    points=1,
    hint='request_id.split("/")[0] is the user; of equals the one that came first, as in the queue.',
)
def test_names_do_not_decide(ex):
    """Users whose names begin alike are two users, and neither the alphabet nor a number in a name is an arrival."""
    for text, wanted in (
        ("ann/0:5 ann/1:5 anna/0:5", ["ann/0", "anna/0", "ann/1"]),
        ("zoe/0:5 ben/1:5 ben/0:5 ann/0:5", ["zoe/0", "ben/1", "ann/0", "ben/0"]),
    ):
        scheduler = scheduler_of(ex.FairQueue)
        groups = ask(scheduler, text)
        expect(order_of_first_tokens(scheduler, groups), wanted, f"order of admission, one seat, of {text}")


@pytest.mark.exercise(
    "ex12c", points=2, hint="Tokens, not requests: two long answers may be more than six short ones."
)
def test_tokens_count_and_not_requests(ex):
    """Taking turns by requests gives the user with long answers several times as much."""
    scheduler = scheduler_of(ex.FairQueue)
    groups = ask(scheduler, "ann/0:20 ann/1:20 ben/0:4 ben/1:4 ben/2:4 ben/3:4 ben/4:4 ben/5:4")
    wanted = ["ann/0", "ben/0", "ben/1", "ben/2", "ben/3", "ben/4", "ann/1", "ben/5"]
    expect(
        order_of_first_tokens(scheduler, groups),
        wanted,
        "order of admission: ann asks for 20 each, ben for 4",
    )
    # What counts is the promise: after 6 steps ann has got as many tokens as ben, and has been promised more.
    scheduler = scheduler_of(ex.FairQueue, max_num_seqs=2)
    groups = ask(scheduler, "ann/0:20 ben/0:6 ann/1:6 ben/1:6")
    order = order_of_first_tokens(scheduler, groups)
    what = "order of admission, two seats, of ann/0:20 ben/0:6 ann/1:6 ben/1:6"
    expect(order, ["ann/0", "ben/0", "ben/1", "ann/1"], what)


@pytest.mark.exercise(
    "ex12c", points=2, hint="Choose the second of a step as if the first had been admitted."
)
def test_within_one_step_too(ex):
    """Sums that are brought up to date only between steps, or with the prompts in them, choose other users."""
    scheduler = scheduler_of(ex.FairQueue, max_num_seqs=4)
    groups = ask(scheduler, "ann/0:6 ann/1:6 ann/2:6 ann/3:6 ben/0:6 cleo/0:6")
    first = [row.request_id for row in step(scheduler).scheduled]
    expect(first, ["ann/0", "ben/0", "cleo/0", "ann/1"], "requests admitted in the first step, four seats")
    kind = type(scheduler.waiting).__name__
    expect_that(isinstance(scheduler.waiting, deque), "self.waiting is still a collections.deque", got=kind)
    run(scheduler)
    expect([status(group) for group in groups], ["length"] * 6, "how all have ended")
    # Output tokens are promised, prompts are not: with her 30 in the sum, ann would have to wait for ben's second.
    scheduler = scheduler_of(ex.FairQueue, max_num_seqs=3)
    ask(scheduler, "ann/0:5@30 ben/0:8@2 ben/1:8@2 ann/1:5@2")
    first = [row.request_id for row in step(scheduler).scheduled]
    what = "requests admitted in the first step, three seats; ann/0 has a prompt of 30, and asks for 5 tokens"
    expect(first, ["ann/0", "ben/0", "ann/1"], what)


@pytest.mark.exercise(
    "ex12c", points=2, hint="A request that was preempted stands in the queue again: it is no new one."
)
def test_what_was_promised_counts_once_and_comes_back_first(ex):
    """In little memory: a victim that is counted again, or sent to the end, pays twice for having been preempted."""
    scheduler = scheduler_of(ex.FairQueue, max_num_seqs=2, num_blocks=9)
    groups = ask(scheduler, "ann/0:27 ben/0:29 ann/1:4 ben/1:3")
    starts = []
    for _ in range(SLOW):
        if not scheduler.has_unfinished:
            break
        starts += [row.request_id for row in step(scheduler).scheduled if row.start == 0]
    expect_that(scheduler.stats.num_preemptions > 0, "memory ran out", got=scheduler.stats.num_preemptions)
    expect(
        starts, ["ann/0", "ben/0", "ben/0", "ann/1", "ben/1"], "requests in the order in which they (re)start"
    )
    for group in groups:
        length = group.max_num_tokens - group.num_prompt_tokens
        expect(
            group.seqs[0].output_token_ids,
            expected_tokens(Job(0, 3, length)),
            f"output of {group.request_id}",
        )
