"""How the throughput benchmark's result is printed and drawn (`throughput.py` measures it).

The input is the dictionary that `--output-json` writes, so a report can be printed again from the file::

    >>> print_report(json.loads(Path("results/throughput.json").read_text()))

What is printed, in this order: where it ran, the workload, for each backend vLLM's line, the ratios, the
share of the bound, the profile, the memory. A part whose key is missing (`bound` without minivllm, `profile`
without `--profile`) is left out.

vLLM V1: the end of `main` in `vllm/benchmarks/throughput.py`, whose `Throughput:` line this prints.
"""

from __future__ import annotations

from typing import Any

from minivllm.bench.report import MIB, Spread, describe, ratio_text


def spread_of(entry: dict[str, Any]) -> Spread:
    """Back from JSON.

    JSON keeps median, smallest, largest and the values; the values are enough to get the others again.
    """
    return Spread(tuple(entry["values"]))


def print_report(result: dict[str, Any]) -> None:
    """Everything, in the order of interest.

    Args:
        result: what `throughput.run` put together, fresh or read from its JSON file.
    """
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


def print_rates(result: dict[str, Any]) -> None:
    """vLLM's line for each backend, then the comparison.

    `output_tokens_per_second` is compared and not the total: a backend gets through prompt tokens in large
    matrix products, so a workload of long prompts would flatter everybody's total.

    Example: 32 requests, 5,310 prompt and 4,259 output tokens in 30 seconds are 1.07 requests/s, 318.97 total
    and 141.97 output tokens/s.
    """
    num_prompts = result["workload"]["num_prompts"]
    reference = result["reference"]
    for name, entry in result["backends"].items():
        requests, total, output = (
            spread_of(entry[key])
            for key in ("requests_per_second", "total_tokens_per_second", "output_tokens_per_second")
        )
        print(f"\n{name}")
        print(
            f"Throughput: {requests.median:.2f} requests/s, {total.median:.2f} total tokens/s, "
            f"{output.median:.2f} output tokens/s"
        )
        print(f"  output tokens/s, median [smallest, largest] of {len(output.values)}: {output:.1f}")
        # Fewer than all is no bug by itself: rounding may decide a tie the other way (`bench/compare.py`).
        if name != reference:
            same = result["same_tokens"][name]
            print(f"  the same greedy tokens as {reference} in {same} of {num_prompts} requests")
    if len(result["backends"]) > 1:
        print()
    # Ratios of medians. They are printed last, as all rates must be known.
    ours = spread_of(result["backends"][reference]["output_tokens_per_second"])
    for name, entry in result["backends"].items():
        if name != reference:
            print(ratio_text(ours, spread_of(entry["output_tokens_per_second"]), reference, name))


def print_bound(bound: dict[str, Any]) -> None:
    """The share of the matrix-product bound.

    A share of 60% says that 60% of the wall time went to the model's own matrix products; the rest is
    attention, norms, sampling, scheduling, Python. `matmul_bound.py` has the definition.
    """
    print(
        f"\nmatrix-product bound: {bound['matmul_seconds']:.2f} s for {bound['num_steps']} steps, "
        f"{bound['share']:.1%} of the run"
    )
    decode = bound["decode"]
    # The steps of a constant decode batch, apart: prefill steps have far more rows and hide what decode is
    # like. The second line compares with `F.linear` as everybody has it, so that shares of other engines
    # compare.
    if decode is not None:
        print(
            f"  steps with {decode['num_sequences']} sequences decoding: {decode['step_ms']:.1f} ms, matrix "
            f"products {decode['matmul_ms']:.1f} ms, {decode['share']:.1%}\n"
            f"  the same products by plain F.linear: {decode['plain_matmul_ms']:.1f} ms, "
            f"{decode['plain_share']:.1%} of that step"
        )


def print_memory(memory: dict[str, Any]) -> None:
    """Where the memory is, and what the process took at its peak.

    Linux only for the peak: without /proc there is the budget, and nothing was measured.
    """
    print(f"\nmemory: {memory['report']}")
    if memory["peak_rss"] is None:
        return
    # All others are bytes, except for the counts `num_...`, which are not printed from here.
    mib = {name: value / MIB for name, value in memory.items() if name != "report"}
    print(
        f"  peak RSS {mib['peak_rss']:.1f} MiB while running, {mib['peak_rss_loading']:.1f} while loading, "
        f"{mib['resident_before_loading']:.1f} before it (Python and torch)"
    )
    print(
        f"  while running, beyond weights and KV cache: {mib['peak_over_weights_and_kv_cache']:.1f} MiB\n"
        f"  ({mib['peak_over_weights_and_kv_written']:.1f} MiB if only the {memory['num_blocks_written']} KV "
        f"blocks that were written count, {mib['kv_written']:.1f} MiB)"
    )


def plot(result: dict[str, Any], path: str) -> None:
    """A waterfall: the backends from the slowest to the fastest, and what each gains on the one before.

    Bars are medians of output tokens per second, with the smallest and largest run as error bars.

    Args:
        result: as for `print_report`.
        path: image file; its ending decides the format.
    """
    # Only here: a study installation may lack it, and a plain report needs none. `Figure` without pyplot:
    # no window, no global state.
    from matplotlib.figure import Figure

    from minivllm.viz.throughput import waterfall_bars

    spreads = {
        name: spread_of(entry["output_tokens_per_second"]) for name, entry in result["backends"].items()
    }
    # Slowest first, so that each bar shows what the next idea adds to the one before.
    names = sorted(spreads, key=lambda name: spreads[name].median)
    figure = Figure(figsize=(8, 1.4 + 0.5 * len(names)), layout="constrained", dpi=150)
    axes = figure.subplots()
    waterfall_bars(axes, {name: spreads[name].median for name in names})
    for row, name in enumerate(names):
        median, values = spreads[name].median, spreads[name].values
        error = [[median - min(values)], [max(values) - median]]
        # Below the middle of the bar, or it would strike through the number.
        axes.errorbar(median, row + 0.2, xerr=error, color="#222222", capsize=3, linewidth=1)
    axes.set_xlabel("output tokens a second")
    workload, where = result["workload"], result["provenance"]
    axes.set_title(
        f"{result['model']}, {workload['num_prompts']} requests ({workload['name']}), "
        f"{where['gpu'] or where['cpu']}, {where['threads']} threads",
        fontsize="small",
    )
    figure.savefig(path)
