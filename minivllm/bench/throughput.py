"""Throughput: tokens per second of minivllm, of Hugging Face and of the baselines, on the same requests.

    $ python -m minivllm bench throughput                                    32 requests, three backends
    $ python -m minivllm bench throughput --num-running 32 --backend minivllm --profile
    $ python -m minivllm bench throughput --num-running 32 --backend minivllm --profile --sampling full
    $ python -m minivllm bench throughput --max-model-len 512 --num-blocks 512 \\
          --backend static-contiguous orca-max static-paged minivllm         what each idea is worth

All backends live in one process and take turns, `--repeats` times. What is printed:

- `Throughput: X requests/s, Y total tokens/s, Z output tokens/s` for each, as vLLM prints it. Total counts
  prompt tokens too, which are cheap; output tokens/s is the honest one.
- how many requests got the same greedy tokens from everybody (floats may break a tie differently);
- the share of the matrix-product bound (`matmul_bound.py`), and with `--profile` where the rest went;
- the memory: weights, KV blocks, workspace, and what else the process took at its peak.

How the runs alternate, so that a machine that slows down slows them all (three backends, three repeats)::

    minivllm  matrix products  hf  hf-continuous | minivllm  matrix products  hf  hf-continuous | ...
    '---- a turn: each runs all requests once ----'

`--num-running N` holds exactly N sequences running: N requests of one size. vLLM V1:
`vllm/benchmarks/throughput.py`.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from minivllm.bench.backends import (
    BACKENDS,
    SAMPLING,
    Backend,
    BackendRun,
    check_run,
    make_baseline,
)
from minivllm.bench.hf_backends import HfContinuousBackend, HfStaticBackend, load_hf_model
from minivllm.bench.matmul_bound import MatmulBound
from minivllm.bench.options import (
    add_engine_arguments,
    add_output_arguments,
    add_workload_arguments,
    describe_workload,
    engine_options,
    positive_int,
    requests_from,
    vocab_size_of,
)
from minivllm.bench.report import peak_rss_bytes, provenance, reset_peak_rss, resident_bytes, write_json
from minivllm.bench.steps import StepRecord, profile_steps, record_steps
from minivllm.bench.throughput_report import plot, print_report
from minivllm.bench.throughput_result import bound_of, memory_of, rates, same_tokens
from minivllm.bench.vllm_cpu import VllmBackend, vllm_options
from minivllm.bench.workloads import BenchRequest
from minivllm.weights.loader import load_tokenizer, resolve_model

OURS = "minivllm"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options.

    The shared ones are in `options.py`; here stand who runs, how often, and what the peers are allowed.
    """
    add_workload_arguments(parser)
    add_engine_arguments(parser)
    add_output_arguments(parser)
    parser.add_argument(
        "--backend",
        nargs="+",
        choices=BACKENDS,
        default=[OURS, "hf", "hf-continuous"],
        help="who generates; ratios are to minivllm",
    )
    parser.add_argument("--repeats", type=positive_int, default=3, help="turns of each backend")
    parser.add_argument("--hf-max-batch-size", type=positive_int, default=8, help="static batches of hf")
    parser.add_argument(
        "--hf-sort-by-length",
        action="store_true",
        help="batch hf by true output length, which no server knows: the best static batching can do",
    )
    parser.add_argument(
        "--num-running", type=positive_int, help="N requests of --input-len and --output-len, all at once"
    )
    parser.add_argument("--vllm-env", default=".venv-vllm", help="environment of the backend vllm")
    parser.add_argument(
        "--sampling",
        choices=SAMPLING,
        default="greedy",
        help="full: penalties, top_p, log-probabilities; minivllm alone, the others compare greedy texts",
    )
    parser.add_argument("--profile", action="store_true", help="where a step's time goes, in an extra run")


def run(args: argparse.Namespace) -> int:
    """Measure and report.

    Args:
        args: the parsed options of `add_arguments`; `--num-running` overwrites three of them.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: options that contradict each other; `bench.main` shows the text as a usage error.
    """
    # Peers and baselines are checked token by token against ours, and two random samplers never agree.
    if args.sampling != "greedy" and args.backend != [OURS]:
        raise ValueError(f"--sampling {args.sampling} needs --backend {OURS}: the others run greedy only.")
    # As many requests as seats, all of one size: nobody waits, nobody leaves early, the batch is constant.
    if args.num_running is not None:
        args.workload, args.num_prompts, args.max_num_seqs = "fixed", args.num_running, args.num_running
    folder = resolve_model(args.model)
    requests = requests_from(
        args,
        vocab_size_of(folder),
        # A function, not a tokenizer: only ShareGPT files hold text, and loading one takes time.
        lambda text: load_tokenizer(folder).encode(text, add_special_tokens=False),
    )
    result: dict[str, Any] = {
        "benchmark": "throughput",
        "provenance": provenance(),
        "model": args.model,
        "workload": describe_workload(args, requests) | {"sampling": SAMPLING[args.sampling]},
    }
    result |= measure(args, requests)
    print_report(result)
    if args.output_json:
        write_json(args.output_json, result)
    if args.plot:
        plot(result, args.plot)
    return 0


# -- measuring --------------------------------------------------------------------------------------


