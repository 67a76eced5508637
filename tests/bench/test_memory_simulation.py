"""The memory simulation: arithmetic that can be done by hand, the paper's numbers, and the command."""

import argparse
import itertools
import json
import sys

import numpy as np
import pytest

from minivllm.bench import memory, paper, simulation
from minivllm.bench.workloads import ALPACA_LIKE, SHAREGPT_LIKE, Gamma, LengthModel
from minivllm.kv_cache_manager import KVCacheManager
from minivllm.sampling_params import BeamSearchParams, SamplingParams
from minivllm.scheduler import Scheduler
from tests import helpers

CONSTANT = LengthModel(prompt=Gamma(100, 1e-6), output=Gamma(28, 1e-6))


# -- against arithmetic -------------------------------------------------------------------------------


def test_orca_max_runs_seven_requests_and_loses_one_chunk_to_fragmentation():
    """Would catch a wrong pool or chunk size: the paper's 7.00 and 8.9% follow from 15,728 = 7 x 2048 + 1392."""
    usage = simulation.measure_usage("max", 16, SHAREGPT_LIKE, num_requests=20)
    assert usage.batch == 7.0
    assert usage.external == pytest.approx(1392 / 15728)
    assert round(usage.external * 100, 1) == 8.9
    assert paper.PAPER_USAGE["max"]["external"] == 8.9
    # Negative control: the other policies do not come out at that number.
    assert simulation.measure_usage("pow2", 16, SHAREGPT_LIKE, num_requests=20).batch > 7.5


