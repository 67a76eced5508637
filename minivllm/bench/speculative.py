"""Speculative decoding: how much faster on which text, and how much has to be accepted for it to pay.

Two measurements. The *step-time curve*: milliseconds of a step in which each of b sequences computes 1, 2,
..., k + 1 tokens. From it follows the acceptance at which drafts pay (`speculative/break_even.py`). And the
same prompts through two engines in turns, without drafts and with n-gram drafts, for b = 1 and b = 4::

    $ python -m minivllm bench speculative
    step time, ms       1      2      3      4      5 tokens per sequence      break-even
    batch 1           ...                                                    ...
    batch 4           ...

    workload   batch   speedup (rounds)      accepted    tokens per row with drafts
    edit       1       ...

The texts: `edit` asks for a paragraph with one word changed, `code` for a file with a method added, `quote`
for a summary in quotations. They are made easy for a small model: it sees the beginning of the answer.
`random` is the opposite: random tokens as prompt, and sampling at temperature 1.

A draft model is not measured but computed: how cheap it would have to be. No smaller model goes with the
bundled one, and of a random one the acceptance would say nothing.

vLLM V1: `vllm bench throughput --speculative-config`, `examples/offline_inference/spec_decode.py`.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from minivllm.bench import options
from minivllm.bench.report import Result, Spread, describe, finish, in_turns, new_result, table, why_no_ratio
from minivllm.block_table import cdiv
from minivllm.llm import LLM
from minivllm.model_runner import ModelRunner
from minivllm.sampling_params import SamplingParams
from minivllm.scheduler_output import SamplingMetadata, ScheduledSequence, SchedulerOutput
from minivllm.speculative.break_even import break_even, largest_ratio, speedup

BATCHES = (1, 4)
TEXT = (
    "The harbour was quiet in the morning. Two boats came in with the tide, and the old man who kept the "
    "light walked down to the pier to help with the ropes. He had done so every day for thirty years. The "
    "harbour had changed in that time, but the tide and the ropes had not, and neither had the old man."
)
CODE = """class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance = self.balance + amount
        return self.balance
"""
PROMPTS = {
    "edit": f"The text:\n{TEXT}\n\nThe same text, with 'boats' changed to 'ships':\nThe harbour was quiet in",
    "code": f"The file:\n{CODE}\nThe same file, with a method withdraw:\nclass Account:\n    def __init__(",
    "quote": f'The text:\n{TEXT}\n\nIn quotations:\n"The harbour was quiet in the morning." "Two boats',
}


@dataclass(frozen=True)
class Workload:
    """Prompts in token ids, and how they are continued."""

    prompts: list[list[int]]
    params: list[SamplingParams]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The defaults are those of the tables in the documentation."""
    options.add_engine_arguments(parser)
    options.add_counts(
        parser,
        num_speculative_tokens=(4, "drafts per sequence and step"),
        prompt_lookup_max=(4, "longest n-gram looked up"),
        prompt_lookup_min=(1, "shortest n-gram looked up"),
        output_len=(96, "output tokens"),
        seq_len=(256, "tokens before the step that is timed, for the curve"),
        repeats=(5, "rounds"),
    )
    options.add_seed(parser)
    options.add_output_arguments(parser, plot=True)


def run(args: argparse.Namespace) -> int:
    """Measure and report; -> the exit status, 0."""
    result = new_result("speculative", model=args.model)
    names = ("num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min")
    config = {"method": "ngram"} | {name: getattr(args, name) for name in names}
    engine = options.engine_options(args) | {"skip_tokenizer_init": False}
    plain, drafting = LLM(args.model, **engine), LLM(args.model, speculative_config=config, **engine)
    result["config"] = config
    result["curve"] = {
        batch: step_times(plain.llm_engine.runner, batch, config["num_speculative_tokens"] + 1, args)
        for batch in BATCHES
    }
    result["workloads"] = {}
    for name in (*PROMPTS, "random"):
        for batch in BATCHES:
            workload = make_workload(name, batch, plain, args)
            result["workloads"][f"{name} {batch}"] = compare(plain, drafting, workload, args.repeats)
    return finish(args, result, print_report, draw)


