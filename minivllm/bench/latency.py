"""Latency: seconds from the start of one batch to its last token, again and again.

Where `throughput` asks how much a busy engine gets done, this asks how long one user waits who comes alone
(`--batch-size 1`) or in company (the default of 8)::

    $ python -m minivllm bench latency --input-len 32 --output-len 128 --batch-size 8 --num-iters 5
    Avg latency: ... seconds
    10% percentile latency: ... seconds
    and so on for 25, 50, 75, 90 and 99%

Latency and throughput pull in opposite directions: a larger batch uses each read of the weights for more
tokens, so it does more work per second, and each of its users waits longer.

Options, defaults and print format are vLLM's: `vllm/benchmarks/latency.py`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from minivllm.bench.options import add_engine_arguments, engine_options, positive_int, vocab_size_of
from minivllm.bench.report import describe, percentile, provenance, write_json
from minivllm.bench.workloads import random_tokens
from minivllm.llm import LLM
from minivllm.sampling_params import BeamSearchParams, SamplingParams
from minivllm.weights.loader import resolve_model

# vLLM's.
PERCENTAGES = (10, 25, 50, 75, 90, 99)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options.

    Shapes, not data sets: all prompts have one length, as the time of one batch is the question.
    """
    add_engine_arguments(parser)
    parser.add_argument("--input-len", type=positive_int, default=32, help="prompt tokens")
    parser.add_argument("--output-len", type=positive_int, default=128, help="output tokens")
    parser.add_argument("--batch-size", type=positive_int, default=8, help="prompts in the batch")
    parser.add_argument("--n", type=positive_int, default=1, help="completions (or beams) of each prompt")
    parser.add_argument("--use-beam-search", action="store_true", help="beam search of width n")
    parser.add_argument("--num-iters-warmup", type=int, default=10, help="iterations that do not count")
    parser.add_argument("--num-iters", type=positive_int, default=30, help="iterations that count")
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts")
    parser.add_argument("--output-json", help="write all latencies and their provenance to this file")


def run(args: argparse.Namespace) -> int:
    """Measure and report.

    Returns:
        The exit status, 0.
    """
    rng = random.Random(args.seed)
    vocab_size = vocab_size_of(resolve_model(args.model))
    # Random and different: with the prefix cache on, equal ones would be computed once.
    prompts = [
        {"prompt_token_ids": list(random_tokens(args.input_len, vocab_size, rng))}
        for _ in range(args.batch_size)
    ]
    generate = make_generate(args, LLM(args.model, **engine_options(args)), prompts)
    # The first iterations compile kernels and touch memory for the first time.
    for _ in range(args.num_iters_warmup):
        generate()
    latencies = []
    for _ in range(args.num_iters):
        start = time.perf_counter()
        generate()
        # The whole call: scheduling, every step, putting the outputs together (no text: no tokenizer).
        latencies.append(time.perf_counter() - start)

    result = {
        "benchmark": "latency",
        "provenance": provenance(),
        "model": args.model,
        "avg_latency": statistics.fmean(latencies),
        "latencies": latencies,
        "percentiles": {str(percent): percentile(latencies, percent) for percent in PERCENTAGES},
    }
    print_report(result)
    if args.output_json:
        write_json(args.output_json, result)
    return 0


def print_report(result: dict[str, Any]) -> None:
    """Print vLLM's lines and then where it ran, from what `--output-json` writes."""
    print(f"Avg latency: {result['avg_latency']} seconds")
    for percent, value in result["percentiles"].items():
        print(f"{percent}% percentile latency: {value} seconds")
    print(describe(result["provenance"]))


def make_generate(
    args: argparse.Namespace, llm: LLM, prompts: list[dict[str, object]]
) -> Callable[[], list[object]]:
    """One iteration. All output lengths are exact: end-of-sequence tokens are ignored.

    Args:
        args: `n`, `output_len` and whether beams are wanted.
        llm: the engine, built already.
        prompts: the batch, as token ids.

    Returns:
        A function that generates everything once; what it returns is not looked at.
    """
    if args.use_beam_search:
        beam = BeamSearchParams(beam_width=args.n, max_tokens=args.output_len, ignore_eos=True)
        return lambda: llm.beam_search(prompts, beam)
    # Temperature 1, as in vLLM: with greedy sampling n > 1 is refused, for all n would be the same.
    params = SamplingParams(
        n=args.n, temperature=1.0, ignore_eos=True, max_tokens=args.output_len, detokenize=False
    )
    return lambda: llm.generate(prompts, params, use_tqdm=False)
