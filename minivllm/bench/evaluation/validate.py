"""Does the step-time model predict real steps? `python -m minivllm bench step-time` asks this CPU.

The model of `step_time.py` has five rates. They are fitted to half of a grid of real steps, and have to
predict the other half, and then the time of a whole run that was no part of the fit::

    decode    rows 1 2 4 8 16 32 64  x  lengths 32 64 128 256 512 1024        fitted + held out, in turns
    prefill   prompts of 32 ... 1024 tokens                                   in the same way
    run       32 requests of `bench serve`, all at once                       predicted by the real scheduler

    marks: median error of what was held out at most 15%; the whole run within 15%

Rows of a step are laid into memory one behind the other, over the whole KV cache, so that no row finds its K
and V in the processor's caches because another has just read them. Plans are written by hand, as the time of
a step depends on lengths and not on what was computed before.

    $ python -m minivllm bench step-time --output-json step_time.json --plot step_time.png    (a few minutes)

Paper: no counterpart, but without such a check there is no reason to believe a simulated figure. vLLM V1: no
counterpart.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from functools import partial

import numpy as np

from minivllm.bench import options, report, workloads
from minivllm.bench.evaluation.events import System, arrive
from minivllm.bench.evaluation.setups import Deployment
from minivllm.bench.evaluation.step_time import Chip, Shape, StepModel, Work, work_of
from minivllm.bench.serve import serve
from minivllm.bench.workloads import with_arrivals
from minivllm.block_table import cdiv
from minivllm.config import ModelConfig
from minivllm.engine import LLMEngine
from minivllm.llm import LLM
from minivllm.sampling_params import SamplingParams
from minivllm.scheduler_output import SamplingMetadata, ScheduledSequence, SchedulerOutput

ROWS = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (32, 64, 128, 256, 512, 1024)
MAX_ERROR = 0.15
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
UNITS = ("weights", "products", "K and V", "attention", "sequences")


def shape_of(config: ModelConfig, element_bytes: int) -> Shape:
    """The numbers of a Llama: four products for attention, three for the MLP."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layers = config.num_hidden_layers * (2 * hidden * query + 2 * hidden * kv + 3 * hidden * inner)
    return Shape(
        "model", config.num_hidden_layers, query, kv, layers, config.vocab_size * hidden, element_bytes
    )


def hand_written_plan(engine: LLMEngine, num_rows: int, length: int, num_tokens: int) -> SchedulerOutput:
    """A step of `num_rows` sequences of `length` tokens, which compute their last `num_tokens`."""
    size, total = engine.config.block_size, engine.scheduler.kv.pool.num_blocks
    per_row = cdiv(length, size)
    sampling = SamplingMetadata(GREEDY, 1, seed=0, position=length, num_prompt_tokens=length)
    rows = []
    for row in range(num_rows):
        block_ids = tuple((row * per_row + i) % total for i in range(per_row))
        start, tokens = length - num_tokens, (5,) * num_tokens
        rows.append(ScheduledSequence(str(row), row, start, tokens, block_ids, sampling))
    return SchedulerOutput(0, tuple(rows))


def grid(engine: LLMEngine, max_rows: int, max_length: int) -> list[SchedulerOutput]:
    """All decode steps, then prompts alone."""
    lengths = [length for length in LENGTHS if length <= max_length]
    decode = [hand_written_plan(engine, rows, n, 1) for rows in ROWS if rows <= max_rows for n in lengths]
    return decode + [hand_written_plan(engine, 1, n, n) for n in lengths]


def measure(engine: LLMEngine, plans: list[SchedulerOutput], rounds: int) -> list[float]:
    """Median seconds of each plan; every round goes through all of them, after one that does not count."""

    def seconds(plan: SchedulerOutput) -> float:
        start = time.perf_counter()
        engine.runner.execute_model(plan)
        return time.perf_counter() - start

    runs = {str(i): partial(seconds, plan) for i, plan in enumerate(plans)}
    report.in_turns(runs, 1)
    return [float(np.median(times)) for times in report.in_turns(runs, rounds).values()]


