"""The pool as a grid: which request is in which slot.

`block_grid` writes request ids into blocks of a small pool, at some steps of one trace. `slot_map` compares
two memory managers on a large pool: a cell for every slot, with the position of its token in the sequence.
The worked example of `block_table.py`, table (7, 2), 6 tokens, as `slot_map` draws it::

     0  [  .  .  .  . ] [  .  .  .  . ] [  4  5  -  - ] [  .  .  .  . ]       .  free
     4  [  .  .  .  . ] [  .  .  .  . ] [  .  .  .  . ] [  0  1  2  3 ]       -  held, and empty

Both show the moment after a step has written its tokens and before sequences that finish in it have given
back their blocks. Paper: Figures 3 and 6. vLLM V1 has no counterpart.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minivllm.block_table import cdiv
from minivllm.viz.style import (
    EMPTY,
    GRID,
    INK,
    RequestStyle,
    legend_patches,
    new_figure,
    request_order,
    request_style,
)
from minivllm.viz.trace import Trace
from minivllm.viz.usage import check_steps, filled_during, sequences_of, slot_of, slot_owners, tables_during

EMPTY_STYLE = RequestStyle(EMPTY, GRID, "")
# Of `slot_map`: slots in a line of the grid, and the gap between two blocks, in slots.
SLOTS_IN_A_LINE = 16
GAP = 0.5


def draw_cell(
    ax: Axes, corner: tuple[float, float], style: RequestStyle, text: str, kind: str, width: float = 1.0
) -> Rectangle:
    """One cell with its text. `kind` ("filled", "empty", "free") is its gid, by which tests count cells.

    Cells are 0.8 rows high in rows of height 1, so that blocks above each other do not touch.

    Args:
        corner: its lower left corner, (x, y) in data coordinates; y grows upwards.
        style: fill, outline and hatch.
        text: a word or a request id; "" for none.
        kind: "table", too, for an entry of a block table.
        width: likewise; a slot of `block_grid` is 1 wide.
    """
    cell = Rectangle(
        corner, width, 0.8, facecolor=style.fill, edgecolor=style.edge, hatch=style.hatch, lw=0.8
    )
    cell.set_gid(kind)
    ax.add_patch(cell)
    if text:
        # A patch of plain colour behind the text: strokes of the hatch would cross the letters.
        box = {"facecolor": style.fill, "edgecolor": "none", "pad": 2} if style.hatch else None
        size = 8 if len(text) <= 7 else 6.5
        ax.text(
            corner[0] + width / 2, corner[1] + 0.4, text, ha="center", va="center", fontsize=size, color=INK,
            bbox=box, parse_math=False,
        )  # fmt: skip
    return cell


def held_and_empty(style: RequestStyle) -> RequestStyle:
    """How a slot is drawn that its owner has not filled yet: the owner's outline without its colour."""
    return RequestStyle(EMPTY, style.edge, "---")


