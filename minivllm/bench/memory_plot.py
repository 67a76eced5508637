"""Draws what `bench memory` measured: the paper's Figures 2, 13 and 15, and waste against the block size.

Four panels; one without data stays away. Colours are Okabe and Ito's, which differ for every kind of colour
vision, and hatches tell them apart in print::

    Figure 2      stacked bars used / reserved / internal / external, simulated beside the paper's
    Figure 13     requests running
    Figure 15     blocks saved by sharing
    Figure 18b    waste in held blocks against the block size, and the rule of thumb

Every panel is a function (axes, rows) that draws and returns nothing. The rows are those that `memory.py`
measured and writes as JSON, so a figure can be drawn again without simulating::

    results["2"]     {"dataset": "ShareGPT", "system": "max", "used": 0.195, "batch": 7.0, ...}
    results["15"]    {"dataset": "Alpaca", "method": "parallel", "width": 2, "saving": 0.069}
    results["18b"]   {"dataset": "ShareGPT", "block_size": 16, "used": 0.969, "waste": 0.016, ...}

Shares are between 0 and 1 in the rows and in percent on the axes, as in the paper.

Paper: the figures named. vLLM V1 has no counterpart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minivllm.bench import memory, simulation

# For the annotations alone: this module can be imported where matplotlib is missing.
if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = list[dict[str, Any]]

# Blue is what a panel is about first: slots that hold tokens, the paged system, the ShareGPT-like data.
BLUE, ORANGE, GREEN, VERMILION, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#BBBBBB"
KIND_STYLE = {
    "used": (BLUE, ""),
    "reserved": (SKY, "//"),
    "internal": (ORANGE, "xx"),
    "external": (GREY, ".."),
}
# White edges keep stacked pieces apart, also in print.
BAR = {"edgecolor": "white", "linewidth": 0.8}


def draw(results: dict[str, Rows], path: str) -> None:
    """Write the panels for which there are results into one image file.

    Args:
        results: rows by figure, of those that were asked for; "2" gives two panels, "scheduler" none.
        path: image file; its ending decides the format.
    """
    import matplotlib

    # Draws into memory: there may be no screen.
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(draw_usage, "2"), (draw_batch, "2"), (draw_savings, "15"), (draw_block_sizes, "18b")]
    panels = [(panel, results[figure]) for panel, figure in panels if figure in results]
    # Two in a row; -(-a // b) is a / b rounded up. Three panels make two rows, and the fourth place is
    # removed.
    columns = min(2, len(panels))
    figure, axes = plt.subplots(
        -(-len(panels) // columns),
        columns,
        figsize=(6.4 * columns, 4.2 * -(-len(panels) // columns)),
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, (panel, rows) in zip(axes.flat, panels, strict=False):
        panel(ax, rows)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_usage(ax: Axes, rows: Rows) -> None:
    """Figure 2: for each system the simulated bar, and the paper's paler to its right.

    Systems stand at 0, 1, 2, 3; the two bars of each 0.2 to the left and right of it.
    """
    rows = [row for row in rows if row["dataset"] == "ShareGPT"]
    for position, row in enumerate(rows):
        simulated = {kind: row[kind] * 100 for kind in KIND_STYLE}
        # One set of labels is enough for the legend; four bars with labels would name each kind four times.
        draw_stack(ax, position - 0.2, simulated, alpha=1.0, with_labels=position == 0)
        draw_stack(ax, position + 0.2, memory.PAPER_USAGE[row["system"]], alpha=0.55, with_labels=False)
    ax.set_xticks(range(len(rows)), [memory.SYSTEMS[row["system"]] for row in rows])
    ax.set_ylabel("KV slots (%)")
    ax.set_title("Figure 2: what the slots hold (left simulated, right the paper's)", fontsize=10)
    ax.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)


def draw_stack(ax: Axes, x: float, shares: dict[str, float], alpha: float, with_labels: bool) -> None:
    """One stacked bar; shares above 6% get their number.

    Args:
        x: where the bar stands.
        shares: percent by kind; a kind that is missing has none (the paper gives only "used" for vLLM).
        alpha: opacity; the paper's bars are paler.
        with_labels: whether this bar is the one that the legend reads.
    """
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    bottom = 0.0
    for kind, (color, hatch) in KIND_STYLE.items():
        share = shares.get(kind, 0.0)
        label = kind if with_labels else None
        ax.bar(x, share, 0.36, bottom, color=color, hatch=hatch, alpha=alpha, label=label, **BAR)
        # A smaller piece is not as high as the digits.
        if share > 6:
            ax.text(x, bottom + share / 2, f"{share:.1f}", ha="center", va="center", fontsize=8, bbox=box)
        bottom += share


def draw_batch(ax: Axes, rows: Rows) -> None:
    """Figure 13: simulated bars, the paper's numbers as black marks.

    The axis is logarithmic: 7 requests and more than 100 have to be readable side by side, and equal factors
    are equal distances, which is what "x times as many" means.
    """
    names = list(memory.DATASETS)
    for index, (system, color, hatch) in enumerate(
        zip(memory.SYSTEMS, (GREY, ORANGE, SKY, BLUE), ("..", "xx", "//", ""), strict=True)
    ):
        batches = [row["batch"] for row in rows if row["system"] == system]
        # Four bars around each data set, at -0.3, -0.1, 0.1 and 0.3.
        positions = [group + (index - 1.5) * 0.2 for group in range(len(names))]
        label = memory.SYSTEMS[system]
        ax.bar(positions, batches, 0.18, color=color, hatch=hatch, label=label, **BAR)
        for position, name, batch in zip(positions, names, batches, strict=True):
            paper = memory.PAPER_BATCH[name].get(system)
            top = max(batch, paper or 0)
            ax.text(position, top * 1.04, f"{batch:.1f}", ha="center", va="bottom", fontsize=8)
            if paper is not None:
                ax.hlines(paper, position - 0.09, position + 0.09, color="black", linewidth=2)
    # An empty line, for the legend: the marks themselves have no label, or it would name each of them.
    ax.hlines([], 0, 0, color="black", linewidth=2, label="the paper's")
    ax.set_yscale("log")
    ax.set_ylim(4, 400)
    ax.set_xticks(range(len(names)), [f"{name}-like" for name in names])
    ax.set_ylabel("requests running (log)")
    ax.set_title("Figure 13: requests running at once", fontsize=10)
    ax.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)


def draw_savings(ax: Axes, rows: Rows) -> None:
    """Figure 15: simulated lines, the paper's numbers as hollow markers.

    Beams are dashed and say "shape only": their logits are random (see `memory.CAVEATS`).
    """
    styles = {
        ("ShareGPT", "parallel"): (BLUE, "o", "-"),
        ("Alpaca", "parallel"): (SKY, "s", "-"),
        ("ShareGPT", "beam"): (VERMILION, "^", "--"),
        ("Alpaca", "beam"): (ORANGE, "D", "--"),
    }
    for (name, method), (color, marker, line) in styles.items():
        points = [
            (row["width"], row["saving"] * 100)
            for row in rows
            if (row["dataset"], row["method"]) == (name, method)
        ]
        # Whoever draws fewer rows gets fewer lines.
        if points:
            label = f"{method}, {name}-like" + (" (shape only)" if method == "beam" else "")
            # [(2, 6.9), (4, 10.5)] becomes (2, 4), (6.9, 10.5): all x, then all y.
            ax.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle=line, label=label)
            paper = memory.PAPER_SAVING[name, method]
            ax.plot(
                list(paper), list(paper.values()), linestyle="", marker=marker, markersize=10, color=color,
                markerfacecolor="none",
            )  # fmt: skip
    ax.set_xticks(memory.WIDTHS)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("completions or beams of one prompt")
    ax.set_ylabel("blocks saved (%)")
    ax.set_title("Figure 15: what sharing saves (hollow: the paper's)", fontsize=10)
    ax.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)


def draw_block_sizes(ax: Axes, rows: Rows) -> None:
    """Figure 18b, memory side: waste in held blocks, and half a block a sequence as the rule of thumb.

    The dashed line at 4% is the claim of vLLM's first announcement, "under 4%" waste; where a curve crosses
    it depends on the lengths.
    """
    for name, color, marker in (("ShareGPT", BLUE, "o"), ("Alpaca", ORANGE, "s")):
        chosen = [row for row in rows if row["dataset"] == name]
        sizes = [row["block_size"] for row in chosen]
        waste = [row["waste"] * 100 for row in chosen]
        ax.plot(sizes, waste, color=color, marker=marker, label=f"{name}-like")
        # The last block of a sequence is on average half empty: of S slots, S - 1 at worst and 0 at best.
        half = [(size - 1) / 2 for size in sizes]
        contexts = [row["used"] * simulation.NUM_SLOTS / row["batch"] for row in chosen]
        # Of context + half slots held, half hold nothing.
        thumb = [100 * rest / (context + rest) for rest, context in zip(half, contexts, strict=True)]
        ax.plot(sizes, thumb, color=color, linestyle=":", label="half a block a sequence")
    ax.axhline(4, color="black", linewidth=0.8, linestyle="--")
    ax.text(1, 5, '"under 4%"', fontsize=8)
    # Block sizes are powers of two: twice the size, always the same distance.
    ax.set_xscale("log", base=2)
    ax.set_xticks(memory.BLOCK_SIZES, [str(size) for size in memory.BLOCK_SIZES])
    ax.set_xlabel("block size (tokens)")
    ax.set_ylabel("slots of held blocks without a token (%)")
    ax.set_title("Waste against the block size", fontsize=10)
    ax.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
