"""Throughput: tokens per second of minivllm, of its peers and of the baselines, on the same requests.

    $ python -m minivllm bench throughput                                    32 requests, three backends
    $ python -m minivllm bench throughput --num-running 32 --backend minivllm --profile --sampling full
    $ python -m minivllm bench throughput --max-model-len 512 --num-blocks 512 \\
          --backend static-contiguous orca-max static-paged minivllm         what each idea is worth

It prints rates, how many requests got the same greedy tokens, the share of the matrix-product bound, with
`--profile` where the rest of a step went, and the memory. `--num-running N` keeps exactly N sequences
running. All backends take turns::

    minivllm  matrix products  hf  hf-continuous | minivllm  matrix products  hf  hf-continuous | ...
    '---- a round: each runs all requests once --'

A round counts if the machine's memory was as fast as in the others (`steady.py`). The file is written after
each round, so that a benchmark which is stopped loses one round, and says that it is partial. A backend other
than minivllm that raises drops out alone: file and report name it, and the exit status is 1.

vLLM V1: `vllm/benchmarks/throughput.py`.
"""

from __future__ import annotations

import argparse
import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from minivllm.bench import backends, options, report, steady, steps, throughput_report
from minivllm.bench.backends import BASELINES, OURS, SAMPLING, Backend, BackendRun, make_baseline
from minivllm.bench.peers import PEERS, PeerBackend, install
from minivllm.bench.report import Result
from minivllm.bench.steps import MatmulBound
from minivllm.bench.workloads import BenchRequest
from minivllm.engine import choose_device

