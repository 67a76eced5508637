"""The command line: `python -m minivllm generate | chat | serve | run-batch | demo | compare | bench`.

    $ python -m minivllm generate "The capital of France is" --max-tokens 8 --temperature 0
    $ python -m minivllm chat
    $ python -m minivllm bench throughput --help

Option names are vLLM's where it has them. Most fields of `EngineConfig` are options: `--max-num-seqs 8` here
is `LLM(model, max_num_seqs=8)` in Python, with the same default and the same checks.

torch is imported by a command when it runs, not here: `--help` and a mistyped option are answered at once.
(`tests/test_cli.py` checks that.)

vLLM V1: `vllm/entrypoints/cli/`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from minivllm.cli import commands, serve_options
from minivllm.cli.options import (
    add_batch_arguments,
    add_engine_arguments,
    add_node_arguments,
    add_sampling_arguments,
)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands but `bench` and `compare`, which have parsers of their own.

    Each command leaves the function that runs it in `args.run`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m minivllm", description=__doc__.split("\n", maxsplit=1)[0]
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    formatter = argparse.ArgumentDefaultsHelpFormatter

    command = subparsers.add_parser("generate", help="complete prompts", formatter_class=formatter)
    command.add_argument("prompt", nargs="+", help="one or more prompts, completed in one batch")
    command.add_argument("--n", type=int, default=1, help="completions of each prompt")
    add_sampling_arguments(command, max_tokens=32, temperature=0.8)
    command.set_defaults(run=commands.generate)

    command = subparsers.add_parser("chat", help="talk to the model", formatter_class=formatter)
    command.add_argument("-q", "--quick", metavar="MESSAGE", help="ask one question and exit")
    command.add_argument("--system-prompt", help="what the model is told first")
    add_sampling_arguments(command, max_tokens=256, temperature=0.2)
    command.set_defaults(run=commands.chat)

    command = subparsers.add_parser("serve", help="OpenAI's API over HTTP, and a page that shows the blocks",
                                  formatter_class=formatter)  # fmt: skip
    serve_options.add_serve_arguments(command)
    command.set_defaults(run=serve_options.serve)

    command = subparsers.add_parser("demo", help="a question and four prompts in one batch, with a report",
                                  formatter_class=formatter)  # fmt: skip
    add_sampling_arguments(command, max_tokens=48, temperature=0.0)
    command.set_defaults(run=commands.demo)

    command = subparsers.add_parser("run-batch", help="answer a file of requests", formatter_class=formatter)
    add_batch_arguments(command)
    command.set_defaults(run=commands.run_batch)

    # After each command's own options, so that its help shows those first.
    for command in subparsers.choices.values():
        add_engine_arguments(command)
    command = subparsers.add_parser("worker", help="lend this machine to the engine of another one",
                                    formatter_class=formatter)  # fmt: skip
    add_node_arguments(command)
    command.set_defaults(run=commands.worker)
    # These two have parsers of their own, made when they are asked for: they import more. Here they are only
    # lines of the list that `--help` prints; `main` never lets this parser see their arguments.
    subparsers.add_parser(
        "compare", help="where the output differs from Hugging Face's, and why", add_help=False
    )
    subparsers.add_parser(
        "bench", help="measure: throughput, latency, serve, sharing, memory, kernels", add_help=False
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    Args:
        argv: arguments without the program's name; None: those of this process.

    Returns:
        0, or 1 after an error in what the user gave; `bench` decides for itself. argparse
        exits with 2 for a wrong option.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["bench"]:
        from minivllm.bench import main as bench

        return bench(argv[1:])
    if argv[:1] == ["compare"]:
        from minivllm.baselines import compare

        parser = argparse.ArgumentParser(prog="python -m minivllm compare")
        compare.add_arguments(parser)
        parser.set_defaults(run=compare.run)
        args = parser.parse_args(argv[1:])
    else:
        args = make_parser().parse_args(argv)
    # Errors of input are one line: the text says what to do, and a traceback would bury it. Any other
    # exception is a mistake of ours and keeps its traceback.
    try:
        args.run(args)
    except (ValueError, TypeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
