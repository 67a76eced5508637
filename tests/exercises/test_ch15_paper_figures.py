"""Chapter 15: step_seconds, sustained_rate; alone and under the real scheduler."""

from dataclasses import replace

import pytest

from minivllm.bench.evaluation.events import System, arrive
from minivllm.bench.evaluation.setups import DEPLOYMENTS
from minivllm.bench.evaluation.step_time import work_of
from tests.exercises.expect import expect_that, expect_unchanged


def machine(ex, **changed):
    """The machine of the example."""
    return ex.Machine(
        **({"bandwidth": 100, "flops": 1000, "parameters": 50, "kv_bytes": 4, "host_seconds": 0.5} | changed)
    )


def expect_seconds(ex, expected, rows, kv_tokens, **changed):
    which = machine(ex, **changed)
    got = ex.step_seconds(which, rows, kv_tokens)
    expect_that(
        abs(got - expected) < 1e-9, f"step_seconds({which}, {rows}, {kv_tokens}) is {expected}", got=got
    )


@pytest.mark.exercise("ex15a", points=1, hint="max(reading, multiplying).")
def test_the_longer_of_reading_and_multiplying_counts(ex):
    """Few rows are free: until multiplying takes longer than reading, a batch of ten costs what one row costs."""
    for rows, expected in ((1, 1.0), (5, 1.0), (10, 1.0), (20, 2.0), (40, 4.0)):
        expect_seconds(ex, expected, rows, 0, host_seconds=0)


@pytest.mark.exercise("ex15a", points=1, hint="kv_bytes * kv_tokens / bandwidth, added after the maximum.")
def test_keys_and_values_come_on_top(ex):
    """They come through the same memory as the parameters, so nothing hides them."""
    expect_seconds(ex, 2.0, 5, 25, host_seconds=0)
    expect_seconds(ex, 3.0, 20, 25, host_seconds=0)
    expect_seconds(ex, 5.0, 1, 100, host_seconds=0)


@pytest.mark.exercise("ex15a", points=1, hint="Once per step, not per row.")
def test_the_host_takes_its_time_once(ex):
    """What a step costs in any case is why batching pays even where memory is fast."""
    expect_seconds(ex, 1.5, 1, 0)
    expect_seconds(ex, 2.5, 20, 0)
    expect_seconds(ex, 1.0, 1, 0, host_seconds=0)


@pytest.mark.exercise("ex15a", points=2, hint="Seconds for OPT-13B: 20.6 ms for the weights alone.")
def test_the_real_scheduler_runs_on_your_clock(ex):
    """Two requests that come in the same moment, served by the real scheduler: its clock is your function."""
    where = DEPLOYMENTS["13B"]
    model, seen = where.model, []
    yours = ex.Machine(model.chip.weight_bandwidth, model.chip.flops, model.shape.weight_bytes / 2,
                       model.shape.kv_bytes, model.fixed_seconds)  # fmt: skip

    class Yours(type(model)):
        def seconds(self, plan, block_size=16, num_shared_blocks=0):
            work = work_of(plan)
            seen.append(ex.step_seconds(yours, work.rows, int(work.kv_tokens)))
            return seen[-1]

    clock = Yours(**{name: getattr(model, name) for name in model.__dataclass_fields__})
    served = arrive(
        System("paged", lookup_tokens=0.0), replace(where, model=clock), [(0.0, 100, 10), (0.0, 50, 5)]
    )
    rows = [150, *[2] * 4, *[1] * 5]
    tokens = [150, *(152 + 2 * i for i in range(4)), *(105 + i for i in range(5))]
    expected = [
        max(model.shape.weight_bytes / yours.bandwidth, model.shape.weight_bytes * row / yours.flops)
        + yours.kv_bytes * count / yours.bandwidth + yours.host_seconds
        for row, count in zip(rows, tokens, strict=True)
    ]  # fmt: skip
    expect_that(
        abs(served.seconds - sum(expected)) < 1e-9,
        f"the last answer is done after {sum(expected):.4f} s",
        got=served.seconds,
    )


CURVE = [(1.0, 0.2), (2.0, 0.3), (3.0, 1.3)]


def expect_rate(ex, expected, points, limit):
    given, call = list(points), f"sustained_rate({points}, {limit})"
    got = ex.sustained_rate(given, limit)
    expect_that(abs(got - expected) < 1e-9, f"{call} is {expected}", got=got)
    expect_unchanged([given], [list(points)], call)


@pytest.mark.exercise(
    "ex15b", points=1, hint="How far up the line is the limit? As far along it is the rate."
)
def test_between_two_points_the_line_counts(ex):
    """The nearest measured rate would make every system as good as the grid is coarse."""
    expect_rate(ex, 2.5, CURVE, 0.8)
    expect_rate(ex, 2.25, CURVE, 0.55)
    expect_rate(ex, 1.5, CURVE, 0.25)


@pytest.mark.exercise("ex15b", points=1, hint="What was not measured cannot be claimed.")
def test_the_ends_of_the_curve(ex):
    """A line drawn beyond the last point would promise rates at which nothing was measured."""
    expect_rate(ex, 3.0, CURVE, 2.0)
    expect_rate(ex, 3.0, CURVE, 1.3)
    expect_rate(ex, 0.0, CURVE, 0.1)
    expect_rate(
        ex, 0.0, [(1.0, 0.5), (2.0, 0.6)], 0.1
    )  # the first line, drawn on, reaches 0.1 at a rate of -3
    expect_rate(ex, 0.0, [(4.0, 0.5)], 0.1)
    expect_rate(ex, 1.0, [(1.0, 0.2)], 0.2)


@pytest.mark.exercise("ex15b", points=1, hint="Stop at the first time that the curve rises above the limit.")
def test_the_first_crossing_counts(ex):
    """Latency can fall again by luck. The last crossing would sell a rate at which users have waited."""
    expect_rate(ex, 1.5, [(1.0, 0.0), (2.0, 1.0), (3.0, 0.0), (4.0, 1.0)], 0.5)
    expect_rate(ex, 1.5, [(1.0, 0.0), (2.0, 1.0), (3.0, 0.0)], 0.5)
    # As many points as a figure has: a search by halving never looks at the hump.
    latencies = [0.1, 0.1, 0.2, 0.2, 0.8, 0.3, 0.4, 0.5, 0.6, 1.2]
    expect_rate(ex, 4.5, [(float(rate), latency) for rate, latency in enumerate(latencies, 1)], 0.5)
    # Touched at 2, and left again: the limit is crossed between 3 and 4.
    expect_rate(ex, 3.5, [(1.0, 0.25), (2.0, 0.75), (3.0, 0.5), (4.0, 1.0)], 0.75)
