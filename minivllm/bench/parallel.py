"""Tensor parallelism: what a step costs on 1, 2 and 3 workers here, and what it would cost on GPUs.

Measured, on this machine, in interleaved rounds: a decode step, what each rank holds, and what it puts into
sums and broadcasts, which must be what arithmetic says::

    bytes of sums = (2 layers + 1) * tokens * hidden * 4         two per layer, one for the embedding
    bytes of gather = tokens * vocabulary / workers * 4          a rank's part of the logits

On a CPU this is a lesson and not a speed-up: the workers share the cores and the memory bandwidth that one
worker had for itself, and each sum goes through the operating system. What it buys is memory: each rank holds
its part.

Computed, with its sources in `parallel_model.py`: the same step on A100 and H100.

    $ python -m minivllm bench parallel --output-json parallel.json --plot parallel.png

vLLM has no counterpart.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from minivllm.bench import options, report
from minivllm.bench.parallel_model import plan_rows
from minivllm.distributed.worker import Worker
from minivllm.llm import LLM
from minivllm.sampling_params import SamplingParams
from minivllm.weights.loader import load_model_config, resolve_model
from minivllm.weights.random_model import random_llama

SMOLLM2_LIKE = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "head_dim": 48,
    "tie_word_embeddings": True,
}
"""SmolLM2-135M's sizes with 12 and 6 heads of 48 in place of 9 and 3 of 64: 2 and 3 divide them."""
NUM_BLOCKS = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model is random, because none that ships has heads which both 2 and 3 divide."""
    parser.add_argument("--model", help="folder or name (default: random weights of SmolLM2-135M's size)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 3], help="numbers of workers")
    options.add_counts(
        parser,
        batch_size=(8, "sequences which decode"),
        input_len=(32, "prompt tokens of each"),
        num_steps=(20, "decode steps of a round"),
        rounds=(3, "rounds, interleaved"),
    )
    options.add_output_arguments(parser, plot=True)


def run(args: argparse.Namespace) -> int:
    """Measure, compute, report; -> the exit status, 0."""
    names = ("sizes", "batch_size", "input_len", "num_steps")
    result = report.new_result("parallel", setting={name: getattr(args, name) for name in names})
    with ExitStack() as stack:
        model = args.model
        if model is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            model = str(random_llama(Path(folder), **SMOLLM2_LIKE))
        engines = {str(size): stack.enter_context(Measured(model, size)) for size in args.sizes}
        rounds = {name: partial(engine.round, args) for name, engine in engines.items()}
        steps = report.in_turns(rounds, args.rounds)
        result["measured"] = {
            name: engine.result(args) | {"step_ms": report.Spread(tuple(steps[name])).as_json()}
            for name, engine in engines.items()
        }
    result["computed"] = plan_rows()
    return report.finish(args, result, print_report, draw)


class Measured:
    """An engine with `size` workers, each a process, even if it is only one: so memory can be compared."""

    def __init__(self, model: str, size: int) -> None:
        self.size, self.config = size, load_model_config(resolve_model(model))
        more = {"tensor_parallel_size": size, "distributed_executor_backend": "mp", "num_blocks": NUM_BLOCKS}
        self.llm = LLM(model, skip_tokenizer_init=True, **more)
        self.group = self.llm.llm_engine.executor.group
        self.plan_nbytes = 0

    def __enter__(self) -> Measured:
        return self

    def __exit__(self, *error: object) -> None:
        self.llm.llm_engine.shutdown()

    def round(self, args: argparse.Namespace) -> float:
        """Milliseconds of a decode step, a mean; the prefill and the first decode step do not count."""
        engine = self.llm.llm_engine
        params = SamplingParams(temperature=0.0, max_tokens=args.num_steps + 2, ignore_eos=True)
        for number in range(args.batch_size):
            ids = [(number * 97 + place) % self.config.vocab_size for place in range(args.input_len)]
            engine.add_request(str(number), {"prompt_token_ids": ids}, params)
        engine.reset_prefix_cache()
        engine.step()
        engine.step()
        start = time.perf_counter()
        for _ in range(args.num_steps):
            engine.step()
        seconds = time.perf_counter() - start
        self.plan_nbytes = self.group.plan_nbytes
        assert not engine.has_unfinished_requests()
        return 1e3 * seconds / args.num_steps

    def result(self, args: argparse.Namespace) -> dict[str, Any]:
        """Memory and traffic, by tensor and by arithmetic."""
        traffic = self.group.call("traffic")
        sums = traffic.get("all_reduce", (0, 0))
        decodes = args.rounds * (args.num_steps + 1)
        prefill_tokens, decode_tokens = args.batch_size * args.input_len, args.batch_size
        hidden, layers = self.config.hidden_size, self.config.num_hidden_layers
        tokens = args.rounds * prefill_tokens + decodes * decode_tokens
        return {
            "memory": [vars(each) for each in self.llm.llm_engine.executor.memory()],
            "resident_bytes": self.group.call("apply", resident_bytes, from_all=True),
            "plan_bytes_of_a_step": self.plan_nbytes,
            "sums_of_a_step": 0 if self.size == 1 else 2 * layers + 1,
            "sum_bytes_of_a_step": 0 if self.size == 1 else (2 * layers + 1) * decode_tokens * hidden * 4,
            "sum_bytes_measured": sums[1],
            "sum_bytes_by_arithmetic": 0 if self.size == 1 else (2 * layers + 1) * tokens * hidden * 4,
        }


def resident_bytes(worker: Worker) -> int:
    """Memory of a worker's process in use: with torch and all else, and the KV blocks which were written."""
    return report.memory_bytes("VmRSS") or 0


