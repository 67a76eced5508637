"""The headline of the paper, measured: continuous batching with reserved memory against paging.

The same engine, model and requests; only the memory manager differs. What matters is how many reservations of
the model's full context fit into memory, so that is what is varied::

    memory = ratio x max_model_len       ratio 7.7: the paper's, 15,728 slots / 2,048 (OPT-13B, A100-40GB)

    ratio 7.7    Max     [full context][full context] ... 7 requests run, mostly in empty memory
                 paged   [##][###][#][####][##][#] ...    about 30 run in the same memory

At a small ratio paging gains most; at a large one every system has more requests than the processor can use,
and memory no longer matters. So the whole curve is shown, and the paper's ratio is marked on it. Lengths are
ShareGPT-like: the paper's, scaled by max_model_len / 2,048, so that a laptop is done within an hour.

All requests are there at the start, and two rates are measured. The first counts while requests wait: the
paper's situation, in which new requests arrive all the time. It begins when a quarter of the requests is
done, because the first ones all have the same age, and ends when the queue is empty for good. The second
counts the whole run. At its end the few longest answers run almost alone, under every system::

    requests running   40 |..######..          paging: while requests wait the batch is full (#); at the
                        7 |..######........    end few long answers are left, and memory stands empty
                          +--------------- time

Paging is measured twice: as it is, and with a watermark of 5%, which a newcomer must leave free for those who
run. Without it a full memory admits a request into its last free blocks, and preempts it some steps later.

    $ python -m minivllm bench headline --ratios 7.7 --repeats 5          a quarter to half an hour
    $ python -m minivllm bench headline --ratios 2 4 7.7 16 --repeats 3 --plot headline.png

Paper: section 6.2. vLLM V1 has no counterpart.
"""

from __future__ import annotations

import argparse
import gc
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from minivllm.bench import options, report, workloads
from minivllm.bench.backends import OURS, WATERMARK, Backend, check_run, make_baseline
from minivllm.bench.report import Spread
from minivllm.bench.steps import TimedStep, record_steps, watching_plans
from minivllm.bench.workloads import SHAREGPT_LIKE, BenchRequest, Gamma, LengthModel
from minivllm.scheduler_output import SchedulerOutput

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER_RATIO = 7.7
PAPER_CONTEXT = 2048
WARM_UP = 8  # requests: enough for all kernels to be compiled
SYSTEMS = ("orca-max", "orca-pow2", "orca-oracle", OURS, WATERMARK)
LABELS = dict(zip(SYSTEMS, ("Max", "Pow2", "Oracle", "vLLM", "vLLM, watermark"), strict=True))