# -- the curve --------------------------------------------------------------------------------------


def step_times(runner: ModelRunner, batch: int, most: int, args: argparse.Namespace) -> dict[int, float]:
    """Tokens per sequence -> median milliseconds of a step; the different steps take turns."""
    plans = {count: plan_of(runner, batch, count, args.seq_len) for count in range(1, most + 1)}
    runs = {
        count: partial(milliseconds, partial(runner.execute_model, plan)) for count, plan in plans.items()
    }
    in_turns(runs, 2)  # kernels are compiled, memory is touched for the first time
    return {count: median(times) for count, times in in_turns(runs, 4 * args.repeats).items()}


def plan_of(runner: ModelRunner, batch: int, count: int, seq_len: int) -> SchedulerOutput:
    """A step of `batch` sequences of `seq_len` tokens: each computes `count` more, all but one drafts."""
    num_blocks = cdiv(seq_len + count, runner.kv_cache.block_size)
    greedy = SamplingParams(temperature=0.0)
    return SchedulerOutput(
        0,
        tuple(
            ScheduledSequence(
                request_id=str(index),
                seq_id=index,
                start=seq_len,
                token_ids=(index + 1,),
                block_ids=tuple(range(index * num_blocks, (index + 1) * num_blocks)),
                sampling=SamplingMetadata(greedy, 1, 0, seq_len + 1, seq_len),
                draft_token_ids=tuple(range(2, count + 1)),
                num_drafts=count - 1,
            )
            for index in range(batch)
        ),
    )


def milliseconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


# -- the workloads ----------------------------------------------------------------------------------


def make_workload(name: str, batch: int, llm: LLM, args: argparse.Namespace) -> Workload:
    """`batch` prompts of a kind. Those of one batch differ in their first token, so that none is a copy."""
    settings: dict[str, Any] = {"max_tokens": args.output_len, "ignore_eos": True, "detokenize": False}
    if name == "random":
        r, vocab_size = random.Random(args.seed), llm.llm_engine.model_config.vocab_size
        prompts = [r.choices(range(vocab_size), k=args.seq_len) for _ in range(batch)]
        return Workload(prompts, [SamplingParams(seed=index, **settings) for index in range(batch)])
    tokens = llm.get_tokenizer().encode(PROMPTS[name])
    prompts = [[index + 10, *tokens] for index in range(batch)]
    return Workload(prompts, [SamplingParams(temperature=0.0, **settings)] * batch)


def generate(llm: LLM, workload: Workload) -> tuple[float, list[list[int]]]:
    """Seconds, and the tokens of each request."""
    prompts = [{"prompt_token_ids": prompt} for prompt in workload.prompts]
    start = time.perf_counter()
    outputs = llm.generate(prompts, workload.params, use_tqdm=False)
    return time.perf_counter() - start, [output.outputs[0].token_ids for output in outputs]


def compare(plain: LLM, drafting: LLM, workload: Workload, rounds: int) -> Result:
    """Both engines in turns; tokens, counters, and the seconds of all rounds but a first one, to warm up."""
    turns = {"plain": partial(generate, plain, workload), "drafts": partial(generate, drafting, workload)}
    in_turns(turns, 1)
    before = drafting.llm_engine.stats()
    runs = in_turns(turns, rounds)
    after = drafting.llm_engine.stats()
    drafted, accepted, rows = (
        getattr(after, name) - getattr(before, name)
        for name in ("num_draft_tokens", "num_accepted_tokens", "num_drafts")
    )
    return {
        "same_tokens": runs["plain"][0][1] == runs["drafts"][0][1],
        "seconds": {name: Spread(tuple(each[0] for each in found)).as_json() for name, found in runs.items()},
        "acceptance": accepted / drafted if drafted else 0.0,
        "tokens_per_row": 1 + accepted / rows if rows else 1.0,
        "num_draft_tokens": drafted,
    }


# -- what came of it --------------------------------------------------------------------------------


