"""Chapter 6: admit, finish_reason, ShortestJobFirst; each alone and inside the engine."""

from collections import deque
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minivllm import scheduler
from minivllm.scheduler import Scheduler
from minivllm.sequence import SequenceStatus
from tests.exercises.engine import generate
from tests.exercises.expect import expect, expect_that, expect_unchanged, same_text
from tests.exercises.simulate import Job, draw_jobs, expected_tokens, simulate
from tests.helpers import make_group, make_scheduler

# -- ex06a ------------------------------------------------------------------------------------------


def call_of(waiting, seats, budget, blocks, block_size=4):
    return f"admit({waiting}, seats={seats}, token_budget={budget}, free_blocks={blocks}, block_size={block_size})"


def walk(waiting, seats, budget, blocks, block_size=4):
    """What is left of the three limits after each request, up to the first that cannot join; as lines of text."""
    lines = [f"at first: {seats} seats, {budget} tokens, {blocks} blocks of {block_size} left"]
    for number, asked in enumerate(waiting):
        tokens = min(asked, budget)
        needed = -(-tokens // block_size)
        lacks = [name for name, left in (("seat", seats), ("token", budget)) if left == 0]
        if lacks or needed > blocks:
            reason = (
                f"no {lacks[0]} is left" if lacks else f"its {tokens} tokens need {needed} blocks of {blocks}"
            )
            return [*lines, f"request {number} asks for {asked}: {reason}. It waits, and all behind it"]
        seats, budget, blocks = seats - 1, budget - tokens, blocks - needed
        left = f"{seats} seats, {budget} tokens, {blocks} blocks"
        lines.append(f"request {number} asks for {asked}, gets {tokens} in {needed} blocks: {left} left")
    return lines


def check_admit(ex, expected, waiting, seats, budget, blocks, block_size=4):
    given, call = list(waiting), call_of(waiting, seats, budget, blocks, block_size)
    got = ex.admit(given, seats, budget, blocks, block_size)
    expect(list(got), expected, "\n  ".join([call, *walk(waiting, seats, budget, blocks, block_size)]))
    expect_unchanged([given], [list(waiting)], call)


@pytest.mark.exercise("ex06a", points=1, hint="Keep three numbers that count down: seats, budget, blocks.")
def test_what_fits_is_admitted(ex):
    """Requests that fit together start together: a scheduler that admits one per step wastes most of the step."""
    check_admit(ex, [6, 4, 2], [6, 4, 2], 4, 16, 9)
    check_admit(ex, [6, 10], [6, 30, 2], 4, 16, 9)
    check_admit(ex, [], [], 4, 16, 9)


@pytest.mark.exercise(
    "ex06a", points=2, hint="The first request that does not fit ends the loop: break, not continue."
)
def test_the_head_of_the_line_is_never_skipped(ex):
    """If short requests pass a long one that waits for memory, there may never be enough for it: it starves."""
    check_admit(ex, [6], [6, 30, 2], 4, 16, 4)
    check_admit(ex, [], [30, 1, 1], 4, 64, 7)
    check_admit(ex, [], [9, 1], 4, 64, 2)


@pytest.mark.exercise("ex06a", points=1, hint="min(tokens of the request, budget that is left)")
def test_a_long_prompt_gets_what_is_left_of_the_budget(ex):
    """A prompt longer than the budget is computed in parts; one that has to fit whole would wait forever."""
    check_admit(ex, [16], [100], 4, 16, 9)
    check_admit(ex, [10, 6], [10, 100], 4, 16, 9)
    check_admit(ex, [], [5, 5], 4, 0, 9)


@pytest.mark.exercise("ex06a", points=1, hint="Subtract the blocks of each request admitted; round up.")
def test_blocks_are_counted_for_the_part_computed_now(ex):
    """Two requests cannot have one block: forgetting those just promised lets the next allocation fail."""
    check_admit(ex, [5], [5, 5], 4, 16, 3)
    check_admit(ex, [], [5], 4, 16, 1)
    check_admit(ex, [4, 4], [4, 4, 1], 4, 16, 2)
    check_admit(ex, [16], [100], 4, 16, 4)


@pytest.mark.exercise("ex06a", points=1, hint="One seat per request, even for a short one.")
def test_seats_limit_the_batch(ex):
    """The batch has a maximal size; one more sequence than seats has no row in it."""
    check_admit(ex, [1, 1], [1, 1, 1], 2, 16, 9)
    check_admit(ex, [], [1], 0, 16, 9)


@pytest.mark.exercise(
    "ex06a", points=2, hint="Work the example through by hand: after each request, what is left of the three?"
)
@given(
    waiting=st.lists(st.integers(1, 9), max_size=5),
    seats=st.integers(0, 4),
    budget=st.integers(0, 16),
    blocks=st.integers(0, 6),
    block_size=st.integers(1, 5),
)
@example(waiting=[1], seats=1, budget=1, blocks=0, block_size=2)
def test_no_limit_is_broken_and_no_room_is_wasted(ex, waiting, seats, budget, blocks, block_size):
    """With any numbers: within all three limits, and the first request that stays out really did not fit."""
    got = list(ex.admit(list(waiting), seats, budget, blocks, block_size))
    call = "\n  ".join(
        [
            call_of(waiting, seats, budget, blocks, block_size),
            *walk(waiting, seats, budget, blocks, block_size),
        ]
    )
    expect_that(len(got) <= len(waiting) and 0 not in got, f"each number is that of a request that joins\n  {call}",
                got=got)  # fmt: skip
    for count, asked in zip(got, waiting, strict=False):
        expect_that(seats > 0 and budget > 0, f"the result stays within seats and budget\n  {call}", got=got)
        expect(
            count,
            min(asked, budget),
            f"tokens of a request that asks for {asked} of a budget of {budget}\n  {call}",
        )
        seats, budget, blocks = seats - 1, budget - count, blocks - -(-count // block_size)
        expect_that(blocks >= 0, f"the result stays within the free blocks\n  {call}", got=got)
    if len(got) < len(waiting):
        tokens = min(waiting[len(got)], budget)
        fits = seats > 0 and budget > 0 and -(-tokens // block_size) <= blocks
        expect_that(not fits, f"request {len(got)} is admitted too, for it fits\n  {call}", got=got)


@pytest.mark.exercise(
    "ex06a", points=2, hint="The engine has 3 seats, 16 tokens per step and 12 blocks here."
)
def test_the_engine_admits_with_it(ex, tiny_model, reference_text):
    """Inside the engine, with little memory: every request gets in some time, and the text is as before."""

    class Student(Scheduler):
        def schedule_waiting(self, step):
            asked = [len(group.unfinished[0]) for group in self.waiting]
            free_blocks = self.kv.pool.num_free
            for count in ex.admit(asked, step.seats, step.budget, free_blocks, self.kv.block_size):
                group, seq = self.waiting[0], self.waiting[0].unfinished[0]
                copies = self.kv.allocate_slots([(seq, count)])
                expect_that(copies is not None, "there are blocks for each request that admit lets in",
                            waiting=asked, free_blocks=free_blocks)  # fmt: skip
                self.start_running(self.waiting, step)
                group.num_cached_tokens = 0
                self.plan(group, [(seq, count)], copies, step)

    options = {"max_num_seqs": 3, "max_num_batched_tokens": 16, "num_blocks": 12}
    got = generate(tiny_model, scheduler_cls=Student, **options)
    same_text(got, reference_text, "the engine with your admit")


# -- ex06b ------------------------------------------------------------------------------------------


def check_finish(ex, expected, token_ids, num_prompt_tokens, max_tokens, stop_token_ids):
    given = list(token_ids), set(stop_token_ids)
    got = ex.finish_reason(given[0], num_prompt_tokens, max_tokens, given[1])
    call = f"finish_reason({token_ids}, num_prompt_tokens={num_prompt_tokens}, max_tokens={max_tokens}, {stop_token_ids})"
    expect(got, expected, call)
    expect_unchanged(given, (list(token_ids), set(stop_token_ids)), call)


@pytest.mark.exercise(
    "ex06b", points=1, hint="Which token is the newest? It does not matter how many came before."
)
def test_the_first_output_token_may_be_the_end(ex):
    """A model may have nothing to say: an end that is not looked for after the prompt is never found."""
    check_finish(ex, "stop", [5, 9, 0], 2, 8, {0})
    check_finish(ex, "stop", [5, 9, 4, 7], 2, 8, {0, 7})
    check_finish(ex, None, [5, 9, 4], 2, 8, {0, 7})


@pytest.mark.exercise("ex06b", points=1, hint="len(token_ids) counts the prompt; max_tokens does not.")
def test_max_tokens_counts_output_only(ex):
    """max_tokens is about the answer: counting the prompt cuts it short, `>` lets it run one token too far."""
    check_finish(ex, None, [5, 9, 3, 1, 4], 4, 2, {0})
    check_finish(ex, "length", [5, 9, 3, 1, 4, 4], 4, 2, {0})
    check_finish(ex, "length", [5, 9, 4], 2, 1, {0})


@pytest.mark.exercise("ex06b", points=1, hint="Ask for the stop token first.")
def test_a_stop_token_at_the_very_end_is_a_stop(ex):
    """Users tell a cut answer from a complete one by this word."""
    check_finish(ex, "stop", [5, 9, 4, 0], 2, 2, {0})
    check_finish(ex, "length", [5, 9, 4, 4], 2, 2, set())


@pytest.mark.exercise("ex06b", points=1, hint="Look at token_ids[-1] only.")
def test_a_stop_token_in_the_prompt_ends_nothing(ex):
    """Chat prompts are full of end-of-turn tokens; only a new one ends the answer."""
    check_finish(ex, None, [5, 0, 9, 0, 4], 4, 3, {0})


@pytest.mark.exercise(
    "ex06b", points=2, hint="The engine asks after each token and stops at the first answer that is not None."
)
def test_the_engine_stops_where_it_says(ex, tiny_model, reference_text, monkeypatch):
    """Inside the engine: texts of different lengths, each cut at its own stop token or length."""
    status = {"stop": SequenceStatus.FINISHED_STOPPED, "length": SequenceStatus.FINISHED_LENGTH_CAPPED}
    stops = {reference_text[0][0], reference_text[3][5]}
    lengths = [4, 1, 11, 9, 3, 7]

    def stop_status(group, seq):
        limit = group.max_num_tokens - group.num_prompt_tokens
        reason = ex.finish_reason(list(seq.token_ids), group.num_prompt_tokens, limit, set(stops))
        return None if reason is None else (status[reason], None)

    def cut(text, limit):
        end = next((i + 1 for i, token in enumerate(text) if token in stops), limit)
        return text[: min(end, limit)]

    # For the scheduler only: the reference answer asks the engine's own `stop_status`.
    swapped = SimpleNamespace(**(vars(scheduler.step_rules) | {"stop_status": stop_status}))
    monkeypatch.setattr(scheduler, "step_rules", swapped)
    got = generate(tiny_model, max_tokens=lengths)
    same_text(
        got,
        [cut(*pair) for pair in zip(reference_text, lengths, strict=True)],
        "the engine with your finish_reason",
    )


# -- ex06c ------------------------------------------------------------------------------------------


def order_of_completion(scheduler_cls, jobs, **options):
    finished = simulate(scheduler_cls, jobs, **options).finished
    return sorted(range(len(jobs)), key=lambda i: finished[i])


@pytest.mark.exercise(
    "ex06c", points=2, hint="sorted(..., key=...) with max_num_tokens minus the tokens there are now."
)
def test_short_jobs_come_first(ex):
    """One seat, four jobs: the job with the fewest tokens to generate goes first, even with a long prompt."""
    jobs = [Job(0, 2, 9), Job(0, 30, 3), Job(0, 2, 20), Job(0, 12, 6)]
    got = order_of_completion(ex.ShortestJobFirst, jobs, max_num_seqs=1)
    expect(got, [1, 3, 0, 2], "order in which jobs of 9, 3, 20 and 6 output tokens finish, on one seat")


@pytest.mark.exercise("ex06c", points=1, hint="Put the queue in order at every call of schedule, not once.")
def test_a_short_job_that_comes_later_passes_too(ex):
    """Requests join at any time: a queue sorted once is out of order with the next arrival."""
    jobs = [Job(0, 2, 9), Job(0, 2, 20), Job(3, 2, 4), Job(5, 2, 2)]
    got = order_of_completion(ex.ShortestJobFirst, jobs, max_num_seqs=1)
    expect(got, [0, 3, 2, 1], "order of completion; jobs 2 and 3 come while job 0 is running")
    jobs = [Job(0, 2, 50), Job(0, 2, 10), Job(1, 2, 40), Job(3, 2, 3)]
    got = order_of_completion(ex.ShortestJobFirst, jobs, max_num_seqs=2)
    expect(got, [1, 3, 0, 2], "order in which jobs of 50, 10, 40 and 3 output tokens finish, on two seats; the last "
           "two come while the first two are running, and one of these runs on when the other's seat is free")  # fmt: skip


@pytest.mark.exercise(
    "ex06c",
    points=1,
    hint="max_num_tokens - len(group.seqs[0]): what is yet to generate, not what was asked for.",
)
def test_a_job_that_comes_back_is_as_long_as_its_rest(ex):
    """A preempted job has tokens already: judged by all it asked for, one that is nearly done waits again for long."""
    scheduler = ex.ShortestJobFirst(make_scheduler().kv, max_num_seqs=1, max_num_batched_tokens=64)
    for name, output, so_far in (("new", 6, 0), ("nearly done", 20, 17), ("half way", 20, 10)):
        group = make_group(name, 3, output, seq_id=scheduler.new_seq_id())
        for token in range(so_far):
            group.seqs[0].append(token)
        scheduler.add(group)
    plan = scheduler.schedule()
    admitted = [row.request_id for row in plan.scheduled]
    what = "which of three jobs is admitted, with 6, 3 and 10 tokens yet to generate"
    expect(admitted, ["nearly done"], what)
    expect_that(isinstance(scheduler.waiting, deque), "self.waiting is still a collections.deque",
                got=type(scheduler.waiting).__name__)  # fmt: skip
    expect(
        sorted(group.request_id for group in scheduler.waiting),
        ["half way", "new"],
        "jobs that wait after that step",
    )


@pytest.mark.exercise(
    "ex06c",
    points=1,
    hint="A job that is preempted comes back to the head of the queue: is it the shortest there?",
)
def test_the_order_holds_after_a_preemption(ex):
    """The queue changes in two places: a queue sorted only where requests join lets a long victim block a short job."""
    jobs = [Job(0, 4, 16), Job(0, 4, 20), Job(2, 2, 3)]
    # Job 1 is preempted in step 10, when job 0 needs its fourth block; job 2 has waited for a seat until then.
    got = order_of_completion(ex.ShortestJobFirst, jobs, num_blocks=6, max_num_seqs=2)
    expect(got, [2, 0, 1], "order in which jobs of 16, 20 and 3 output tokens finish, in 6 blocks of 4 on two seats; "
           "the third comes later, and gets the seat of the second, which is preempted with 11 tokens to go")  # fmt: skip


@pytest.mark.exercise(
    "ex06c", points=1, hint="Reorder self.waiting; a group may leave it only through super().schedule()."
)
def test_every_job_gets_all_its_tokens(ex, rng):
    """A new order must not change or lose any answer; memory is short, so some requests are preempted."""
    jobs = draw_jobs(rng, 14, every=1)
    outcome = simulate(ex.ShortestJobFirst, jobs, num_blocks=30)
    for index, job in enumerate(jobs):
        expect(outcome.tokens[index], expected_tokens(job), f"output tokens of job {index}, {job}")


@pytest.mark.exercise(
    "ex06c", points=2, hint="Print the output lengths in the order in which the jobs are admitted."
)
def test_the_mean_wait_reaches_the_target(ex, rng):
    """The score: mean completion step over that of first come, first served, six long jobs first, at most 0.50."""
    drawn = draw_jobs(rng, 6, every=1, share_of_long=1.0) + draw_jobs(rng, 18, every=1, share_of_long=0.0)
    jobs = [Job(0, job.prompt, job.output) for job in drawn]
    target = 0.5 * simulate(Scheduler, jobs).mean_wait(jobs)
    got = simulate(ex.ShortestJobFirst, jobs).mean_wait(jobs)
    expect_that(got <= target, f"the mean completion step is at most {target:.1f}", got=round(got, 1))


@pytest.mark.exercise(
    "ex06c", points=1, hint="Pass the class to the engine: LLM(..., scheduler_cls=ShortestJobFirst)."
)
def test_the_engine_writes_the_same_text_in_any_order(ex, tiny_model, reference_text):
    """Inside the engine with two seats: which request goes first decides how long others wait, not what they get."""
    got = generate(tiny_model, scheduler_cls=ex.ShortestJobFirst, max_num_seqs=2)
    same_text(got, reference_text, "the engine with ShortestJobFirst")