def print_report(result: report.Result) -> None:
    """What was measured, then what was computed."""
    print(report.describe(result["provenance"]))
    print_measured(result)
    print_computed(result)


def print_measured(result: report.Result) -> None:
    """A line for each number of workers."""
    print(f"\nMeasured here: a decode step of {result['setting']['batch_size']} sequences")
    mib = 1 << 20
    rows = [
        (
            "workers",
            "ms [min, max]",
            "sums",
            "KiB in sums",
            "plan KiB",
            "weights MiB",
            "KV MiB",
            "resident MiB",
        )
    ]
    for size, each in result["measured"].items():
        memory = each["memory"][0]
        rows.append((
            size, f"{report.Spread.from_json(each['step_ms']):.1f}", each["sums_of_a_step"],
            f"{each['sum_bytes_of_a_step'] / 1024:.0f}", f"{each['plan_bytes_of_a_step'] / 1024:.1f}",
            f"{memory['weights'] / mib:.0f}", f"{memory['kv_cache'] / mib:.0f}",
            f"{max(each['resident_bytes']) / mib:.0f}",
        ))  # fmt: skip
        equal = each["sum_bytes_measured"] == each["sum_bytes_by_arithmetic"]
        assert equal, "the ranks have summed something else than the theory says"
    print(report.table(rows))
    print("weights, KV, resident: of one rank. The bytes in sums were counted, and are those of the formula.")


def print_computed(result: report.Result) -> None:
    """A line for each model, GPU and batch."""
    print("\nComputed, not measured: ms of a decode step on so many GPUs, 1,024 tokens of past, bfloat16")
    rows = [("", "GPU", "sequences", "1", "2", "4", "8", "talking on 8", "stops paying at")]
    for row in result["computed"]:
        cells = [f"{cell['total'] * 1e3:.2f}{'' if cell['fits'] else '!'}" for cell in row["sizes"]]
        share = f"{row['sizes'][-1]['share']:.0%}"
        rows.append((row["model"], row["gpu"], row["num_seqs"], *cells, share, row["stops_at"] or "-"))
    print(report.table(rows))
    print('"!": weights and KV do not fit. Stops paying: less than 10% faster than half as many.')


def draw(result: report.Result, path: str) -> None:
    """Time of a step by number of GPUs, one panel a model: products below, communication on top."""
    from minivllm.viz.parallel import step_time_figure

    step_time_figure(result["computed"]).savefig(path, dpi=150)
