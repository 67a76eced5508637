"""Benchmarks: workloads, and the commands `python -m minivllm bench NAME` that run them.

Every command is a module with two functions, `add_arguments(parser)` and `run(args) -> int` (the exit
status). `COMMANDS` lists them; a module is imported when its command is asked for, because some need torch
and some need packages that a study installation may lack.

    $ python -m minivllm bench throughput --num-prompts 4 --backend minivllm hf

Every command prints a table, and with `--output-json` writes the same numbers with their provenance: the
machine, the versions, the commit, the date. A number without these is an anecdote.

What each is for: `throughput` a full engine, `latency` one batch, `serve` users who come and go, `sharing`
and `memory` what the paper's ideas save, `vllm` the comparison with the real thing, `kernels` the GPU alone,
`resources` GPUs that are not there.

vLLM V1: `vllm/benchmarks/` and `vllm bench --help`; the option names are vLLM's where it has them.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from types import ModuleType

COMMANDS: dict[str, tuple[str, str]] = {
    "throughput": ("minivllm.bench.throughput", "tokens per second, beside Hugging Face, interleaved"),
    "latency": ("minivllm.bench.latency", "seconds for one batch, start to end"),
    "serve": ("minivllm.bench.serve", "requests arrive over time: TTFT, TPOT, normalized latency, goodput"),
    "sharing": ("minivllm.bench.sharing", "what sharing blocks saves: n > 1 and the prefix cache"),
    "vllm": ("minivllm.bench.vllm_cpu", "against vLLM itself on a CPU, in an environment of its own"),
    "memory": ("minivllm.bench.memory", "the paper's memory figures, simulated without a model"),
    "kernels": ("minivllm.bench.kernels", "the Triton kernels, in microseconds and bytes (needs a GPU)"),
    "resources": ("minivllm.bench.resources", "what each GPU would give the kernels, compiled without one"),
}


def load_command(name: str) -> ModuleType:
    """Import the module of one command; an unknown name is a ValueError that lists the known ones.

    Example: `load_command("latency").run` is `minivllm.bench.latency.run`.
    """
    if name not in COMMANDS:
        raise ValueError(f"unknown benchmark {name!r}. Known: {', '.join(COMMANDS)}.")
    return importlib.import_module(COMMANDS[name][0])


def help_text() -> str:
    """The list of commands."""
    lines = [f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: python -m minivllm bench COMMAND [options]", "", "commands:", *lines])


def main(argv: Sequence[str]) -> int:
    """Run one command; `argv` is what follows `python -m minivllm bench`.

    Returns:
        The exit status, which is the command's own, 0 for help, 2 for a command that does not exist.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text())
        return 0
    try:
        module = load_command(argv[0])
    except ValueError as error:
        print(error)
        return 2
    parser = argparse.ArgumentParser(
        prog=f"python -m minivllm bench {argv[0]}",
        # The first line of a command's docstring is its help text; so it has to make sense alone.
        description=(module.__doc__ or "").strip().split("\n", maxsplit=1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    module.add_arguments(parser)
    args = parser.parse_args(list(argv[1:]))
    try:
        return int(module.run(args))
    except ValueError as error:  # a wrong option, found where it was used: its text says what to do
        parser.error(str(error))