def block_grid(trace: Trace, steps: Sequence[int], columns: int = 2) -> Figure:
    """The whole pool at some steps, one panel each: request ids in the slots they fill.

    Blocks are numbered down the columns. The worked example in its first step (8 blocks of 4 slots, request 0
    with 6 tokens in blocks 7 and 2; dashes: held and empty, dots: free)::

        0  . . . .     4  . . . .
        1  . . . .     5  . . . .
        2  0 0 - -     6  . . . .
        3  . . . .     7  0 0 0 0

    A slot that several requests share shows them all, "0+1", in the colour of the first.

    Args:
        steps: indices into `trace.steps`.
        columns: columns of blocks in a panel.

    Raises:
        ValueError: `steps` is empty, or there is no such step.
    """
    check_steps(trace, steps)
    # Rounded up: the last column may be shorter than the others.
    size, rows = trace.block_size, cdiv(trace.num_blocks, columns)
    fig = new_figure(min(3.4 * len(steps), 10.5), 0.7 + 0.27 * rows)
    order = request_order(trace)
    for ax, step in zip(fig.subplots(1, len(steps), squeeze=False)[0], steps, strict=True):
        owners = slot_owners(trace, step)
        for block_id in range(trace.num_blocks):
            # 1.6 between two columns of blocks: a gap, and the number of the block that comes next.
            x = (block_id // rows) * (size + 1.6)
            y = rows - 1 - block_id % rows
            ax.text(x - 0.2, y + 0.4, str(block_id), ha="right", va="center", fontsize=7, color=INK)
            for offset in range(size):
                names = owners.get(block_id * size + offset)
                if names is None:
                    draw_cell(ax, (x + offset, y), EMPTY_STYLE, "", "free")
                    continue
                style = request_style(order[names[0]])
                if names[1:] == ("",):
                    draw_cell(ax, (x + offset, y), held_and_empty(style), "", "empty")
                else:
                    draw_cell(ax, (x + offset, y), style, "+".join(names), "filled")
        ax.set_xlim(-1.4, columns * (size + 1.6) - 1.4)
        ax.set_ylim(-0.2, rows)
        ax.set_title(f"during step {trace.steps[step].step}", fontsize=10)
        ax.axis("off")
    return fig


def slot_map(traces: dict[str, Trace], steps: Sequence[int]) -> Figure:
    """Every slot of the pool as a cell, one panel per trace; a filled one shows the position of its token.

    Slots are numbered along the lines. The number before a line is that of its first block.

    Args:
        traces: title -> trace, one panel each.
        steps: for each trace, the index of the record to show.

    Raises:
        ValueError: there is no trace, not one step for each, or no such step.
    """
    if not traces or len(traces) != len(steps):
        raise ValueError(f"slot_map needs one step per trace, got {len(steps)} for {len(traces)}.")
    lines = max(cdiv(trace.num_blocks, _blocks_in_a_line(trace)) for trace in traces.values())
    fig = new_figure(min(5.2 * len(traces), 10.5), 1.0 + 0.21 * lines)
    axes = fig.subplots(1, len(traces), squeeze=False)[0]
    numbers: dict[str, int] = {}
    for ax, (title, trace), step in zip(axes, traces.items(), steps, strict=True):
        check_steps(trace, [step])
        _draw_slots(ax, trace, step)
        ax.set_title(title, fontsize=10)
        order = request_order(trace)
        numbers |= {name: order[name] for name in sequences_of(trace.steps[step]).values()}
    styles = {f"request {name}": request_style(number) for name, number in sorted(numbers.items())}
    styles["held, and empty"] = held_and_empty(RequestStyle(EMPTY, GRID, ""))
    fig.legend(handles=legend_patches(styles), loc="outside lower center", ncols=7, fontsize=8, frameon=False)
    return fig


def _blocks_in_a_line(trace: Trace) -> int:
    """Whole blocks only, and at least one."""
    return max(1, SLOTS_IN_A_LINE // trace.block_size)


def _draw_slots(ax: Axes, trace: Trace, step: int) -> None:
    """The grid of one trace, cell by cell in the order of the slots. Of a shared slot it shows one holder."""
    record, size, per_line = trace.steps[step], trace.block_size, _blocks_in_a_line(trace)
    order, filled, names = request_order(trace), filled_during(record), sequences_of(record)
    place_of: dict[int, tuple[int, int]] = {}  # slot -> sequence and position
    for seq_id, block_ids in tables_during(record).items():
        for position in range(len(block_ids) * size):
            place_of[slot_of(block_ids, position, size)] = (seq_id, position)
    for slot in range(trace.num_blocks * size):
        block_id, offset = divmod(slot, size)
        line, column = divmod(block_id, per_line)
        corner = (column * (size + GAP) + offset, -float(line))
        if slot not in place_of:
            draw_cell(ax, corner, EMPTY_STYLE, "", "free")
            continue
        seq_id, position = place_of[slot]
        style = request_style(order[names[seq_id]])
        if position < filled[seq_id]:
            draw_cell(ax, corner, style, str(position), "filled")
        else:
            draw_cell(ax, corner, held_and_empty(style), "", "empty")
    lines = cdiv(trace.num_blocks, per_line)
    for line in range(lines):
        ax.text(-0.3, 0.4 - line, str(line * per_line), ha="right", va="center", fontsize=7, color=INK)
    ax.text(-0.3, 1.3, "block", ha="right", va="center", fontsize=7, color=INK)
    ax.set_xlim(-1.6, per_line * (size + GAP))
    ax.set_ylim(0.7 - lines, 1.7)
    ax.axis("off")
