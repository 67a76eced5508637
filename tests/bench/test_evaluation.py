"""The paper's evaluation: step times that can be checked by hand, runs that lose nothing, and its statements."""

import argparse
import itertools
import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from minivllm.bench import load_command, simulation
from minivllm.bench.evaluation import drawing, figures, headline, kernel_cost, validate
from minivllm.bench.evaluation.claims import Claim, claims_of
from minivllm.bench.evaluation.events import (
    Demand,
    Simulation,
    System,
    arrivals,
    arrive,
    saturate,
)
from minivllm.bench.evaluation.figures import SYSTEMS, Run, lengths_of, simulate
from minivllm.bench.evaluation.setups import DEPLOYMENTS, FIXED_SECONDS, OPT_13B, SEQUENCE_SECONDS
from minivllm.bench.evaluation.step_time import Chip, Shape, StepModel, Work, work_of
from minivllm.bench.report import Spread
from minivllm.bench.steps import TimedStep
from minivllm.scheduler_output import ScheduledSequence, SchedulerOutput
from minivllm.weights.random_model import random_llama

OPT = DEPLOYMENTS["13B"]


def plan_of(*rows, swapped=()):
    """A plan of (start, tokens, blocks) rows."""
    scheduled = [
        ScheduledSequence(str(i), i, start, (0,) * count, tuple(range(blocks)))
        for i, (start, count, blocks) in enumerate(rows)
    ]
    return SchedulerOutput(0, tuple(scheduled), blocks_to_swap_out=tuple(swapped))


# -- the step-time model ------------------------------------------------------------------------------------


def test_the_work_of_a_plan_is_what_one_counts_by_hand():
    """Would catch a prompt counted as if each of its tokens saw all of it, and a decode row that sees itself not."""
    work = work_of(plan_of((99, 1, 7), (0, 100, 7)), extra_per_block=2.0)
    assert work == Work(rows=101, samples=0, kv_tokens=100 + 100 + 2 * 14, pairs=100 + 5050)
    assert work_of(plan_of((99, 1, 7)), shared_tokens=64).kv_tokens == 36


def test_opt_13b_is_the_papers():
    """Would catch a factor of two in bytes: the paper has 800 KB per token, and 26 GB of weights."""
    assert OPT_13B.kv_bytes == 800 * 1024
    assert OPT_13B.weight_bytes == pytest.approx(25.7e9, rel=0.01)


def test_a_step_takes_at_least_as_long_as_reading_its_bytes():
    """Would catch a unit: 26 GB at 1,244 GB/s are 20.6 ms, and 10,000 tokens of 800 KiB are 6.6 ms."""
    model = StepModel(OPT_13B, OPT.model.chip)
    parts = model.parts(Work(1, 1, 10_000, 10_000))
    assert parts["weights"] == pytest.approx(20.6e-3, rel=0.01)
    assert parts["attention"] == pytest.approx(6.6e-3, rel=0.02)
    assert parts["products"] == parts["all-reduce"] == parts["host"] == 0
    many = model.parts(Work(1000, 0, 0, 0))
    assert many["weights"] + many["products"] == pytest.approx(
        2 * OPT_13B.layer_parameters * 1000 / 187.2e12, rel=1e-3
    )
    on_a_cpu = StepModel(OPT_13B, replace(OPT.model.chip, overlaps=False)).parts(Work(1, 1, 0, 0))
    assert on_a_cpu["products"] > 0


def test_several_chips_share_the_bytes_and_pay_for_it():
    """Would catch an all-reduce on one chip, and weights that each of four chips reads whole."""
    one, four = (replace(DEPLOYMENTS["66B"].model, num_chips=count) for count in (1, 4))
    work = Work(32, 32, 10_000, 10_000)
    assert four.parts(work)["weights"] == pytest.approx(one.parts(work)["weights"] / 4)
    assert one.parts(work)["all-reduce"] == 0 < four.parts(work)["all-reduce"]


