"""Latency: seconds from the start of one batch to its last token, again and again.

Where `throughput` asks how much a busy engine gets done, this benchmark asks how long one user waits, alone
(`--batch-size 1`) or in company: a larger batch does more work, and each of its users waits longer::

    $ python -m minivllm bench latency --input-len 32 --output-len 128 --batch-size 8 --num-iters 5
    Avg latency: ... seconds
    10% percentile latency: ... seconds                       and so on for 25, 50, 75, 90 and 99%

Options, defaults and print format are vLLM's: `vllm/benchmarks/latency.py`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from minivllm.bench import options, report
from minivllm.bench.backends import prompts_of
from minivllm.bench.workloads import Shape, requests_of_lengths
from minivllm.llm import LLM
from minivllm.sampling_params import BeamSearchParams, SamplingParams

PERCENTAGES = (10, 25, 50, 75, 90, 99)  # vLLM's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Shapes, not data sets: all prompts have one length, as the time of one batch is the question."""
    options.add_engine_arguments(parser)
    options.add_counts(
        parser,
        input_len=(32, "prompt tokens"),
        output_len=(128, "output tokens"),
        batch_size=(8, "prompts in the batch"),
        n=(1, "completions (or beams) of each prompt"),
        num_iters=(30, "iterations that count"),
    )
    parser.add_argument("--num-iters-warmup", type=int, default=10, help="iterations that do not count")
    parser.add_argument("--use-beam-search", action="store_true", help="beam search of width n")
    options.add_seed(parser)
    options.add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and report; -> the exit status, 0."""
    result = report.new_result("latency", model=args.model)
    generate = make_generate(args)
    for _ in range(args.num_iters_warmup):
        generate()
    latencies = []
    for _ in range(args.num_iters):
        start = time.perf_counter()
        generate()
        # The whole call: scheduling, every step, putting the outputs together (no text: no tokenizer).
        latencies.append(time.perf_counter() - start)
    percentiles = np.percentile(latencies, PERCENTAGES).tolist()
    result |= {"avg_latency": float(np.mean(latencies)), "latencies": latencies}
    result["percentiles"] = dict(zip(map(str, PERCENTAGES), percentiles, strict=True))
    return report.finish(args, result, print_report)


def print_report(result: report.Result) -> None:
    """Print vLLM's lines and then where it ran, from what `--output-json` writes."""
    print(f"Avg latency: {result['avg_latency']} seconds")
    for percent, value in result["percentiles"].items():
        print(f"{percent}% percentile latency: {value} seconds")
    spread = report.Spread(tuple(result["latencies"]))
    print(f"{len(spread.values)} iterations, spread {spread.relative:.0%}")
    print(report.describe(result["provenance"]))


def make_generate(args: argparse.Namespace) -> Callable[[], object]:
    """Build the engine; -> a function that generates the batch once, with exact output lengths."""
    vocab_size = options.vocab_size_of(args)
    # Random and different: with the prefix cache on, equal ones would be computed once.
    shape = Shape(args.batch_size, args.input_len, args.output_len)
    prompts = prompts_of(requests_of_lengths(shape.lengths, vocab_size, args.seed))
    llm = LLM(args.model, **options.engine_options(args))
    if args.use_beam_search:
        beam = BeamSearchParams(beam_width=args.n, max_tokens=args.output_len, ignore_eos=True)
        return lambda: llm.beam_search(prompts, beam)
    # Temperature 1, as in vLLM: with greedy sampling n > 1 is refused, for all n would be the same.
    settings = {"n": args.n, "temperature": 1.0, "ignore_eos": True, "detokenize": False}
    params = SamplingParams(max_tokens=args.output_len, **settings)
    return lambda: llm.generate(prompts, params, use_tqdm=False)
