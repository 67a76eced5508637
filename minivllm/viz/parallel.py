"""Figures of tensor parallelism: the rows and columns of each rank, and the time of a step on several GPUs.

A weight is drawn as a rectangle in its own proportions, (out, in), cut where its ranks cut it::

    qkv_proj   [ 0 | 1 | 2 ]  by rows        o_proj   [ 0 | 1 | 2 ]  by columns
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minivllm.viz.style import HATCHES, INK, PALETTE, mix_with_white, new_figure


def shards_figure(shards: Mapping[str, Sequence[tuple[int, int]]]) -> Figure:
    """One drawing for each weight: the parts of all ranks, side by side as they lie in the whole.

    Args:
        shards: name -> shape of each rank's part, by rank. Parts with all inputs lie below each other (cut by
            rows), others beside each other (cut by columns).

    Raises:
        ValueError: no weight, or ranks whose parts differ in shape.
    """
    if not shards or any(len(set(parts)) != 1 for parts in shards.values()):
        raise ValueError("shards_figure needs at least one weight, and parts of one shape for each.")
    fig = new_figure(2.1 * len(shards), 2.9)
    panels = fig.subplots(1, len(shards), squeeze=False)[0]
    inputs = max(columns for parts in shards.values() for _, columns in parts)
    for ax, (name, parts) in zip(panels, shards.items(), strict=True):
        rows, columns = parts[0]
        by_rows = columns == inputs
        for rank in range(len(parts)):
            x, y = (0, rank * rows) if by_rows else (rank * columns, 0)
            colour = mix_with_white(PALETTE[rank % len(PALETTE)], 0.45)
            ax.add_patch(Rectangle((x, y), columns, rows, facecolor=colour, edgecolor=INK, lw=0.8))
            text = {"ha": "center", "va": "center", "fontsize": 8, "color": INK}
            ax.text(x + columns / 2, y + rows / 2, f"rank {rank}", rotation=0 if by_rows else 90, **text)
        total = (rows * len(parts), columns) if by_rows else (rows, columns * len(parts))
        ax.set_xlim(0, total[1])
        ax.set_ylim(total[0], 0)
        ax.set_title(f"{name}\n{total[0]} x {total[1]}, by {'rows' if by_rows else 'columns'}", fontsize=9)
        ax.set_xticks([0, total[1]])
        ax.set_yticks([0, total[0]])
        ax.tick_params(labelsize=7)
    return fig


def step_time_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bars of milliseconds by number of GPUs, a panel for each model and batch, from `plan_rows`.

    Products are plain, communication is hatched and stands on top; one GPU kind beside the other.
    """
    models, batches = (list(dict.fromkeys(row[name] for row in rows)) for name in ("model", "num_seqs"))
    gpus = list(dict.fromkeys(row["gpu"] for row in rows))
    fig = new_figure(3.0 * len(batches), 2.3 * len(models))
    panels = fig.subplots(len(models), len(batches), squeeze=False)
    width = 0.8 / len(gpus)
    for row in rows:
        ax = panels[models.index(row["model"])][batches.index(row["num_seqs"])]
        number = gpus.index(row["gpu"])
        colour = mix_with_white(PALETTE[number], 0.35)
        for place, cell in enumerate(row["sizes"]):
            x, products = place + (number - (len(gpus) - 1) / 2) * width, cell["products"] * 1e3
            style = {"width": 0.92 * width, "edgecolor": INK, "lw": 0.5}
            alpha = 1.0 if cell["fits"] else 0.35
            label = row["gpu"] if place == 0 else None
            ax.bar(x, products, color=colour, alpha=alpha, label=label, **style)
            ax.bar(x, cell["communication"] * 1e3, bottom=products, color="white", hatch=HATCHES[1], **style)
        ax.set_xticks(range(len(row["sizes"])), [str(cell["size"]) for cell in row["sizes"]])
        ax.set_title(f"{row['model']}, {row['num_seqs']} sequences", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("ms per step", fontsize=9)
    for panel in panels[-1]:
        panel.set_xlabel("GPUs (hatched: communication; pale: does not fit)", fontsize=8)
    panels[0][0].legend(fontsize=8, frameon=False)
    return fig
