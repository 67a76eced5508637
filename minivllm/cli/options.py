"""Options that several commands share: those of the engine, and those of sampling.

`add_..._arguments` makes the options of a parser, and `..._options` collects what was given, as keyword
arguments::

    --block-size 8    ->    args.block_size    ->    LLM(model, block_size=8)

Ranges are not looked at here: `EngineConfig` and `SamplingParams` check them, with the same texts as in
Python.

vLLM V1: `vllm/engine/arg_utils.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from minivllm.config import CHOICES, EngineConfig

DEFAULT_MODEL = "smollm2-135m-instruct"

# Defaults are read from the config, so that they stand in one place. The table adds what argparse needs.
_DEFAULTS = {name: field.default for name, field in EngineConfig.__dataclass_fields__.items()}
_ENGINE_OPTIONS: dict[str, dict[str, Any]] = {
    "tokenizer": {"help": "folder or name of another tokenizer"},
    "dtype": {"choices": CHOICES["dtype"], "help": "auto: float32 on a CPU, half precision on a GPU"},
    "device": {"choices": CHOICES["device"], "help": "where to run"},
    "seed": {"type": int, "help": "seed for requests without one of their own"},
    "max_model_len": {"type": int, "help": "longest sequence, prompt and output (default: the model's)"},
    "block_size": {"type": int, "help": "tokens in a KV block"},
    # The two ways to size the KV cache by hand; giving both is refused by `EngineConfig`.
    "num_blocks": {"type": int, "help": "KV blocks (vLLM: --num-gpu-blocks-override)"},
    "kv_cache_memory_bytes": {"type": int, "help": "KV cache size in bytes, instead of a number of blocks"},
    "gpu_memory_utilization": {"type": float, "help": "share of the GPU's memory to use"},
    "swap_space_bytes": {"type": int, "help": "CPU memory for swapped-out KV blocks"},
    "max_num_seqs": {"type": int, "help": "sequences running at once"},
    "max_num_batched_tokens": {"type": int, "help": "tokens computed in one step"},
    # This action makes two flags, --enable-prefix-caching and --no-enable-prefix-caching, as vLLM has them.
    "enable_prefix_caching": {
        "action": argparse.BooleanOptionalAction,
        "help": "share equal prompt beginnings",
    },
    "enable_chunked_prefill": {"action": argparse.BooleanOptionalAction, "help": "compute prompts in parts"},
    "scheduling_policy": {
        "choices": CHOICES["scheduling_policy"],
        "help": "fcfs: first come, first served; priority: by each request's priority, the smaller first",
    },
    "preemption_mode": {"choices": CHOICES["preemption_mode"], "help": "what to do when memory runs out"},
    "watermark": {"type": float, "help": "share of the KV blocks that a newcomer must leave free"},
    "attention_backend": {
        "choices": CHOICES["attention_backend"],
        "help": "auto: triton on CUDA, numba on a CPU",
    },
    "speculative_config": {
        "type": json.loads,
        "help": """as JSON: '{"method": "ngram", "num_speculative_tokens": 4}'""",
    },
    "batch_invariant": {
        "action": argparse.BooleanOptionalAction,
        "help": "the same bits in any batch (CPU)",
    },
    "enforce_eager": {
        "action": argparse.BooleanOptionalAction,
        "help": "no CUDA graphs (GPU), no compiled steps (CPU)",
    },
    "distributed_executor_backend": {
        "choices": CHOICES["distributed_executor_backend"],
        "help": "uni: one worker in this process; mp: a process for each (default: by their number)",
    },
}
# Where the workers are; `worker` takes these alone.
NODE_OPTIONS: dict[str, dict[str, Any]] = {
    "tensor_parallel_size": {"type": int, "help": "workers that share the model, on all machines"},
    "nnodes": {"type": int, "help": "machines"},
    "node_rank": {"type": int, "help": "number of this machine; 0 has the engine, others run `worker`"},
    "master_addr": {"help": "address of machine 0"},
    "master_port": {"type": int, "help": "a free port there (default: any; needed with --nnodes)"},
}
_ENGINE_OPTIONS |= NODE_OPTIONS


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --model and the options of `EngineConfig`, in the order of the table above.

    `block_size` becomes `--block-size` and comes back as `args.block_size`: `engine_options` collects them.
    """
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--model", default=DEFAULT_MODEL, help=f"built-in name, folder, or hub id ({DEFAULT_MODEL})"
    )
    for name, settings in _ENGINE_OPTIONS.items():
        flags = [f"--{name.replace('_', '-')}"]
        if name == "num_blocks":
            flags.append("--num-gpu-blocks-override")
        group.add_argument(*flags, dest=name, default=_DEFAULTS[name], **settings)


def add_node_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `NODE_OPTIONS` alone."""
    for name, settings in NODE_OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, default=_DEFAULTS[name], **settings)


def add_batch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `run-batch` (see `batch/command.py`)."""
    parser.add_argument("-i", "--input-file", type=Path, required=True, help="requests, a line each")
    parser.add_argument("-o", "--output-file", type=Path, required=True, help="answers, as they finish")
    parser.add_argument("--resume", action="store_true", help="answer the lines without an answer in -o")
    parser.add_argument("--num-replicas", type=int, help="engines, on Ray (default: one, without Ray)")
    parser.add_argument("--ray-address", help="of the cluster (default: RAY_ADDRESS, or a new one here)")


def add_sampling_arguments(parser: argparse.ArgumentParser, max_tokens: int, temperature: float) -> None:
    """Add the most used fields of `SamplingParams`.

    Args:
        parser: of one command.
        max_tokens, temperature: defaults that suit the command. vLLM's own 16 tokens end most answers in
            mid-sentence.
    """
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, default=max_tokens, help="output tokens at most")
    group.add_argument("--temperature", type=float, default=temperature, help="0: always the likeliest token")
    group.add_argument("--top-p", type=float, default=1.0, help="keep the likeliest tokens of this mass")
    group.add_argument("--top-k", type=int, default=0, help="keep the k likeliest tokens (0: all)")


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The engine's keyword arguments from parsed options (without the model)."""
    return {name: getattr(args, name) for name in _ENGINE_OPTIONS}


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling keyword arguments from parsed options."""
    return {name: getattr(args, name) for name in ("max_tokens", "temperature", "top_p", "top_k")}