HF, HF_CONTINUOUS = "hf", "hf-continuous"
BACKENDS = (*BASELINES, HF, HF_CONTINUOUS, *PEERS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared options, which backends, how often, and what the peers are allowed."""
    options.add_workload_arguments(parser)
    options.add_engine_arguments(parser)
    options.add_output_arguments(parser, plot=True)
    add = parser.add_argument
    add("--backend", nargs="+", choices=BACKENDS, default=[OURS, HF, HF_CONTINUOUS],
        help="what generates; ratios are to minivllm")  # fmt: skip
    options.add_counts(parser, repeats=(3, "rounds"), hf_max_batch_size=(8, "static batches of hf"))
    text = "batch hf by true output length, which no server knows: the best static batching can do"
    add("--hf-sort-by-length", action="store_true", help=text)
    text = "N requests of --input-len and --output-len, all at once"
    add("--num-running", type=options.positive_int, help=text)
    text = "full: penalties, top_p, log-probabilities; minivllm alone, the others run greedy only"
    add("--sampling", choices=SAMPLING, default="greedy", help=text)
    add("--profile", action="store_true", help="where a step's time goes, in an extra run")
    for name in PEERS:
        add(f"--{name}-env", type=Path, default=Path(f".venv-{name}"), help=f"environment of {name}")
    add("--install", action="store_true", help="make the environments of peers that are missing")
    add("--install-only", action="store_true", help="make them, measure nothing")
    add("--pip-index-url", help="where to get the peers' torch from, e.g. its index of CPU wheels")


def run(args: argparse.Namespace) -> int:
    """Install, measure, report; -> 0, or 1 if a backend dropped out. ValueError: options that do not go
    together.
    """
    installed = [
        install(peer, getattr(args, f"{name}_env"), args.pip_index_url)
        for name, peer in PEERS.items()
        if name in args.backend and (args.install or args.install_only)
    ]
    if args.install_only:
        return 0
    if any(installed):  # no ratio is quoted of a busy machine, and installing has made it one
        report.wait_for_calm()
    if args.sampling != "greedy" and set(args.backend) != {OURS}:
        raise ValueError("--sampling full needs --backend minivllm alone: the others run greedy only.")
    if args.num_running:
        args.workload, args.num_prompts, args.max_num_seqs = "fixed", args.num_running, args.num_running
    requests = options.requests_from(args)
    workload = options.describe_workload(args, requests) | {"sampling": SAMPLING[args.sampling]}
    result = report.new_result("throughput", model=args.model, workload=workload)

    def save(so_far: Result) -> None:
        if args.output_json:
            report.write_json(args.output_json, result | so_far)

    measured = measure(args, requests, save)
    report.finish(args, result | measured, throughput_report.print_report, throughput_report.plot)
    return int("failed" in measured)


def measure(
    args: argparse.Namespace, requests: list[BenchRequest], save: Callable[[Result], None] = lambda _: None
) -> Result:
    """Set up, warm up, take turns; everything that `throughput_report.py` prints.

    `save` gets what is known after each round, marked as partial. Only what minivllm raises is raised, and a
    ValueError of the options; RuntimeError if no backend is left.
    """
    names = list(dict.fromkeys(args.backend))  # without duplicates, in the order given
    # What each backend runs once before its clock counts: every prompt, and a few decoding steps.
    warm_up = [replace(request, output_len=min(16, request.output_len)) for request in requests]
    failed: dict[str, str] = {}  # backend -> what it raised

    def timed(name: str, backend: Backend) -> BackendRun:
        with dropping(name, failed):
            run = backend.run(requests)
            backends.check_run(name, requests, run)  # wrong lengths end it before they become a rate
            return run

    with ExitStack() as stack:  # a peer's process must end whatever happens
        # Ours first and alone, so that the peak of the process's memory is its own.
        ours = OurRuns(args, requests) if OURS in names else None
        others = make_others(args, requests, stack, failed)
        for name, backend in others.items():
            with suppress(steady.Dropout), dropping(name, failed):
                backend.run(warm_up)
        turns = {name: partial(timed, name, others[name]) for name in others if name not in failed}
        if ours:
            turns[OURS] = partial(ours.run, requests)
        turns = {name: turns[name] for name in names if name in turns}
        memory = {"memory": ours.memory} if ours else {}

        def save_round(rounds: steady.SteadyRounds[BackendRun]) -> None:
            mark = {"partial": {"rounds": len(rounds.kept), "asked": args.repeats}}
            save(mark | memory | comparison(rounds, requests, failed))

        bandwidth = steady.bandwidth_meter(choose_device(args.device))
        rounds = steady.in_steady_turns(turns, args.repeats, bandwidth, save_round)

    result = comparison(rounds, requests, failed) | memory
    if ours:
        ours.keep(rounds.kept)
        seconds = [run.seconds for run in rounds.results[OURS]]
        result["bound"] = throughput_report.bound_of(ours.bound, ours.steps, seconds)
        if args.profile:
            result["profile"] = ours.profile(requests)
    return result


@contextmanager
def dropping(name: str, failed: dict[str, str], unless: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What a backend raises is noted in `failed` and becomes a `Dropout`, unless it is one of these."""
    try:
        yield
    except unless:
        raise
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {str(error)[:200]}"
        print(f"{name} failed, the others go on. {type(error).__name__}: {error}", flush=True)
        raise steady.Dropout(name) from error


def comparison(
    rounds: steady.SteadyRounds[BackendRun], requests: list[BenchRequest], failed: dict[str, str]
) -> Result:
    """Rates and equal texts of the backends that are left, and which failed. RuntimeError: none is left."""
    if not rounds.results:
        raise RuntimeError(f"every backend failed: {failed}")
    reference = OURS if OURS in rounds.results else next(iter(rounds.results))
    seconds = {name: [run.seconds for run in runs] for name, runs in rounds.results.items()}
    # Greedy text is the same in each round.
    tokens = {name: runs[-1].token_ids for name, runs in rounds.results.items()}
    # All tokens of a request or none: behind the first difference, equal tokens are accidents.
    same = {name: sum(map(operator.eq, each, tokens[reference])) for name, each in tokens.items()}
    rates = {name: throughput_report.rates(each, requests) for name, each in seconds.items()}
    result: Result = {"reference": reference, "backends": rates, "same_tokens": same}
    result["memory_bandwidth"] = rounds.as_json()
    return result | ({"failed": dict(failed)} if failed else {})


class OurRuns:
    """minivllm as a backend of which more is recorded: the memory of one run before any timing, the steps of
    each timed run, and after each the bound, the matrix products at its row counts.
    """

    def __init__(self, args: argparse.Namespace, requests: list[BenchRequest]) -> None:
        # Three moments of the memory: before the model, the peak of loading it, the peak of running.
        before = report.memory_bytes("VmRSS")
        report.reset_peak_rss()
        self.backend = make_baseline(OURS, args.model, options.engine_options(args), args.sampling)
        self.engine = self.backend.llm.llm_engine
        peak_loading = report.memory_bytes("VmHWM")
        report.reset_peak_rss()
        with steps.record_steps(self.engine) as recorded:
            self.backend.run(requests)
        self.memory = throughput_report.memory_of(self.engine, len(recorded.blocks))
        self.memory |= {"resident_before_loading": before, "peak_rss_loading": peak_loading}
        # Which row counts occur is known only now. They repeat in every run, as all lengths are fixed.
        self.bound = MatmulBound(self.engine.runner.model, recorded.records)
        self.steps: list[list[steps.TimedStep]] = []

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """A run, and the matrix products right after it: a slow machine slows both, and their ratio stays."""
        with steps.record_steps(self.engine) as recorded:
            timed = self.backend.run(requests)
        backends.check_run(OURS, requests, timed)
        self.steps.append(recorded.records)
        self.bound.measure()
        return timed

    def keep(self, rounds: list[int]) -> None:
        """Forget all timed runs but these."""
        self.steps = [self.steps[i] for i in rounds]
        self.bound.keep(rounds)

    def profile(self, requests: list[BenchRequest]) -> dict[str, Any]:
        """Where a step's time goes, from one more run, as the timers cost a percent or so."""
        with steps.profile_steps(self.engine) as profile:
            self.backend.run(requests)
        decode = [record for record in profile.records if record.is_decode]
        return {
            "num_steps": len(profile.records),
            "ms_a_step": steps.milliseconds_per_step(profile.records),
            "ms_a_decode_step": steps.milliseconds_per_step(decode),
            "table": steps.profile_table(profile.records),
        }


def make_others(
    args: argparse.Namespace, requests: list[BenchRequest], stack: ExitStack, failed: dict[str, str]
) -> dict[str, Backend]:
    """Baselines and peers, ready to run; `stack` ends the peers' processes.

    One that cannot be made is noted in `failed`. But a ValueError is raised: that is of an option, and says
    what to do.
    """
    # One model for both of its backends, and only if one was asked for: it is the weights a second time.
    load_hf = cache(partial(backends.load_hf_model, args.model, args.dtype, args.device))
    limits = args.max_num_seqs, args.max_num_batched_tokens, args.enable_prefix_caching

    def make(name: str) -> Backend:
        if name == HF:
            return backends.HfStaticBackend(load_hf(), args.hf_max_batch_size, args.hf_sort_by_length)
        if name == HF_CONTINUOUS:
            return backends.HfContinuousBackend(load_hf(), *limits)
        if name in PEERS:
            env = getattr(args, f"{name}_env")
            peer = PeerBackend(PEERS[name], env, PEERS[name].options(args, env, requests))
            return stack.enter_context(peer)
        return make_baseline(name, args.model, options.engine_options(args))

    others: dict[str, Backend] = {}
    for name in dict.fromkeys(args.backend):
        if name != OURS:
            with suppress(steady.Dropout), dropping(name, failed, unless=(ValueError,)):
                others[name] = make(name)
    return others