def units_of(shape: Shape, work: Work) -> list[float]:
    """What the five rates are multiplied by: seconds = units . rates, all rates at least 0."""
    multiplied = shape.layer_parameters * work.rows + shape.head_parameters * work.samples
    arithmetic = 4 * shape.num_layers * shape.hidden_size * work.pairs
    return [shape.weight_bytes, 2 * multiplied, shape.kv_bytes * work.kv_tokens, arithmetic, work.samples]


def fit(shape: Shape, works: list[Work], seconds: list[float]) -> StepModel:
    """Least squares of the relative error. A rate that comes out negative is left out, and all fitted again.

    What the host takes per step cannot be told apart from reading the weights: both are the same in every
    step. The fit calls all of it weights.
    """
    table = np.array([units_of(shape, work) for work in works]) / np.array(seconds)[:, None]
    scale = table.max(axis=0)  # units differ by ten powers of ten
    kept = list(range(len(UNITS)))
    while True:
        rates = np.linalg.lstsq(table[:, kept] / scale[kept], np.ones(len(works)), rcond=None)[0]
        if rates.min() >= 0:
            break
        kept.pop(int(rates.argmin()))
    full = np.full(len(UNITS), 1e-30)
    full[kept] = np.maximum(rates / scale[kept], 1e-30)
    weights, products, kv, attention, sequences = full.tolist()
    chip = Chip("fitted", 1 / weights, 1 / kv, 1 / products, 1 / attention, overlaps=False)
    return StepModel(shape, chip, sequence_seconds=sequences)


def errors(model: StepModel, works: list[Work], seconds: list[float]) -> list[float]:
    """Relative error of each prediction: +0.1 is a tenth too long."""
    return [sum(model.parts(work).values()) / real - 1 for work, real in zip(works, seconds, strict=True)]


