"""What the throughput benchmark makes of its measurements: rates, memory, the bound; how they are printed.

Everything is a dictionary that goes into the JSON file as it is, so a report can be printed again from it::

    rates([10.0, 8.0], requests)["output_tokens_per_second"]
        {"median": 90.0, "min": 80.0, "max": 100.0, "spread": 0.22, "values": [80.0, 100.0]}    800 tokens

Every run has its own rate, and the median is taken of these. A part whose key is missing is not printed. vLLM
V1: `main` in `vllm/benchmarks/throughput.py`, whose `Throughput:` line this prints.
"""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from minivllm.bench import steady
from minivllm.bench.options import workload_text
from minivllm.bench.report import (
    MIB,
    Result,
    Spread,
    describe,
    memory_bytes,
    paired_ratio,
    ratio_text,
    why_no_ratio,
)
from minivllm.bench.steps import MatmulBound, TimedStep
from minivllm.bench.workloads import BenchRequest
from minivllm.engine import LLMEngine

RATE = "output_tokens_per_second"


def rates(seconds: list[float], requests: list[BenchRequest]) -> dict[str, Any]:
    """Seconds and rates of one backend, each with its spread, from the wall time of each run."""
    worth = {
        "requests_per_second": len(requests),
        "total_tokens_per_second": sum(request.num_tokens for request in requests),
        RATE: sum(request.output_len for request in requests),
    }
    result = {"seconds": Spread(tuple(seconds)).as_json()}
    return result | {
        name: Spread(tuple(count / each for each in seconds)).as_json() for name, count in worth.items()
    }


def memory_of(engine: LLMEngine, num_blocks_written: int) -> dict[str, Any]:
    """Bytes by purpose, and the process's peak beyond them: with the whole KV cache, which counts where its
    zeros are real memory, and with the blocks written, where zeros come lazily.
    """
    report, peak = engine.memory(), memory_bytes("VmHWM")
    written = num_blocks_written * engine.config.block_size * report.bytes_per_token
    fields = ("weights", "kv_cache", "num_blocks", "num_tokens", "workspace")
    result = {name: getattr(report, name) for name in fields} | {"report": str(report), "peak_rss": peak}
    result |= {"num_blocks_written": num_blocks_written, "kv_written": written}
    for name, kv in (("kv_cache", report.kv_cache), ("kv_written", written)):
        over = None if peak is None else peak - report.weights - kv
        result[f"peak_over_weights_and_{name}"] = over
    return result


def bound_of(bound: MatmulBound, runs: list[list[TimedStep]], seconds: list[float]) -> dict[str, Any]:
    """Share of the bound in `runs` of so many `seconds`; `decode` is the most frequent decode batch."""
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
        ((rows, _),) = Counter(step.num_tokens for step in decode).most_common(1)
        same = [step for step in decode if step.num_tokens == rows]
        times = {
            "step": median(step.seconds for step in same),
            "matmul": bound.seconds(same[:1]),
            "plain_matmul": bound.plain_seconds(rows),
        }
        result["decode"] = {
            "num_sequences": rows,
            **{f"{name}_ms": 1e3 * value for name, value in times.items()},
            "share": times["matmul"] / times["step"],
            "plain_share": times["plain_matmul"] / times["step"],
        }
    return result


def print_report(result: Result) -> None:
    """Everything, in the order of interest; `result` is fresh or read from its JSON file."""
    workload = result["workload"]
    print(describe(result["provenance"]))
    if partial := result.get("partial"):
        print(
            f"PARTIAL: written when {partial['rounds']} of {partial['asked']} rounds counted, before the end"
        )
    print(workload_text(result))
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
    """vLLM's line for each backend, then the comparison by output tokens; prompts are cheap."""
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
            # Fewer than all is not a bug by itself: rounding may decide a tie the other way (`compare`).
            same, num_prompts = result["same_tokens"][name], result["workload"]["num_prompts"]
            print(f"  the same greedy tokens as {reference} in {same} of {num_prompts} requests")
            comparisons.append(ratio_text(ours, output, reference, name, result["provenance"]))
    for name, error in result.get("failed", {}).items():
        print(f"\n{name} dropped out, its rounds do not count: {error}")
    if comparisons:
        print("", *comparisons, sep="\n")
    if "memory_bandwidth" in result:  # files from before it was measured have none
        print(f"\n{steady.describe(result['memory_bandwidth'])}")


def print_bound(bound: dict[str, Any]) -> None:
    """The share of the bound; decode steps stand apart, because prefill has far more rows."""
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
    """Where the memory is, and, on Linux, what the process took at its peak.

    Linux gives a page of memory when it is first written, so blocks that no request reached took none, and
    only the blocks that were written are taken off.
    """
    print(f"\nmemory: {memory['report']}")
    if memory["peak_rss"] is None:
        return
    mib = {name: value / MIB for name, value in memory.items() if name != "report"}
    print(
        f"  peak RSS {mib['peak_rss']:.1f} MiB while running, {mib['peak_rss_loading']:.1f} while loading, "
        f"{mib['resident_before_loading']:.1f} before it (Python and torch)\n"
        f"  the {memory['num_blocks_written']} blocks of the KV cache that were written take "
        f"{mib['kv_written']:.1f} MiB; beyond them and the weights: "
        f"{mib['peak_over_weights_and_kv_written']:.1f} MiB"
    )


# The four systems that differ in two ideas, by memory and by batching.
SQUARE = {
    "static-contiguous": ("contiguous memory", "static batches"),
    "orca-max": ("contiguous memory", "continuous batching"),
    "static-paged": ("paged memory", "static batches"),
    "minivllm": ("paged memory", "continuous batching"),
}


def plot(result: Result, path: str) -> None:
    """Every round of every backend: as a square if they are the 2x2 of the two ideas, else as bars.

    An arrow of the square carries the median ratio of the rounds, and no number where none may be quoted.
    """
    # Imported here, as in every figure: a study installation may lack matplotlib.
    from minivllm.viz.rates import rate_bars, rate_square

    where, workload = result["provenance"], result["workload"]
    rounds = {name: entry[RATE]["values"] for name, entry in result["backends"].items()}

    def factor(before: list[float], after: list[float]) -> str:
        old, new = Spread(tuple(before)), Spread(tuple(after))
        no_ratio = why_no_ratio(where, {"before": old, "after": new})
        return "no ratio" if no_ratio else f"x {paired_ratio(new, old).median:.2f}"

    if set(rounds) == set(SQUARE):
        corners = {corner: rounds[name] for name, corner in SQUARE.items()}
        figure = rate_square(corners, factor, "output tokens per second")
    else:
        figure = rate_bars(rounds, "output tokens per second")
    figure.supxlabel(
        f"{result['model']}, {workload['num_prompts']} requests ({workload['name']}), "
        f"{where['gpu'] or where['cpu']}, {where['threads']} threads; points: the rounds",
        fontsize="small",
    )
    figure.savefig(path)
