"""Draws what `bench memory` measured: the paper's Figures 2, 13 and 15, and waste against the block size.

Four panels; one without data stays away. Every panel is a function (axes, rows) that draws the rows of
`memory.py`; shares are between 0 and 1 in the rows and in percent on the axes, as in the paper::

    Figure 2      stacked bars used / reserved / internal / external, simulated beside the paper's
    Figure 13     requests running
    Figure 15     blocks saved by sharing
    Figure 18b    waste in held blocks against the block size, and the rule of thumb

Colours are Okabe and Ito's, which differ for every kind of colour vision, and hatches tell them apart in
print.

Paper: the figures named. vLLM V1 has no counterpart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minivllm.bench import paper
from minivllm.bench.paper import Row
from minivllm.bench.report import Result

# For the annotations alone: this module can be imported where matplotlib is missing.
if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Blue is what a panel is about first: slots that hold tokens, the paged system, the ShareGPT-like data.
BLUE, ORANGE, VERMILION, SKY, GREY = "#0072B2", "#E69F00", "#D55E00", "#56B4E9", "#BBBBBB"
KIND_STYLE = {
    "used": (BLUE, ""),
    "reserved": (SKY, "//"),
    "internal": (ORANGE, "xx"),
    "external": (GREY, ".."),
}
SYSTEM_STYLE = {"max": (GREY, ".."), "pow2": (ORANGE, "xx"), "oracle": (SKY, "//"), "paged": (BLUE, "")}
DATASET_STYLE = {"ShareGPT": (BLUE, "o"), "Alpaca": (ORANGE, "s")}
SAVING_STYLE = {
    ("ShareGPT", "parallel"): (BLUE, "o", "-"),
    ("Alpaca", "parallel"): (SKY, "s", "-"),
    ("ShareGPT", "beam"): (VERMILION, "^", "--"),
    ("Alpaca", "beam"): (ORANGE, "D", "--"),
}
# White edges keep stacked pieces apart, also in print.
BAR = {"edgecolor": "white", "linewidth": 0.8}


def draw(result: Result, path: str) -> None:
    """Write the panels for which there are results into one image file.

    Args:
        result: of `bench memory`; of its figures "2" gives two panels, "scheduler" none.
        path: image file; its ending decides the format.
    """
    from minivllm.viz.style import new_figure

    panels = [(draw_usage, "2"), (draw_batch, "2"), (draw_savings, "15"), (draw_block_sizes, "18b")]
    panels = [(panel, result["figures"][key]) for panel, key in panels if key in result["figures"]]
    columns, rows = min(2, len(panels)), (len(panels) + 1) // 2
    figure = new_figure(6.4 * columns, 4.2 * rows)
    for number, (panel, rows_of_panel) in enumerate(panels, start=1):
        ax = figure.add_subplot(rows, columns, number)
        panel(ax, rows_of_panel)
        ax.title.set_fontsize(10)
        ax.spines[["top", "right"]].set_visible(False)
        # Below the axes, and lower where they have a label there.
        below = -0.16 if ax.get_xlabel() else -0.08
        ax.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, below), frameon=False, fontsize=8)
    figure.savefig(path)


def draw_usage(ax: Axes, rows: list[Row]) -> None:
    """Figure 2: for each system the simulated bar, and the paper's paler to its right."""
    rows = [row for row in rows if row["dataset"] == "ShareGPT"]
    for position, row in enumerate(rows):
        simulated = {kind: row[kind] * 100 for kind in KIND_STYLE}
        draw_stack(ax, position - 0.2, simulated, alpha=1.0)
        draw_stack(ax, position + 0.2, paper.PAPER_USAGE[row["system"]], alpha=0.55)
    for kind, (color, hatch) in KIND_STYLE.items():
        ax.bar(0, 0, color=color, hatch=hatch, label=kind, **BAR)  # for the legend, once per kind
    ax.set_xticks(range(len(rows)), [paper.SYSTEMS[row["system"]] for row in rows])
    ax.set_ylabel("KV slots (%)")
    ax.set_title("Figure 2: what the slots hold (left simulated, right the paper's)")


