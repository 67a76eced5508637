"""What the commands do: each function takes the parsed arguments of its command, and prints.

The imports that bring torch stand inside the functions: `--help` has to be quick.

vLLM V1: `vllm/entrypoints/cli/openai.py` (`complete`, `chat`).
"""

from __future__ import annotations

import argparse

from minivllm.cli.options import NODE_OPTIONS, engine_options, sampling_options


def generate(args: argparse.Namespace) -> None:
    """Complete prompts, as vLLM's first example prints them.

    All prompts are handed over in one call, which makes them one batch. With `--n 2` a prompt has two lines.
    """
    from minivllm import LLM, SamplingParams

    # Before the model is loaded, so that a wrong --top-p is reported at once.
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

    The conversation grows until there is no room for an answer; then `max_model_len` ends it with an error.
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
    """Run the demonstration: see `viz/demo.py`."""
    from minivllm.viz.demo import run_demo

    run_demo(args.model, engine_options(args), args.max_tokens, args.temperature)


def run_batch(args: argparse.Namespace) -> None:
    """Answer a file of requests: see `batch/command.py`."""
    from minivllm.batch.command import run

    run(args)


def worker(args: argparse.Namespace) -> None:
    """The ranks of a machine which has no engine of its own. They get everything else from the engine.

    Raises:
        ValueError: the options do not go together, or a rank has failed; the text says which and why.
    """
    from minivllm.config import EngineConfig
    from minivllm.distributed.config import check_workers
    from minivllm.distributed.multiproc import places_of, run_node

    options = {name: getattr(args, name) for name in NODE_OPTIONS}
    check_workers(EngineConfig(model="that of the engine", **options))
    if args.node_rank == 0:
        raise ValueError("--node-rank 0 is the machine of the engine: start `generate` or `run-batch` there.")
    places = places_of(
        args.tensor_parallel_size, args.nnodes, args.node_rank, args.master_addr, args.master_port
    )
    cause = run_node(places)
    if cause is not None:
        raise ValueError(cause)