def test_a_step_without_rows_takes_the_time_of_its_copies():
    """Would catch a clock that stands still while blocks are swapped, which would never end."""
    assert OPT.model.seconds(plan_of()) == 0
    moved = OPT.model.seconds(plan_of(swapped=[(0, 0), (1, 1)]))
    assert moved == pytest.approx(2 * (80 * 8e-6 + 16 * OPT_13B.kv_bytes / 25e9))


def test_the_hosts_two_numbers_give_back_figure_13():
    """Would catch a fit that does not fit: 30.42 requests at 2 per second are 45 ms per token, 132.44 at 30 are 76."""
    model = OPT.model
    for batch, rate, prompt, context, expected in (
        (30.42, 2, 161.31, 161.31 + 337.99 * (1 + 0.88**2) / 2, 0.0450),
        (132.44, 30, 19.31, 19.31 + 58.45, 0.0755),
    ):
        rows = round(batch + rate * prompt * expected)
        work = Work(rows, round(batch), batch * context * 1.23, batch * context)
        assert sum(model.parts(work).values()) == pytest.approx(expected, rel=0.01)
        without = replace(model, fixed_seconds=0.0, sequence_seconds=0.0)
        assert sum(without.parts(work).values()) < 0.8 * expected
    assert 1e-3 < FIXED_SECONDS < 10e-3 and 0.1e-3 < SEQUENCE_SECONDS < 0.5e-3


# -- runs under the clock ------------------------------------------------------------------------------------


def test_one_request_takes_the_sum_of_its_steps():
    """Would catch a clock that misses the first or the last step: 20 tokens in, 5 out are a prefill and 4 more."""
    plans = [(0, 20, 2), *((20 + i, 1, 2) for i in range(4))]
    model = replace(OPT.model, extra_per_block=System("paged").lookup_tokens)
    seconds = sum(
        sum(model.parts(replace(work_of(plan_of(row), model.extra_per_block), samples=1)).values())
        for row in plans
    )
    served = arrive(System("paged"), OPT, [(3.0, 20, 5)])
    assert served.seconds == pytest.approx(3.0 + seconds)
    assert served.normalized_latency == pytest.approx(seconds / 5)


def test_every_block_is_free_after_the_last_request():
    """Would catch requests that are lost on the way, with swapping, recompute and in reserved memory."""
    tight = replace(OPT, num_slots=2048)
    lengths = list(itertools.islice(simulation.endless_lengths(figures.SHAREGPT_LIKE, 0), 12))
    for system in (System("paged"), System("paged", swap=True), System("max"), System("oracle")):
        run = Simulation(system, tight)
        ids = {each for pair in lengths for each in run.add(*pair)}
        while run.scheduler.has_unfinished:
            ids -= set(run.step())
        assert not ids
        assert run.scheduler.kv.pool.num_used == run.scheduler.kv.cpu_pool.num_used == 0
        assert run.totals["tokens"] == sum(output for _, output in lengths)
        assert (run.totals["preemptions"] > 0) == (system.memory == "paged")


def test_the_watermark_saves_preemptions():
    """Would catch a manager that does nothing; without the reserve a full memory preempts what it has just let in."""

    preemptions = {}
    for watermark in (0.0, 0.01, 0.05):
        run = Simulation(System("paged", watermark=watermark), OPT)
        for pair in itertools.islice(lengths_of("ShareGPT"), 90):
            run.add(*pair)
        for _ in range(400):
            run.step()
        preemptions[watermark] = run.totals["preemptions"]
    assert 0 < preemptions[0.01] < 0.8 * preemptions[0.0]
    assert preemptions[0.05] < preemptions[0.01]


def test_memory_alone_decides_the_batch_of_orca_max():
    """Would catch a wrong number of slots: 15,728 / 2,048 are 7 reservations, and no request more."""
    assert saturate(SYSTEMS["Max"], OPT, lengths_of("ShareGPT"), 10).batch == pytest.approx(7.0, abs=0.01)


