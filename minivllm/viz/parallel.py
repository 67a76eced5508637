"""Figures of tensor parallelism: the rows and columns of each rank, and the time of a step on several GPUs.

A weight is drawn as a rectangle in its own proportions, (out, in), cut where the loader cuts it::

    q_proj     [ rank 0 ]  by rows        o_proj   [ rank | rank | rank ]  by columns
               [ rank 1 ]                          [   0  |   1  |   2  ]
               [ rank 2 ]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minivllm.distributed.sharding import Shard
from minivllm.viz.style import HATCHES, INK, PALETTE, mix_with_white, new_figure


def shards_figure(shapes: Mapping[str, tuple[int, int]], size: int) -> Figure:
    """One drawing for each weight, with the part of each rank.

    Args:
        shapes: Hugging Face's name, as `self_attn.q_proj.weight` -> shape (out, in).
        size: number of ranks.

    Raises:
        ValueError: there is no weight to draw.
    """
    if not shapes:
        raise ValueError("shards_figure needs at least one weight.")
    fig = new_figure(1.9 * len(shapes), 3.4)
    widths = [shape[1] for shape in shapes.values()]  # so that all are drawn to one scale
    panels = fig.subplots(1, len(shapes), squeeze=False, width_ratios=widths)[0]
    for ax, (name, shape) in zip(panels, shapes.items(), strict=True):
        for rank in range(size):
            part = Shard(rank, size).part_of(name, shape) or ()
            rows, columns = (*part, slice(None), slice(None))[:2]
            (top, bottom, _), (left, right, _) = rows.indices(shape[0]), (columns.indices(shape[1]))
            colour = mix_with_white(PALETTE[rank % len(PALETTE)], 0.45)
            box = Rectangle((left, top), right - left, bottom - top, facecolor=colour, edgecolor=INK, lw=0.8)
            box.set_gid(f"rank {rank}")
            ax.add_patch(box)
            place, text = (
                ((left + right) / 2, (top + bottom) / 2),
                {"ha": "center", "va": "center", "color": INK},
            )
            ax.text(*place, str(rank), fontsize=9, **text)
        ax.set_xlim(0, shape[1])
        ax.set_ylim(shape[0], 0)
        ax.set_aspect("equal")
        ax.set_title(name.split(".")[-2], fontsize=9)
        ax.set_xticks([0, shape[1]])
        ax.set_yticks([0, shape[0]])
        ax.tick_params(labelsize=7)
    return fig


def step_time_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bars of milliseconds by number of GPUs, a panel for each model and batch, from `plan_rows`.

    Products are plain, communication is hatched and stands on top; one GPU kind beside the other.
    """
    models, batches = (list(dict.fromkeys(row[name] for row in rows)) for name in ("model", "num_seqs"))
    gpus = list(dict.fromkeys(row["gpu"] for row in rows))
    fig = new_figure(3.2 * len(batches), 2.5 * len(models))
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
        plural = "" if row["num_seqs"] == 1 else "s"
        ax.set_title(f"{row['model']}, {row['num_seqs']} sequence{plural}", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("ms per step", fontsize=9)
    for panel in panels[-1]:
        panel.set_xlabel("GPUs", fontsize=9)
    panels[0][0].legend(fontsize=8, frameon=False, loc="upper right")
    title = "A decode step, computed (hatched: communication; pale: does not fit into memory)"
    fig.suptitle(title, fontsize=10)
    return fig
