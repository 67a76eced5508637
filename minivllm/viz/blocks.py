"""Pictures of blocks: the pool as a grid, one request through its block table, positions against slots.

`three_panel` is the picture that made the idea known: what the sequence sees (words in logical blocks), what
the table says, where the words really lie. Here it is drawn from a run, for the example of `block_table.py`::

    logical blocks             block table      physical blocks
    0 [Four score and seven]   0: block 7 (4)   2 [years ago  .    .  ]
    1 [years ago           ]   1: block 2 (2)   7 [Four score and seven]

All three functions show the moment after a step has written its tokens and before sequences that finish in it
have given back their blocks.

Paper: Figures 5 to 8. The layout is that of the post that introduced vLLM (June 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

from minivllm.viz.style import EMPTY, GRID, INK, RequestStyle, new_figure, request_order, request_style
from minivllm.viz.trace import Trace
from minivllm.viz.usage import filled_during, sequences_of, slot_of, slot_words, tables_during

EMPTY_STYLE = RequestStyle(EMPTY, GRID, "")
# A point has no room for a hatch, so its shape tells requests apart beside the colour: 8 shapes and 7 colours
# make 56 pairs.
MARKERS = "osD^vP*X"
WORD_WIDTH = 1.9  # of a cell that holds a word, in rows
TABLE_WIDTH = 2.2  # of an entry of the block table


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
        width: likewise; a slot of `block_grid` is 1 wide, a word `WORD_WIDTH`.
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
            bbox=box,
        )  # fmt: skip
    return cell


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
    _check_steps(trace, steps)
    # Rounded up: the last column may be shorter than the others.
    size, rows = trace.block_size, -(-trace.num_blocks // columns)
    fig = new_figure(min(3.4 * len(steps), 10.5), 0.7 + 0.27 * rows)
    order = request_order(trace)
    for ax, step in zip(fig.subplots(1, len(steps), squeeze=False)[0], steps, strict=True):
        owners = _owners(trace, step)
        for block_id in range(trace.num_blocks):
            # 1.6 between two columns of blocks: a gap, and the number of the block that comes next.
            x = (block_id // rows) * (size + 1.6)
            y = rows - 1 - block_id % rows
            ax.text(x - 0.2, y + 0.4, str(block_id), ha="right", va="center", fontsize=7, color=INK)
            for offset in range(size):
                slot = block_id * size + offset
                names = owners.get(slot)
                if names is None:
                    draw_cell(ax, (x + offset, y), EMPTY_STYLE, "", "free")
                    continue
                style = request_style(order[names[0]])
                # Held, but not filled: the owner's outline without its colour.
                if names[1:] == ("",):
                    draw_cell(ax, (x + offset, y), RequestStyle(EMPTY, style.edge, "---"), "", "empty")
                else:
                    draw_cell(ax, (x + offset, y), style, "+".join(names), "filled")
        ax.set_xlim(-1.4, columns * (size + 1.6) - 1.4)
        ax.set_ylim(-0.2, rows)
        ax.set_title(f"during step {trace.steps[step].step}", fontsize=10)
        ax.axis("off")
    return fig


def _owners(trace: Trace, step: int) -> dict[int, tuple[str, ...]]:
    """Slot -> request ids whose token is there; `(id, "")` if the owner has not filled it yet.

    Free slots are left out. Example: table (7, 2), block size 4, 6 tokens: slots 28 to 31, 8 and 9 -> ("0",),
    slots 10 and 11 -> ("0", "").
    """
    record = trace.steps[step]
    filled, names = filled_during(record), sequences_of(record)
    owners: dict[int, tuple[str, ...]] = {}
    for seq_id, block_ids in tables_during(record).items():
        for position in range(len(block_ids) * trace.block_size):
            slot = slot_of(block_ids, position, trace.block_size)
            # What other holders have said of this slot. Holders of a shared block may have filled it to
            # different depths; a holder with a token there counts for more than one with the place only.
            before = tuple(name for name in owners.get(slot, ()) if name)
            if position < filled[seq_id]:
                # Each name once, in order: two sequences of one request are one owner.
                owners[slot] = tuple(dict.fromkeys((*before, names[seq_id])))
            elif not before:
                owners[slot] = (names[seq_id], "")
    return owners


@dataclass(frozen=True)
class _Scene:
    """What the three panels share: one record, and what lies in which slot."""

    trace: Trace
    step: int
    words: dict[int, str]  # by slot
    new_slots: frozenset[int]  # written in this step


def three_panel(trace: Trace, step: int, request_id: str) -> Figure:
    """One request at one step: its words in logical blocks, its block table, the physical blocks.

    The cells written in this step have a thick outline. A request with several sequences shows them all, one
    under the other with a row left free between them: two sequences of 2 blocks take 2 + 1 + 2 rows.

    Args:
        step: index into `trace.steps`.
        request_id: as in the trace; offline requests are "0", "1", ... in order.

    Raises:
        ValueError: there is no such step, the request holds no block then, or the trace keeps no words.
    """
    _check_steps(trace, [step])
    record, size = trace.steps[step], trace.block_size
    seq_ids = [seq_id for seq_id, name in sequences_of(record).items() if name == request_id]
    if not seq_ids:
        raise ValueError(f"request {request_id!r} holds no block in record {step} of this trace.")
    new_slots = frozenset(
        slot_of(row.block_ids, row.start + i, size) for row in record.scheduled for i in range(row.num_tokens)
    )
    scene = _Scene(trace, step, slot_words(trace, step), new_slots)
    rows = sum(len(tables_during(record)[seq_id]) + 1 for seq_id in seq_ids) - 1
    # All panels have the same scale, so that a row is as high on the left as on the right.
    top = max(trace.num_blocks, rows)
    fig = new_figure(10.5, 0.9 + 0.33 * top)
    panels = fig.subplots(1, 3, width_ratios=[1.15, 0.65, 1.15])
    _draw_physical(panels[2], scene)
    y = top - 1.0
    for seq_id in seq_ids:
        y = _draw_logical(fig, panels, scene, seq_id, y) - 1
    titles = (f"logical blocks of request {request_id}", "block table\nblock      filled", "physical blocks")
    widths = (size * WORD_WIDTH, 2 * TABLE_WIDTH, size * WORD_WIDTH)
    for ax, title, width in zip(panels, titles, widths, strict=True):
        ax.set_title(title, fontsize=10)
        ax.set_xlim(-1.2, width + 0.3)
        ax.set_ylim(-0.3, top + 0.1)
        ax.axis("off")
    return fig


def _draw_physical(ax: Axes, scene: _Scene) -> None:
    """All blocks of the pool, in order of their number, with whatever lies in them.

    Block 0 is on top; y grows upwards, so block b is in row num_blocks - 1 - b.
    """
    trace = scene.trace
    owners, order = _owners(trace, scene.step), request_order(trace)
    for block_id in range(trace.num_blocks):
        y = trace.num_blocks - 1 - block_id
        ax.text(-0.2, y + 0.4, str(block_id), ha="right", va="center", fontsize=9, color=INK)
        for offset in range(trace.block_size):
            slot = block_id * trace.block_size + offset
            names = owners.get(slot)
            style = EMPTY_STYLE if names is None else request_style(order[names[0]])
            # Old words of free blocks are still there, but stay hidden: only a filled slot shows its word.
            _draw_word(ax, offset, y, style, slot if names and names[1:] != ("",) else None, scene)


def _draw_logical(fig: Figure, panels: Sequence[Axes], scene: _Scene, seq_id: int, y: float) -> float:
    """One sequence from row `y` downwards: logical blocks, table, arrows. Returns the next free row.

    Each row is one entry of the table, so the arrow on the left is level. The arrow on the right goes to the
    physical block.
    """
    left, middle, right = panels
    record, size = scene.trace.steps[scene.step], scene.trace.block_size
    filled = filled_during(record)[seq_id]
    style = request_style(request_order(scene.trace)[sequences_of(record)[seq_id]])
    entry = RequestStyle(EMPTY, INK, "")
    for index, block_id in enumerate(tables_during(record)[seq_id]):
        # Tokens in this block: 6 filled slots in blocks of 4 are 4 and 2.
        tokens = max(0, min(size, filled - index * size))
        left.text(-0.2, y + 0.4, str(index), ha="right", va="center", fontsize=9, color=INK)
        for offset in range(size):
            slot = block_id * size + offset
            _draw_word(left, offset, y, style, slot if offset < tokens else None, scene)
        draw_cell(middle, (0, y), entry, str(block_id), "table", TABLE_WIDTH)
        draw_cell(middle, (TABLE_WIDTH, y), entry, f"{tokens} of {size}", "table", TABLE_WIDTH)
        _arrow(fig, (left, size * WORD_WIDTH + 0.1, y + 0.4), (middle, -0.1, y + 0.4))
        target = scene.trace.num_blocks - 1 - block_id + 0.4
        _arrow(fig, (middle, 2 * TABLE_WIDTH + 0.1, y + 0.4), (right, -0.9, target))
        y -= 1
    return y


def _draw_word(ax: Axes, offset: int, y: float, style: RequestStyle, slot: int | None, scene: _Scene) -> None:
    """One cell of a block: the word in `slot`, or an empty cell for None.

    An empty cell of a held block has its holder's outline, one of a free block the grey of the grid.
    """
    corner = (offset * WORD_WIDTH, y)
    if slot is None:
        kind = "free" if style is EMPTY_STYLE else "empty"
        draw_cell(ax, corner, RequestStyle(EMPTY, style.edge, ""), "", kind, WORD_WIDTH)
        return
    cell = draw_cell(ax, corner, style, scene.words[slot], "filled", WORD_WIDTH)
    if slot in scene.new_slots:
        cell.set(linewidth=2.2, edgecolor=INK, zorder=3)


def _arrow(fig: Figure, start: tuple[Axes, float, float], end: tuple[Axes, float, float]) -> None:
    """An arrow from a point of one panel to a point of another, each in the data coordinates of its panel.

    It belongs to the figure: an artist of one panel would be cut off at the edge of that panel.
    """
    (ax_a, x_a, y_a), (ax_b, x_b, y_b) = start, end
    arrow = ConnectionPatch(
        (x_a, y_a), (x_b, y_b), "data", "data", axesA=ax_a, axesB=ax_b, arrowstyle="-|>", color=INK, lw=0.9
    )
    fig.add_artist(arrow)


def slot_map(traces: dict[str, Trace], steps: Sequence[int]) -> Figure:
    """Each filled slot as a point: position in its sequence across, physical slot upwards.

    A contiguous sequence is one straight line. A paged one is pieces of line, each one block long. The worked
    example, table (7, 2): points (0, 28), (1, 29), (2, 30), (3, 31), then (4, 8), (5, 9).

    Args:
        traces: title -> trace, one panel each.
        steps: for each trace, the index of the record to show.
    """
    fig = new_figure(min(5.2 * len(traces), 10.5), 3.8)
    axes = fig.subplots(1, len(traces), squeeze=False, sharey=True)[0]
    for ax, (title, trace), step in zip(axes, traces.items(), steps, strict=True):
        _check_steps(trace, [step])
        record, order = trace.steps[step], request_order(trace)
        filled = filled_during(record)
        for seq_id, name in sequences_of(record).items():
            table = tables_during(record)[seq_id]
            slots = [slot_of(table, position, trace.block_size) for position in range(filled[seq_id])]
            style = request_style(order[name])
            ax.scatter(
                range(len(slots)), slots, s=26, color=style.edge, edgecolor=INK, linewidths=0.5,
                marker=MARKERS[order[name] % len(MARKERS)], label=f"request {name}",
            )  # fmt: skip
        for block_id in range(trace.num_blocks + 1):
            ax.axhline(block_id * trace.block_size - 0.5, color=GRID, lw=0.4, zorder=0)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("position in the sequence")
    axes[0].set_ylabel("physical slot (a line at each block)")
    # One legend for all panels: the same label in two of them is the same request.
    handles = {
        label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=8, fontsize=8)
    return fig


def _check_steps(trace: Trace, steps: Sequence[int]) -> None:
    """ValueError unless all are indices of records."""
    wrong = [step for step in steps if not 0 <= step < len(trace.steps)]
    if wrong or not steps:
        raise ValueError(f"steps must be in [0, {len(trace.steps)}), got {list(steps)}.")
