"""The charts of the page about performance and of the first page, drawn from the files.

Bars are medians; a whisker goes from the slowest round to the fastest, so that bars whose whiskers overlap
are seen to be no result::

    minivllm   |###################|-+--|  97.9
    vLLM       |###############|--+--|     81.3

`CHARTS` names each chart, the files of which it needs at least one, and the function that draws it. Charts
are narrow, since on a telephone a page is 350 pixels wide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from measured.files import option, paths_of, processor, rates_of, read, results_of
from measured.tables import ENGINE_FILES, OURS, decode_parts, engine_name, papers_point, work_of
from minivllm.bench.evaluation import drawing
from minivllm.bench.evaluation.headline import SYSTEMS
from minivllm.bench.report import Result, Spread, load_of, max_load
from minivllm.viz.style import HATCHES, INK, PALETTE, mix_with_white, new_figure

WIDTH = 6.4  # inches
STEP_FILES = ("cpu_fixed_32.json", "cpu_fixed_64.json")
RESERVED = {"max": "maximum reserved", "pow2": "power of two reserved", "oracle": "exact length reserved"}
PAGED = "blocks of 16"


def bars(axes: Axes, spreads: dict[str, Spread], unit: str = "{:.1f}") -> None:
    """Horizontal bars from top to bottom, ours in full colour, each with its range and its number."""
    for row, (name, spread) in enumerate(spreads.items()):
        colour = PALETTE[0] if name.startswith(OURS) or name == PAGED else mix_with_white(PALETTE[1], 0.5)
        axes.barh(row, spread.median, 0.7, color=colour, edgecolor=INK, lw=0.6)
        low, high = min(spread.values), max(spread.values)
        if len(spread.values) > 1:
            error = [[spread.median - low], [high - spread.median]]
            axes.errorbar(spread.median, row, xerr=error, color=INK, capsize=3, lw=1)
        axes.text(high, row, "  " + unit.format(spread.median), va="center", fontsize=10)
    axes.set_yticks(range(len(spreads)), list(spreads), fontsize=10)
    axes.set_ylim(len(spreads) - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * max(max(spread.values) for spread in spreads.values()))
    axes.spines[["top", "right"]].set_visible(False)


def busy(result: Result) -> str:
    """A line "busy at the start: load 0.83" where the machine was too busy for a ratio."""
    load = load_of(result["provenance"])
    return f"\nbusy at the start: load {load:.2f}" if load and load > max_load(result["provenance"]) else ""


def engines(data: Path, names: Sequence[str]) -> Figure:
    """A panel per file: the rates of all engines that took turns there. Each has an axis of its own, as loads
    and processors differ from panel to panel."""
    results = [result for name in names for result in results_of(data, name)]
    counts = [len(result["backends"]) for result in results]
    figure = new_figure(WIDTH, sum(1.15 + 0.3 * count for count in counts))
    grid = figure.subplots(len(results), 1, squeeze=False, height_ratios=[count + 1 for count in counts])
    for axes, result in zip(grid[:, 0], results, strict=True):
        bars(axes, {engine_name(result, name): rate for name, rate in rates_of(result).items()})
        axes.set_title(f"{work_of(result)}\n{processor(result)}{busy(result)}", fontsize=9, loc="left")
    grid[-1, 0].set_xlabel("output tokens per second")
    return figure


def step(data: Path) -> Figure:
    """Shares of a decode step, a bar for each number of sequences and each processor."""
    results = [result for name in STEP_FILES for result in results_of(data, name)]
    parts = list(dict.fromkeys(part for result in results for part in decode_parts(result)))
    figure = new_figure(WIDTH, 1.6 + 0.6 * len(results))
    axes = figure.subplots()
    for row, result in enumerate(results):
        times, left = decode_parts(result), 0.0
        for number, part in enumerate(parts):
            width = 100 * times.get(part, 0.0) / sum(times.values())
            look = {"color": mix_with_white(PALETTE[number % len(PALETTE)], 0.4), "edgecolor": INK, "lw": 0.6}
            hatch = HATCHES[number % len(HATCHES)]
            axes.barh(row, width, 0.6, left, hatch=hatch, label=part if row == 0 else None, **look)
            if width > 6:
                box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
                middle = left + width / 2
                axes.text(middle, row, f"{width:.0f}%", ha="center", va="center", fontsize=9, bbox=box)
            left += width
    labels = [
        f"{each['workload']['num_prompts']} in {option(each, '--dtype', 'float32')}\n{processor(each)}"
        for each in results
    ]
    axes.set_yticks(range(len(results)), labels, fontsize=9)
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set(xlim=(0, 100), xlabel="share of a decode step (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def memory(data: Path) -> Figure:
    """Figure 2 of the paper with one bar per system: the share of KV slots that hold tokens."""
    rows = [row for row in read(data, "memory.json")["figures"]["2"] if row["dataset"] == "ShareGPT"]
    figure = new_figure(WIDTH, 2.2)
    axes = figure.subplots()
    shares = {RESERVED.get(row["system"], PAGED): Spread((100 * row["used"],)) for row in rows}
    bars(axes, shares, "{:.1f}%")
    axes.set_xlabel("KV slots that hold a token (%)")
    axes.set_xticks(range(0, 101, 20))
    return figure


def serving(data: Path) -> Figure:
    """What paging brings: measured at the paper's memory, or, without that file, its figure 12 simulated."""
    figure = new_figure(WIDTH, 3.0)
    axes = figure.subplots()
    if result := read(data, "cpu_headline.json"):
        point = papers_point(result)
        bars(axes, {name: Spread.from_json(point["rates"][name]) for name in SYSTEMS})
        axes.set_xlabel("output tokens per second")
        title = f"memory for {point['ratio']:g} x max_model_len\n{processor(result)}{busy(result)}"
        axes.set_title(title, fontsize=9, loc="left")
        return figure
    rows = read(data, "paper.json")["rows"]["12"]
    drawing.draw_curves(axes, [row for row in rows if row["panel"] == "13B ShareGPT"])
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# Name of a picture -> files of which at least one must be there, and what draws it.
CHARTS: dict[str, tuple[Sequence[str], Callable[[Path], Figure]]] = {
    "engines": (ENGINE_FILES, partial(engines, names=ENGINE_FILES)),
    "step": (STEP_FILES, step),
    "result_engines": (ENGINE_FILES[:2], partial(engines, names=ENGINE_FILES[:2])),
    "result_memory": (("memory.json",), memory),
    "result_serving": (("cpu_headline.json", "paper.json"), serving),
}


def has_files(data: Path, name: str) -> bool:
    """Whether a chart can be drawn."""
    return any(paths_of(data, file) for file in CHARTS[name][0])
