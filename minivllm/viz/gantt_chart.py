"""Which request computed what in which step, and how much memory that took: batching, seen from the side.

One row per seat (a place in the batch), one column per step. A request's cells have its colour and hatch; its
id stands in its first cell (beside that cell, if cells are narrow). A cell that computes more than one token
of a sequence (a prompt or a part of one) has a heavy frame. A grey dot is an empty seat while a request
waits: work that was not done. Below, one bar per step for the blocks in use, the highest marked. `P` over a
bar: a request was preempted in that step::

    seat 0   A a a a D d d
    seat 1   B b . . E e e        static batching: E waits for A. Capitals: prompts
    blocks   # # # # # # #

Several traces of one workload are drawn under each other, on the same axis of steps and with bars of memory
on the same scale, which the highest of them nearly fills. A legend below all names the marks that occur.

The memory bars under the plan, with the peak marked, are taken from Sasha Rush's LLM Training Puzzles.
"""

from __future__ import annotations

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from minivllm.viz.style import GRID, INK, MEMORY_STYLE, PEAK, new_figure, request_order, request_style
from minivllm.viz.trace import Trace
from minivllm.viz.usage import Work, seating, tables_during

# Above the highest bar of memory, half of its height holds the text and the marks.
ROOM_FOR_TEXT = 1.5
ROOM_ABOVE_LINE = 1.45  # likewise above the dashed line, the size of the pool
LEGEND_HEIGHT = 0.4  # inches


