"""How every figure looks, and how it reaches the page with its description.

Three rules. Colour never carries a meaning alone: each request has a colour *and* a hatch, and its id is
written in the cells. The palette is Okabe and Ito's, which colour-blind readers can tell apart; it is mixed
with white, so that black text stays readable on it. And every figure carries a sentence that says what it
shows, with the measured numbers, for readers who cannot see it::

    request   0        1      2        3       ...   7              8           ...
    colour    orange   blue   yellow   green         pale orange    pale blue
    hatch     (none)   ///    ...      xxx           +++            |||

Seven colours come once strong and once pale with dark strokes, so fourteen requests have fourteen fills. The
pale ones have four hatches of their own. A pair of fill and hatch repeats after 28 requests.

The pictures are PNG of 128 colours: hatches make SVG files five times as large. The bytes depend on the
figure only (no date, no program version), so a notebook that is built twice is the same file twice.

vLLM V1 has no counterpart. Palette: Okabe and Ito, "Color Universal Design" (2008).
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

if TYPE_CHECKING:
    from minivllm.viz.trace import Trace

# Okabe-Ito without black, ordered so that neighbours differ in lightness as well as in hue.
PALETTE = ("#E69F00", "#0072B2", "#F0E442", "#009E73", "#56B4E9", "#D55E00", "#CC79A7")
HATCHES = ("", "///", "...", "xxx")
PALE_HATCHES = ("|||", "ooo", "\\\\\\", "+++")
# Roles other than "belongs to request i": each has a colour and a hatch, the same in every figure.
EMPTY = "#FFFFFF"
INK = "#222222"
GRID = "#999999"
PEAK = "#D55E00"
DPI = 110

# Layers of memory, from the bottom of the stack up: (colour, hatch). `usage.MemoryUse` explains the names.
MEMORY_STYLE: dict[str, tuple[str, str]] = {
    "used": ("#0072B2", ""),
    "reserved": ("#56B4E9", "///"),
    "internal": ("#F0E442", "..."),
    "rounding": ("#E69F00", "xxx"),
    "free": ("#FFFFFF", ""),
}


@dataclass(frozen=True)
class RequestStyle:
    """How one request is drawn: `fill` behind black text, `edge` for outline and hatch."""

    fill: str
    edge: str
    hatch: str


def mix_with_white(colour: str, share: float) -> str:
    """Lighten a colour: `share` of white, from 0 (unchanged) to 1 (white)."""
    return to_hex([channel * (1 - share) + share for channel in to_rgb(colour)])


def legend_patches(styles: Mapping[str, RequestStyle]) -> list[Patch]:
    """Entries of a legend: label -> what it looks like."""
    return [
        Patch(facecolor=style.fill, edgecolor=style.edge, hatch=style.hatch, label=label)
        for label, style in styles.items()
    ]


def darkened(colour: str, share: float) -> str:
    """The colour mixed with black: `share` of black, from 0 (unchanged) to 1 (black)."""
    return to_hex([channel * (1 - share) for channel in to_rgb(colour)])


def request_style(index: int) -> RequestStyle:
    """Style of the `index`-th request of a trace. Negative indices are a ValueError."""
    if index < 0:
        raise ValueError(f"the index of a request is at least 0, got {index}.")
    round_of_colours, number = divmod(index, len(PALETTE))
    colour = PALETTE[number]
    if round_of_colours % 2:
        hatch = PALE_HATCHES[index % len(PALE_HATCHES)]
        return RequestStyle(mix_with_white(colour, 0.75), darkened(colour, 0.35), hatch)
    return RequestStyle(mix_with_white(colour, 0.45), colour, HATCHES[index % len(HATCHES)])


def request_order(trace: Trace) -> dict[str, int]:
    """Request id -> its number, in the order the trace first mentions it (running, then waiting).

    The number decides colour and hatch, so two traces of one workload draw a request alike.
    """
    order: dict[str, int] = {}
    for record in trace.steps:
        scheduled = (row.request_id for row in record.scheduled)
        for request_id in (*scheduled, *record.running, *record.waiting, *record.swapped):
            order.setdefault(request_id, len(order))
    # Ids that are numbers sort as numbers, in whatever order a reader's scheduler served the requests.
    if all(request_id.isdecimal() for request_id in order):
        return {request_id: number for number, request_id in enumerate(sorted(order, key=int))}
    return order


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches. Not registered with pyplot, so it does not show by itself or leak."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def png_bytes(fig: Figure) -> bytes:
    """The figure as a PNG whose bytes depend on nothing but the figure."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    # Maximum coverage keeps rare colours (one patch in a legend); median cut would mix them with others.
    image = Image.open(buffer).convert("RGB")
    image = image.quantize(128, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def figure_html(fig: Figure, alt: str, caption: str | None = None) -> str:
    """The figure as one HTML element that carries its own description.

    Args:
        fig: any matplotlib figure.
        alt: one sentence that says what the figure shows, with its numbers.
        caption: text below the figure; None: the same sentence.

    Raises:
        ValueError: `alt` says nothing.
    """
    if len(alt.split()) < 4:
        raise ValueError(
            f"alt must be a sentence with the measured numbers, for readers who cannot see the figure; "
            f"got {alt!r}."
        )
    data = base64.b64encode(png_bytes(fig)).decode("ascii")
    text = html.escape(alt, quote=True)
    below = text if caption is None else html.escape(caption)
    return (
        f'<figure style="margin:0"><img alt="{text}" src="data:image/png;base64,{data}" '
        f'style="max-width:100%;height:auto"><figcaption>{below}</figcaption></figure>'
    )


def show(fig: Figure, alt: str, caption: str | None = None) -> None:
    """Display a figure in a notebook, with its description (see `figure_html`)."""
    from IPython.display import HTML, display

    display(HTML(figure_html(fig, alt, caption)))
