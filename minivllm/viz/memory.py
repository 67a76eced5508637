"""Where the KV memory goes: every slot of the pool, step by step, stacked by kind.

The yardstick of the project: chapter 3 draws naive batching with it, chapter 5 paging, on the same axes. The
stack always adds up to the whole pool, because every slot is of exactly one kind (`usage.MemoryUse`)::

    slots |  free              no sequence holds it
          |  rounding          handed out beyond what was asked for (external waste)
          |  internal          held, never filled
          |  reserved          held, filled later
          |  used              holds a token
          +-----------------> step

Paper: Figure 2 shows the same with one bar per system.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from minivllm.viz.style import GRID, INK, MEMORY_STYLE, new_figure, request_order, request_style
from minivllm.viz.trace import Trace
from minivllm.viz.usage import MEMORY_KINDS, filled_during, memory_use, sequences_of, wasted_share

LABELS = {
    "used": "holds a token",
    "reserved": "reserved, filled later",
    "internal": "reserved, never filled (internal)",
    "rounding": "rounding of the allocator (external)",
    "free": "free",
}


def memory_area(traces: dict[str, Trace]) -> Figure:
    """One panel per trace, all on the same axes.

    Args:
        traces: title -> trace, left to right. Their pools should be of one size.

    Raises:
        ValueError: no trace, or one without steps.
    """
    if not traces or not all(trace.steps for trace in traces.values()):
        raise ValueError("memory_area needs at least one trace, and every trace at least one step.")
    fig = new_figure(max(6.4, min(5.2 * len(traces), 10.5)), 3.6)
    axes = fig.subplots(1, len(traces), squeeze=False, sharex=True, sharey=True)[0]
    for ax, (title, trace) in zip(axes, traces.items(), strict=True):
        uses = memory_use(trace)
        layers = [[getattr(use, kind) for use in uses] for kind in MEMORY_KINDS]
        areas = ax.stackplot(*_stairs(layers), labels=[LABELS[kind] for kind in MEMORY_KINDS])
        for area, kind in zip(areas, MEMORY_KINDS, strict=True):
            colour, hatch = MEMORY_STYLE[kind]
            area.set(facecolor=colour, hatch=hatch, edgecolor=INK, linewidth=0.3)
            area.set_gid(kind)
        waiting = [number for number, use in enumerate(uses) if use.num_waiting]
        if waiting:
            end, longest = waiting[-1] + 1, max(len(each.steps) for each in traces.values())
            ax.axvline(end, color=GRID, lw=1, ls="--")
            # On the side of the line that has more room; the words are true on both.
            side = "right" if 2 * end > longest else "left"
            ax.text(
                end, 0.985 * uses[0].capacity, " from this line on no request waits ", fontsize=7, va="top",
                ha=side, color=INK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            )  # fmt: skip
        ax.set_title(f"{title}\n{wasted_share(trace):.0%} of the held slots hold no token", fontsize=10)
        ax.set_xlabel("step")
        ax.set_ylim(0, uses[0].capacity)
        ax.set_xlim(left=0)
    axes[0].set_ylabel("slots of the pool")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=3, fontsize=8, handleheight=1.2)
    return fig


def _stairs(layers: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """Edges and layers drawn as stairs: a step lasts from its number to the next, there are no slopes.

    Each value appears at both ends of its step. Example: the layer [1, 3] of two steps becomes the edges
    [0, 1, 1, 2] and the values [1, 1, 3, 3].
    """
    num_steps = len(layers[0])
    edges = [*[number for number in range(num_steps) for _ in (0, 1)][1:], num_steps]
    return edges, [[value for value in layer for _ in (0, 1)] for layer in layers]


def request_area(trace: Trace, bytes_per_token: int) -> Figure:
    """Bytes of K and V that each request holds, step by step, stacked: the price of the KV cache as it grows.

    Tokens only, without the empty ends of blocks; a shared token counts for each request that sees it.

    Args:
        bytes_per_token: K and V of one token in all layers (`ModelConfig.kv_bytes_per_token`). The toy model:
            2 * 2 layers * 2 KV heads * 16 * 4 bytes = 512, so a prompt of 6 tokens is 3,072 bytes.

    Raises:
        ValueError: the trace has no steps.
    """
    if not trace.steps:
        raise ValueError("request_area needs a trace with at least one step.")
    order = request_order(trace)
    layers = {name: [0] * len(trace.steps) for name in order}
    for step, record in enumerate(trace.steps):
        filled = filled_during(record)
        for seq_id, name in sequences_of(record).items():
            layers[name][step] += filled[seq_id] * bytes_per_token
    fig = new_figure(7.5, 3.2)
    ax = fig.subplots()
    areas = ax.stackplot(*_stairs(list(layers.values())), labels=[f"request {name}" for name in layers])
    for area, name in zip(areas, layers, strict=True):
        style = request_style(order[name])
        # No outline: that of a request which is gone would lie on the others as a line of its colour.
        area.set(facecolor=style.fill, hatch=style.hatch, edgecolor=style.edge, linewidth=0)
        area.set_gid("request")
    ax.set_xlabel("step")
    ax.set_ylabel("bytes of K and V")
    ax.set_xlim(left=0)
    ax.spines[["top", "right"]].set_visible(False)
    fig.legend(loc="outside right upper", fontsize=8, reverse=True)
    return fig