def gantt(traces: dict[str, Trace], num_seats: int | None = None) -> Figure:
    """One panel of seats and one of memory for each trace.

    Args:
        traces: title -> trace, top to bottom.
        num_seats: rows to draw; None: as many as the fullest step of any trace needs. A smaller number is
            raised to that, as no request may vanish; a larger one shows seats that were never taken.

    Raises:
        ValueError: no trace, or one without steps.
    """
    if not traces or not all(trace.steps for trace in traces.values()):
        raise ValueError("gantt needs at least one trace, and every trace at least one step.")
    plans = {title: seating(trace) for title, trace in traces.items()}
    num_steps = max(len(trace.steps) for trace in traces.values())
    most = 1 + max(work.seat for plan in plans.values() for work in plan)
    num_seats = most if num_seats is None else max(num_seats, most)
    # Inches: a seat is 0.2 high, a step 0.21 wide, between a readable width and that of a page. 30 steps give
    # 7.7 inches; from 44 on it is 10.5 and the cells get narrower.
    heights = [0.42 + 0.2 * num_seats, 1.0] * len(traces)
    width = min(10.5, max(6.0, 1.4 + 0.21 * num_steps))
    fig = new_figure(width, sum(heights) + 0.5 + LEGEND_HEIGHT)
    axes = fig.subplots(2 * len(traces), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    top = _top_of_memory(traces)
    for number, (title, trace) in enumerate(traces.items()):
        axes[2 * number].set_xlim(-0.6, num_steps - 0.4)
        _draw_seats(axes[2 * number], title, trace, plans[title], num_seats)
        _draw_memory(axes[2 * number + 1], trace, top)
    axes[-1].set_xlabel("step")
    fig.legend(handles=_legend(traces, plans, num_seats, top), loc="outside lower center", ncols=3,
               fontsize=7, frameon=False)  # fmt: skip
    return fig


def _draw_seats(ax: Axes, title: str, trace: Trace, plan: list[Work], num_seats: int) -> None:
    """The plan: a cell for each request and step.

    A cell is centred on its step, so the number on the axis stands under it. Seat 0 is on top, as a list is
    read.
    """
    # Colours go by request, not by seat: a request that is preempted may come back to another seat.
    order = request_order(trace)
    before: dict[int, str] = {}  # seat -> the request there in the last cell drawn
    # An id needs a cell of about 0.2 inches; in a narrower one it stands to the right of the frame.
    left, right = ax.get_xlim()
    roomy = ax.get_figure().get_figwidth() / (right - left) > 0.2
    for work in plan:
        style = request_style(order[work.request_id])
        # The scheduler knows no phases. More than one token of a sequence in a step is (a part of) a prompt,
        # or tokens computed again after a preemption.
        prefill = work.longest > 1
        cell = Rectangle(
            (work.step - 0.5, work.seat + 0.08), 1, 0.84, facecolor=style.fill, edgecolor=style.edge,
            hatch=style.hatch, lw=0.6,
        )  # fmt: skip
        cell.set_gid("work")
        ax.add_patch(cell)
        if prefill:
            frame = (work.step - 0.42, work.seat + 0.14)
            ax.add_patch(Rectangle(frame, 0.84, 0.72, fill=False, edgecolor=INK, lw=1.3, zorder=3))
        if before.get(work.seat) != work.request_id or prefill:
            ax.text(
                work.step + (-0.3 if roomy else 0.6), work.seat + 0.5, work.request_id, ha="left",
                va="center", fontsize=7, weight="bold", color=INK, zorder=4,
                bbox={"facecolor": style.fill, "edgecolor": "none", "pad": 0.4},
            )  # fmt: skip
        before[work.seat] = work.request_id
    idle = _idle_seats(trace, plan, num_seats)
    dots = ax.scatter(
        [step for step, _ in idle], [seat + 0.5 for _, seat in idle], s=5, color=GRID, marker="o", zorder=1
    )
    dots.set_gid("idle")
    ax.set_ylim(num_seats, 0)
    ax.set_yticks([seat + 0.5 for seat in range(num_seats)], [str(seat) for seat in range(num_seats)])
    ax.tick_params(axis="y", labelsize=7, length=0)
    ax.set_ylabel("seat")
    ax.set_title(
        f"{title}: {len(trace.steps)} steps, {len(idle)} empty seat-steps while a request waits",
        fontsize=10, loc="left",
    )  # fmt: skip


def _idle_seats(trace: Trace, plan: list[Work], num_seats: int) -> list[tuple[int, int]]:
    """(step, seat) of every empty seat, while a request waits: one that no request wants is no loss."""
    busy = {(work.step, work.seat) for work in plan}
    return [
        (step, seat)
        for step, record in enumerate(trace.steps)
        for seat in range(num_seats)
        if (step, seat) not in busy and record.waiting
    ]


def _top_of_memory(traces: dict[str, Trace]) -> float:
    """Where the axes of memory end, in blocks: with room for the text above the bars.

    Where the line of the pool is drawn, there is room above that line too.
    """
    top = ROOM_FOR_TEXT * max(max(blocks_in_use(trace)) for trace in traces.values())
    pools = [trace.num_blocks for trace in traces.values() if trace.num_blocks < top]
    return max([top, *(ROOM_ABOVE_LINE * pool for pool in pools)])


def _draw_memory(ax: Axes, trace: Trace, top: float) -> None:
    """Blocks in use, step by step, on an axis up to `top`; the peak and the preemptions marked.

    The dashed line is the size of the pool, where it is not far above all bars.
    """
    used = blocks_in_use(trace)
    peak = max(used)
    colour, _ = MEMORY_STYLE["used"]
    bars = ax.bar(range(len(used)), used, width=0.8, color=colour, edgecolor=INK, lw=0.3)
    for bar, blocks in zip(bars, used, strict=True):
        bar.set_gid("memory")
        if blocks == peak:
            bar.set(facecolor=PEAK, hatch="///")
    if trace.num_blocks < top:
        ax.axhline(trace.num_blocks, color=INK, lw=0.8, ls="--")
    ax.text(
        0.995, 0.97, f"peak {peak} of {trace.num_blocks} blocks", transform=ax.transAxes, ha="right",
        va="top", fontsize=7, color=INK, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )  # fmt: skip
    for step, record in enumerate(trace.steps):
        if record.preempted:
            # A preemption means that the pool is full, so its line is the top of the bars.
            ax.text(step, trace.num_blocks * 1.03, "P", ha="center", fontsize=8, weight="bold", color=PEAK)
    ax.set_ylim(0, top)
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_ylabel("blocks")
    ax.tick_params(labelsize=7)


def _legend(
    traces: dict[str, Trace], plans: dict[str, list[Work]], num_seats: int, top: float
) -> list[Artist]:
    """An entry for each mark that occurs in one of the panels."""
    colour, _ = MEMORY_STYLE["used"]
    every = traces.values()
    prompt = Patch(facecolor="white", edgecolor=INK, lw=1.3, label="several tokens at once: a prompt")
    marks: list[Artist] = [prompt]
    if any(_idle_seats(trace, plans[title], num_seats) for title, trace in traces.items()):
        label = "empty seat while a request waits"
        marks.append(Line2D([], [], ls="", marker="o", ms=2.5, color=GRID, label=label))
    marks.append(Patch(facecolor=colour, edgecolor=INK, lw=0.3, label="blocks in use"))
    marks.append(Patch(facecolor=PEAK, edgecolor=INK, lw=0.3, hatch="///", label="the most blocks in use"))
    if any(trace.num_blocks < top for trace in every):
        marks.append(Line2D([], [], color=INK, lw=0.8, ls="--", label="all blocks of the pool"))
    if any(record.preempted for trace in every for record in trace.steps):
        label = "a request is preempted"
        marks.append(Line2D([], [], ls="", marker="$\\mathbf{P}$", ms=5, color=PEAK, label=label))
    return marks


def blocks_in_use(trace: Trace) -> list[int]:
    """Distinct blocks that are held while each step runs.

    Distinct: two sequences with the tables (7, 2) and (7, 5) hold 3 blocks. Cached blocks without
    a holder are free and do not count.
    """
    return [
        len({block_id for block_ids in tables_during(record).values() for block_id in block_ids})
        for record in trace.steps
    ]
