"""The command line: `python -m minivllm generate | chat | demo | compare | bench`.

    $ python -m minivllm generate "The capital of France is" --max-tokens 8 --temperature 0
    $ python -m minivllm chat
    $ python -m minivllm bench throughput --help

Option names are vLLM's where it has them. Most fields of `EngineConfig` are options: `--max-num-seqs 8` here
is `LLM(model, max_num_seqs=8)` in Python, with the same default and the same checks.

torch is imported by a command when it runs, not here: `--help` and a mistyped option are answered at once.
(`tests/test_cli.py` holds it to that.)

vLLM V1: `vllm/entrypoints/cli/`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
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
    "preemption_mode": {"choices": CHOICES["preemption_mode"], "help": "what to do when memory runs out"},
    "attention_backend": {
        "choices": CHOICES["attention_backend"],
        "help": "auto: triton on CUDA, numba on a CPU",
    },
    "enforce_eager": {"action": argparse.BooleanOptionalAction, "help": "never capture CUDA graphs"},
}


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
    """The engine's keyword arguments from parsed options (without the model).

    Ranges are not looked at here: `EngineConfig` checks them, with the same texts as in Python.
    """
    return {name: getattr(args, name) for name in _ENGINE_OPTIONS}


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling keyword arguments from parsed options."""
    return {name: getattr(args, name) for name in ("max_tokens", "temperature", "top_p", "top_k")}


def generate(args: argparse.Namespace) -> None:
    """Complete prompts, as vLLM's first example prints them.

    All are handed over in one call: that is what makes them one batch. With `--n 2` a prompt has two lines.
    """
    from minivllm import LLM, SamplingParams

    # Before the model is loaded, so that the news of a wrong --top-p need not wait for it.
    params = SamplingParams(n=args.n, **sampling_options(args))
    llm = LLM(model=args.model, **engine_options(args))
    for output in llm.generate(args.prompt, params):
        for completion in output.outputs:
            print(f"Prompt: {output.prompt!r}, Generated text: {completion.text!r}")


def chat(args: argparse.Namespace) -> None:
    """Talk: one question with --quick, else a conversation until end of input.

    The model remembers nothing: each turn sends the whole conversation again. The prefix cache makes that
    cheap, since most of it has just been computed (if the answer's text is cut into the tokens that were
    sampled, as it mostly is). With block_size 16::

        turn 1     prompt of 40 tokens, answer of 60           99 computed, 6 blocks full
        turn 2     prompt of 120, the same 100 at its start    6 x 16 = 96 found, 24 left to compute

    It grows until the prompt has no room for an answer; then `max_model_len` ends it with an error.
    """
    from minivllm import LLM, SamplingParams
    from minivllm.prompts import render_chat

    params = SamplingParams(**sampling_options(args))
    llm = LLM(model=args.model, **engine_options(args))
    tokenizer = llm.get_tokenizer()
    messages = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    if not args.quick:
        print("Ask something; an empty line or Ctrl-D ends the conversation.")
    while True:
        try:
            question = args.quick or input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not question.strip():
            return
        messages.append({"role": "user", "content": question})
        prompt = render_chat(tokenizer, messages)
        # Each output holds what is new (`LLM.stream`); the pieces together are the answer for the next turn.
        answer = ""
        for output in llm.stream(prompt, params):
            print(output.outputs[0].text, end="", flush=True)
            answer += output.outputs[0].text
        print()
        messages.append({"role": "assistant", "content": answer})
        if args.quick:
            return


def demo(args: argparse.Namespace) -> None:
    """Run the demonstration: see `demo.py`."""
    from minivllm.viz.demo import run_demo

    run_demo(args.model, engine_options(args), args.max_tokens, args.temperature)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands but `bench` and `compare`, which have their own.

    Each command leaves the function that runs it in `args.run`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m minivllm", description=__doc__.split("\n", maxsplit=1)[0]
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    formatter = argparse.ArgumentDefaultsHelpFormatter

    command = commands.add_parser("generate", help="complete prompts", formatter_class=formatter)
    command.add_argument("prompt", nargs="+", help="one or more prompts, completed in one batch")
    command.add_argument("--n", type=int, default=1, help="completions of each prompt")
    add_sampling_arguments(command, max_tokens=32, temperature=0.8)
    command.set_defaults(run=generate)

    command = commands.add_parser("chat", help="talk to the model", formatter_class=formatter)
    command.add_argument("-q", "--quick", metavar="MESSAGE", help="ask one question and exit")
    command.add_argument("--system-prompt", help="what the model is told first")
    add_sampling_arguments(command, max_tokens=256, temperature=0.2)
    command.set_defaults(run=chat)

    command = commands.add_parser("demo", help="a question and four prompts in one batch, with a report",
                                  formatter_class=formatter)  # fmt: skip
    add_sampling_arguments(command, max_tokens=48, temperature=0.0)
    command.set_defaults(run=demo)

    # After each command's own options, so that its help shows those first.
    for command in commands.choices.values():
        add_engine_arguments(command)
    # These two have parsers of their own, made when they are asked for: they import more. Here they are only
    # lines of the list that `--help` prints; `main` never lets this parser see their arguments.
    commands.add_parser(
        "compare", help="where the output differs from Hugging Face's, and why", add_help=False
    )
    commands.add_parser(
        "bench", help="measure: throughput, latency, serve, sharing, memory, kernels", add_help=False
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    Args:
        argv: arguments without the program's name; None: those of this process.

    Returns:
        0, or 1 after an error in what the user gave; `bench` and `compare` decide for themselves. argparse
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
        return compare.run(parser.parse_args(argv[1:]))
    args = make_parser().parse_args(argv)
    # Errors of input are one line: their texts say what to do, and a traceback would bury that. Any other
    # exception is a mistake of ours and keeps its traceback.
    try:
        args.run(args)
    except (ValueError, TypeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
