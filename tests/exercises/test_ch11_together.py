"""Chapter 11: MyScheduler, scored by goodput on workloads drawn with `--seed`, and inside the engine."""

import pytest

from minivllm.scheduler import Scheduler
from tests.exercises.engine import generate, remembered
from tests.exercises.expect import expect, expect_that, same_text
from tests.exercises.simulate import Job, draw_jobs, expected_tokens, simulate


def goodput(scheduler_cls, workloads):
    """Share of all jobs that are done at most 10 + 3 * output steps after they came."""
    served_well = [
        end - job.arrival <= 10 + 3 * job.output
        for jobs in workloads
        for end, job in zip(simulate(scheduler_cls, jobs).finished, jobs, strict=True)
    ]
    return sum(served_well) / len(served_well)


def check_goodput(ex, rng, share, record_property):
    """`share` of the jobs that first come, first served serves badly have to be served well.

    The goodput goes into the record of the test before it is judged: `check` shows it, and a contest needs it.
    """
    workloads = [draw_jobs(rng, 40, every=4) for _ in range(3)]
    base = remembered(("first come, first served", share), lambda: goodput(Scheduler, workloads))
    target, got = base + share * (1 - base), goodput(ex.MyScheduler, workloads)
    record_property("goodput", round(got, 4))
    claim = f"the goodput is at least {target:.3f} (first come, first served: {base:.3f})"
    expect_that(got >= target, claim, got=round(got, 3))


@pytest.mark.exercise(
    "ex11a", points=2, hint="Every group in self.waiting has to be admitted some time, late or not."
)
def test_no_request_is_left_out(ex, rng):
    """To serve the easy jobs well and the others never is not a policy: 3 jobs are late from the start."""
    jobs = [Job(0, 2, 60)] * 6 + [Job(1, 2, 3)] * 6
    outcome = simulate(ex.MyScheduler, jobs, max_num_seqs=2)
    for index, job in enumerate(jobs):
        expect(outcome.tokens[index], expected_tokens(job), f"output tokens of job {index}, {job}")
    jobs = draw_jobs(rng, 16, every=2)
    outcome = simulate(ex.MyScheduler, jobs, num_blocks=30)
    expect(
        outcome.tokens, [expected_tokens(job) for job in jobs], "output tokens of 16 jobs in little memory"
    )


@pytest.mark.exercise(
    "ex11a", points=4, hint="What did ex06c do to the mean? Count the jobs that are late under each order."
)
def test_stage_1_half_of_the_badly_served(ex, rng, record_property):
    """Goodput on three workloads of 40 requests: half of the jobs that first come, first served makes late."""
    check_goodput(ex, rng, 0.5, record_property)


@pytest.mark.exercise(
    "ex11a", points=4, hint="Each request has a deadline; some can no longer be met, whatever you do."
)
def test_stage_2_two_thirds_of_the_badly_served(ex, rng, record_property):
    """Goodput on three workloads of 40 requests: two thirds of the jobs that first come, first served makes late."""
    check_goodput(ex, rng, 2 / 3, record_property)


@pytest.mark.exercise(
    "ex11a", points=2, hint="LLM(..., scheduler_cls=MyScheduler). Do not rely on request ids being numbers."
)
def test_the_engine_writes_the_same_text_under_my_scheduler(ex, tiny_model, reference_text):
    """Inside the engine, with two seats and little memory: a scheduler decides when, never what."""
    got = generate(tiny_model, scheduler_cls=ex.MyScheduler, max_num_seqs=2, num_blocks=12)
    same_text(got, reference_text, "the engine with MyScheduler")