def test_contiguous_memory_queues_a_request_for_each_completion():
    """Would catch a baseline that shares what it cannot share, or is compared with a third of the work."""
    run = Simulation(SYSTEMS["Oracle"], OPT, Demand(width=3))
    assert len(run.add(10, 5)) == 3 and len(run.scheduler.waiting) == 3
    assert len(Simulation(SYSTEMS["vLLM"], OPT, Demand(width=3)).add(10, 5)) == 1


def test_a_later_arrival_waits_for_the_running_step_and_rates_stretch_the_moments():
    """Would catch requests that are served before they come."""
    slow, fast = (arrivals(lengths_of("Alpaca"), rate, 5) for rate in (1.0, 2.0))
    assert [moment for moment, *_ in slow] == pytest.approx([2 * moment for moment, *_ in fast])
    served = arrive(System("paged"), OPT, slow)
    assert served.seconds > slow[-1][0]
    crowded = arrive(System("paged"), OPT, arrivals(lengths_of("Alpaca"), 100.0, 60))
    assert crowded.normalized_latency > served.normalized_latency


# -- figures -------------------------------------------------------------------------------------------------


def test_the_same_numbers_with_one_process_and_with_two(monkeypatch):
    """Would catch a run that depends on what ran before it, or on a clock."""
    small = [
        Run("13B Alpaca", name, system, "Alpaca", loads=(0.5,)) for name, system in list(SYSTEMS.items())[:2]
    ]
    monkeypatch.setitem(figures.FIGURES, "13", lambda: small)
    one, two = (simulate(["13"], num_workers=count, share=0.02) for count in (1, 2))
    assert one == two and one["13"][0]["rate"] > one["13"][1]["rate"]
    assert simulate(["13"], seed=1, num_workers=1, share=0.02) != one


def test_the_papers_sharing_gains_are_reproduced():
    """Would catch prefixes that are not shared, and batches that memory does not bound: figures 16 and 13."""
    rows = simulate(["16"], num_workers=1, share=0.3)
    claims = claims_of(rows)
    assert len(claims) == 2 and all(claim.holds for claim in claims)
    # Negative control: without sharing the same statement fails.
    five = [run for run in figures.figure_16() if run.panel == "5-shot"]
    blind = replace(five[0], system=System("paged")).result(share=0.3)
    assert not Claim("16", "", blind["rate"] / five[1].result(share=0.3)["rate"], 3.58, 3.58).holds


def made_up_rows():
    """Rows of all figures, as if every system served one request per second."""
    rows = {}
    for name, figure in figures.FIGURES.items():
        rows[name] = []
        for run in figure():
            row = {"panel": run.panel, "name": run.name}
            if isinstance(run, Run):
                row |= {
                    "rate": 1.0,
                    "batch": 7.0,
                    "step_seconds": 0.05,
                    "curve": [{"rate": r, "normalized_latency": 0.1} for r in run.loads],
                }
            elif isinstance(run, figures.Saving):
                row |= {"saving": 0.1}
            else:
                row = run.result()
            rows[name].append(row)
    return rows


def test_every_statement_of_the_paper_is_asked_of_rows_that_exist():
    """Would catch a claim about a panel that no run makes, and claims that hold whatever was measured."""
    claims = claims_of(made_up_rows())
    assert {claim.figure for claim in claims} == {"12", "13", "14", "15", "16", "17", "18b", "19a", "19b"}
    assert not all(claim.holds for claim in claims)


def test_every_figure_is_drawn(tmp_path):
    """Would catch a panel that its own rows break."""
    rows = made_up_rows()
    claims = [
        asdict(claim) | {"difference": claim.difference, "holds": claim.holds} for claim in claims_of(rows)
    ]
    drawing.draw({"rows": rows, "claims": claims}, str(tmp_path / "all.png"))
    assert (tmp_path / "all.png").stat().st_size > 50_000


