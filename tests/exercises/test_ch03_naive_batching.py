"""Chapter 3: fragmentation, static_batch_steps, order_by_length; each alone and beside the engine's baselines."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minivllm.baselines import ReservationPolicy, StaticBatchScheduler, orca
from minivllm.scheduler import Scheduler
from tests.exercises.engine import default_prompts, generate
from tests.exercises.expect import expect, expect_that, expect_unchanged, same_text
from tests.exercises.simulate import Job, draw_jobs, simulate
from tests.helpers import make_group, step

# -- ex03a ------------------------------------------------------------------------------------------


def check_shares(ex, used, wasted, free, filled, reserved, capacity):
    got = ex.fragmentation(ex.Snapshot(tuple(filled), tuple(reserved), capacity))
    shares = {"used": used, "wasted": wasted, "free": free}
    call = f"fragmentation(Snapshot({tuple(filled)}, {tuple(reserved)}, {capacity}))"
    expect(sorted(got), sorted(shares), f"keys of {call}")
    for kind, share in shares.items():
        expect_that(abs(got[kind] - share) < 1e-9, f'{call}["{kind}"] is {share:.6g}', got=got[kind])


@pytest.mark.exercise(
    "ex03a", points=1, hint="Wasted: reserved and not filled. Free: capacity and not reserved."
)
def test_the_three_kinds_are_told_apart(ex):
    """Empty and set aside is not the same as empty and free: only the second can be given to a request."""
    check_shares(ex, 0.125, 0.375, 0.5, [6, 2], [16, 16], 64)
    check_shares(ex, 0.25, 0.0, 0.75, [16], [16], 64)
    check_shares(ex, 1.0, 0.0, 0.0, [16, 48], [16, 48], 64)
    check_shares(ex, 1 / 3, 1 / 3, 1 / 3, [1], [2], 3)


@pytest.mark.exercise("ex03a", points=1, hint="Divide all three by the same number: the capacity.")
@given(data=st.data())
def test_the_shares_add_up_to_the_whole(ex, data):
    """Every slot is of exactly one kind: shares of different wholes do not add up, and cannot be compared."""
    reserved = data.draw(st.lists(st.integers(1, 64), max_size=5))
    filled = [data.draw(st.integers(0, slots)) for slots in reserved]
    capacity = sum(reserved) + data.draw(st.integers(1, 100))
    used, held = sum(filled), sum(reserved)
    check_shares(
        ex,
        used / capacity,
        (held - used) / capacity,
        (capacity - held) / capacity,
        filled,
        reserved,
        capacity,
    )


@pytest.mark.exercise("ex03a", points=1, hint="What are the sums of empty tuples?")
def test_an_idle_memory_is_all_free(ex):
    """Between two batches nothing is reserved: dividing by what is held divides by zero."""
    check_shares(ex, 0.0, 0.0, 1.0, [], [], 64)
    check_shares(ex, 0.0, 1.0, 0.0, [0], [64], 64)


@pytest.mark.exercise(
    "ex03a", points=2, hint="The engine reserves 32 slots for each request, even if it needs fewer."
)
def test_the_engine_counts_the_same(ex):
    """Beside the contiguous manager of the paper's baseline: its own count of every slot, after each step."""
    kv = orca(ReservationPolicy.MAX, 32)(num_blocks=32, block_size=4)
    scheduler = Scheduler(kv, max_num_seqs=8, max_num_batched_tokens=32)
    for index, (prompt, output) in enumerate([(6, 8), (1, 20), (16, 4), (9, 2), (4, 12)]):
        scheduler.add(make_group(index, prompt, output, seq_id=scheduler.new_seq_id()))
    while scheduler.has_unfinished:
        step(scheduler)
        usage, reserved = kv.slot_usage(), kv.reserved_slots
        filled = {seq.seq_id: seq.num_computed_tokens for group in scheduler.running for seq in group.seqs}
        shares = [
            slots / usage.capacity for slots in (usage.used, usage.reserved + usage.internal, usage.external)
        ]
        check_shares(ex, *shares, [filled[i] for i in reserved], reserved.values(), usage.capacity)


# -- ex03b ------------------------------------------------------------------------------------------


def check_steps(ex, expected, lengths, batch_size):
    given, call = list(lengths), f"static_batch_steps({list(lengths)}, batch_size={batch_size})"
    got = ex.static_batch_steps(given, batch_size)
    expect(tuple(got), expected, call)
    expect_unchanged([given], [list(lengths)], call)


@pytest.mark.exercise("ex03b", points=1, hint="A batch takes as many steps as its longest request.")
def test_a_batch_waits_for_its_longest(ex):
    """The batch is closed until all are done: neither the mean nor the sum of the lengths, but the maximum."""
    check_steps(ex, (5, 3), [2, 5], 2)
    check_steps(ex, (5, 3), [5, 2], 2)
    check_steps(ex, (9, 4), [2, 5, 3, 4], 2)
    check_steps(ex, (14, 0), [2, 5, 3, 4], 1)
    check_steps(ex, (13, 8), [2, 9, 3, 4], 2)


