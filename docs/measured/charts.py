"""The charts of the page about performance and of the first page, drawn from the files.

Each function gives a figure, or None where its file is not there. Bars are medians; a whisker goes from the
slowest round to the fastest, so that bars whose whiskers overlap are seen to be no result::

    minivllm   |###################|-+--|  97.9
    vLLM       |###############|--+--|     81.3

Charts are narrow, since on a telephone a page is 350 pixels wide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measured.files import processor, read, results_of
from measured.tables import ENGINE_FILES, OURS, decode_parts, engine_name, work_of

from minivllm.bench.evaluation import drawing
from minivllm.bench.evaluation.headline import PAPER_RATIO, SYSTEMS
from minivllm.bench.report import Result, Spread, load_of, max_load
from minivllm.bench.throughput_report import RATE
from minivllm.viz.style import HATCHES, INK, PALETTE, mix_with_white, new_figure

WIDTH = 6.4  # inches
RESERVED = {"max": "maximum reserved", "pow2": "power of two reserved", "oracle": "exact length reserved",
            "paged": "blocks of 16"}  # fmt: skip


def bars(axes: Axes, spreads: dict[str, Spread], unit: str = "{:.1f}") -> None:
    """Horizontal bars from top to bottom, ours in full colour, each with its range and its number."""
    for row, (name, spread) in enumerate(spreads.items()):
        ours = name.startswith((OURS, RESERVED["paged"]))
        colour = PALETTE[0] if ours else mix_with_white(PALETTE[1], 0.5)
        axes.barh(row, spread.median, 0.7, color=colour, edgecolor=INK, lw=0.6)
        low, high = min(spread.values), max(spread.values)
        error = [[spread.median - low], [high - spread.median]]
        axes.errorbar(spread.median, row, xerr=error, color=INK, capsize=3, lw=1)
        axes.text(high, row, "  " + unit.format(spread.median), va="center", fontsize=10)
    axes.set_yticks(range(len(spreads)), list(spreads), fontsize=10)
    axes.set_ylim(len(spreads) - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)


def engines(data: Path, names: Sequence[str] = ENGINE_FILES) -> Figure | None:
    """A panel per file: the rates of all engines that took turns there, on one axis for all."""
    results = [result for name in names for result in results_of(data, name)]
    if not results:
        return None
    counts = [len(result["backends"]) for result in results]
    figure = new_figure(WIDTH, 0.3 + sum(0.75 + 0.3 * count for count in counts))
    grid = figure.subplots(len(results), 1, squeeze=False, sharex=True, height_ratios=[n + 1 for n in counts])
    for axes, result in zip(grid[:, 0], results, strict=True):
        rates = {
            engine_name(result, name): Spread.from_json(entry[RATE])
            for name, entry in result["backends"].items()
        }
        bars(axes, rates)
        axes.set_title(f"{work_of(result)}\n{processor(result)}{busy(result)}", fontsize=9, loc="left")
    most = max(max(entry[RATE]["values"]) for result in results for entry in result["backends"].values())
    grid[-1, 0].set_xlim(0, 1.15 * most)
    grid[-1, 0].set_xlabel("output tokens per second")
    return figure


def busy(result: Result) -> str:
    """ ", busy (load 0.83)" where the machine was too busy for a ratio."""
    load = load_of(result["provenance"])
    return f", busy (load {load:.2f})" if load and load > max_load(result["provenance"]) else ""


def step(data: Path) -> Figure | None:
    """Shares of a decode step, a bar for each number of sequences and each processor."""
    names = ("cpu_fixed_32.json", "cpu_fixed_64.json")
    results = [result for name in names for result in results_of(data, name)]
    if not results:
        return None
    figure = new_figure(WIDTH, 1.6 + 0.55 * len(results))
    axes = figure.subplots()
    parts = list(dict.fromkeys(part for result in results for part in decode_parts(result)))
    labels = []
    for row, result in enumerate(results):
        times, left = decode_parts(result), 0.0
        total = sum(times.values())
        labels.append(f"{result['workload']['num_prompts']} sequences\n{processor(result)[:28]}")
        for number, part in enumerate(parts):
            width = 100 * times.get(part, 0.0) / total
            look = {"color": mix_with_white(PALETTE[number % len(PALETTE)], 0.4), "edgecolor": INK, "lw": 0.6}
            hatch = HATCHES[number % len(HATCHES)]
            axes.barh(row, width, 0.6, left, hatch=hatch, label=part if row == 0 else None, **look)
            if width > 6:
                box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
                axes.text(left + width / 2, row, f"{width:.0f}%", ha="center", va="center", fontsize=9, bbox=box)
            left += width
    axes.set_yticks(range(len(results)), labels, fontsize=9)
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set(xlim=(0, 100), xlabel="share of a decode step (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def memory(data: Path) -> Figure | None:
    """Figure 2 of the paper in one bar each: the share of KV slots that hold tokens."""
    result = read(data, "memory.json")
    if result is None:
        return None
    rows = [row for row in result["figures"]["2"] if row["dataset"] == "ShareGPT"]
    figure = new_figure(WIDTH, 2.2)
    axes = figure.subplots()
    bars(axes, {RESERVED[row["system"]]: Spread((100 * row["used"],)) for row in rows}, "{:.1f}%")
    axes.set(xlim=(0, 115), xlabel="KV slots that hold a token (%)")
    axes.set_xticks(range(0, 101, 20))
    return figure


def serving(data: Path) -> Figure | None:
    """What paging brings: measured at the paper's memory, or, without that file, its figure 12 simulated."""
    if result := read(data, "cpu_headline.json"):
        point = min(result["points"], key=lambda each: abs(each["ratio"] - PAPER_RATIO))
        rates = {name: Spread.from_json(point["rates"][name]) for name in SYSTEMS}
        figure = new_figure(WIDTH, 2.4)
        axes = figure.subplots()
        bars(axes, rates)
        axes.set_xlabel("output tokens per second")
        axes.set_xlim(0, 1.15 * max(max(rate.values) for rate in rates.values()))
        title = f"memory for {point['ratio']:g} x max_model_len\n{processor(result)}{busy(result)}"
        axes.set_title(title, fontsize=9, loc="left")
        return figure
    if result := read(data, "paper.json"):
        figure = new_figure(WIDTH, 3.4)
        axes = figure.subplots()
        drawing.draw_curves(axes, [row for row in result["rows"]["12"] if row["panel"] == "13B ShareGPT"])
        axes.spines[["top", "right"]].set_visible(False)
        return figure
    return None


CHARTS: dict[str, Callable[[Path], Figure | None]] = {
    "engines": engines,
    "step": step,
    "result_engines": partial(engines, names=ENGINE_FILES[:2]),
    "result_memory": memory,
    "result_serving": serving,
}
