"""Sharing: what forked prompts and the prefix cache save, in blocks and in seconds.

Two experiments, each with and without sharing, in turns::

    (a) 8 completions of one prompt       one request with n=8: the prompt is computed once, its blocks
                                          are shared until the completions differ (copy-on-write)
                                   versus 8 requests with the same prompt, no prefix cache

    (b) 16 requests, the same first       prefix cache on: the prefix is computed once, by the first
        512 tokens                        request of the step, and found by the 15 others in that same step
                                   versus prefix cache off

The blocks and tokens follow from the lengths, and are worth doing by hand (block size 16; the token sampled
last is never computed; (a) 256 prompt and 32 output tokens, (b) 512 + 32 prompt tokens)::

                          blocks held at most                  tokens computed
    (a)  n=8              16 + 8 x 2 of their own =  32        256 + 8 x 31  =   504
         8 requests       8 x 18                  = 144        8 x 287       = 2,296
    (b)  cached           32 + 16 x 2             =  64        512 + 16 x 32 = 1,024
         not cached       4 or 5 requests a step  = 154        16 x 544      = 8,704

(a) prints blocks held at the fullest step, and the time; (b) the time of the prefill: one output token each.

    $ python -m minivllm bench sharing --repeats 5

Paper: sections 4.4, 6.3 (parallel sampling, figure 15) and 6.4 (shared prefix, figure 16). vLLM V1:
`benchmarks/benchmark_prefix_caching.py`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

from minivllm.bench.options import add_engine_arguments, engine_options, positive_int, vocab_size_of
from minivllm.bench.report import Spread, describe, provenance, write_json
from minivllm.bench.steps import replaced
from minivllm.bench.workloads import BenchRequest, fixed_requests, shared_prefix_requests
from minivllm.llm import LLM
from minivllm.sampling_params import SamplingParams
from minivllm.weights.loader import resolve_model


@dataclass(frozen=True)
class SharingRun:
    """One run: seconds, blocks held at the fullest step, tokens computed in all steps.

    Attributes:
        seconds: of `LLM.generate`.
        most_blocks: KV blocks in use after the plan of the fullest step; a shared block counts once.
        num_computed_tokens: tokens that went through the model, not those found in the prefix cache.
    """

    seconds: float
    most_blocks: int
    num_computed_tokens: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options.

    (a) and (b) mark which of the two experiments an option belongs to.
    """
    add_engine_arguments(parser)
    parser.add_argument("--n", type=positive_int, default=8, help="(a) completions of one prompt")
    parser.add_argument("--input-len", type=positive_int, default=256, help="(a) prompt tokens")
    parser.add_argument("--output-len", type=positive_int, default=32, help="(a) output tokens")
    parser.add_argument("--num-prompts", type=positive_int, default=16, help="(b) requests")
    parser.add_argument("--prefix-len", type=positive_int, default=512, help="(b) tokens in common")
    parser.add_argument("--suffix-len", type=positive_int, default=32, help="(b) tokens of each one's own")
    parser.add_argument("--repeats", type=positive_int, default=5, help="turns of each variant")
    # No workload options: the two experiments need prompts that are equal, or equal at the beginning.
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts")
    parser.add_argument("--output-json", help="write all measurements and their provenance to this file")


def run(args: argparse.Namespace) -> int:
    """Measure and report.

    Returns:
        The exit status, 0.
    """
    vocab_size = vocab_size_of(resolve_model(args.model))
    options = engine_options(args)
    # Two engines, because the prefix cache is a setting of the engine. (a) runs on the one without in both
    # variants: with it, 8 equal prompts would be found there, and forking would have nothing to show.
    plain = LLM(args.model, **options | {"enable_prefix_caching": False})
    cached = LLM(args.model, **options | {"enable_prefix_caching": True})
    (prompt,) = fixed_requests(1, args.input_len, args.output_len, vocab_size, args.seed)
    requests = shared_prefix_requests(
        args.num_prompts, args.prefix_len, args.suffix_len, 1, vocab_size, args.seed
    )
    # All functions of no arguments, so that they can take turns.
    variants = {
        f"one request, n={args.n}": lambda: run_once(plain, [prompt], args.n),
        f"{args.n} requests": lambda: run_once(plain, [prompt] * args.n, 1),
        "prefix cache on": lambda: run_once(cached, requests, 1),
        "prefix cache off": lambda: run_once(plain, requests, 1),
    }
    runs: dict[str, list[SharingRun]] = {name: [] for name in variants}
    for variant in variants.values():
        # The first run of an engine pays for memory that is touched for the first time.
        variant()  # to warm up
    for _ in range(args.repeats):
        for name, variant in variants.items():
            runs[name].append(variant())

    # In the order above: each pair is (shared, not shared).
    names = list(variants)
    result: dict[str, Any] = {
        "benchmark": "sharing",
        "provenance": provenance(),
        "model": args.model,
        "parallel_sampling": {
            "title": f"{args.n} completions of {args.input_len} prompt tokens, {args.output_len} tokens each",
            **compare(runs, *names[:2]),
        },
        "shared_prefix": {
            "title": f"prefill of {args.num_prompts} prompts, of which {args.prefix_len} tokens are common",
            **compare(runs, *names[2:]),
        },
    }
    print_report(result)
    if args.output_json:
        write_json(args.output_json, result)
    return 0