@pytest.mark.exercise("ex03b", points=1, hint="range(0, len(output_lengths), batch_size)")
def test_the_last_batch_may_be_smaller(ex):
    """Requests left over form a batch as well, and its empty seats are as empty as any other."""
    check_steps(ex, (8, 6), [2, 5, 3], 2)
    check_steps(ex, (7, 21), [7], 4)
    check_steps(ex, (0, 0), [], 4)


@pytest.mark.exercise("ex03b", points=2, hint="Steps times seats, minus the tokens generated.")
def test_the_engine_takes_as_many_steps(ex, rng):
    """Beside `StaticBatchScheduler`, which really runs the batches: steps, and seats that generate nothing."""
    for count, seats in [(8, 4), (9, 4), (5, 2), (3, 8)]:
        lengths = [rng.randint(1, 15) for _ in range(count)]
        outcome = simulate(
            StaticBatchScheduler, [Job(0, 3, length) for length in lengths], max_num_seqs=seats
        )
        check_steps(ex, (outcome.num_steps, outcome.num_steps * seats - sum(lengths)), lengths, seats)


# -- ex03c ------------------------------------------------------------------------------------------


def steps_of(lengths, batch_size):
    """Steps of static batching, from the definition."""
    return sum(max(lengths[i : i + batch_size]) for i in range(0, len(lengths), batch_size))


def check_order(ex, lengths, batch_size):
    given, call = list(lengths), f"order_by_length({list(lengths)}, batch_size={batch_size})"
    order = list(ex.order_by_length(given, batch_size))
    expect_unchanged([given], [list(lengths)], call)
    expect(sorted(order), list(range(len(lengths))), f"request numbers, sorted, of {call}")
    return order, call


@pytest.mark.exercise(
    "ex03c", points=1, hint="Sort the numbers of the requests, with the lengths as the key."
)
def test_every_request_is_handed_in_once(ex):
    """The answer is a list of request numbers, not of lengths; none is left out or handed in twice."""
    for lengths, batch_size in [([9, 9, 4], 2), ([30, 10, 20], 2), ([1] * 7, 3), ([], 2)]:
        check_order(ex, lengths, batch_size)


@pytest.mark.exercise(
    "ex03c", points=2, hint="The last batch is the smaller one. Should it hold long or short requests?"
)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), batch_size=st.integers(1, 3))
@example(lengths=[2, 5, 3], batch_size=2)
@example(lengths=[1, 1, 9, 9, 5], batch_size=2)
def test_no_other_order_takes_fewer_steps(ex, lengths, batch_size):
    """The target, for every list of lengths: as few steps as the best of all orders."""
    order, call = check_order(ex, lengths, batch_size)
    best = min(steps_of(each, batch_size) for each in itertools.permutations(lengths))
    got = steps_of([lengths[request] for request in order], batch_size)
    expect_that(got <= best, f"the order of {call} takes {best} steps", order=order, steps=got)


@pytest.mark.exercise(
    "ex03c", points=1, hint="Print the steps of both orders; the jobs are drawn with --seed."
)
def test_the_engine_takes_fewer_steps_in_this_order(ex, rng):
    """Under `StaticBatchScheduler`, which really runs the batches: at least 15 % fewer steps."""
    jobs = draw_jobs(rng, 20, every=1, share_of_long=0.5)
    jobs = [Job(0, job.prompt, job.output) for job in jobs[:10] + jobs[10:][::-1]]
    order, _ = check_order(ex, [job.output for job in jobs], 4)
    before = simulate(StaticBatchScheduler, jobs).num_steps
    after = simulate(StaticBatchScheduler, [jobs[request] for request in order]).num_steps
    expect_that(after <= 0.85 * before, f"the order saves 15 % of {before} steps", steps=after)


@pytest.mark.exercise(
    "ex03c", points=1, hint="The outputs come in the order in which the prompts were handed in."
)
def test_the_engine_writes_the_same_text_in_this_order(ex, tiny_model, reference_text):
    """Inside the engine, in static batches of two: another order, the same answers."""
    lengths = [4, 1, 11, 9, 3, 7]
    order, _ = check_order(ex, lengths, 2)
    options = {"scheduler_cls": StaticBatchScheduler, "max_num_seqs": 2}
    prompts = default_prompts(tiny_model)
    got = generate(tiny_model, [prompts[i] for i in order], [lengths[i] for i in order], **options)
    same_text(got, [reference_text[i][: lengths[i]] for i in order], "static batches in your order")
