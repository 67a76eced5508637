"""Which keys a kernel has loaded: a cell for each row of the key cache, drawn from `course.loads.record`.

One line of panels per sequence, one column per kernel and question. In a panel, each physical block is a row,
and each of its slots has a cell for every KV head. The example sequence has blocks 7 and 2, 9 tokens need a
third, and two query heads share each KV head, so the naive kernel loads every key twice::

                slot 0     slot 1     slot 2     slot 3
                h0   h1    h0   h1    h0   h1    h0   h1
    block 0     2x   2x    .    .     .    .     .    .
          2     2x   2x    2x   2x    2x   2x    2x   2x
          7     2x   2x    2x   2x    2x   2x    2x   2x

vLLM V1 has no counterpart.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minivllm.viz.style import GRID, INK, new_figure, request_style

Loads = list[tuple[tuple[int, int, int], int, int]]
"""(program, turn of its loop, row of the cache) of each row loaded; a program begins with its sequence."""
Texts = dict[int, dict[int, str]]
"""Sequence -> row of the cache -> what its cell says."""


def how_often(loads: Loads) -> Texts:
    """Each row with the number of times that it was loaded, such as "2x"."""
    counts: dict[int, dict[int, int]] = {}
    for (sequence, _, _), _, row in loads:
        rows = counts.setdefault(sequence, {})
        rows[row] = rows.get(row, 0) + 1
    return {sequence: {row: f"{n}x" for row, n in rows.items()} for sequence, rows in counts.items()}


def in_which_turn(loads: Loads) -> Texts:
    """Each row with the turn of the loop in which it was loaded first."""
    turns: Texts = {}
    for (sequence, _, _), turn, row in loads:
        turns.setdefault(sequence, {}).setdefault(row, str(turn))
    return turns


def loads_grid(panels: Mapping[str, Texts], shape: tuple[int, int, int]) -> Figure:
    """A panel for each title and each sequence.

    Args:
        panels: title -> what to write, of the same sequences everywhere.
        shape: of the cache: blocks, slots of a block, KV heads.

    Raises:
        ValueError: there is no panel, or a panel has no sequence.
    """
    if not panels or not all(panels.values()):
        raise ValueError("loads_grid needs at least one panel, and every panel at least one sequence.")
    sequences = sorted(next(iter(panels.values())))
    fig = new_figure(9.5, 2.7 * len(sequences))
    grid = fig.subplots(len(sequences), len(panels), sharey=True, squeeze=False)
    for sequence, axes in zip(sequences, grid, strict=True):
        for ax, (title, texts) in zip(axes, panels.items(), strict=True):
            _draw_cache(ax, texts[sequence], shape, request_style(sequence).fill)
            ax.set_title(f"{title}\n", fontsize=9)
        axes[0].set_ylabel(f"sequence {sequence}\nblock")
    fig.supxlabel("KV head (h0, h1 ...) in each slot", fontsize=9)
    return fig


def _draw_cache(ax: Axes, texts: dict[int, str], shape: tuple[int, int, int], colour: str) -> None:
    """One panel. Row `r` of the cache is in block r // (slots * heads), block 0 on top."""
    num_blocks, num_slots, num_heads = shape
    width = num_slots * num_heads
    for row, text in texts.items():
        y, x = divmod(row, width)
        cell = Rectangle((x, y), 1, 1, facecolor=colour, edgecolor=GRID, lw=0.5)
        cell.set_gid("load")
        ax.add_patch(cell)
        ax.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8, color=INK)
    for slot in range(num_slots):
        ax.axvline(num_heads * slot, color=INK, lw=1)
        middle = num_heads * (slot + 0.5)
        ax.text(middle, -0.15, f"slot {slot}", ha="center", va="bottom", fontsize=7, color=INK)
    heads = [f"h{head}" for head in range(num_heads)] * num_slots
    ax.set_xticks([x + 0.5 for x in range(width)], heads, fontsize=7)
    ax.set(xlim=(0, width), ylim=(num_blocks, 0))
    ax.set_yticks([block + 0.5 for block in range(num_blocks)], [str(block) for block in range(num_blocks)])
