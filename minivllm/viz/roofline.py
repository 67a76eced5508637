"""A roofline: what a machine can do at most, and what the parts of a step do.

Both axes are logarithmic, so the roof is two straight lines, and a distance is a factor. vLLM V1 has no
counterpart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from minivllm.viz.style import INK, PALETTE, new_figure

MARKERS = "osD^v"


def roofline_figure(
    bandwidth: float, peak: float, parts: Mapping[str, Sequence[tuple[str, float, float]]]
) -> Figure:
    """A line of points for each part, below the roof.

    Args:
        bandwidth: billion bytes per second. peak: billion operations per second.
        parts: name -> its points: a text, operations per byte, billion operations per second.
    """
    places = [place for points in parts.values() for _, place, _ in points]
    corner = peak / bandwidth
    ends = (min(places) / 3, 3 * max(*places, corner))
    fig = new_figure(7.0, 3.8)
    ax = fig.subplots()
    ax.loglog([ends[0], corner, ends[1]], [ends[0] * bandwidth, peak, peak], color=INK, lw=1.5)
    ax.text(ends[1], 1.15 * peak, f"{peak:.0f} GFLOP/s", ha="right", fontsize=8)
    ax.text(1.3 * ends[0], 2.2 * ends[0] * bandwidth, f"{bandwidth:.0f} GB/s", fontsize=8)
    for number, (name, points) in enumerate(parts.items(), start=1):
        texts, xs, ys = zip(*points, strict=True)
        ax.loglog(xs, ys, MARKERS[number % len(MARKERS)] + "-", color=PALETTE[number], lw=1, label=name)
        # The last part's texts to the left of its points: two parts may be near each other.
        side, place = (7, "left") if number < len(parts) else (-7, "right")
        for text, x, y in zip(texts, xs, ys, strict=True):
            ax.annotate(text, (x, y), (side, -8), textcoords="offset points", ha=place, fontsize=7)
    ax.set(xlim=ends, xlabel="operations per byte", ylabel="billion operations per second")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, loc="lower right")
    return fig