def predict_run(model: StepModel, engine: LLMEngine, requests: list[workloads.BenchRequest]) -> float:
    """Seconds of a run of `bench serve`, by the real scheduler with the engine's memory and limits."""
    pool, config = engine.scheduler.kv.pool, engine.config
    slots = pool.num_blocks * config.block_size
    where = Deployment(model, slots, config.max_num_seqs, config.max_num_batched_tokens)
    coming = [(each.arrival_time, len(each.prompt_token_ids), each.output_len) for each in requests]
    return arrive(System("paged", config.block_size, lookup_tokens=0.0), where, coming).seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The grid can be cut down, to try it out."""
    parser.add_argument("--model", default="smollm2-135m-instruct", help="built-in name, folder or hub id")
    options.add_attention(parser)
    options.add_counts(
        parser,
        rounds=(5, "times that each step is measured"),
        max_rows=(64, "largest batch of the grid"),
        max_length=(1024, "longest sequence of the grid"),
        num_blocks=(1024, "KV blocks"),
        num_prompts=(32, "requests of the run"),
    )
    options.add_seed(parser)
    options.add_output_arguments(parser, plot=True)


def run(args: argparse.Namespace) -> int:
    """Measure, fit, predict; -> the exit status, 0 also where a mark is missed."""
    llm = LLM(args.model, num_blocks=args.num_blocks, skip_tokenizer_init=True, enable_prefix_caching=False,
              attention_backend=args.attention_backend,
              max_model_len=max(2 * args.max_length, 512))  # fmt: skip
    engine = llm.llm_engine
    if engine.device.type != "cpu":
        raise ValueError(
            f"a step is timed on a CPU, where calls return when they are done; got {engine.device}."
        )
    result = report.new_result("step-time", model=args.model)
    plans = grid(engine, args.max_rows, args.max_length)
    works = [work_of(plan) for plan in plans]
    requests = with_arrivals(run_requests(args, engine.model_config.vocab_size), float("inf"))
    serve(engine, requests[:2])
    half = measure(engine, plans, (args.rounds + 1) // 2)
    runs = [serve(engine, requests)[1] for _ in range(min(3, args.rounds))]  # between two halves of the grid
    other = measure(engine, plans, (args.rounds + 1) // 2)
    seconds = [(a + b) / 2 for a, b in zip(half, other, strict=True)]
    shape = shape_of(engine.model_config, engine.dtype.itemsize)
    model = fit(shape, works[::2], seconds[::2])
    result |= {
        "works": [asdict(work) for work in works],
        "seconds": seconds,
        "errors": errors(model, works, seconds),
        "chip": asdict(model.chip),
        "sequence_seconds": model.sequence_seconds,
        "run_seconds": runs,
        "run_predicted": predict_run(model, engine, requests),
    }
    return report.finish(args, result, print_report, draw)


def run_requests(args: argparse.Namespace, vocab_size: int) -> list[workloads.BenchRequest]:
    """The uniform workload, 16 to 256 tokens in and out; shorter if the grid has been cut down."""
    uniform = workloads.uniform_requests(args.num_prompts, vocab_size, args.seed)
    scale = min(1.0, args.max_length / max(LENGTHS))
    lengths = [(len(each.prompt_token_ids), each.output_len) for each in uniform]
    lengths = [(max(1, int(scale * a)), max(1, int(scale * b))) for a, b in lengths]
    return workloads.requests_of_lengths(lengths, vocab_size, args.seed)


def summary(result: report.Result) -> dict[str, float]:
    """Median size of the error on what was held out, and the error of the whole run."""
    held_out = np.abs(result["errors"][1::2])
    real = float(np.median(result["run_seconds"]))
    return {"held_out": float(np.median(held_out)), "run": result["run_predicted"] / real - 1}


def print_report(result: report.Result) -> None:
    """Rates that were fitted, then the errors beside the marks."""
    chip, found = result["chip"], summary(result)
    print(report.describe(result["provenance"]))
    rates = (
        ("weights, GB/s", chip["weight_bandwidth"] / 1e9),
        ("products, GFLOP/s", chip["flops"] / 1e9),
        ("K and V, GB/s", chip["kv_bandwidth"] / 1e9),
        ("attention, GFLOP/s", chip["attention_flops"] / 1e9),
        ("host, us per sequence", 1e6 * result["sequence_seconds"]),
    )
    # A rate above a million is one that the fit did without.
    print(
        report.table([("fitted", ""), *((n, f"{rate:.1f}" if rate < 1e6 else "none") for n, rate in rates)])
    )
    print(f"\nsteps held out: median error {found['held_out']:.1%} (mark: {MAX_ERROR:.0%})")
    real = report.Spread(tuple(result["run_seconds"]))
    print(
        f"a run of bench serve: {real:.1f} s, predicted {result['run_predicted']:.1f} s, {found['run']:+.1%}"
    )


def draw(result: report.Result, path: str) -> None:
    """Predicted against measured; the grey band is the mark."""
    from minivllm.viz.style import new_figure

    figure = new_figure(6, 5)
    axes = figure.subplots()
    real = 1e3 * np.array(result["seconds"])
    predicted = real * (1 + np.array(result["errors"]))
    held_out = np.arange(len(real)) % 2 == 1
    ends = np.array([real.min() * 0.7, real.max() * 1.4])
    axes.fill_between(
        ends, ends * (1 - MAX_ERROR), ends * (1 + MAX_ERROR), color="#DDDDDD", label="within 15%"
    )
    axes.plot(real[~held_out], predicted[~held_out], "o", mfc="none", color="#0072B2", label="fitted")
    axes.plot(real[held_out], predicted[held_out], "s", color="#D55E00", label="held out")
    axes.set(
        xscale="log", yscale="log", xlabel="measured (ms)", ylabel="predicted (ms)", xlim=ends, ylim=ends
    )
    axes.set_title(f"Steps of {result['model']}: {result['provenance']['cpu']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
