"""The figures of `bench paper`, drawn: a panel for each, with the paper's numbers as black marks.

    12            a curve per system: latency per token against requests per second, dotted at its capacity
    14, 16, 17    bars: what vLLM serves over what the others serve; a black line is the paper's ratio
    13, 15        bars of requests running, and of blocks saved
    18, 19        what a block size serves, relative to the best; milliseconds of a return from preemption

Colours and hatches are those of `bench/paper.py`. Paper: the figures named. vLLM V1 has no counterpart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from minivllm.bench.evaluation.figures import Row
from minivllm.bench.paper import BAR, BLUE, GREY, ORANGE, SKY, VERMILION
from minivllm.bench.report import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOK = {
    "vLLM": (BLUE, "o"),
    "vLLM, watermark": ("#009E73", "o"),
    "Oracle": (SKY, "s"),
    "Pow2": (ORANGE, "^"),
    "Max": (VERMILION, "D"),
    "FasterTransformer": (GREY, "v"),
}


def draw(result: Result, path: str) -> None:
    """Write the panels of all figures in `result` into one image file."""
    from minivllm.viz.style import new_figure

    panels: list[tuple[str, list[Row], Callable[[Axes, list[Row]], None]]] = []
    for figure, rows in result["rows"].items():
        if figure == "12":
            names = list(dict.fromkeys(row["panel"] for row in rows))
            panels += [(f"12: {n}", [row for row in rows if row["panel"] == n], draw_curves) for n in names]
        elif figure == "18":
            panels.append(("18b: block size", rows, draw_block_sizes))
        elif figure == "19":
            panels.append(("19a: back from preemption", [row for row in rows if "swap_ms" in row], draw_swap))
        else:
            claims = [claim for claim in result["claims"] if claim["figure"] == figure]
            panels.append((f"{figure}: {TITLES[figure]}", claims, draw_claims))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    drawing = new_figure(4.4 * columns, 3.4 * lines)
    for number, (title, rows, draw_panel) in enumerate(panels, start=1):
        axes = drawing.add_subplot(lines, columns, number)
        draw_panel(axes, rows)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path)


TITLES = {"13": "requests running", "14": "n completions", "15": "blocks saved (%)", "16": "shared prefix",
          "17": "chat"}  # fmt: skip


def draw_curves(axes: Axes, rows: list[Row]) -> None:
    """Figure 12: up to 90% of what a system can serve; there a dotted line goes up."""
    for row in rows:
        color, marker = LOOK[row["name"]]
        points = [(point["rate"], point["normalized_latency"]) for point in row["curve"]]
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, ms=4, lw=1.2, label=row["name"])
        axes.plot([points[-1][0], row["rate"], row["rate"]], [points[-1][1], points[-1][1] * 1.3, 1.0], ":",
                  color=color, lw=1.2)  # fmt: skip
    axes.set_ylim(0, 0.5)
    axes.set_xlabel("requests/s", fontsize=8)
    axes.set_ylabel("latency, s per token", fontsize=8)
    axes.legend(frameon=False, fontsize=6)


def draw_claims(axes: Axes, claims: list[Row]) -> None:
    """A bar for each statement of the paper about one figure, its range in black."""
    for number, claim in enumerate(claims):
        axes.barh(number, claim["ours"], 0.6, color=BLUE, **BAR)
        low, high = claim["low"], claim["high"]
        axes.plot([low, high], [number, number], color="black", lw=2)
        axes.plot([low, high], [number, number], "|", color="black", ms=12, mew=2)
        # Inside the bar, where no mark can lie on it.
        axes.text(0, number, f" {claim['ours']:.2f}", va="center", fontsize=7, color="white", weight="bold")
    axes.set_yticks(range(len(claims)), [claim["text"].replace(": blocks saved, %", "") for claim in claims])
    axes.invert_yaxis()


def draw_block_sizes(axes: Axes, rows: list[Row]) -> None:
    """Requests per second of each block size, in percent of the best."""
    for data, color, marker in (("ShareGPT", BLUE, "o"), ("Alpaca", ORANGE, "s")):
        rates = {int(row["name"]): row["rate"] for row in rows if row["panel"] == data}
        percent = [100 * rate / max(rates.values()) for rate in rates.values()]
        axes.plot(list(rates), percent, color=color, marker=marker, label=f"{data}-like")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(rates), [str(size) for size in rates])
    axes.set_xlabel("tokens per block", fontsize=8)
    axes.set_ylabel("requests/s, % of the best", fontsize=8)
    axes.set_ylim(0, 105)
    axes.legend(frameon=False, fontsize=7)


def draw_swap(axes: Axes, rows: list[Row]) -> None:
    """Milliseconds against the block size."""
    sizes = [int(row["name"]) for row in rows]
    for key, color, marker in (("swap_ms", ORANGE, "s"), ("recompute_ms", BLUE, "o")):
        label = key.removesuffix("_ms")
        axes.plot(sizes, [row[key] for row in rows], color=color, marker=marker, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("tokens per block", fontsize=8)
    axes.set_ylabel("ms for 512 tokens", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=7)
