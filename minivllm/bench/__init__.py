"""Benchmarks: workloads, and the commands `python -m minivllm bench NAME` that run them.

A command is a module with `add_arguments(parser)` and `run(args) -> int` (the exit status). It is imported
when it is asked for, because some need torch and some need packages that a study installation may lack::

    $ python -m minivllm bench throughput --num-prompts 4 --backend minivllm hf

Every command prints a table below the processor and its load, and `--output-json` writes the same numbers
with their provenance (`report.py`): a number without its circumstances is only an anecdote.

vLLM V1: `vllm/benchmarks/` and `vllm bench --help`; the option names are vLLM's where vLLM has them.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

# Name of a command -> its module, and what `--help` says of it.
COMMANDS = {
    "throughput": ("minivllm.bench.throughput", "tokens per second, beside Hugging Face, interleaved"),
    "vllm": ("minivllm.bench.throughput", "against vLLM on a CPU, in an environment of its own"),
    "openvino": ("minivllm.bench.throughput", "against OpenVINO GenAI, in the same way"),
    "latency": ("minivllm.bench.latency", "seconds for one batch, start to end"),
    "serve": ("minivllm.bench.serve", "requests arrive over time: TTFT, TPOT, goodput"),
    "http": ("minivllm.bench.http", "the same over HTTP: our server, vLLM's, the bare engine"),
    "soak": ("minivllm.bench.soak", "a server under clients that behave badly"),
    "sharing": ("minivllm.bench.sharing", "what sharing blocks saves: n > 1 and the prefix cache"),
    "speculative": ("minivllm.bench.speculative", "drafts: speedup on four texts, and the break-even"),
    "memory": ("minivllm.bench.memory", "the paper's memory figures, simulated without a model"),
    "paper": ("minivllm.bench.evaluation.command", "the paper's figures 12 to 19, from the real scheduler"),
    "step-time": (
        "minivllm.bench.evaluation.validate",
        "the step-time model behind them, against real steps",
    ),
    "headline": ("minivllm.bench.evaluation.headline", "paging against reservation, on the real model"),
    "stale": ("minivllm.bench.stale", "which files in docs/data are older than the code they speak of"),
    "plan": ("minivllm.bench.plan", "bytes of a pickled plan, without a model"),
    "parallel": ("minivllm.bench.parallel", "1 to 3 workers here; 1 to 8 GPUs by arithmetic"),
    "kernels": ("minivllm.bench.kernels", "the Triton kernels in microseconds (needs a GPU)"),
    "gpu-tests": ("minivllm.bench.gpu_tests", "the kernel tests, counted, with a control"),
    "gpu-report": ("minivllm.bench.gpu_report", "all of it in stages (needs a GPU)"),
    "resources": ("minivllm.aot.resources", "what each GPU would give the kernels; needs no GPU"),
}
# Commands with other defaults than those of their module's options.
DEFAULTS: dict[str, dict[str, Any]] = {
    peer: {"backend": ["minivllm", peer], "install": True} for peer in ("vllm", "openvino")
}


def load_command(name: str) -> ModuleType:
    """Import the module of one command; ValueError, with the known names, if there is none."""
    if name not in COMMANDS:
        raise ValueError(f"unknown benchmark {name!r}. Known: {', '.join(COMMANDS)}.")
    return importlib.import_module(COMMANDS[name][0])


def main(argv: Sequence[str]) -> int:
    """Run one command; `argv` follows `python -m minivllm bench`. -> its exit status; 2: no such command."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m minivllm bench COMMAND [options]\n\ncommands:")
        print("\n".join(f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items()))
        return 0
    try:
        module = load_command(argv[0])
    except ValueError as error:
        print(error)
        return 2
    parser = argparse.ArgumentParser(
        prog=f"python -m minivllm bench {argv[0]}",
        description=COMMANDS[argv[0]][1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    module.add_arguments(parser)
    parser.set_defaults(**DEFAULTS.get(argv[0], {}))
    args = parser.parse_args(list(argv[1:]))
    try:
        return int(module.run(args))
    except ValueError as error:  # a wrong option, found where it was used: the text says what to do
        parser.error(str(error))
