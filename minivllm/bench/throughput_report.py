"""What the throughput benchmark makes of its measurements: rates, memory, the bound; how they are printed.

Everything is a dictionary that goes into the JSON file as it is and is printed from there, so a report can be
printed again from the file. Repeated measurements keep all their values::

    rates([10.0, 8.0], requests)["output_tokens_per_second"]
        {"median": 90.0, "min": 80.0, "max": 100.0, "spread": 0.22, "values": [80.0, 100.0]}    800 tokens

Every run has its own rate, and the median is taken of these; a mean of rates would favour the fast runs. A
part whose key is missing (`bound` without minivllm, `profile` without `--profile`) is not printed.

vLLM V1: the second half of `main` in `vllm/benchmarks/throughput.py`, whose `Throughput:` line this prints.
"""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from minivllm.bench.machine import MIB, peak_rss_bytes
from minivllm.bench.matmul_bound import MatmulBound
from minivllm.bench.report import Result, Spread, describe, ratio_text
from minivllm.bench.steps import StepRecord
from minivllm.bench.workloads import BenchRequest
from minivllm.engine import LLMEngine

RATE = "output_tokens_per_second"


def rates(seconds: list[float], requests: list[BenchRequest]) -> dict[str, Any]:
    """Seconds and rates of one backend, each with its spread.

    Args:
        seconds: wall time of each run.
        requests: the workload; `check_run` has seen to it that a run generated exactly its tokens.
    """
    worth = {
        "requests_per_second": len(requests),
        "total_tokens_per_second": sum(request.num_tokens for request in requests),
        RATE: sum(request.output_len for request in requests),
    }
    result = {"seconds": Spread(tuple(seconds)).as_json()}
    return result | {
        name: Spread(tuple(count / each for each in seconds)).as_json() for name, count in worth.items()
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
    """
    report, peak = engine.memory(), peak_rss_bytes()
    written = num_blocks_written * engine.config.block_size * report.bytes_per_token
    over = {
        "peak_over_weights_and_kv_cache": report.weights + report.kv_cache,
        "peak_over_weights_and_kv_written": report.weights + written,
    }
    return {
        "report": str(report),
        **{name: getattr(report, name) for name in ("weights", "kv_cache", "num_blocks", "num_tokens",
        "workspace")}, "num_blocks_written": num_blocks_written, "kv_written": written, "peak_rss": peak,
        **{name: None if peak is None else peak - num_bytes for name, num_bytes in over.items()},
    }  # fmt: skip


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
        # One batch size and not a mean over all, because a share depends on it.
        ((rows, _),) = Counter(step.num_tokens for step in decode).most_common(1)
        same = [step for step in decode if step.num_tokens == rows]
        step_ms, matmul_ms = 1e3 * median(step.seconds for step in same), 1e3 * bound.seconds(same[:1])
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


# -- printing ---------------------------------------------------------------------------------------


def print_report(result: Result) -> None:
    """Everything, in the order of interest; `result` is fresh or read from its JSON file."""
    workload = result["workload"]
    print(describe(result["provenance"]))
    print(
        f"{result['model']}, workload {workload['name']}, seed {workload['seed']}, "
        f"{workload['num_prompts']} requests"
    )
    print(f"Total num prompt tokens:  {workload['num_prompt_tokens']}")
    print(f"Total num output tokens:  {workload['num_output_tokens']}")
    print_rates(result)
    if "bound" in result:
        print_bound(result["bound"])
    if "profile" in result:
        print("\n" + result["profile"]["table"])
    if "memory" in result:
        print_memory(result["memory"])


def print_rates(result: Result) -> None:
    """vLLM's line for each backend, then the comparison by output tokens.

    Not by all tokens: a backend gets through prompt tokens in large matrix products, so a workload of long
    prompts would flatter every total.
    """
    reference, ours = result["reference"], Spread.from_json(result["backends"][result["reference"]][RATE])
    comparisons = []
    for name, entry in result["backends"].items():
        output = Spread.from_json(entry[RATE])
        print(
            f"\n{name}\nThroughput: {entry['requests_per_second']['median']:.2f} requests/s, "
            f"{entry['total_tokens_per_second']['median']:.2f} total tokens/s, "
            f"{output.median:.2f} output tokens/s\n"
            f"  output tokens/s, median [smallest, largest] of {len(output.values)}: {output:.1f}, spread "
            f"{output.relative:.0%}"
        )
        if name != reference:
            # Fewer than all is no bug by itself: rounding may decide a tie the other way (`compare`).
            same, num_prompts = result["same_tokens"][name], result["workload"]["num_prompts"]
            print(f"  the same greedy tokens as {reference} in {same} of {num_prompts} requests")
            comparisons.append(ratio_text(ours, output, reference, name, result["provenance"]))
    if comparisons:
        print("", *comparisons, sep="\n")


def print_bound(bound: dict[str, Any]) -> None:
    """The share of the matrix-product bound; `matmul_bound.py` has the definition.

    The steps of a constant decode batch stand apart: prefill steps have far more rows and hide what decode is
    like.
    """
    print(
        f"\nmatrix-product bound: {bound['matmul_seconds']:.2f} s for {bound['num_steps']} steps, "
        f"{bound['share']:.1%} of the run"
    )
    if (decode := bound["decode"]) is not None:
        print(
            f"  steps with {decode['num_sequences']} sequences decoding: {decode['step_ms']:.1f} ms, matrix "
            f"products {decode['matmul_ms']:.1f} ms, {decode['share']:.1%}\n"
            f"  the same products by plain F.linear: {decode['plain_matmul_ms']:.1f} ms, "
            f"{decode['plain_share']:.1%} of that step"
        )


def print_memory(memory: dict[str, Any]) -> None:
    """Where the memory is, and, on Linux, what the process took at its peak."""
    print(f"\nmemory: {memory['report']}")
    if memory["peak_rss"] is None:
        return
    mib = {name: value / MIB for name, value in memory.items() if name != "report"}
    print(
        f"  peak RSS {mib['peak_rss']:.1f} MiB while running, {mib['peak_rss_loading']:.1f} while loading, "
        f"{mib['resident_before_loading']:.1f} before it (Python and torch)\n"
        f"  while running, beyond weights and KV cache: {mib['peak_over_weights_and_kv_cache']:.1f} MiB\n"
        f"  ({mib['peak_over_weights_and_kv_written']:.1f} MiB if only the {memory['num_blocks_written']} KV "
        f"blocks that were written count, {mib['kv_written']:.1f} MiB)"
    )


def plot(result: Result, path: str) -> None:
    """A waterfall: the backends from the slowest to the fastest, and what each gains on the one before.

    Bars are medians of output tokens per second, with the smallest and largest run as error bars.

    Args:
        result: as for `print_report`.
        path: image file; its ending decides the format.
    """
    # Only here, as in every figure: a study installation may lack matplotlib.
    from minivllm.viz.style import INK, new_figure
    from minivllm.viz.throughput import waterfall_bars

    spreads = {name: Spread.from_json(entry[RATE]) for name, entry in result["backends"].items()}
    spreads = dict(sorted(spreads.items(), key=lambda item: item[1].median))
    figure = new_figure(8, 1.4 + 0.5 * len(spreads))
    axes = figure.subplots()
    waterfall_bars(axes, {name: spread.median for name, spread in spreads.items()})
    for row, spread in enumerate(spreads.values()):
        error = [[spread.median - min(spread.values)], [max(spread.values) - spread.median]]
        # Below the middle of the bar, or it would strike through the number.
        axes.errorbar(spread.median, row + 0.2, xerr=error, color=INK, capsize=3, linewidth=1)
    axes.set_xlabel("output tokens per second")
    workload, where = result["workload"], result["provenance"]
    axes.set_title(
        f"{result['model']}, {workload['num_prompts']} requests ({workload['name']}), "
        f"{where['gpu'] or where['cpu']}, {where['threads']} threads",
        fontsize="small",
    )
    figure.savefig(path)
