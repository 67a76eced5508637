"""Sharing: what forked prompts and the prefix cache save, in blocks and in seconds.

Two experiments, each with and without sharing, in turns: (a) 8 completions of one prompt, as one request with
n=8, which shares the prompt's blocks until the completions differ, or as 8 requests; (b) 16 requests with the
same first 512 tokens, computed once and found by the other 15 in that same step, or without prefix cache.

The blocks and tokens follow from the lengths, and are worth doing by hand (block size 16; the token sampled
last is never computed; (a) 256 prompt and 32 output tokens, (b) 512 + 32 prompt tokens)::

    $ python -m minivllm bench sharing --repeats 5
                          blocks held at most                  tokens computed
    (a)  n=8              16 + 8 x 2 of their own =  32        256 + 8 x 31  =   504
         8 requests       8 x 18                  = 144        8 x 287       = 2,296
    (b)  cached           32 + 16 x 2             =  64        512 + 16 x 32 = 1,024
         not cached       4 or 5 requests per step = 154       16 x 544      = 8,704

Paper: sections 4.4, 6.3 (figure 15) and 6.4 (figure 16). vLLM V1: `benchmarks/benchmark_prefix_caching.py`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from minivllm.bench import options
from minivllm.bench.backends import prompts_of
from minivllm.bench.report import Result, Spread, describe, finish, in_turns, new_result, why_no_ratio
from minivllm.bench.steps import watching_plans
from minivllm.bench.workloads import BenchRequest, Shape, requests_of_lengths
from minivllm.llm import LLM
from minivllm.sampling_params import SamplingParams
from minivllm.scheduler_output import SchedulerOutput


@dataclass
class SharingRun:
    """One run: its time, blocks in use in the fullest step (a shared one counts once), tokens computed."""

    seconds: float = 0.0
    most_blocks: int = 0
    num_computed_tokens: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """(a) and (b) mark which of the two experiments an option belongs to."""
    options.add_engine_arguments(parser)
    options.add_counts(
        parser,
        n=(8, "(a) completions of one prompt"),
        input_len=(256, "(a) prompt tokens"),
        output_len=(32, "(a) output tokens"),
        num_prompts=(16, "(b) requests"),
        prefix_len=(512, "(b) tokens in common"),
        suffix_len=(32, "(b) tokens that each request has alone"),
        repeats=(5, "rounds"),
    )
    options.add_seed(parser)
    options.add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and report; -> the exit status, 0."""
    result = new_result("sharing", model=args.model)
    vocab_size, engine = options.vocab_size_of(args), options.engine_options(args)
    # (a) runs without prefix cache in both variants: with it, 8 equal prompts would be found there.
    plain = LLM(args.model, **engine | {"enable_prefix_caching": False})
    cached = LLM(args.model, **engine | {"enable_prefix_caching": True})
    (prompt,) = requests_of_lengths([(args.input_len, args.output_len)], vocab_size, args.seed)
    shape = Shape(args.num_prompts, args.suffix_len, output_len=1)
    requests = requests_of_lengths(shape.lengths, vocab_size, args.seed, args.prefix_len)
    variants = {
        f"one request, n={args.n}": partial(run_once, plain, [prompt], args.n),
        f"{args.n} requests": partial(run_once, plain, [prompt] * args.n, 1),
        "prefix cache on": partial(run_once, cached, requests, 1),
        "prefix cache off": partial(run_once, plain, requests, 1),
    }
    in_turns(variants, 1)  # the first run of an engine pays for memory that is touched for the first time
    runs = in_turns(variants, args.repeats)
    first, second, third, fourth = variants
    title = f"{args.n} completions of {args.input_len} prompt tokens, {args.output_len} tokens each"
    result["parallel_sampling"] = {"title": title, **compare(runs, first, second)}
    title = f"prefill of {args.num_prompts} prompts, of which {args.prefix_len} tokens are common"
    result["shared_prefix"] = {"title": title, **compare(runs, third, fourth)}
    return finish(args, result, print_report)


def run_once(llm: LLM, requests: list[BenchRequest], n: int) -> SharingRun:
    """Generate `n` completions of each request, from an empty prefix cache, watching every plan."""
    found, engine = SharingRun(), llm.llm_engine
    llm.reset_prefix_cache()

    def look(plan: SchedulerOutput) -> None:
        found.most_blocks = max(found.most_blocks, engine.scheduler.kv.pool.num_used)
        found.num_computed_tokens += plan.num_scheduled_tokens

    # Random, with a seed: n greedy completions would all be the same.
    settings = {"n": n, "temperature": 1.0, "ignore_eos": True, "detokenize": False}
    params = [SamplingParams(seed=i, max_tokens=x.output_len, **settings) for i, x in enumerate(requests)]
    prompts = prompts_of(requests)
    with watching_plans(engine, look):
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        found.seconds = time.perf_counter() - start
    return found


def compare(runs: dict[str, list[SharingRun]], shared: str, unshared: str) -> dict[str, Any]:
    """Both variants and their ratios, unshared / shared; blocks and tokens are the same in all runs."""
    variants = {}
    for name in (shared, unshared):
        seconds, first = Spread(tuple(each.seconds for each in runs[name])), runs[name][0]
        variants[name] = vars(first) | {"seconds": seconds.as_json()}
    one, other = variants[shared], variants[unshared]
    return {
        "variants": variants,
        "time_ratio": other["seconds"]["median"] / one["seconds"]["median"],
        "block_ratio": other["most_blocks"] / one["most_blocks"],
        "token_ratio": other["num_computed_tokens"] / one["num_computed_tokens"],
    }


def print_report(result: Result) -> None:
    """Print what `--output-json` writes. Blocks and tokens are counts, so their ratios are always quoted."""
    print(describe(result["provenance"]))
    for letter, key in (("a", "parallel_sampling"), ("b", "shared_prefix")):
        print(f"\n({letter}) {result[key]['title']}")
        spreads = {}
        for name, variant in result[key]["variants"].items():
            seconds = spreads[name] = Spread.from_json(variant["seconds"])
            print(
                f"  {name:<20} {seconds:.2f} s, spread {seconds.relative:.0%}, {variant['most_blocks']} "
                f"blocks held at most, {variant['num_computed_tokens']} tokens computed"
            )
        reason = why_no_ratio(result["provenance"], spreads)
        time_text = f"{result[key]['time_ratio']:.2f}x the time" if reason is None else f"(no time: {reason})"
        print(
            f"  without sharing: {result[key]['block_ratio']:.2f}x the blocks, "
            f"{result[key]['token_ratio']:.2f}x the tokens, {time_text}"
        )