def scaled_lengths(max_model_len: int) -> LengthModel:
    """ShareGPT-like lengths for another context. Example, 512: a quarter, 40 tokens in and 85 out."""
    scale = max_model_len / PAPER_CONTEXT
    prompt, output = SHAREGPT_LIKE.prompt, SHAREGPT_LIKE.output
    return LengthModel(
        Gamma(prompt.mean * scale, prompt.cv), Gamma(output.mean * scale, output.cv), max_model_len
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long it takes is `--num-prompts` x `--ratios` x `--repeats`, five times each."""
    parser.add_argument("--model", default="smollm2-135m-instruct", help="built-in name, folder or hub id")
    text = "memory, in reservations of max_model_len"
    parser.add_argument("--ratios", nargs="+", type=float, default=[PAPER_RATIO], help=text)
    options.add_attention(parser)
    options.add_counts(
        parser,
        num_prompts=(192, "requests"),
        max_model_len=(512, "what Orca (Max) reserves; the lengths are scaled with it"),
        max_num_seqs=(128, "sequences at once: meant never to be the limit"),
        repeats=(5, "rounds, in which all systems take turns"),
    )
    options.add_seed(parser)
    options.add_output_arguments(parser, plot=True)


def run(args: argparse.Namespace) -> int:
    """Measure every ratio; -> the exit status, 0. ValueError: memory for less than one reservation."""
    if min(args.ratios) < 1:
        raise ValueError(f"--ratios must be at least 1: no request fits into less. Got {min(args.ratios)}.")
    lengths = workloads.draw_lengths(scaled_lengths(args.max_model_len), args.num_prompts, args.seed)
    requests = workloads.requests_of_lengths(lengths, options.vocab_size_of(args), args.seed)
    setting = {name: getattr(args, name) for name in ("num_prompts", "max_model_len", "max_num_seqs", "seed")}
    result = report.new_result("headline", model=args.model, setting=setting)
    result["points"] = [measure(args, ratio, requests) for ratio in args.ratios]
    return report.finish(args, result, print_report, draw)


def measure(args: argparse.Namespace, ratio: float, requests: list[BenchRequest]) -> dict[str, Any]:
    """All systems in turns with one size of memory, after a run of each that is not counted."""
    settings = {
        "max_model_len": args.max_model_len, "max_num_seqs": args.max_num_seqs, "skip_tokenizer_init": True,
        "num_blocks": int(ratio * args.max_model_len) // 16, "block_size": 16, "enable_prefix_caching": False,
        "attention_backend": args.attention_backend,
    }  # fmt: skip
    systems = {name: make_baseline(name, args.model, settings) for name in SYSTEMS}
    for name, system in systems.items():
        timed(name, system, requests[:WARM_UP])
    turns = {name: partial(timed, name, system, requests) for name, system in systems.items()}
    rounds = report.in_turns(turns, args.repeats)
    counts = ("batch", "preemptions", "recomputed")
    point: dict[str, Any] = {"ratio": ratio, "rates": {}, "whole_run": {}, **{name: {} for name in counts}}
    for name, runs in rounds.items():
        point["batch"][name] = float(np.mean([run.running for run in runs]))
        point["preemptions"][name], point["recomputed"][name] = runs[0].preemptions, runs[0].recomputed
        point["rates"][name] = Spread(tuple(run.rate_while_waiting for run in runs)).as_json()
        point["whole_run"][name] = Spread(tuple(run.rate for run in runs)).as_json()
    del systems, turns  # five models; the next ratio needs the memory
    gc.collect()
    return point


@dataclass(frozen=True)
class Run:
    """Of one run: output tokens/s while requests wait and in all; sequences in a step while requests wait;
    preemptions, and tokens computed once more because of them.
    """

    rate_while_waiting: float
    rate: float
    running: float
    preemptions: int
    recomputed: int


@dataclass(frozen=True)
class Moment:
    """How things stood when a step was planned."""

    num_waiting: int
    num_unfinished: int
    num_preempted: int


def timed(name: str, system: Backend, requests: list[BenchRequest]) -> Run:
    """One run, refused if a request got another number of tokens than it asked for."""
    engine, moments = system.llm.llm_engine, []
    scheduler = engine.scheduler

    def look(plan: SchedulerOutput) -> None:
        moments.append(Moment(len(scheduler.waiting), len(scheduler.groups), len(plan.preempted)))

    with record_steps(engine) as steps, watching_plans(engine, look):
        done = system.run(requests)
    check_run(name, requests, done)
    # The last token of an answer is sampled and never computed.
    needed = sum(len(each.prompt_token_ids) + each.output_len - 1 for each in requests)
    return summarize(steps.records, moments, needed)


def summarize(steps: list[TimedStep], moments: list[Moment], num_needed: int) -> Run:
    """The rates of a run, from its steps and from how things stood in each.

    Example: steps of 1 s with 9, 4, 4, 3, 1 sequences; from the second on a quarter of the requests is done,
    in the third one waits for the last time: 4 tokens/s while requests wait, 4.2 in all. Where no such steps
    are, the whole run is counted.
    """
    most = max(moment.num_unfinished for moment in moments)
    begin = next((i for i, moment in enumerate(moments) if moment.num_unfinished <= 0.75 * most), 0)
    end = 1 + max((i for i, moment in enumerate(moments) if moment.num_waiting), default=-1)
    queued = steps[begin:end] or steps
    return Run(
        rate_while_waiting=rate_of(queued),
        rate=rate_of(steps),
        running=sum(step.num_samples for step in queued) / len(queued),
        preemptions=sum(moment.num_preempted for moment in moments),
        recomputed=sum(step.num_tokens for step in steps) - num_needed,
    )


def rate_of(steps: list[TimedStep]) -> float:
    """Output tokens per second: each sequence that is sampled from gets one."""
    return sum(step.num_samples for step in steps) / sum(step.seconds for step in steps)


def print_report(result: report.Result) -> None:
    """Tokens per second and what they are of Orca (Max), with the range of the rounds."""
    where, setting = result["provenance"], result["setting"]
    print(report.describe(where))
    print(
        f"{result['model']}, {setting['num_prompts']} ShareGPT-like requests scaled to a context of "
        f"{setting['max_model_len']} tokens, seed {setting['seed']}. Ratio: memory / max_model_len; the "
        f"paper's is {PAPER_RATIO}."
    )
    for key, title in (("rates", "While requests wait"), ("whole_run", "The whole run, its end included")):
        print(f"{title}:")
        queued = key == "rates"
        columns = ("running",) if queued else ("preemptions", "computed again")
        lines = [("ratio", "system", *columns, "output tokens/s", "of Orca (Max)")]
        for point in result["points"]:
            rates = {name: Spread.from_json(entry) for name, entry in point[key].items()}
            first = rates[SYSTEMS[0]]
            for name, rate in rates.items():
                reason = report.why_no_ratio(where, {name: rate, SYSTEMS[0]: first})
                text = "1" if name == SYSTEMS[0] else reason or f"{report.paired_ratio(rate, first):.2f}"
                more = [f"{point['preemptions'][name]}", f"{point['recomputed'][name]} tokens"]
                more = [f"{point['batch'][name]:.1f}"] if queued else more
                lines.append((f"{point['ratio']:g}", name.ljust(18), *more, f"{rate:.1f}", text))
        print(report.table(lines))


def draw(result: report.Result, path: str) -> None:
    """Output tokens per second while requests wait: bars, or curves if there are several ratios."""
    from minivllm.viz.style import new_figure

    points = sorted(result["points"], key=lambda point: point["ratio"])
    figure = new_figure(6, 4 if len(points) > 1 else 2.5)
    axes = figure.subplots()
    (draw_curves if len(points) > 1 else draw_bars)(axes, points)
    axes.set_title(f"{result['model']}, {result['provenance']['cpu']}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def look_of(system: str) -> tuple[str, str]:
    """Colour and marker of a system, those of the paper's figures."""
    from minivllm.bench.evaluation.drawing import LOOK

    return LOOK[LABELS[system]]


def draw_bars(axes: Axes, points: list[dict[str, Any]]) -> None:
    """One ratio: medians, and whiskers from the smallest to the largest round."""
    (point,) = points
    for name in SYSTEMS:
        rate = Spread.from_json(point["rates"][name])
        whiskers = [[rate.median - min(rate.values)], [max(rate.values) - rate.median]]
        axes.barh(name, rate.median, xerr=whiskers, color=look_of(name)[0], capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel(
        f"output tokens/s while requests wait, memory {point['ratio']:g} x max_model_len", fontsize=9
    )


def draw_curves(axes: Axes, points: list[dict[str, Any]]) -> None:
    """Medians against the ratio, a line per system."""
    for name in SYSTEMS:
        color, marker = look_of(name)
        rates = [point["rates"][name]["median"] for point in points]
        axes.plot([point["ratio"] for point in points], rates, color=color, marker=marker, label=name)
    axes.axvline(PAPER_RATIO, color="black", lw=0.8, ls="--")
    axes.text(PAPER_RATIO, 0, " the paper's", fontsize=8, va="bottom")
    axes.set(xlabel="KV memory / max_model_len", ylabel="output tokens/s while requests wait", xscale="log")
    axes.set_xticks([point["ratio"] for point in points], [f"{point['ratio']:g}" for point in points])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