def run_once(llm: LLM, requests: list[BenchRequest], n: int) -> SharingRun:
    """Generate, with an empty prefix cache to begin with, watching the blocks after every plan.

    Args:
        llm: the engine to use; its prefix cache is emptied before the clock starts.
        requests: prompts and output lengths.
        n: completions of each request.

    The engine is watched from outside (`steps.replaced`), as it has no counters for this.
    """
    engine = llm.llm_engine
    llm.reset_prefix_cache()
    most_blocks = num_computed_tokens = 0

    def around_execute(execute_model: Any) -> Any:
        def watch(plan: Any) -> Any:
            nonlocal most_blocks, num_computed_tokens
            # At this moment the plan's blocks are allocated and nothing has been freed yet.
            most_blocks = max(most_blocks, engine.scheduler.kv.pool.num_used)
            num_computed_tokens += plan.num_scheduled_tokens
            return execute_model(plan)

        return watch

    # Built before the clock starts, as is everything that is no work of the engine.
    prompts = [{"prompt_token_ids": list(request.prompt_token_ids)} for request in requests]
    # Random, with a seed: greedy completions would be n times the same, and never be told apart.
    params = [
        SamplingParams(
            n=n, temperature=1.0, seed=i, max_tokens=request.output_len, ignore_eos=True, detokenize=False
        )
        for i, request in enumerate(requests)
    ]
    with replaced(engine.runner, "execute_model", around_execute):
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
    return SharingRun(seconds, most_blocks, num_computed_tokens)


def compare(runs: dict[str, list[SharingRun]], shared: str, unshared: str) -> dict[str, Any]:
    """Both variants and their ratios.

    Blocks and tokens are taken from the first run: they follow from the lengths and are the same in all.

    Returns:
        `variants` by name and three ratios, each unshared / shared; 2.0 says that sharing halves it.
    """
    variants = {}
    for name in (shared, unshared):
        first = runs[name][0]
        variants[name] = {
            "seconds": Spread(tuple(each.seconds for each in runs[name])).as_json(),
            "most_blocks": first.most_blocks,
            "num_computed_tokens": first.num_computed_tokens,
        }
    one, other = variants[shared], variants[unshared]
    return {
        "variants": variants,
        "time_ratio": other["seconds"]["median"] / one["seconds"]["median"],
        "block_ratio": other["most_blocks"] / one["most_blocks"],
        "token_ratio": other["num_computed_tokens"] / one["num_computed_tokens"],
    }


def print_report(result: dict[str, Any]) -> None:
    """Print what `--output-json` writes.

    Args:
        result: fresh from `run`, or read from its JSON file: docs/make_performance.py prints the stored one.
    """
    print(describe(result["provenance"]))
    for letter, key in (("a", "parallel_sampling"), ("b", "shared_prefix")):
        experiment = result[key]
        print(f"\n({letter}) {experiment['title']}")
        for name, variant in experiment["variants"].items():
            seconds = Spread(tuple(variant["seconds"]["values"]))
            print(
                f"  {name:<20} {seconds:.2f} s, {variant['most_blocks']} blocks held at most, "
                f"{variant['num_computed_tokens']} tokens computed"
            )
        print(
            f"  without sharing: {experiment['time_ratio']:.2f}x the time, "
            f"{experiment['block_ratio']:.2f}x the blocks, {experiment['token_ratio']:.2f}x the tokens"
        )