def costs_of(result: Result) -> dict[int, float]:
    """Batch -> the time of a step with all drafts, in steps without drafts."""
    curves = {int(batch): list(times.values()) for batch, times in result["curve"].items()}
    return {batch: times[-1] / times[0] for batch, times in curves.items()}


def speedup_of(entry: Result) -> Spread:
    """Round by round, seconds without drafts by seconds with drafts."""
    pairs = zip(*(entry["seconds"][name]["values"] for name in ("plain", "drafts")), strict=True)
    return Spread(tuple(plain / drafts for plain, drafts in pairs))


def print_report(result: Result) -> None:
    """Print what `--output-json` writes. Times of a busy machine are printed, but no ratio of them."""
    num_drafts = result["config"]["num_speculative_tokens"]
    print(describe(result["provenance"]), "\n")
    counts = next(iter(result["curve"].values()))
    rows: list[list[object]] = [
        ["step time, ms", *(f"{count} tok" for count in counts), "break-even", "draft model"]
    ]
    for batch, cost in costs_of(result).items():
        times = next(times for key, times in result["curve"].items() if int(key) == batch)
        threshold, ratio = break_even(num_drafts, cost), largest_ratio(0.8, num_drafts, cost)
        cheap = f"< {ratio:.2f} steps" if ratio > 0 else "none"
        rows.append(
            [f"batch {batch}", *(f"{each:.1f}" for each in times.values()), f"{threshold:.0%}", cheap]
        )
    print(table(rows))
    print(
        f"\nbreak-even: the acceptance at which {num_drafts} drafts pay, if they cost nothing to make\n"
        "draft model: the dearest pass that pays when 80% of its drafts are accepted, in steps of the model\n"
    )
    rows = [["workload, batch", "speedup (rounds)", "accepted", "tokens per row", "same tokens"]]
    for name, entry in result["workloads"].items():
        seconds = {key: Spread.from_json(value) for key, value in entry["seconds"].items()}
        reason = why_no_ratio(result["provenance"], seconds)
        shown = f"{speedup_of(entry):.2f}" if reason is None else f"({reason})"
        accepted, length = f"{entry['acceptance']:.0%}", f"{entry['tokens_per_row']:.2f}"
        rows.append([name, shown, accepted, length, "yes" if entry["same_tokens"] else "NO"])
    print(table(rows))


def draw(result: Result, path: str) -> None:
    """Two panels: the step-time curve, and speedup over acceptance with the workloads as points."""
    from minivllm.viz.style import INK, PALETTE, new_figure

    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    num_drafts = result["config"]["num_speculative_tokens"]
    shares = [i / 100 for i in range(101)]
    for index, (key, times) in enumerate(result["curve"].items()):
        colour, marker, batch = PALETTE[index], "os"[index], int(key)
        left.plot(
            [int(count) for count in times],
            list(times.values()),
            marker=marker,
            color=colour,
            label=f"batch {key}",
        )
        cost = costs_of(result)[batch]
        right.plot(
            shares, [speedup(share, num_drafts, cost) for share in shares], color=colour, label=f"batch {key}"
        )
        threshold = break_even(num_drafts, cost)
        if threshold <= 1:
            right.plot([threshold], [1.0], marker="|", markersize=16, color=INK)
        for name, entry in result["workloads"].items():
            if name.endswith(f" {key}"):
                point = entry["acceptance"], speedup_of(entry).median
                right.plot(*point, marker=marker, color=colour, markeredgecolor=INK, linestyle="")
                right.annotate(name.split()[0], point, fontsize=8, xytext=(4, 4), textcoords="offset points")
    right.axhline(1.0, color=INK, lw=0.6)
    left.set(xlabel="tokens per sequence in a step", ylabel="ms per step", ylim=(0, None))
    left.set_title("what drafts cost", fontsize=10)
    right.set(xlabel="acceptance of a draft", ylabel="speedup")
    right.set_title(f"what {num_drafts} drafts gain (lines: in every step; |: break-even)", fontsize=10)
    left.set_xticks(range(1, num_drafts + 2))
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
