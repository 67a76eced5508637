"""One request through its block table, the picture that made the idea known: logical, table, physical.

Left what the sequence sees (words in logical blocks), in the middle what the table says, right where the
words really lie. Here it is drawn from a run, for the example of `block_table.py`::

    logical blocks             block table      physical blocks
    0 [Four score and seven]   0: block 7 (4)   2 [years ago  .    .  ]
    1 [years ago           ]   1: block 2 (2)   7 [Four score and seven]

A request with several completions shows all of them, each in a colour of its own. A block in the tables of
two has the colour of the one and the strokes of the other; beside each block stands how many sequences hold
it, before and after the step; and a copy on write is an arrow from the old block to the new one::

    completion 0   0: block 7    1: block 4         2 [years ago salt . ]   holders: 2 -> 1    --.
    completion 1   0: block 7    1: block 2         4 [years ago  of  . ]   holders: 1         <-' copied

It shows the moment after a step has written its tokens and before sequences that finish in it have given back
their blocks. Paper: Figures 5 to 8. The layout is that of the post that introduced vLLM (June 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Patch, Rectangle

from minivllm.viz.blocks import EMPTY_STYLE, draw_cell
from minivllm.viz.style import (
    EMPTY,
    INK,
    PEAK,
    RequestStyle,
    legend_patches,
    new_figure,
    request_order,
    request_style,
)
from minivllm.viz.trace import StepRecord, Trace
from minivllm.viz.usage import (
    check_steps,
    filled_during,
    sequences_of,
    slot_of,
    slot_owners,
    slot_words,
    tables_during,
    visible,
)

WORD_WIDTH = 1.9  # of a cell that holds a word, in rows
TABLE_WIDTH = 2.2  # of an entry of the block table
MARGIN_OF_BADGES = 4.8  # right of the physical blocks: the arrow of a copy, and the number of holders


@dataclass(frozen=True)
class _Scene:
    """What the three panels share: one record, what lies in which slot, the colour of each block."""

    trace: Trace
    step: int
    words: dict[int, str]  # by slot
    new_slots: frozenset[int]  # written in this step
    completions: list[int]  # seq_ids of the request that is shown
    blocks: dict[int, RequestStyle]  # by block id, held ones only

    @property
    def record(self) -> StepRecord:
        """The step."""
        return self.trace.steps[self.step]


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
    check_steps(trace, [step])
    scene, size = _scene(trace, step, request_id), trace.block_size
    several = len(scene.completions) > 1
    tables = tables_during(scene.record)
    rows = sum(len(tables[seq_id]) + 1 for seq_id in scene.completions) - 1
    # All panels have the same scale, so that a row is as high on the left as on the right.
    top = max(trace.num_blocks, rows)
    fig = new_figure(10.5, 0.9 + 0.33 * top + 0.3 * several)
    panels = fig.subplots(1, 3, width_ratios=[1.15, 0.65, 1.15 + 0.5 * several])
    _draw_physical(panels[2], scene)
    y = top - 1.0
    for number, seq_id in enumerate(scene.completions):
        if several:
            middle = y + 0.9 - len(tables[seq_id]) / 2
            panels[0].text(
                -1.0, middle, f"compl. {number}", rotation=90, va="center", ha="center", fontsize=7
            )
        y = _draw_logical(fig, panels, scene, seq_id, y) - 1
    if several:
        _draw_holders(panels[2], scene)
        fig.legend(handles=_legend(scene), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    titles = (f"logical blocks of request {request_id}", "block table\nblock      filled", "physical blocks")
    widths = (size * WORD_WIDTH, 2 * TABLE_WIDTH, size * WORD_WIDTH + MARGIN_OF_BADGES * several)
    for ax, title, width in zip(panels, titles, widths, strict=True):
        ax.set_title(title, fontsize=10)
        ax.set_xlim(-1.2, width + 0.3)
        ax.set_ylim(-0.3, top + 0.1)
        ax.axis("off")
    return fig


def _scene(trace: Trace, step: int, request_id: str) -> _Scene:
    """Collect what the panels need."""
    record, order = trace.steps[step], request_order(trace)
    names = sequences_of(record)
    completions = [seq_id for seq_id, name in names.items() if name == request_id]
    if not completions:
        raise ValueError(f"request {request_id!r} holds no block in record {step} of this trace.")
    new_slots = frozenset(
        slot_of(row.block_ids, row.start + i, trace.block_size)
        for row in record.scheduled
        for i in range(row.num_tokens)
    )
    holders: dict[int, list[RequestStyle]] = {}
    for seq_id, block_ids in tables_during(record).items():
        # The completions of the request that is shown have a colour each, from the request's own on.
        number = completions.index(seq_id) if seq_id in completions else 0
        for block_id in block_ids:
            holders.setdefault(block_id, []).append(request_style(order[names[seq_id]] + number))
    blocks = {block_id: _shared(styles) for block_id, styles in holders.items()}
    return _Scene(trace, step, slot_words(trace, step), new_slots, completions, blocks)


def _shared(holders: Sequence[RequestStyle]) -> RequestStyle:
    """The look of a block: that of its holder; of several, the colour of the first, strokes of the second."""
    first, *others = holders
    return RequestStyle(first.fill, others[0].edge, "///") if others else first


def _draw_physical(ax: Axes, scene: _Scene) -> None:
    """All blocks of the pool, in order of their number, with whatever lies in them.

    Block 0 is on top; y grows upwards, so block b is in row num_blocks - 1 - b.
    """
    trace = scene.trace
    owners = slot_owners(trace, scene.step)
    for block_id in range(trace.num_blocks):
        y = trace.num_blocks - 1 - block_id
        ax.text(-0.2, y + 0.4, str(block_id), ha="right", va="center", fontsize=9, color=INK)
        for offset in range(trace.block_size):
            slot = block_id * trace.block_size + offset
            names = owners.get(slot)
            style = EMPTY_STYLE if names is None else scene.blocks[block_id]
            # Old words of free blocks are still there, but stay hidden: only a filled slot shows its word.
            _draw_word(ax, offset, y, style, slot if names and names[1:] != ("",) else None, scene)


def _draw_logical(fig: Figure, panels: Sequence[Axes], scene: _Scene, seq_id: int, y: float) -> float:
    """One sequence from row `y` downwards: logical blocks, table, arrows. Returns the next free row.

    Each row is one entry of the table, so the arrow on the left is level. The arrow on the right goes to the
    physical block.
    """
    left, middle, right = panels
    record, size = scene.record, scene.trace.block_size
    filled = filled_during(record)[seq_id]
    entry = RequestStyle(EMPTY, INK, "")
    for index, block_id in enumerate(tables_during(record)[seq_id]):
        # Tokens in this block: 6 filled slots in blocks of 4 are 4 and 2.
        tokens = max(0, min(size, filled - index * size))
        left.text(-0.2, y + 0.4, str(index), ha="right", va="center", fontsize=9, color=INK)
        for offset in range(size):
            slot = block_id * size + offset
            _draw_word(left, offset, y, scene.blocks[block_id], slot if offset < tokens else None, scene)
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
    draw_cell(ax, corner, style, visible(scene.words[slot]), "filled", WORD_WIDTH)
    if slot in scene.new_slots:  # a frame of its own: the strokes of a cell have the colour of its edge
        ax.add_patch(Rectangle(corner, WORD_WIDTH, 0.8, fill=False, edgecolor=INK, lw=2.2, zorder=3))


def _draw_holders(ax: Axes, scene: _Scene) -> None:
    """Right of the physical blocks: how many sequences hold each, before and after the step; the copies."""
    trace, record = scene.trace, scene.record
    right = trace.block_size * WORD_WIDTH
    earlier = trace.steps[scene.step - 1].ref_counts if scene.step else record.ref_counts
    for block_id, count in record.ref_counts.items():
        before = earlier.get(block_id, count)
        text = f"holders: {count}" if before == count else f"holders: {before} \u2192 {count}"
        box = {"boxstyle": "round", "facecolor": "#F0E442" if count > 1 else EMPTY}
        y = trace.num_blocks - 0.6 - block_id
        ax.text(right + 1.9, y, text, va="center", fontsize=8, color=INK, bbox=box)
    for source, destination in record.blocks_to_copy:
        start, end = (trace.num_blocks - 0.6 - block_id for block_id in (source, destination))
        # Bowed to the right, whichever way it goes.
        look = {"arrowstyle": "-|>", "connectionstyle": f"arc3,rad={0.5 if end > start else -0.5}",
                "color": PEAK, "lw": 2.0}  # fmt: skip
        arrow = ax.annotate("", (right + 0.15, end), (right + 0.15, start), arrowprops=look)
        arrow.set_gid("copy")


def _legend(scene: _Scene) -> list[Patch]:
    """A patch for each completion, for what they share, and for the arrow of a copy where there is one."""
    names = sequences_of(scene.record)
    number = request_order(scene.trace)[names[scene.completions[0]]]
    own = [request_style(number + i) for i in range(len(scene.completions))]
    looks = {f"completion {i}": style for i, style in enumerate(own)} | {"in several tables": _shared(own)}
    handles = legend_patches(looks)
    if scene.record.blocks_to_copy:
        handles.append(Patch(color=PEAK, label="red arrow: copied before the write"))
    return handles


def _arrow(fig: Figure, start: tuple[Axes, float, float], end: tuple[Axes, float, float]) -> None:
    """An arrow from a point of one panel to a point of another, each in the data coordinates of its panel.

    It belongs to the figure: an artist of one panel would be cut off at the edge of that panel.
    """
    (ax_a, x_a, y_a), (ax_b, x_b, y_b) = start, end
    arrow = ConnectionPatch(
        (x_a, y_a), (x_b, y_b), "data", "data", axesA=ax_a, axesB=ax_b, arrowstyle="-|>", color=INK, lw=0.9
    )
    fig.add_artist(arrow)