def measure(args: argparse.Namespace, requests: list[BenchRequest]) -> dict[str, Any]:
    """Set up, warm up, take turns; everything the report needs.

    Args:
        args: the command's options.
        requests: the workload, the same for every backend.

    Returns:
        The measured part of the result, `backends` (rates of each), `reference` (whose tokens the others are
        compared with), `same_tokens`, and for minivllm `memory`, `bound` and, if asked for, `profile`.
    """
    # Without duplicates, in the order given.
    names = list(dict.fromkeys(args.backend))
    # What each backend runs once before its clock counts: every prompt, and a few decoding steps.
    warm_up = [replace(request, output_len=min(16, request.output_len)) for request in requests]
    # vLLM's process must end whatever happens; the stack holds it only if that backend was asked for.
    with ExitStack() as stack:
        backends: dict[str, Backend] = {}
        ours, result = None, {}
        if OURS in names:
            # First and alone, so that the peak of the process's memory is its own; hence also in full.
            ours = OurRuns(args, requests)
            backends[OURS] = ours.backend
            result["memory"] = ours.memory
        for name, backend in make_others(args, requests, stack).items():
            # Not ours: `OurRuns` has warmed it up with the whole workload.
            backend.run(warm_up)
            backends[name] = backend

        seconds: dict[str, list[float]] = {name: [] for name in names}
        # Of the last turn only: greedy text is the same each time.
        tokens: dict[str, list[list[int]]] = {}
        for _ in range(args.repeats):
            for name in names:
                timed = ours.run(requests) if name == OURS else backends[name].run(requests)
                # Inside the turn, so that wrong lengths end the benchmark before they become a rate.
                check_run(name, requests, timed)
                seconds[name].append(timed.seconds)
                tokens[name] = timed.token_ids

    # Whoever was named first stands in where minivllm does not run: ratios and equal texts need somebody.
    reference = OURS if ours is not None else names[0]
    result["reference"] = reference
    result["backends"] = {name: rates(seconds[name], requests) for name in names}
    result["same_tokens"] = {name: same_tokens(tokens[name], tokens[reference]) for name in names}
    if ours is not None:
        result["bound"] = bound_of(ours.bound, ours.steps, seconds[OURS])
        if args.profile:
            result["profile"] = ours.profile(requests)
    return result


class OurRuns:
    """minivllm's own runs, of which more is recorded: memory, steps, the matrix-product bound.

    Attributes:
        backend: who generates; timed like any other.
        memory: of one run of the workload before any timing, see `memory_of`.
        bound: knows the row counts of that run, and measures their matrix products again after each.
        steps: one list of records for each timed run.

    Only this engine can be looked into; peers are timed from outside and nothing else.
    """

    def __init__(self, args: argparse.Namespace, requests: list[BenchRequest]) -> None:
        # Three moments of the memory: before the model, the peak of loading it, the peak of running.
        before = resident_bytes()
        reset_peak_rss()
        self.backend = make_baseline(OURS, args.model, engine_options(args))
        self.backend.sampling = SAMPLING[args.sampling]
        self.engine = self.backend.llm.llm_engine
        peak_loading = peak_rss_bytes()
        reset_peak_rss()
        with record_steps(self.engine) as recorded:
            self.backend.run(requests)
        self.memory = memory_of(self.engine, len(recorded.blocks))
        self.memory |= {"resident_before_loading": before, "peak_rss_loading": peak_loading}
        # Which row counts occur is known only now. They repeat in every run, as all lengths are fixed.
        self.bound = MatmulBound(self.engine.runner.model, recorded.records)
        self.steps: list[list[StepRecord]] = []

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """A run, and after it the matrix products alone, on a machine in the same mood.

        The bound is measured right after, and not once at the start: on a shared machine both then slow down
        together, and their ratio, the share, stays.
        """
        with record_steps(self.engine) as recorded:
            timed = self.backend.run(requests)
        self.steps.append(recorded.records)
        self.bound.measure()
        return timed

    def profile(self, requests: list[BenchRequest]) -> dict[str, Any]:
        """Where a step's time goes, from one more run.

        A run of its own, as the timers cost a percent or so; it does not count among the timed ones.
        """
        with profile_steps(self.engine) as profile:
            self.backend.run(requests)
        return {
            "num_steps": len(profile.parts),
            "ms_a_step": profile.milliseconds_a_step(),
            "ms_a_decode_step": profile.milliseconds_a_step(decode_only=True),
            "table": profile.table(),
        }


def make_others(
    args: argparse.Namespace, requests: list[BenchRequest], stack: ExitStack
) -> dict[str, Backend]:
    """Baselines and peers. One Hugging Face model serves both of its backends; `stack` ends vLLM.

    Args:
        args: the command's options; `--backend` names who.
        requests: the workload; vLLM has to know its longest sequence when it starts.
        stack: entered here by backends that must be ended.

    Returns:
        Backends by name, in the order given, ready to run. minivllm is not among them.
    """
    names = [name for name in dict.fromkeys(args.backend) if name != OURS]
    # Loaded only if somebody needs it: the weights a second time are half a gigabyte.
    hf = load_hf_model(args.model, args.dtype, args.device) if {"hf", "hf-continuous"} & set(names) else None
    backends: dict[str, Backend] = {}
    for name in names:
        if name == "hf":
            backends[name] = HfStaticBackend(hf, args.hf_max_batch_size, args.hf_sort_by_length)
        elif name == "hf-continuous":
            backends[name] = HfContinuousBackend(
                hf, args.max_num_seqs, args.max_num_batched_tokens, args.enable_prefix_caching
            )
        elif name == "vllm":
            options = vllm_options(args, resolve_model(args.model), requests)
            backends[name] = stack.enter_context(VllmBackend(Path(args.vllm_env), options))
        else:
            backends[name] = make_baseline(name, args.model, engine_options(args))
    return backends
