"""The results of `bench kernels` for people: the table, the marks, what paging cost, the figure.

Everything is computed from the JSON that the benchmark wrote, so a page can be made where no GPU is::

    marks                          mark      reached
    llama-3.1-8b B64 n4096          85%        ...      percent of a device-to-device copy
    split-KV, B1 n16384              4x        ...      times the kernel without splits

Without results the marks say "not measured", and nothing else.

"What paging cost" is two ratios. Against the same kernel on contiguous K and V (one block a sequence), where
only the order in memory differs; and against torch's own attention, the fastest contiguous kernel at hand,
which is what the paper compares with (20 to 26% more time, section 7.1).
"""

from __future__ import annotations

from typing import Any

from minivllm.bench.kernel_contenders import ONE_BLOCK, SDPA
from minivllm.bench.kernel_shapes import MARKS, Measurement, format_table

SPLIT_SHAPE, SPLIT_MARK = "llama-3.1-8b B1 n16384", 4.0
"""One long sequence: what split-KV is for."""
NOT_MEASURED = "not measured"


def measurements_of(result: dict[str, Any]) -> list[Measurement]:
    """The measurements in a result file."""
    return [Measurement.from_json(record) for record in result["results"]]


def print_report(result: dict[str, Any]) -> None:
    """What was measured where, the table, then the marks and what paging cost."""
    where, versions = result["provenance"], result["provenance"]["versions"]
    print(
        f"{where['gpu']}, driver {where['driver']}, torch {versions.get('torch')}, triton "
        f"{versions.get('triton')}, {where['date']}, commit {(where['commit'] or 'unknown')[:12]}"
    )
    rate = result["copy_bytes_per_second"]
    print(f"copy {rate / 1e9:.0f} GB/s (read and written), median of {result['method']['repeats']}")
    floor = result["floor_microseconds"]["median"]
    print(f"a kernel with nothing to do takes {floor:.1f} us; no time below is without it\n")
    measurements = measurements_of(result)
    print(format_table(measurements, rate))
    print(f"\n{marks_table(result)}")
    if costs := paging_costs(measurements):
        print("\nwhat paging costs, time of the paged kernel over contiguous K and V")
        for shape, ratios in costs.items():
            texts = [f"{ratio - 1:+.0%} against {name}" for name, ratio in ratios.items()]
            print(f"  {shape:<40}{', '.join(texts)}")


def find(measurements: list[Measurement], shape: str, contender: str = "minivllm") -> Measurement | None:
    """The measurement of one contender on one shape; None if there is none."""
    return next((m for m in measurements if (m.shape, m.contender) == (shape, contender)), None)


def marks_table(result: dict[str, Any] | None) -> str:
    """Each mark of this project beside what was reached; `None` where there is no result at all."""
    measurements = measurements_of(result) if result else []
    lines = [f"{'mark':<34}{'asked':>8}   reached"]
    for shape, mark in MARKS.items():
        ours = find(measurements, shape)
        reached = f"{ours.percent_of(result['copy_bytes_per_second']):.1f}%" if ours else NOT_MEASURED
        lines.append(f"{shape + ', of a copy':<34}{mark:>7.0f}%   {reached}")
    whole, split = find(measurements, SPLIT_SHAPE, "minivllm, no split"), find(measurements, SPLIT_SHAPE)
    reached = NOT_MEASURED
    if whole and split:
        reached = f"{whole.microseconds.median / split.microseconds.median:.2f}x"
    lines.append(f"{SPLIT_SHAPE + ', split-KV':<34}{SPLIT_MARK:>7.0f}x   {reached}")
    return "\n".join(lines)


def paging_costs(measurements: list[Measurement]) -> dict[str, dict[str, float]]:
    """For each shape: our time divided by the time on contiguous K and V, by whose kernel.

    Example: {"llama-3.1-8b B64 n4096": {"the same kernel": 1.02, "torch": 1.08}}.
    """
    peers = {ONE_BLOCK: "the same kernel", SDPA: "torch"}
    costs: dict[str, dict[str, float]] = {}
    for m in measurements:
        if m.contender in peers and (ours := find(measurements, m.shape)):
            ratio = ours.microseconds.median / m.microseconds.median
            costs.setdefault(m.shape, {})[peers[m.contender]] = ratio
    return costs


def plot(result: dict[str, Any], path: str) -> None:
    """Decode: percent of the copy for each contender, a panel a shape; a line where the mark is.

    Args:
        result: as for `print_report`.
        path: image file; its ending decides the format.
    """
    # Only here: a study installation may lack it, and a plain report needs none.
    from matplotlib.figure import Figure

    from minivllm.viz.style import INK, PALETTE, mix_with_white

    rate = result["copy_bytes_per_second"]
    decode = [m for m in measurements_of(result) if m.kind == "decode"]
    shapes = list(dict.fromkeys(m.shape for m in decode))
    most = max(len([m for m in decode if m.shape == shape]) for shape in shapes)
    rows = -(-len(shapes) // 2)
    figure = Figure(figsize=(10, 0.8 + rows * (0.55 + 0.24 * most)), layout="constrained", dpi=150)
    panels = figure.subplots(rows, 2, squeeze=False).flatten()
    for axes, shape in zip(panels, shapes, strict=False):
        mine = [m for m in decode if m.shape == shape]
        for row, m in enumerate(mine):
            percent = m.percent_of(rate)
            colour = PALETTE[0] if m.contender == "minivllm" else mix_with_white(PALETTE[row % 8], 0.6)
            axes.barh(row, percent, height=0.7, color=colour, edgecolor=INK, lw=0.5)
            text = f" {percent:.0f}%  {m.microseconds.median:,.0f} us"
            axes.text(percent, row, text, va="center", fontsize=7, color=INK)
        if shape in MARKS:
            axes.axvline(MARKS[shape], color=INK, lw=1, ls="--")
        axes.set_yticks(range(len(mine)), [m.contender for m in mine], fontsize=7)
        axes.set_ylim(most - 0.4, -0.6)
        axes.set_xlim(0, 130)
        axes.set_xticks(range(0, 101, 25), [f"{tick}%" for tick in range(0, 101, 25)], fontsize=7)
        axes.set_title(shape, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(shapes) :]:
        axes.set_visible(False)
    where = result["provenance"]
    figure.suptitle(
        f"Decode attention, share of a copy's {rate / 1e9:,.0f} GB/s ({where['gpu']}, {where['date'][:10]}); "
        "dashed: the mark",
        fontsize=10,
    )
    figure.savefig(path)
