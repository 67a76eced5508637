"""What the throughput benchmark makes of its measurements: rates, memory, the share of the bound.

Everything is a dictionary that goes into the JSON file as it is and is printed from there
(`throughput_report.py`). Repeated measurements keep all their values::

    rates([10.0, 8.0], requests)["output_tokens_per_second"]
        {"median": 90.0, "min": 80.0, "max": 100.0, "values": [80.0, 100.0]}       for 800 output tokens

Every run has its own rate, and the median is taken of these: for an odd number of runs the rate of the median
time. A mean of rates would favour the fast runs.

vLLM V1: the second half of `main` in `vllm/benchmarks/throughput.py`.
"""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from minivllm.bench.matmul_bound import MatmulBound
from minivllm.bench.report import Spread, peak_rss_bytes
from minivllm.bench.steps import StepRecord
from minivllm.bench.workloads import BenchRequest
from minivllm.engine import LLMEngine


def rates(seconds: list[float], requests: list[BenchRequest]) -> dict[str, Any]:
    """Seconds and rates of one backend, each with its spread.

    Args:
        seconds: wall time of each run.
        requests: the workload, which says how many tokens a run is worth. `check_run` has seen to it that
            every backend generated exactly these.

    Example, 800 output tokens, runs of 10 and 8 seconds: 80 and 100 output tokens/s, median 90.
    """
    num_output = sum(request.output_len for request in requests)
    num_total = sum(request.num_tokens for request in requests)
    return {
        "seconds": Spread(tuple(seconds)).as_json(),
        "requests_per_second": Spread(tuple(len(requests) / each for each in seconds)).as_json(),
        "total_tokens_per_second": Spread(tuple(num_total / each for each in seconds)).as_json(),
        "output_tokens_per_second": Spread(tuple(num_output / each for each in seconds)).as_json(),
    }


def same_tokens(tokens: list[list[int]], reference: list[list[int]]) -> int:
    """Requests whose output tokens are all the same in both.

    All or nothing: after the first different token the texts go their own ways, and to count equal tokens
    behind it would count accidents.
    """
    return sum(mine == other for mine, other in zip(tokens, reference, strict=True))


def memory_of(engine: LLMEngine, num_blocks_written: int) -> dict[str, Any]:
    """Bytes by purpose, and what the process took beyond them at its peak since `reset_peak_rss`.

    Twice: beyond the whole KV cache, which is what counts where its zeros are real memory, and beyond the
    blocks that were written, where the system hands out zeros lazily.

    Args:
        engine: after the run; its `memory()` says what it has set aside.
        num_blocks_written: different KV blocks that the run wrote to.

    Returns:
        Bytes, but for `report` (text) and the three counts `num_...`. The peaks are None where the system
        does not tell them.

    Example: 100 blocks written, 16 tokens each, SmolLM2 in float32 at 46,080 bytes a token (30 layers x 2 x 3
    heads x 64 x 4 bytes) are 73,728,000 bytes, whatever `--num-blocks` reserved.
    """
    report = engine.memory()
    written = num_blocks_written * engine.config.block_size * report.bytes_per_token
    peak = peak_rss_bytes()

    def beyond(num_bytes: int) -> int | None:
        return None if peak is None else peak - num_bytes

    return {
        "report": str(report),
        "weights": report.weights,
        "kv_cache": report.kv_cache,
        "num_blocks": report.num_blocks,
        "num_tokens": report.num_tokens,
        "workspace": report.workspace,
        "num_blocks_written": num_blocks_written,
        "kv_written": written,
        "peak_rss": peak,
        "peak_over_weights_and_kv_cache": beyond(report.weights + report.kv_cache),
        "peak_over_weights_and_kv_written": beyond(report.weights + written),
    }


def bound_of(bound: MatmulBound, runs: list[list[StepRecord]], seconds: list[float]) -> dict[str, Any]:
    """Share of the bound over the whole run, and in the steps of the most frequent decode batch.

    Args:
        bound: has measured the products of all row counts, once after each run.
        runs: the steps of each timed run.
        seconds: wall time of each timed run.

    Returns:
        The whole run's share, the measured tables in milliseconds by number of rows, and under `decode` the
        most frequent batch of steps that only decode (None if there was none).
    """
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
        # The commonest number of sequences: with `--num-running 32` that is 32, in a mixed workload whatever
        # ran longest. One batch size and not a mean over all, because a share depends on it.
        (rows, _), *_ = Counter(step.num_tokens for step in decode).most_common(1)
        same = [step for step in decode if step.num_tokens == rows]
        step_ms, matmul_ms = 1e3 * median(s.seconds for s in same), 1e3 * bound.seconds(same[:1])
        plain_ms = 1e3 * bound.plain_seconds(rows)
        result["decode"] = {
            "num_sequences": rows,
            "step_ms": step_ms,
            "matmul_ms": matmul_ms,
            "share": matmul_ms / step_ms,
            "plain_matmul_ms": plain_ms,
            "plain_share": plain_ms / step_ms,
        }
    return result