def draw_stack(ax: Axes, x: float, shares: dict[str, float], alpha: float) -> None:
    """One stacked bar at `x` of shares in percent; the pieces that are high enough show their number."""
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    bottom = 0.0
    for kind, share in shares.items():
        color, hatch = KIND_STYLE[kind]
        ax.bar(x, share, 0.36, bottom, color=color, hatch=hatch, alpha=alpha, **BAR)
        if share > 6:
            ax.text(x, bottom + share / 2, f"{share:.1f}", ha="center", va="center", fontsize=8, bbox=box)
        bottom += share


def draw_batch(ax: Axes, rows: list[Row]) -> None:
    """Figure 13: simulated bars, the paper's numbers as black marks.

    The axis is logarithmic: 7 requests and more than 100 have to be readable side by side, and equal factors
    are equal distances, which is what "x times as many" means.
    """
    names = list(paper.DATASETS)
    for row in rows:
        index, group = list(SYSTEM_STYLE).index(row["system"]), names.index(row["dataset"])
        x, batch = group + (index - 1.5) * 0.2, row["batch"]
        color, hatch = SYSTEM_STYLE[row["system"]]
        label = paper.SYSTEMS[row["system"]] if group == 0 else None
        ax.bar(x, batch, 0.18, color=color, hatch=hatch, label=label, **BAR)
        theirs = paper.PAPER_BATCH[row["dataset"]].get(row["system"])
        ax.text(x, max(batch, theirs or 0) * 1.04, f"{batch:.1f}", ha="center", va="bottom", fontsize=8)
        if theirs is not None:
            ax.hlines(theirs, x - 0.09, x + 0.09, color="black", linewidth=2)
    ax.hlines([], 0, 0, color="black", linewidth=2, label="the paper's")  # for the legend
    ax.set_yscale("log")
    ax.set_ylim(4, 400)
    ax.set_xticks(range(len(names)), [f"{name}-like" for name in names])
    ax.set_ylabel("requests running (log)")
    ax.set_title("Figure 13: requests running at once")


def draw_savings(ax: Axes, rows: list[Row]) -> None:
    """Figure 15: simulated lines, the paper's numbers as hollow markers.

    Beams are dashed and say "shape only": their logits are random (see `paper.CAVEATS`).
    """
    for (name, method), (color, marker, line) in SAVING_STYLE.items():
        mine = [row for row in rows if (row["dataset"], row["method"]) == (name, method)]
        widths, savings = [row["width"] for row in mine], [row["saving"] * 100 for row in mine]
        label = f"{method}, {name}-like" + (" (shape only)" if method == "beam" else "")
        ax.plot(widths, savings, color=color, marker=marker, linestyle=line, label=label)
        theirs = paper.PAPER_SAVING[name, method]
        hollow = {"linestyle": "", "markersize": 10, "markerfacecolor": "none"}
        ax.plot(list(theirs), list(theirs.values()), color=color, marker=marker, **hollow)
    ax.set_xticks(paper.WIDTHS)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("completions or beams of one prompt")
    ax.set_ylabel("blocks saved (%)")
    ax.set_title("Figure 15: what sharing saves (hollow: the paper's)")


def draw_block_sizes(ax: Axes, rows: list[Row]) -> None:
    """Figure 18b, memory side: waste in held blocks, and half a block per sequence as the rule of thumb.

    The dashed line at 4% is the claim of vLLM's first announcement, "under 4%" waste; where a curve crosses
    it depends on the lengths.
    """
    for name, (color, marker) in DATASET_STYLE.items():
        mine = [row for row in rows if row["dataset"] == name]
        sizes, waste = [row["block_size"] for row in mine], [row["waste"] * 100 for row in mine]
        thumb = [100 * paper.rule_of_thumb(row) for row in mine]
        ax.plot(sizes, waste, color=color, marker=marker, label=f"{name}-like")
        ax.plot(sizes, thumb, color=color, linestyle=":", label="half a block per sequence")
    ax.axhline(4, color="black", linewidth=0.8, linestyle="--")
    ax.text(1, 5, '"under 4%"', fontsize=8)
    # Block sizes are powers of two: twice the size, always the same distance.
    ax.set_xscale("log", base=2)
    ax.set_xticks(paper.BLOCK_SIZES, [str(size) for size in paper.BLOCK_SIZES])
    ax.set_xlabel("block size (tokens)")
    ax.set_ylabel("slots of held blocks without a token (%)")
    ax.set_title("Waste against the block size")
