"""The size of a plan: bytes of the pickled `SchedulerOutput` that crosses to the workers in every step.

    $ python -m minivllm bench plan --num-running 64 --input-len 256
    decode step, 64 sequences of 257 tokens    ... bytes, ... per sequence

A plan goes to the workers by value, so its size is part of every step's latency when there are several. In a
decode step each sequence brings one token and its block table; at 64 sequences that has to stay under 64 KB.
No model is loaded: the scheduler and the memory manager are real, the tokens are pretended (`simulation.py`).

vLLM V1: `vllm/v1/core/sched/output.py`, which sends only what changed.
"""

from __future__ import annotations

import argparse
import itertools
import pickle

from minivllm.bench import options, report, simulation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many sequences, and how long their prompts are."""
    options.add_counts(
        parser,
        num_running=(64, "sequences"),
        input_len=(256, "prompt tokens of each"),
        num_steps=(3, "steps"),
    )
    options.add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Plan a prefill and `--num-steps` - 1 decode steps of all sequences, and pickle each plan; -> 0."""
    setting = {"num_running": args.num_running, "input_len": args.input_len}
    result = report.new_result("plan", setting=setting)
    plans = simulation.generating(args.num_running, args.num_steps, args.input_len)
    plans = itertools.islice((plan for plan, _ in plans), args.num_steps)
    result["steps"] = [
        {"tokens": plan.num_scheduled_tokens, "bytes": len(pickle.dumps(plan))} for plan in plans
    ]
    return report.finish(args, result, print_report)


def print_report(result: report.Result) -> None:
    """A line per step."""
    print(report.describe(result["provenance"]))
    num_running = result["setting"]["num_running"]
    rows = [("step", "tokens", "bytes", "per sequence")]
    for number, step in enumerate(result["steps"]):
        name = "decode" if step["tokens"] == num_running else "prefill"
        each = f"{step['bytes'] / num_running:.0f}"
        rows.append((f"{number} {name}", str(step["tokens"]), f"{step['bytes']:,}", each))
    print(report.table(rows))
