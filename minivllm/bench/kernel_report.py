"""The results of `bench kernels` for people: the table, the marks, what paging cost, the figure.

Everything is computed from the JSON that the benchmark wrote, so a page can be made where no GPU is::

    mark                           asked   reached
    llama-3.1-8b B64 n4096           85%     86.9%      percent of a device-to-device copy
    split-KV, B1 n16384               4x     4.80x      times the kernel without splits

Without results the marks say "not measured". "What paging cost" is two ratios of times: against the same
kernel on contiguous K and V (one block per sequence), where only the order in memory differs; and against
torch's own attention, the fastest contiguous kernel at hand, which is what the paper compares with (20 to 26%
more time, section 7.1).
"""

from __future__ import annotations

from typing import Any

from minivllm.bench.kernel_contenders import ONE_BLOCK, OURS, SDPA
from minivllm.bench.kernel_shapes import MARKS, Measurement
from minivllm.bench.report import Result, Spread, describe, table

SPLIT_SHAPE, SPLIT_MARK = "llama-3.1-8b B1 n16384", 4.0
"""One long sequence: what split-KV is for."""
NOT_MEASURED = "not measured"


def measurements_of(result: Result) -> list[Measurement]:
    """The measurements in a result file."""
    return [Measurement(**record) for record in result["results"]]


def print_report(result: Result) -> None:
    """What was measured where, the table, then the marks and what paging cost."""
    where, rate, measurements = result["provenance"], result["copy_bytes_per_second"], measurements_of(result)
    print(f"{describe(where)}\ndriver {where['driver']}, triton {where['versions'].get('triton')}")
    print(f"copy {rate / 1e9:.0f} GB/s (read and written), median of {result['method']['repeats']}")
    floor = Spread(tuple(result["floor_microseconds"]))
    print(f"a kernel with nothing to do takes {floor.median:.1f} us; no time below is without it\n")
    print(measurement_table(measurements, rate))
    print(f"\n{marks_table(result)}")
    if costs := paging_costs(measurements):
        print("\nwhat paging costs, time of the paged kernel over contiguous K and V")
        for shape, ratios in costs.items():
            texts = [f"{ratio - 1:+.0%} against {name}" for name, ratio in ratios.items()]
            print(f"  {shape:<40}{', '.join(texts)}")


def measurement_table(measurements: list[Measurement], bytes_per_second: float) -> str:
    """One line per measurement, with the share of a copy of `bytes_per_second`, or the rate of a prefill."""
    rows: list[tuple[str, ...]] = [("shape", "contender", "us", "of a copy", "TFLOP/s", "mark")]
    for m in measurements:
        mark = f"{MARKS[m.shape]:.0f}%" if m.contender == OURS and m.shape in MARKS else ""
        is_prefill = m.kind == "prefill"
        share = "" if is_prefill else f"{m.percent_of(bytes_per_second):.1f}%"
        flops = f"{m.work / m.median / 1e6:.1f}" if is_prefill else ""
        rows.append((m.shape, m.contender, f"{m.median:.1f}", share, flops, mark))
    return table(rows)


def find(measurements: list[Measurement], shape: str, contender: str = OURS) -> Measurement | None:
    """The measurement of one contender on one shape; None if there is none."""
    return next((m for m in measurements if (m.shape, m.contender) == (shape, contender)), None)


def marks_table(result: Result | None, more: tuple[tuple[str, str, str], ...] = ()) -> str:
    """Each mark of this project beside what was reached; `None` where there is no result at all.

    Args:
        result: of `bench kernels`.
        more: further lines: mark, what is asked for, what was reached.
    """
    measurements = measurements_of(result) if result else []
    rows = [("mark", "asked", "reached")]
    for shape, mark in MARKS.items():
        ours = find(measurements, shape)
        reached = f"{ours.percent_of(result['copy_bytes_per_second']):.1f}%" if ours else NOT_MEASURED
        rows.append((f"{shape}, of a copy", f"{mark:.0f}%", reached))
    whole, split = find(measurements, SPLIT_SHAPE, "minivllm, no split"), find(measurements, SPLIT_SHAPE)
    reached = f"{whole.median / split.median:.2f}x" if whole and split else NOT_MEASURED
    return table([*rows, (f"{SPLIT_SHAPE}, split-KV", f"{SPLIT_MARK:.0f}x", reached), *more])


def paging_costs(measurements: list[Measurement]) -> dict[str, dict[str, float]]:
    """For each shape: our time divided by the time on contiguous K and V, of the same kernel and of torch.

    Example: {"llama-3.1-8b B64 n4096": {"the same kernel": 1.02, "torch": 1.08}}.
    """
    peers = {ONE_BLOCK: "the same kernel", SDPA: "torch"}
    costs: dict[str, dict[str, float]] = {}
    for m in measurements:
        if m.contender in peers and (ours := find(measurements, m.shape)):
            costs.setdefault(m.shape, {})[peers[m.contender]] = ours.median / m.median
    return costs


def plot(result: Result, path: str) -> None:
    """Decode: percent of the copy for each contender, a panel per shape; a line where the mark is.

    Args:
        result: as for `print_report`.
        path: image file; its ending decides the format.
    """
    from minivllm.viz.style import new_figure

    rate, panels = result["copy_bytes_per_second"], {}
    for m in measurements_of(result):
        if m.kind == "decode":
            panels.setdefault(m.shape, []).append(m)
    most, rows = max(map(len, panels.values())), (len(panels) + 1) // 2
    figure = new_figure(10, 0.8 + rows * (0.55 + 0.24 * most))
    all_axes = figure.subplots(rows, 2, squeeze=False).flatten()
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    for axes, (shape, measurements) in zip(all_axes, panels.items(), strict=False):
        draw_panel(axes, shape, measurements, rate)
        axes.set_ylim(most - 0.4, -0.6)
    where = result["provenance"]
    figure.suptitle(
        f"Decode attention, share of a copy's {rate / 1e9:,.0f} GB/s ({where['gpu']}, {where['date'][:10]}); "
        "dashed: the mark",
        fontsize=10,
    )
    figure.savefig(path)


def draw_panel(axes: Any, shape: str, measurements: list[Measurement], rate: float) -> None:
    """The contenders on one shape as horizontal bars, with their times."""
    from minivllm.viz.style import INK, PALETTE, mix_with_white

    for row, m in enumerate(measurements):
        percent = m.percent_of(rate)
        colour = PALETTE[0] if m.contender == OURS else mix_with_white(PALETTE[row % len(PALETTE)], 0.6)
        axes.barh(row, percent, height=0.7, color=colour, edgecolor=INK, lw=0.5)
        axes.text(percent, row, f" {percent:.0f}%  {m.median:,.0f} us", va="center", fontsize=7, color=INK)
    if shape in MARKS:
        axes.axvline(MARKS[shape], color=INK, lw=1, ls="--")
    axes.set_yticks(range(len(measurements)), [m.contender for m in measurements], fontsize=7)
    axes.set_xlim(0, 130)
    axes.set_xticks(range(0, 101, 25), [f"{tick}%" for tick in range(0, 101, 25)], fontsize=7)
    axes.set_title(shape, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
