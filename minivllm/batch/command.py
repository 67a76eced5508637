"""`python -m minivllm run-batch -i in.jsonl -o out.jsonl`: the files, the replicas, the progress bar.

    $ python -m minivllm run-batch -i in.jsonl -o out.jsonl                      one engine, in this process
    $ python -m minivllm run-batch -i in.jsonl -o out.jsonl --num-replicas 4     four, on Ray
    $ python -m minivllm run-batch -i in.jsonl -o out.jsonl --resume             the lines without an answer

Option names are vLLM's where it has them (`vllm run-batch --help`).
"""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import closing
from functools import partial

from tqdm import tqdm

from minivllm.batch.run_batch import Answer, Progress, open_output, read_lines, run_batch
from minivllm.cli.options import engine_options

SEATS_PER_SEQUENCE = 2
"""Requests under way for each that can run: so the next is there, checked, when one has finished."""


def run(args: argparse.Namespace) -> None:
    """Run the command. Files are opened before a model is loaded: a wrong name is reported at once.

    Raises:
        ValueError: a file or an option is wrong.
    """
    if args.num_replicas is not None and args.num_replicas < 1:
        raise ValueError(f"--num-replicas must be at least 1, got {args.num_replicas}.")
    with args.input_file.open(encoding="utf-8") as file:
        output, answered = open_output(args.output_file, args.resume)
        with closing(output):
            left = sum(1 for _ in read_lines(file, answered))
            file.seek(0)
            seats = SEATS_PER_SEQUENCE * args.max_num_seqs
            answer, limit = make_answer(args, seats)
            with tqdm(total=left, unit="line", dynamic_ncols=True) as bar:
                show = partial(show_progress, bar, time.perf_counter())
                progress = asyncio.run(run_batch(read_lines(file, answered), answer, output, limit, show))
    print(
        f"{progress.num_answered} lines answered, {progress.num_failed} of them with an error, "
        f"{len(answered)} answered before; {progress.num_output_tokens} output tokens -> {args.output_file}"
    )


def make_answer(args: argparse.Namespace, seats: int) -> tuple[Answer, int]:
    """The engine of this process, or replicas; and how many lines they can have under way."""
    if args.num_replicas is None:
        from minivllm.batch.replica import Replica

        return Replica(args.model, engine_options(args)).answer, seats
    from minivllm.batch.ray_replicas import replicas_on_ray, start_ray

    start_ray(args.ray_address)
    answer = replicas_on_ray(args.model, engine_options(args), args.num_replicas, seats)
    return answer, seats * args.num_replicas


def show_progress(bar: tqdm, start: float, progress: Progress) -> None:
    """One line more, and the tokens per second of this run so far."""
    seconds = time.perf_counter() - start
    speed = f"{progress.num_output_tokens / seconds:.1f} output tok/s"
    bar.set_postfix_str(f"{speed}, {progress.num_failed} with an error", refresh=False)
    bar.update()
