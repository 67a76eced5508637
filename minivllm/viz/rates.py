"""Measured rates with all of their rounds: bars of several systems, the corners of a 2x2, curves over a load.

A bar alone hides how far apart its rounds were. So every round is a point, and the bar ends at their median.

Two ideas, each there or not, are four systems, and they belong in a square: from corner to corner one thing
changes, and what an idea is worth can be read twice, without the other idea and with it::

                        static batches                  continuous batching
    contiguous memory   [====o=o=] 30     -- x 1.5 -->  [=======o==oo] 46
                             | x 1.6                         | x 1.2
                             v                               v
    paged memory        [=======oo=] 48   -- x 1.1 -->  [==========o=o] 54

vLLM V1 has no counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minivllm.viz.style import HATCHES, INK, PALETTE, mix_with_white, new_figure

Rounds = Sequence[float]
Corner = tuple[str, str]
"""The row and the column of a square."""
MARKERS, DASHES = "os^DvPX", ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))


def rate_bars(rates: Mapping[str, Rounds], unit: str) -> Figure:
    """Horizontal bars from the slowest system to the fastest.

    Args:
        rates: label -> its rounds, at least one each.
        unit: what is measured, for the axis.
    """
    rates = dict(sorted(rates.items(), key=lambda item: median(item[1])))
    fig = new_figure(8.0, 1.4 + 0.5 * len(rates))
    ax = fig.subplots()
    for row, rounds in enumerate(rates.values()):
        _draw_rounds(ax, row, rounds, PALETTE[row % len(PALETTE)], HATCHES[row % len(HATCHES)])
    ax.set_yticks(range(len(rates)), list(rates))
    ax.set_ylim(len(rates) - 0.4, -0.6)
    ax.set_xlim(0, 1.2 * max(map(max, rates.values())))
    ax.set_xlabel(unit)
    ax.spines[["top", "right"]].set_visible(False)
    return fig


def rate_square(rates: Mapping[Corner, Rounds], factor: Callable[[Rounds, Rounds], str], unit: str) -> Figure:
    """Four systems as a square, with an arrow along each side.

    Args:
        rates: (row, column) -> its rounds: two rows and two columns, in reading order.
        factor: the text at an arrow, from the rounds at its start and those at its end.
        unit: what is measured, for the axis.

    Raises:
        ValueError: the corners are not those of a square.
    """
    rows, columns = (list(dict.fromkeys(labels)) for labels in zip(*rates, strict=True))
    if list(rates) != [(row, column) for row in rows for column in columns] or len(rates) != 4:
        raise ValueError(f"a square has two rows and two columns, in reading order; got {list(rates)}.")
    fig = new_figure(9.0, 3.9)
    axes = fig.subplots(2, 2, sharex=True, sharey=True)
    fig.get_layout_engine().set(wspace=0.28, hspace=0.4)  # room for the arrows, as shares of a panel
    for number, (ax, rounds) in enumerate(zip(axes.flat, rates.values(), strict=True)):
        _draw_rounds(ax, 0, rounds, PALETTE[number // 2], HATCHES[number % 2])
        ax.set(xlim=(0, 1.25 * max(map(max, rates.values()))), ylim=(-0.5, 0.5), yticks=[])
        ax.spines[["top", "right"]].set_visible(False)
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(column, fontsize=10)
    for ax, row in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(row, fontsize=10)
    for ax in axes[1]:
        ax.set_xlabel(unit)
    for row, left in zip(rows, axes[:, 0], strict=True):
        text = factor(rates[row, columns[0]], rates[row, columns[1]])
        _draw_step(left, (1.03, 0.5), (1.24, 0.5), text)
    for column, upper in zip(columns, axes[0], strict=True):
        text = factor(rates[rows[0], column], rates[rows[1], column])
        _draw_step(upper, (0.2, -0.1), (0.2, -0.6), text)
    both = factor(rates[rows[0], columns[0]], rates[rows[1], columns[1]])
    fig.suptitle(f"both together, from the upper left to the lower right: {both}", fontsize=10)
    return fig


def rate_curves(curves: Mapping[str, Mapping[float, Rounds]]) -> Figure:
    """A line through the medians of each system, over a load; every round is a small mark.

    The bar from the smallest to the largest round shows how much of a difference between two lines is chance.

    Args:
        curves: label -> load -> its rounds.
    """
    fig = new_figure(7.0, 4.2)
    ax = fig.subplots()
    for number, (label, points) in enumerate(curves.items()):
        # From the palette's end, because a thin yellow line is hard to see; told apart in grey as well.
        colour = PALETTE[::-1][number % len(PALETTE)]
        marker, dash = MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)]
        loads, medians = list(points), [median(rounds) for rounds in points.values()]
        ax.plot(loads, medians, color=colour, ls=dash, marker=marker, markeredgecolor=INK, label=label)
        for load, rounds in points.items():
            if len(rounds) > 1:
                ax.plot([load, load], [min(rounds), max(rounds)], color=colour, lw=1)
                ax.plot([load] * len(rounds), rounds, ls="", marker="_", ms=7, color=colour)
    ax.set_ylim(bottom=0)  # so that twice the height is twice the wait
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend()
    return fig


def _draw_rounds(ax: Axes, row: float, rounds: Rounds, colour: str, hatch: str) -> None:
    """A bar up to the median, the median as a number, and each round as a point below it."""
    middle = median(rounds)
    look = {"color": mix_with_white(colour, 0.45), "edgecolor": INK, "lw": 0.6, "hatch": hatch}
    ax.barh(row, middle, height=0.5, **look)[0].set_gid("bar")
    ax.text(max(rounds), row, f"  {middle:.1f}", va="center", ha="left", fontsize=9, color=INK)
    points = ax.plot(rounds, [row] * len(rounds), ls="", marker="o", ms=4, color=INK, mfc="white")[0]
    points.set_gid("rounds")


def _draw_step(ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str) -> None:
    """An arrow outside of a panel, in fractions of the panel."""
    look = {"arrowstyle": "-|>", "color": INK, "lw": 1.2}
    place = {"xycoords": "axes fraction", "textcoords": "axes fraction"}
    ax.annotate("", end, start, arrowprops=look, annotation_clip=False, **place).set_in_layout(False)
    level = start[1] == end[1]
    at = ((start[0] + end[0]) / 2, start[1] + 0.06) if level else (start[0] + 0.03, (start[1] + end[1]) / 2)
    ax.text(
        *at, text, transform=ax.transAxes, fontsize=9, color=INK, ha="center" if level else "left",
        va="bottom" if level else "center", in_layout=False,
    )  # fmt: skip
