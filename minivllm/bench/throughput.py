"""Throughput: tokens per second of minivllm, of Hugging Face and of the baselines, on the same requests.

    $ python -m minivllm bench throughput                                    32 requests, three backends
    $ python -m minivllm bench throughput --num-running 32 --backend minivllm --profile
    $ python -m minivllm bench throughput --max-model-len 512 --num-blocks 512 \\
          --backend static-contiguous orca-max static-paged minivllm         what each idea is worth

All backends live in one process and take turns, `--repeats` times. What is printed:

- `Throughput: X requests/s, Y total tokens/s, Z output tokens/s` for each, as vLLM prints it. Total counts
  prompt tokens too, which are cheap; output tokens/s is the honest one.
- how many requests got the same greedy tokens from everybody (floats may break a tie differently);
- the share of the matrix-product bound (`matmul_bound.py`), and with `--profile` where the rest went;
- the memory: weights, KV blocks, workspace, and what else the process took at its peak.

`--num-running N` holds exactly N sequences running: N requests of one size. vLLM V1:
`vllm/benchmarks/throughput.py`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from statistics import median
from typing import Any

from minivllm.bench.backends import (
    BACKENDS,
    BASELINES,
    Backend,
    MinivllmBackend,
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
from minivllm.bench.report import Spread, peak_rss_bytes, provenance, resident_bytes, write_json
from minivllm.bench.steps import StepRecord, profile_steps, record_steps
from minivllm.bench.throughput_report import OURS, plot, print_report
from minivllm.bench.workloads import BenchRequest
from minivllm.model_loader import load_tokenizer, resolve_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
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
    parser.add_argument("--profile", action="store_true", help="where a step's time goes, in an extra run")


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    if args.num_running is not None:
        args.workload, args.num_prompts, args.max_num_seqs = "fixed", args.num_running, args.num_running
    folder = resolve_model(args.model)
    requests = requests_from(
        args,
        vocab_size_of(folder),
        lambda text: load_tokenizer(folder).encode(text, add_special_tokens=False),
    )
    result: dict[str, Any] = {
        "benchmark": "throughput",
        "provenance": provenance(),
        "model": args.model,
        "workload": describe_workload(args, requests),
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
    """Set up, warm up, take turns; everything the report needs."""
    result: dict[str, Any] = {}
    names = list(dict.fromkeys(args.backend))
    backends: dict[str, Backend] = {}
    bound = None
    if OURS in names:
        # First and alone, so that the peak of the process's memory is its own.
        before = resident_bytes()
        ours = backends[OURS] = make_baseline(OURS, args.model, engine_options(args))
        with record_steps(ours.llm.llm_engine) as steps:
            ours.run(requests)
        result["memory"] = memory_of(ours, len(steps.blocks), before)
        bound = MatmulBound(ours.llm.llm_engine.runner.model, steps.records)
    backends |= make_others(args, [name for name in names if name != OURS])
    warm_up = [BenchRequest(request.prompt_token_ids[:16], 4) for request in requests[:4]]
    for name, backend in backends.items():
        if name != OURS:
            backend.run(warm_up)

    seconds: dict[str, list[float]] = {name: [] for name in names}
    tokens: dict[str, list[list[int]]] = {}
    our_steps: list[list[StepRecord]] = []
    for _ in range(args.repeats):
        for name in names:
            if name == OURS:
                with record_steps(backends[name].llm.llm_engine) as steps:
                    timed = backends[name].run(requests)
                our_steps.append(steps.records)
                bound.measure()
            else:
                timed = backends[name].run(requests)
            check_run(name, requests, timed)
            seconds[name].append(timed.seconds)
            tokens[name] = timed.token_ids

    result["backends"] = {name: rates(seconds[name], requests) for name in names}
    result["same_tokens"] = {name: same_tokens(tokens[name], tokens[names[0]]) for name in names}
    if bound is not None:
        result["bound"] = bound_of(bound, our_steps, seconds[OURS])
        if args.profile:
            with profile_steps(backends[OURS].llm.llm_engine) as profile:
                backends[OURS].run(requests)
            result["profile"] = {"num_steps": profile.num_steps, "ms_a_step": profile.milliseconds_a_step()}
            result["profile"]["table"] = profile.table()
    return result


def make_others(args: argparse.Namespace, names: list[str]) -> dict[str, Backend]:
    """Baselines and peers. One Hugging Face model serves both of its backends."""
    hf = load_hf_model(args.model, args.dtype, args.device) if {"hf", "hf-continuous"} & set(names) else None
    backends: dict[str, Backend] = {}
    for name in names:
        if name in BASELINES:
            backends[name] = make_baseline(name, args.model, engine_options(args))
        elif name == "hf":
            backends[name] = HfStaticBackend(hf, args.hf_max_batch_size, args.hf_sort_by_length)
        else:
            backends[name] = HfContinuousBackend(
                hf, args.max_num_seqs, args.max_num_batched_tokens, args.enable_prefix_caching
            )
    return backends


def rates(seconds: list[float], requests: list[BenchRequest]) -> dict[str, Any]:
    """Seconds and rates of one backend, each with its spread."""
    num_output = sum(request.output_len for request in requests)
    num_total = sum(request.num_tokens for request in requests)
    return {
        "seconds": Spread(tuple(seconds)).as_json(),
        "requests_per_second": Spread(tuple(len(requests) / each for each in seconds)).as_json(),
        "total_tokens_per_second": Spread(tuple(num_total / each for each in seconds)).as_json(),
        "output_tokens_per_second": Spread(tuple(num_output / each for each in seconds)).as_json(),
    }


def same_tokens(tokens: list[list[int]], reference: list[list[int]]) -> int:
    """Requests whose output tokens are all the same in both."""
    return sum(mine == other for mine, other in zip(tokens, reference, strict=True))


def memory_of(backend: MinivllmBackend, num_blocks_written: int, before: int | None) -> dict[str, Any]:
    """Bytes by purpose. A KV block that was never written takes no memory on a CPU: fresh zeros are lazy."""
    engine = backend.llm.llm_engine
    report = engine.memory()
    written = num_blocks_written * engine.config.block_size * report.bytes_per_token
    peak = peak_rss_bytes()
    return {
        "report": str(report),
        "weights": report.weights,
        "kv_cache": report.kv_cache,
        "num_blocks": report.num_blocks,
        "num_tokens": report.num_tokens,
        "workspace": report.workspace,
        "num_blocks_written": num_blocks_written,
        "kv_written": written,
        "resident_before_loading": before,
        "peak_rss": peak,
        "peak_over_weights_and_kv": None if peak is None else peak - report.weights - written,
    }


def bound_of(bound: MatmulBound, runs: list[list[StepRecord]], seconds: list[float]) -> dict[str, Any]:
    """Share of the bound over the whole run, and in the steps of the most frequent decode batch."""
    layers, head = bound.tables()
    total = median(bound.seconds(steps) for steps in runs)
    result: dict[str, Any] = {
        "matmul_seconds": total,
        "share": total / median(seconds),
        "num_steps": len(runs[-1]),
        "layers_ms": {rows: 1e3 * value for rows, value in layers.items()},
        "head_ms": {rows: 1e3 * value for rows, value in head.items()},
        "decode": None,
    }
    decode = [step for steps in runs for step in steps if step.is_decode]
    if decode:
        (rows, _), *_ = Counter(step.num_tokens for step in decode).most_common(1)
        same = [step for step in decode if step.num_tokens == rows]
        step_ms, matmul_ms = 1e3 * median(s.seconds for s in same), 1e3 * bound.seconds(same[:1])
        result["decode"] = {
            "num_sequences": rows,
            "step_ms": step_ms,
            "matmul_ms": matmul_ms,
            "share": matmul_ms / step_ms,
        }
    return result