@pytest.mark.parametrize(
    ("system", "chunk", "reserved"),
    [("max", 2048, 2048), ("pow2", 256, 132), ("oracle", 128, 127)],
)
def test_equal_requests_fill_contiguous_memory_as_computed_by_hand(system, chunk, reserved):
    """Would catch slots under a wrong name: 100 in and 28 out need 127 slots, in chunks of 2048, 256 or 128."""
    usage = simulation.measure_usage(system, 16, CONSTANT, num_requests=150)
    # In the step in which many are admitted, the token budget may leave a few for the next one.
    assert usage.batch == pytest.approx(15728 // chunk, rel=0.005)
    assert (usage.used + usage.reserved) * 15728 == pytest.approx(usage.batch * 127)
    assert usage.internal * 15728 == pytest.approx(usage.batch * (reserved - 127))
    assert usage.external * 15728 == pytest.approx(15728 - usage.batch * reserved)


@pytest.mark.parametrize("system", paper.SYSTEMS)
def test_the_four_kinds_are_all_there_is(system):
    """Would catch a share that is lost or counted twice on the way to the means."""
    usage = simulation.measure_usage(system, 16, ALPACA_LIKE, num_requests=60)
    assert usage.used + usage.reserved + usage.internal + usage.external == pytest.approx(1.0)
    assert min(usage.used, usage.reserved, usage.internal, usage.external) >= 0


def test_slots_left_over_by_large_blocks_count_as_external():
    """Would catch a pool of 61 blocks of 256 reported as if its 15,616 slots were all there is."""
    usage = simulation.measure_usage("paged", 256, CONSTANT, num_requests=60)
    assert usage.used + usage.reserved + usage.internal + usage.external == pytest.approx(1.0)
    assert usage.batch == 61
    assert usage.external == pytest.approx((15728 - 61 * 256) / 15728)


def test_paged_memory_wastes_half_a_block_a_sequence():
    """Would catch waste measured against the whole pool, or a manager that holds blocks ahead of need."""
    for block_size in (16, 128):
        usage = simulation.measure_usage("paged", block_size, SHAREGPT_LIKE, num_requests=20)
        half = (block_size - 1) / 2
        context = usage.used * 15728 / usage.batch
        assert usage.waste == pytest.approx(half / (context + half), rel=0.15)
    # Negative control: the next block size is not within that tolerance.
    half = (64 - 1) / 2
    assert usage.waste != pytest.approx(half / (context + half), rel=0.15)


def test_sharing_a_prompt_saves_what_can_be_counted():
    """Would catch a saving that counts tokens, or copies: 3 of 4 prompts of 6 full blocks, once they have forked."""
    scheduler = simulation.make_scheduler(KVCacheManager(100, 16, False))
    simulation.add_request(scheduler, 6 * 16, 32, SamplingParams(n=4, ignore_eos=True))
    savings = []
    while scheduler.has_unfinished:
        plan = scheduler.schedule()
        savings.append((scheduler.kv.num_blocks_saved, scheduler.kv.pool.num_used))
        scheduler.update_from_output(plan, simulation.dummy_outputs(plan))
    # Alone in the prompt's step; then 6 blocks shared by 4, and 1 or 2 blocks for each one's own tokens.
    assert savings == [(0, 6)] + [(18, 10)] * 16 + [(18, 14)] * 15


def test_measured_sharing_lies_where_equal_requests_put_it():
    """Would catch the ratio upside down, or taken against the blocks held instead of those without sharing."""
    lengths = LengthModel(prompt=Gamma(160, 1e-6), output=Gamma(16, 1e-6))
    saving = simulation.measure_sharing(SamplingParams(n=2, ignore_eos=True), lengths, num_requests=400)
    # 10 blocks of prompt, saved once by two; 1 block each for 15 steps, after 1 step alone in the prompt.
    expected = 15 * 10 / (15 * 22 + 10)
    assert saving == pytest.approx(expected, rel=0.05)
    assert saving != pytest.approx(15 * 10 / (15 * 12 + 10), rel=0.05)


def test_beams_share_more_than_parallel_samples():
    """Would catch beams whose forks are not counted: the shape of Figure 15, on one prompt of 20 tokens."""
    savings = []
    for params, runner in (
        (SamplingParams(n=3, ignore_eos=True), simulation.dummy_outputs),
        (BeamSearchParams(3, 100, ignore_eos=True), simulation.random_beam_outputs(seed=0)),
    ):
        scheduler = Scheduler(KVCacheManager(64, 4, False), 8, 64)
        simulation.add_request(scheduler, 20, 60, params)
        saved = held = 0
        while scheduler.has_unfinished:
            plan = scheduler.schedule()
            saved += scheduler.kv.num_blocks_saved
            held += scheduler.kv.pool.num_used
            scheduler.update_from_output(plan, runner(plan))
        savings.append(saved / (saved + held))
    parallel, beams = savings
    assert 0.1 < parallel < 0.4 < beams < 2 / 3


@pytest.mark.parametrize("system", ["pow2", "oracle", "paged"])
def test_the_paper_is_reproduced_within_the_marks(system):
    """Would catch any change to scheduler, managers or lengths that moves a bar of Figure 2 or 13."""
    usage = simulation.measure_usage(system, 16, SHAREGPT_LIKE, num_requests=60)
    for kind, share in paper.PAPER_USAGE[system].items():
        assert abs(getattr(usage, kind) * 100 - share) <= paper.MAX_SHARE_DIFFERENCE, kind
    theirs = paper.PAPER_BATCH["ShareGPT"]
    assert usage.batch == pytest.approx(theirs[system], rel=paper.MAX_BATCH_DIFFERENCE)
    # Negative control: another system's bars are not within the marks.
    other = "pow2" if system == "oracle" else "oracle"
    assert abs(usage.used * 100 - paper.PAPER_USAGE[other]["used"]) > paper.MAX_SHARE_DIFFERENCE
    assert usage.batch != pytest.approx(theirs[other], rel=paper.MAX_BATCH_DIFFERENCE)


# -- its parts ----------------------------------------------------------------------------------------


def test_every_system_sees_the_same_requests():
    """Would catch a comparison of policies on different lengths."""
    first, second, other = (
        list(itertools.islice(simulation.endless_lengths(SHAREGPT_LIKE, seed), 2500)) for seed in (1, 1, 2)
    )
    assert first == second != other
    assert first[:1000] != first[1000:2000], "the same thousand again and again"
    assert np.mean([output for _, output in first]) == pytest.approx(337.99, rel=0.06)


def test_the_paged_system_is_the_real_manager_with_all_slots():
    """Would catch a simulation of something that the engine does not run."""
    manager = simulation.make_manager("paged", 16)
    assert type(manager) is KVCacheManager
    assert manager.pool.num_blocks * 16 == 15728


def test_beam_candidates_are_the_best_of_a_distribution():
    """Would catch candidates out of order, repeated, or not normalized."""
    scheduler = helpers.make_scheduler(num_blocks=64)
    for name in range(2):
        helpers.add(scheduler, name, prompt=5, beam_width=3)
    outputs = simulation.random_beam_outputs(seed=0)(scheduler.schedule())
    assert len({output.candidates for output in outputs}) == 2
    for output in outputs:
        tokens, log_probs = zip(*output.candidates, strict=True)
        assert len(tokens) == len(set(tokens)) == 6
        assert list(log_probs) == sorted(log_probs, reverse=True)
        assert 6 / simulation.VOCAB_SIZE < np.exp(log_probs).sum() < 0.5


def calls_per_step(scheduler_cls, num_running):
    """Python and C calls of one step of `num_running` generating sequences: a clock without a machine."""
    scheduler = scheduler_cls(KVCacheManager(num_running * 2, 16, False), num_running, num_running * 4)
    for name in range(num_running):
        helpers.add(scheduler, name, prompt=4, max_tokens=8)
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    for last in (False, True):
        if last:
            sys.setprofile(count)
        try:
            plan = scheduler.schedule()
            scheduler.update_from_output(plan, simulation.dummy_outputs(plan))
        finally:
            sys.setprofile(None)
    return calls


class Quadratic(Scheduler):
    """Negative control: looks at every sequence for every sequence."""

    def schedule(self):
        for group in self.running:
            assert sum(other.is_finished for other in self.running) == 0, group
        return super().schedule()


def test_scheduling_is_linear_in_running_sequences():
    """Would catch a loop over all sequences inside a loop over all sequences."""
    assert calls_per_step(Scheduler, 300) < 10.5 * calls_per_step(Scheduler, 30)
    assert calls_per_step(Quadratic, 300) > 20 * calls_per_step(Quadratic, 30)


def test_scheduler_seconds_are_of_steps_in_which_every_sequence_generates():
    """Would catch timing of the first step, which computes all prompts."""
    assert len(simulation.scheduling_seconds(5, num_steps=4)) == 4
    assert min(simulation.scheduling_seconds(50, num_steps=4)) > 0


# -- the command --------------------------------------------------------------------------------------


def run(*options):
    """Run `bench memory` with the given options."""
    parser = argparse.ArgumentParser()
    memory.add_arguments(parser)
    return memory.run(parser.parse_args(list(options)))


@pytest.fixture
def small(monkeypatch):
    """Few block sizes, widths and sequences, and short ones, so that a test takes a second."""
    short = paper.Dataset(LengthModel(prompt=Gamma(40, 0.5), output=Gamma(6, 0.5)), factor=1)
    monkeypatch.setattr(paper, "DATASETS", {"ShareGPT": short, "Alpaca": short})
    monkeypatch.setattr(paper, "BLOCK_SIZES", (16, 64))
    monkeypatch.setattr(paper, "WIDTHS", (2,))
    monkeypatch.setattr(memory, "RUNNING", (4, 8))


def test_all_figures_are_printed_written_and_drawn(small, tmp_path, capsys):
    """Would catch a table without its numbers, JSON without provenance, caveats that are not shown, a blank plot."""
    json_path, plot_path = tmp_path / "memory.json", tmp_path / "memory.png"
    assert run("--num-prompts", "4", "--output-json", str(json_path), "--plot", str(plot_path)) == 0
    text = capsys.readouterr().out
    for words in (
        "Figure 2",
        "Figure 13",
        "Figure 15",
        "Figure 18b",
        "Orca (Pow2)",
        "shape, not number",
        "us each",
    ):
        assert words in text
    for caveat in paper.CAVEATS:
        assert caveat in text
    document = json.loads(json_path.read_text())
    assert {"date", "commit", "cpu", "versions"} <= set(document["provenance"])
    assert set(document["figures"]) == set(memory.FIGURES)
    assert len(document["figures"]["2"]) == 8
    (row,) = [row for row in document["figures"]["2"] if (row["dataset"], row["system"]) == ("Alpaca", "max")]
    assert row["batch"] == 7.0
    assert f"{row['batch']:.2f}" in text
    from matplotlib.image import imread

    image = imread(plot_path)
    assert image.shape[0] > 800
    colors = {tuple(pixel) for row in image[::9, ::9, :3].round(1).tolist() for pixel in row}
    assert len(colors) > 10, "an empty plot is white, with black axes"


def test_one_figure_alone_can_be_asked_for(small, capsys):
    """Would catch a user waiting minutes for what was not asked."""
    assert run("--figures", "scheduler") == 0
    text = capsys.readouterr().out
    assert "Figure 2:" not in text
    assert "8 running" in text


def test_nothing_to_draw_is_said_before_anything_runs(monkeypatch):
    """Would catch minutes of work that end in an exception."""
    monkeypatch.setattr(simulation, "scheduling_seconds", None)
    with pytest.raises(ValueError, match="nothing to draw"):
        run("--figures", "scheduler", "--plot", "x.png")


@pytest.mark.parametrize(
    ("simulated", "theirs", "is_share", "expected"),
    [
        (40.0, 38.2, True, ("40.00", "38.20", "+1.8 ")),
        (32.0, 38.2, True, ("32.00", "38.20", "-6.2!")),
        (32.8, 30.42, False, ("32.80", "30.42", "+7.8% ")),
        (36.0, 30.0, False, ("36.00", "30.00", "+20.0%!")),
        (36.0, None, False, ("36.00", "", "")),
    ],
)
def test_a_difference_is_signed_and_marked(simulated, theirs, is_share, expected):
    """Would catch a difference the wrong way round, and points taken for percent."""
    assert paper.beside(simulated, theirs, is_share) == expected