def test_a_difference_is_measured_from_the_nearer_end():
    """Would catch a range of which only one end counts."""
    assert Claim("", "", 2.0, 1.7, 2.7).difference == 0
    assert Claim("", "", 1.2, 1.6, 2.7).difference == pytest.approx(-0.25)
    assert Claim("", "", 5.4, 1.6, 2.7).difference == pytest.approx(1.0)
    assert [Claim("", "", ours, 2.0, 2.0).holds for ours in (1.49, 1.51, 2.49, 2.51)] == [
        False,
        True,
        True,
        False,
    ]


# -- what is measured ----------------------------------------------------------------------------------------


def synthetic_steps():
    """A grid of decode and prompt steps, and the seconds of a known machine."""
    shape = Shape("s", 4, 64, 32, 1e6, 2e5, element_bytes=4)
    chip = Chip("known", 2e9, 1e8, 5e9, 1e8, overlaps=False)
    model = StepModel(shape, chip, sequence_seconds=1e-5)
    plans = [[(length - 1, 1, 1)] * rows for rows in (1, 2, 4, 8, 16, 32) for length in (32, 128, 512)]
    plans += [[(0, length, 1)] for length in (32, 128, 512)]
    works = [replace(work_of(plan_of(*rows)), samples=len(rows)) for rows in plans]
    return shape, works, [sum(model.parts(work).values()) for work in works]


def test_the_fit_finds_the_rates_of_a_known_machine():
    """Would catch units that are mixed up: steps that the model explains are predicted to the last digits."""
    shape, works, seconds = synthetic_steps()
    model = validate.fit(shape, works[::2], seconds[::2])
    assert np.abs(validate.errors(model, works, seconds)).max() < 1e-6
    # Negative control: steps in another order are not explained.
    shuffled = seconds[::-1]
    wrong = validate.fit(shape, works[::2], shuffled[::2])
    assert np.median(np.abs(validate.errors(wrong, works, shuffled))) > validate.MAX_ERROR


def test_the_fit_leaves_out_a_rate_that_would_be_negative():
    """Would catch a machine that gains time by working: here attention costs nothing, with a little noise."""
    shape, works, _ = synthetic_steps()
    rng = np.random.default_rng(0)
    seconds = [1e-3 * (1 + 0.01 * rng.random()) for _ in works]
    model = validate.fit(shape, works, seconds)
    assert min(model.chip.weight_bandwidth, model.chip.flops, model.chip.attention_flops) > 0
    assert np.abs(validate.errors(model, works, seconds)).max() < 0.05


def run_command(name, arguments):
    """A bench command, with its JSON."""
    module = load_command(name)
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert module.run(parser.parse_args(arguments)) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_llama(tmp_path_factory.mktemp("model"), max_position_embeddings=1024)


def test_step_time_measures_fits_and_predicts(folder, tmp_path, capsys):
    """Would catch a command that breaks on its way from the grid to the drawing; whether it is right needs quiet."""
    path = tmp_path / "steps.json"
    run_command("step-time", ["--model", str(folder), "--attention-backend", "torch", "--max-rows", "2", "--max-length", "64", "--rounds", "1",
                              "--num-prompts", "2", "--num-blocks", "64", "--output-json", str(path),
                              "--plot", str(tmp_path / "steps.png")])  # fmt: skip
    result = json.loads(path.read_text())
    assert len(result["works"]) == len(result["seconds"]) == 2 * 2 + 2
    assert result["run_predicted"] > 0 and (tmp_path / "steps.png").exists()
    assert "held out: median error" in capsys.readouterr().out


