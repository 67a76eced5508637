"""Command line options that several benchmarks share, and what they mean: `requests_from`, `engine_options`.

The names are vLLM's (`--num-prompts`, `--input-len`, `--max-num-seqs`, ...). Example::

    --workload fixed --num-prompts 32 --input-len 128 --output-len 128
    --num-running 32                                                       the same, in one word

argparse checks an int of at least 1 and a name from a list; the rest raises ValueError where it is used, and
`bench.main` prints that as a usage error. vLLM V1: `vllm/benchmarks/throughput.py` (`add_cli_args`).
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from minivllm.bench import workloads
from minivllm.bench.workloads import BenchRequest, Shape
from minivllm.config import CHOICES, EngineConfig
from minivllm.weights.loader import load_tokenizer, resolve_model

WORKLOADS = (*workloads.SYNTHETIC, "sharegpt")


def positive_int(text: str) -> int:
    """For argparse: an int of at least 1; argparse turns either error into a usage message."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


# Engine options: what argparse needs to know. Their defaults are those of `EngineConfig`.
_ENGINE: dict[str, dict[str, Any]] = {
    "dtype": {"choices": CHOICES["dtype"], "help": "of weights and KV cache"},
    "device": {"choices": CHOICES["device"], "help": "where to run"},
    "max_model_len": {"type": positive_int, "help": "longest sequence"},
    "max_num_seqs": {"type": positive_int, "help": "sequences running at once"},
    "max_num_batched_tokens": {"type": positive_int, "help": "tokens per step"},
    "block_size": {"type": positive_int, "help": "tokens per KV block"},
    "num_blocks": {"type": positive_int, "help": "KV blocks (the KV budget)"},
    "attention_backend": {"choices": CHOICES["attention_backend"], "help": "what computes attention"},
    "enforce_eager": {
        "action": "store_true",
        "help": "no CUDA graphs (GPU), no compiled steps (CPU): to see what they gain",
    },
    "batch_invariant": {"action": "store_true", "help": "same bits in any batch (CPU)"},
    "enable_prefix_caching": {"action": "store_true", "help": "off here: each round has the same prompts"},
}


def add_counts(parser: argparse._ActionsContainer, **options: tuple[int, str]) -> None:
    """Options that count something: `num_prompts=(32, "requests")` is `--num-prompts`, 32 by default."""
    for name, (default, text) in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=positive_int, default=default, help=text)


def add_seed(parser: argparse._ActionsContainer) -> None:
    """`--seed`: one seed gives every backend, and every later run, the same requests."""
    parser.add_argument("--seed", type=int, default=0, help="seed of lengths, tokens and arrivals")


def add_attention(parser: argparse._ActionsContainer) -> None:
    """`--attention-backend`, for commands that take no other option of the engine."""
    parser.add_argument("--attention-backend", default="auto", **_ENGINE["attention_backend"])


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """Which requests. An option counts for the workloads that its help text names in brackets."""
    group = parser.add_argument_group("workload")
    group.add_argument("--workload", "--dataset-name", choices=WORKLOADS, default="uniform",
                       help="shape of the requests")  # fmt: skip
    group.add_argument("--dataset-path", help="file in ShareGPT format (sharegpt)")
    add_counts(
        group,
        num_prompts=(32, "number of requests"),
        input_len=(128, "prompt tokens (fixed), suffix (shared-prefix)"),
        output_len=(128, "output tokens (fixed, shared-prefix)"),
        prefix_len=(512, "common prompt tokens (shared-prefix)"),
    )
    add_seed(group)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and how the engine is set up; peers get the same where they have it."""
    group = parser.add_argument_group("engine")
    group.add_argument("--model", default="smollm2-135m-instruct", help="built-in name, folder or hub id")
    for name, settings in _ENGINE.items():
        default = False if "action" in settings else EngineConfig.__dataclass_fields__[name].default
        group.add_argument(f"--{name.replace('_', '-')}", default=default, **settings)


def add_output_arguments(parser: argparse.ArgumentParser, plot: bool = False) -> None:
    """Where the results go besides the terminal."""
    group = parser.add_argument_group("output")
    group.add_argument("--output-json", help="write all measurements and their provenance to this file")
    if plot:
        group.add_argument("--plot", help="draw the result into this image file (needs matplotlib)")


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `LLM`, without a tokenizer: benchmarks work on token ids."""
    return {name: getattr(args, name) for name in _ENGINE} | {"skip_tokenizer_init": True}


def vocab_size_of(args: argparse.Namespace) -> int:
    """From the model's `config.json` alone: enough to draw random prompts before any model is loaded."""
    config = (resolve_model(args.model) / "config.json").read_text(encoding="utf-8")
    return json.loads(config)["vocab_size"]


def requests_from(args: argparse.Namespace) -> list[BenchRequest]:
    """The requests that the options describe, in token ids of the model; ValueError without a usable file."""
    if args.workload in workloads.SYNTHETIC:
        shape = Shape(args.num_prompts, args.input_len, args.output_len, args.prefix_len)
        return workloads.SYNTHETIC[args.workload](shape, vocab_size_of(args), args.seed)
    if not args.dataset_path:
        raise ValueError("--workload sharegpt needs --dataset-path FILE: none is shipped, for its licence.")
    tokenizer = load_tokenizer(resolve_model(args.model))
    tokenize = partial(tokenizer.encode, add_special_tokens=False)
    return workloads.load_sharegpt(Path(args.dataset_path), tokenize, args.num_prompts, args.seed)


def describe_workload(args: argparse.Namespace, requests: list[BenchRequest]) -> dict[str, Any]:
    """Name, seed, and totals in requests and tokens; a rate is one of the totals divided by seconds."""
    return {
        "name": args.workload,
        "seed": args.seed,
        "num_prompts": len(requests),
        "num_prompt_tokens": sum(len(request.prompt_token_ids) for request in requests),
        "num_output_tokens": sum(request.output_len for request in requests),
    }


def workload_text(result: dict[str, Any]) -> str:
    """Model and workload of a result in one line."""
    w = result["workload"]
    return f"{result['model']}, workload {w['name']}, seed {w['seed']}, {w['num_prompts']} requests"
