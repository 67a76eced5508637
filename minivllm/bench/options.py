"""Command line options that several benchmarks share, and what they mean: `requests_from`, `engine_options`.

The names are vLLM's (`--num-prompts`, `--input-len`, `--max-num-seqs`, ...); `--workload` is also accepted
as vLLM's `--dataset-name`. Example::

    --workload fixed --num-prompts 32 --input-len 128 --output-len 128
    --num-running 32                                                       the same, in one word

Three groups, so that a command takes what it needs: workload, engine, output. A command's own options come on
top. What argparse can check by itself (an int of at least 1, a name from a list) is checked there; the rest
raises ValueError where it is used, and `bench.main` prints that as a usage error.

vLLM V1: `vllm/benchmarks/throughput.py` (`add_cli_args`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minivllm.bench import workloads
from minivllm.bench.workloads import BenchRequest

# `workloads.py` says what each is like.
WORKLOADS = ("uniform", "fixed", "sharegpt-like", "alpaca-like", "shared-prefix", "sharegpt")


def positive_int(text: str) -> int:
    """An int of at least 1, for argparse.

    Raises:
        argparse.ArgumentTypeError: an int below 1; argparse prints the text behind the option's name.
        ValueError: not an int at all, for which argparse has a text of its own.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """Which requests.

    Which of them count depends on the workload, as each help text says in brackets; the others are ignored.
    """
    group = parser.add_argument_group("workload")
    group.add_argument(
        "--workload", "--dataset-name", choices=WORKLOADS, default="uniform", help="shape of the requests"
    )
    group.add_argument("--dataset-path", help="file in ShareGPT format, for --workload sharegpt")
    group.add_argument("--num-prompts", type=positive_int, default=32, help="number of requests")
    group.add_argument(
        "--input-len", type=positive_int, default=128, help="prompt tokens (fixed), suffix (shared-prefix)"
    )
    group.add_argument(
        "--output-len", type=positive_int, default=128, help="output tokens (fixed, shared-prefix)"
    )
    group.add_argument(
        "--prefix-len", type=positive_int, default=512, help="common prompt tokens (shared-prefix)"
    )
    group.add_argument("--seed", type=int, default=0, help="seed of lengths, tokens and arrivals")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and how the engine is set up. All backends get the same where they have it.

    Defaults are the engine's own (`LLM`), except for prefix caching.
    """
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--model", default="smollm2-135m-instruct", help="built-in name, local folder or hub id"
    )
    group.add_argument("--dtype", default="auto", help="auto, float32, float16, bfloat16")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda")
    group.add_argument("--max-model-len", type=positive_int, default=None, help="longest sequence")
    group.add_argument("--max-num-seqs", type=positive_int, default=64, help="sequences running at once")
    group.add_argument("--max-num-batched-tokens", type=positive_int, default=2048, help="tokens a step")
    group.add_argument("--block-size", type=positive_int, default=16, help="tokens a KV block")
    group.add_argument("--num-blocks", type=positive_int, default=None, help="KV blocks (the KV budget)")
    group.add_argument("--attention-backend", default="auto", help="auto, torch, numba, triton")
    group.add_argument("--enforce-eager", action="store_true", help="no CUDA graphs, to see what they gain")
    group.add_argument(
        "--enable-prefix-caching",
        action="store_true",
        help="off by default: the repeats would find the prompts of the first run",
    )


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the results go besides the terminal."""
    group = parser.add_argument_group("output")
    group.add_argument("--output-json", help="write all measurements and their provenance to this file")
    group.add_argument("--plot", help="draw the result into this image file (needs matplotlib)")


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `LLM`, token ids only.

    Without tokenizer: benchmarks work on token ids, so that nobody's clock includes tokenization.
    """
    names = (
        "dtype", "device", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size",
        "num_blocks", "attention_backend", "enforce_eager", "enable_prefix_caching",
    )  # fmt: skip
    return {name: getattr(args, name) for name in names} | {"skip_tokenizer_init": True}


def vocab_size_of(folder: Path) -> int:
    """Read from the model's `config.json` alone.

    Enough to draw random prompts before any model is loaded.
    """
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]


def requests_from(
    args: argparse.Namespace, vocab_size: int, tokenize: Callable[[str], list[int]]
) -> list[BenchRequest]:
    """The requests that the workload options describe.

    Args:
        vocab_size: random token ids are below it.
        tokenize: text -> token ids; called for `--workload sharegpt` only.
    """
    num_prompts, seed = args.num_prompts, args.seed
    # The default: lengths from 16 to 256 on both sides, so that requests end at different times.
    if args.workload == "uniform":
        return workloads.uniform_requests(num_prompts, vocab_size, seed)
    if args.workload == "fixed":
        return workloads.fixed_requests(num_prompts, args.input_len, args.output_len, vocab_size, seed)
    if args.workload == "sharegpt-like":
        return workloads.gamma_requests(workloads.SHAREGPT_LIKE, num_prompts, vocab_size, seed)
    if args.workload == "alpaca-like":
        return workloads.gamma_requests(workloads.ALPACA_LIKE, num_prompts, vocab_size, seed)
    if args.workload == "shared-prefix":
        return workloads.shared_prefix_requests(
            num_prompts, args.prefix_len, args.input_len, args.output_len, vocab_size, seed
        )
    if not args.dataset_path:
        raise ValueError("--workload sharegpt needs --dataset-path FILE: none is shipped, for its licence.")
    return workloads.load_sharegpt(Path(args.dataset_path), tokenize, num_prompts, seed)


def describe_workload(args: argparse.Namespace, requests: list[BenchRequest]) -> dict[str, Any]:
    """What was asked of all backends, for the report.

    Returns:
        Name, seed, and totals in requests and tokens; rates are these divided by seconds.
    """
    return {
        "name": args.workload,
        "seed": args.seed,
        "num_prompts": len(requests),
        "num_prompt_tokens": sum(len(request.prompt_token_ids) for request in requests),
        "num_output_tokens": sum(request.output_len for request in requests),
    }