def test_headline_takes_turns_and_paging_runs_more_at_once(folder, tmp_path, capsys):
    """Would catch systems that got different memory, and a drawing or a table that its own numbers break."""
    path = tmp_path / "headline.json"
    run_command("headline", ["--model", str(folder), "--attention-backend", "torch", "--max-model-len", "64", "--num-prompts", "48",
                             "--repeats", "1", "--ratios", "4", "--output-json", str(path),
                             "--plot", str(tmp_path / "headline.png")])  # fmt: skip
    result = json.loads(path.read_text())
    for point in result["points"]:
        batch = point["batch"]
        assert batch["orca-max"] <= batch["orca-pow2"] <= batch["orca-oracle"] <= batch["minivllm-watermark"]
        assert batch["orca-max"] <= point["ratio"] < batch["minivllm-watermark"] <= batch["minivllm"]
        again, preemptions = point["recomputed"], point["preemptions"]
        assert again["orca-max"] == again["orca-pow2"] == again["orca-oracle"] == preemptions["orca-max"] == 0
        assert 0 < preemptions["minivllm-watermark"] <= preemptions["minivllm"] < again["minivllm"]
    assert "orca-oracle" in capsys.readouterr().out and (tmp_path / "headline.png").exists()
    # What a quiet machine would print: three rounds each, so that there are ratios.
    result["provenance"]["load_average"] = [0.1, 0.1, 0.1]
    point = result["points"][0]
    assert all(point["whole_run"][name]["median"] > 0 for name in headline.SYSTEMS)
    for number, name in enumerate(headline.SYSTEMS, start=1):
        point["rates"][name] = Spread((10.0 * number, 10.1 * number, 10.2 * number)).as_json()
        point["whole_run"][name] = Spread((5.0 + number, 5.1 + number, 5.2 + number)).as_json()
    headline.print_report(result)
    queued, whole = capsys.readouterr().out.split("The whole run")
    queued, whole = ([line.split() for line in part.splitlines()] for part in (queued, whole))
    assert [line[6] for line in queued if line[:1] == ["4"]] == ["1", "2.00", "3.00", "4.00", "5.00"]
    assert [line[8] for line in whole if line[:1] == ["4"]] == ["1", "1.16", "1.33", "1.49", "1.66"]


def test_headline_counts_until_no_request_waits_any_more():
    """Would catch a rate in which the end, where few long answers run alone, hides what memory allows."""

    def run_of(waiting, counts=(4, 4, 3, 1), unfinished=None, needed=12):
        steps = [TimedStep(max(count, 9), count, 1.0) for count in counts]
        moments = [
            headline.Moment(w, u, 2) for w, u in zip(waiting, unfinished or [8] * len(counts), strict=True)
        ]
        return headline.summarize(steps, moments, needed)

    assert run_of([1, 0, 1, 0]) == headline.Run(11 / 3, 3.0, 11 / 3, preemptions=8, recomputed=4 * 9 - 12)
    assert run_of([0] * 4).rate_while_waiting == 3.0
    # A chunk of a prompt takes time and gives no token.
    assert run_of([1, 1, 1, 0, 0], (0, 4, 4, 3, 1)).rate_while_waiting == 8 / 3
    # Those which all have the same age do not count: 2 of 8 are done in the third step.
    assert run_of([1, 1, 1, 1], unfinished=[8, 7, 6, 5]).rate_while_waiting == 2.0
    assert run_of([1, 1, 0, 0], unfinished=[8, 7, 6, 5]).rate_while_waiting == 3.0  # no such step


def test_headline_refuses_memory_for_no_request(folder):
    """Would catch a run in which no request is ever admitted."""
    with pytest.raises(ValueError, match="at least 1"):
        run_command("headline", ["--model", str(folder), "--ratios", "0.5"])


def test_the_kernel_computes_the_same_from_blocks_and_from_one_run():
    """Would catch a comparison of different computations: same tokens, in random blocks, contiguous, copied."""
    paged, contiguous = (kernel_cost.kernel_call(size)() for size in (16, kernel_cost.SEQ_LEN))
    np.testing.assert_allclose(paged, contiguous, atol=1e-5)
    np.testing.assert_allclose(paged, kernel_cost.gather_call(16, seed=3)(), atol=1e-5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(paged, np.zeros_like(paged), atol=1e-5)
