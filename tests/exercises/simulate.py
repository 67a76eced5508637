"""A scheduler at work without a model: requests arrive, steps are counted. Milliseconds, no torch.

The pretend model of `tests/helpers.py` makes each token from all tokens before it, so a request that is cut
short, mixed up or lost shows in its tokens.
"""

import random
from dataclasses import dataclass

import pytest

from tests.helpers import check_invariants, check_plan, make_group, make_scheduler, run_model, token_after

MAX_STEPS = 2000


@dataclass(frozen=True)
class Job:
    """One request: when it comes (a step number), how long its prompt is, how many tokens it asks for."""

    arrival: int
    prompt: int
    output: int


@dataclass(frozen=True)
class Outcome:
    """`finished[i]` is the step at whose end job i was done, counted from 1; `tokens[i]` its output."""

    finished: list
    tokens: list
    num_steps: int

    def mean_wait(self, jobs):
        """Mean number of steps from arrival to completion."""
        return sum(end - job.arrival for end, job in zip(self.finished, jobs, strict=True)) / len(jobs)


def expected_tokens(job):
    """The output of a job, made one token after the other."""
    tokens = list(range(job.prompt))
    for _ in range(job.output):
        tokens.append(token_after(tokens))
    return tokens[job.prompt :]


def simulate(scheduler_cls, jobs, num_blocks=64, **options):
    """Run all jobs to their end under a scheduler; its invariants are checked before and after each step."""
    kv = make_scheduler(num_blocks=num_blocks).kv
    scheduler = scheduler_cls(kv, **({"max_num_seqs": 4, "max_num_batched_tokens": 64} | options))
    groups, finished = {}, {}
    for step in range(MAX_STEPS):
        for index, job in enumerate(jobs):
            if job.arrival == step:
                groups[index] = make_group(index, job.prompt, job.output, seq_id=scheduler.new_seq_id())
                scheduler.add(groups[index])
        check_invariants(scheduler)
        plan = scheduler.schedule()
        check_plan(scheduler, plan)
        scheduler.update_from_output(plan, run_model(scheduler, plan))
        check_invariants(scheduler)
        for index, group in groups.items():
            if group.is_finished:
                finished.setdefault(index, step + 1)
        if len(finished) == len(jobs):
            break
    else:
        lost = sorted(set(range(len(jobs))) - set(finished))
        pytest.fail(f"jobs {lost} are not finished after {MAX_STEPS} steps", pytrace=False)
    tokens = [groups[index].seqs[0].output_token_ids for index in range(len(jobs))]
    return Outcome([finished[index] for index in range(len(jobs))], tokens, step + 1)


def draw_jobs(rng: random.Random, count, every, share_of_long=0.3):
    """`count` jobs, one every `every` steps or so: most ask for few tokens, some for many, in any order."""
    is_long = [index < round(share_of_long * count) for index in range(count)]
    rng.shuffle(is_long)
    jobs, clock = [], 0.0
    for long in is_long:
        output = rng.randint(40, 70) if long else rng.randint(3, 10)
        # Prompt and output lengths have nothing to do with each other.
        jobs.append(Job(int(clock), rng.choice([2, 5, 12, 30]), output))
        clock += every * rng.uniform(0.5, 1.5)
    return jobs
