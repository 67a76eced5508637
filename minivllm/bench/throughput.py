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

A round counts if the machine's memory was as fast as in the others (`steady.py`).

vLLM V1: `vllm/benchmarks/throughput.py`.
"""

from __future__ import annotations

import argparse
import operator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
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
    """Install, measure, report; -> the exit status, 0. ValueError: options that do not go together."""
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
    result |= measure(args, requests)
    return report.finish(args, result, throughput_report.print_report, throughput_report.plot)


def measure(args: argparse.Namespace, requests: list[BenchRequest]) -> Result:
    """Set up, warm up, take turns; everything that `throughput_report.py` prints."""
    names = list(dict.fromkeys(args.backend))  # without duplicates, in the order given
    # What each backend runs once before its clock counts: every prompt, and a few decoding steps.
    warm_up = [replace(request, output_len=min(16, request.output_len)) for request in requests]

    def checked(name: str, backend: Backend) -> BackendRun:
        timed = backend.run(requests)
        backends.check_run(name, requests, timed)  # wrong lengths end it before they become a rate
        return timed

    with ExitStack() as stack:  # a peer's process must end whatever happens
        # Ours first and alone, so that the peak of the process's memory is its own.
        ours = OurRuns(args, requests) if OURS in names else None
        others = make_others(args, requests, stack)
        for backend in others.values():
            backend.run(warm_up)
        turns = {name: partial(checked, name, others.get(name, ours)) for name in names}
        bandwidth = steady.bandwidth_meter(choose_device(args.device))
        rounds = steady.in_steady_turns(turns, args.repeats, bandwidth)

    reference = OURS if ours else names[0]
    seconds = {name: [each.seconds for each in rounds.results[name]] for name in names}
    tokens = {name: rounds.results[name][-1].token_ids for name in names}  # greedy text: always the same
    # All tokens of a request or none: behind the first difference, equal tokens are accidents.
    same = {name: sum(map(operator.eq, tokens[name], tokens[reference])) for name in names}
    rates = {name: throughput_report.rates(seconds[name], requests) for name in names}
    result: Result = {"reference": reference, "backends": rates, "same_tokens": same}
    result["memory_bandwidth"] = rounds.as_json()
    if ours:
        ours.keep(rounds.kept)
        bound = throughput_report.bound_of(ours.bound, ours.steps, seconds[OURS])
        result |= {"memory": ours.memory, "bound": bound}
    if ours and args.profile:
        result["profile"] = ours.profile(requests)
    return result


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
    args: argparse.Namespace, requests: list[BenchRequest], stack: ExitStack
) -> dict[str, Backend]:
    """Baselines and peers, ready to run; `stack` ends the peers' processes."""
    names = [name for name in dict.fromkeys(args.backend) if name != OURS]
    # One model for both of its backends, and only if one was asked for: it is the weights a second time.
    hf = None
    if {HF, HF_CONTINUOUS} & set(names):
        hf = backends.load_hf_model(args.model, args.dtype, args.device)
    limits = args.max_num_seqs, args.max_num_batched_tokens, args.enable_prefix_caching
    others: dict[str, Backend] = {}
    for name in names:
        if name == HF:
            others[name] = backends.HfStaticBackend(hf, args.hf_max_batch_size, args.hf_sort_by_length)
        elif name == HF_CONTINUOUS:
            others[name] = backends.HfContinuousBackend(hf, *limits)
        elif name in PEERS:
            env = getattr(args, f"{name}_env")
            peer = PeerBackend(PEERS[name], env, PEERS[name].options(args, env, requests))
            others[name] = stack.enter_context(peer)
        else:
            others[name] = make_baseline(name, args.model, options.engine_options(args))
    return others
