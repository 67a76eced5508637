"""The headline of the paper, measured: continuous batching with reserved memory against paging.

The same engine, model and requests; only the memory manager differs. What matters is how many reservations of
the model's full context fit into memory, so that is what is varied::

    memory = ratio x max_model_len       ratio 7.7: the paper's, 15,728 slots / 2,048 (OPT-13B, A100-40GB)

    ratio 7.7    Max     [full context][full context] ... 7 requests run, mostly in empty memory
                 paged   [##][###][#][####][##][#] ...    about 30 run in the same memory

At a small ratio paging gains most; at a large one every system has more requests than the processor can use,
and memory no longer matters. So the whole curve is shown, and the paper's ratio is marked on it. Lengths are
ShareGPT-like: the paper's, scaled by max_model_len / 2,048, so that a laptop is done within an hour.

    $ python -m minivllm bench headline --ratios 7.7 --repeats 5          half an hour
    $ python -m minivllm bench headline --ratios 2 4 7.7 16 --repeats 3 --plot headline.png

Paper: section 6.2. vLLM V1 has no counterpart.
"""

from __future__ import annotations

import argparse
import gc
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from minivllm.bench import options, report, workloads
from minivllm.bench.backends import OURS, Backend, BackendRun, check_run, make_baseline
from minivllm.bench.report import Spread
from minivllm.bench.steps import watching_plans
from minivllm.bench.workloads import SHAREGPT_LIKE, BenchRequest, Gamma, LengthModel

PAPER_RATIO = 7.7
PAPER_CONTEXT = 2048
SYSTEMS = ("orca-max", "orca-pow2", "orca-oracle", OURS)


def scaled_lengths(max_model_len: int) -> LengthModel:
    """ShareGPT-like lengths for another context. Example, 512: a quarter, 40 tokens in and 85 out."""
    scale = max_model_len / PAPER_CONTEXT
    prompt, output = SHAREGPT_LIKE.prompt, SHAREGPT_LIKE.output
    return LengthModel(
        Gamma(prompt.mean * scale, prompt.cv), Gamma(output.mean * scale, output.cv), max_model_len
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long it takes is `--num-prompts` x `--ratios` x `--repeats`, four times each."""
    parser.add_argument("--model", default="smollm2-135m-instruct", help="built-in name, folder or hub id")
    text = "memory, in reservations of max_model_len"
    parser.add_argument("--ratios", nargs="+", type=float, default=[PAPER_RATIO], help=text)
    options.add_attention(parser)
    options.add_counts(
        parser,
        num_prompts=(96, "requests"),
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
    """All systems in turns with one size of memory, each after a run of its own that counts sequences."""
    settings = {
        "max_model_len": args.max_model_len, "max_num_seqs": args.max_num_seqs, "skip_tokenizer_init": True,
        "num_blocks": int(ratio * args.max_model_len) // 16, "block_size": 16, "enable_prefix_caching": False,
        "attention_backend": args.attention_backend,
    }  # fmt: skip
    systems = {name: make_baseline(name, args.model, settings) for name in SYSTEMS}
    batch = {}
    for name, system in systems.items():
        running: list[int] = []
        with ExitStack() as stack:
            watched = watching_plans(
                system.llm.llm_engine, lambda plan, seen=running: seen.append(len(plan.scheduled))
            )
            stack.enter_context(watched)
            timed(name, system, requests)
        batch[name] = float(np.mean(running))
    turns = {name: partial(timed, name, system, requests) for name, system in systems.items()}
    num_tokens = sum(request.output_len for request in requests)
    point: dict[str, Any] = {"ratio": ratio, "batch": batch, "rates": {}}
    for name, runs in report.in_turns(turns, args.repeats).items():
        point["rates"][name] = Spread(tuple(num_tokens / each.seconds for each in runs)).as_json()
    del systems, turns  # four models; the next ratio needs the memory
    gc.collect()
    return point


def timed(name: str, system: Backend, requests: list[BenchRequest]) -> BackendRun:
    """One run, refused if a request got another number of tokens than it asked for."""
    done = system.run(requests)
    check_run(name, requests, done)
    return done


def print_report(result: report.Result) -> None:
    """Tokens per second and what they are of Orca (Max), with the range of the rounds."""
    where, setting = result["provenance"], result["setting"]
    print(report.describe(where))
    print(
        f"{result['model']}, {setting['num_prompts']} ShareGPT-like requests scaled to a context of "
        f"{setting['max_model_len']} tokens, seed {setting['seed']}. Ratio: memory / max_model_len; the "
        f"paper's is {PAPER_RATIO}."
    )
    lines = [("ratio", "system", "running", "output tokens/s", "of Orca (Max)")]
    for point in result["points"]:
        rates = {name: Spread.from_json(entry) for name, entry in point["rates"].items()}
        first = rates[SYSTEMS[0]]
        for name, rate in rates.items():
            reason = report.why_no_ratio(where, {name: rate, SYSTEMS[0]: first})
            text = "1" if name == SYSTEMS[0] else reason or f"{report.paired_ratio(rate, first):.2f}"
            lines.append(
                (f"{point['ratio']:g}", name.ljust(12), f"{point['batch'][name]:.1f}", f"{rate:.1f}", text)
            )
    print(report.table(lines))


def draw(result: report.Result, path: str) -> None:
    """Output tokens per second against the ratio, a line per system."""
    from minivllm.bench.evaluation.drawing import LOOK
    from minivllm.viz.style import new_figure

    figure = new_figure(6, 4)
    axes = figure.subplots()
    names = {"orca-max": "Max", "orca-pow2": "Pow2", "orca-oracle": "Oracle", OURS: "vLLM"}
    points = sorted(result["points"], key=lambda point: point["ratio"])
    for name in SYSTEMS:
        color, marker = LOOK[names[name]]
        rates = [point["rates"][name]["median"] for point in points]
        axes.plot([point["ratio"] for point in points], rates, color=color, marker=marker, label=name)
    axes.axvline(PAPER_RATIO, color="black", lw=0.8, ls="--")
    axes.text(PAPER_RATIO, 0, " the paper's", fontsize=8, va="bottom")
    axes.set(xlabel="KV memory / max_model_len", ylabel="output tokens/s", xscale="log")
    axes.set_xticks([point["ratio"] for point in points], [f"{point['ratio']:g}" for point in points])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_title(f"{result['model']}, {result['provenance']['cpu']}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
