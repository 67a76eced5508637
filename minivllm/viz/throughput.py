"""What each idea buys: output tokens per step (counted) and per second (measured), idea by idea.

Each bar is one run of the same requests on the same memory with one part exchanged; the step from a bar to
the next is what that part is worth, and the last factor of a bar is what all parts so far are worth. The two
panels belong together. Tokens per step say how full the batches were; they are exact. Tokens per second
include what a fuller batch costs; they depend on the machine::

    one at a time     |#####               1.0
    static batching   |#####////           1.8   x 1.80                        //// gained on the bar above
    paged             |#########////////   3.4   x 1.89, x 3.40 in all
    another engine    |ooooo               1.1                                 no part of the chain

The clock starts when the trace is made, so make it right before the run (`engine.trace = Trace()`).
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minivllm.viz.style import HATCHES, INK, PALETTE, mix_with_white, new_figure
from minivllm.viz.trace import Trace
from minivllm.viz.usage import num_output_tokens

OTHERS = "#DDDDDD"


def tokens_per_step(trace: Trace) -> float:
    """Output tokens divided by steps: the mean number of sequences that gained a token.

    One request alone (n=1, its prompt in one step) gives 1.0: every step samples one token, the first too.
    """
    return num_output_tokens(trace) / len(trace.steps)


def tokens_per_second(trace: Trace) -> float:
    """Output tokens divided by the time from the start of the trace to its last step."""
    return num_output_tokens(trace) / trace.steps[-1].time


def throughput_waterfall(
    traces: Mapping[str, Trace], others: Mapping[str, tuple[float, float]] | None = None
) -> Figure:
    """Two panels of bars, one bar per trace, in order; each says how much it gained on those before.

    Args:
        traces: label -> trace of the same requests.
        others: label -> tokens per step and per second of a system that has no trace and is no part of the
            chain, on the same requests. They are drawn grey below it.

    Raises:
        ValueError: no trace, one without steps, or traces of different numbers of output tokens.
    """
    if not traces or not all(trace.steps for trace in traces.values()):
        raise ValueError("throughput_waterfall needs at least one trace, and every trace at least one step.")
    others = others or {}
    totals = {label: num_output_tokens(trace) for label, trace in traces.items()}
    if len(set(totals.values())) > 1:
        raise ValueError(f"the traces are not of the same work, output tokens differ: {totals}.")
    fig = new_figure(10.0, 0.9 + 0.55 * (len(traces) + len(others)))
    measures = (
        (tokens_per_step, "output tokens per step (counted)"),
        (tokens_per_second, "output tokens per second (this machine)"),
    )
    for number, (ax, (measure, title)) in enumerate(
        zip(fig.subplots(1, 2, sharey=True), measures, strict=True)
    ):
        chain = {label: measure(trace) for label, trace in traces.items()}
        waterfall_bars(ax, chain, {label: pair[number] for label, pair in others.items()})
        ax.set_title(title, fontsize=10)
    return fig


def waterfall_bars(ax: Axes, chain: dict[str, float], others: dict[str, float]) -> None:
    """Horizontal bars from top to bottom, label -> length; the part gained on the bar before is hatched.

    `others` follow below the chain, in grey and without a factor.
    """
    first, before = next(iter(chain.values())), 0.0
    for row, value in enumerate(chain.values()):
        colour = mix_with_white(PALETTE[row % len(PALETTE)], 0.35)
        bar = ax.barh(row, value, height=0.62, color=colour, edgecolor=INK, lw=0.6)[0]
        bar.set_gid("bar")
        if 0 < before < value:
            ax.barh(
                row, value - before, left=before, height=0.62, color="none", edgecolor=INK, lw=0.6,
                hatch=HATCHES[1],
            )  # fmt: skip
        gain = "" if row == 0 else f"   x {value / before:.2f}"
        total = "" if row < 2 else f"\n x {value / first:.2f} in all"
        ax.text(value, row, f" {value:.1f}{gain}{total}", va="center", ha="left", fontsize=8.5, color=INK)
        before = value
    for row, value in enumerate(others.values(), start=len(chain)):
        bar = ax.barh(row, value, height=0.62, color=OTHERS, edgecolor=INK, lw=0.6, hatch=HATCHES[2])[0]
        bar.set_gid("other")
        ax.text(value, row, f" {value:.1f}", va="center", ha="left", fontsize=8.5, color=INK)
    rows = len(chain) + len(others)
    ax.set_yticks(range(rows), [*chain, *others])
    ax.set_ylim(rows - 0.4, -0.6)
    ax.set_xlim(0, 1.45 * max([*chain.values(), *others.values()]))
    ax.spines[["top", "right"]].set_visible(False)
