"""The player's frames as an animated image, for pages on which no script runs: GitHub, a README, a slide.

The picture is the one that `player.js` draws: sequences and their block tables on the left, the pool on the
right, arrows between them. It is drawn with Pillow and not with matplotlib, which takes a second per frame
for so many small boxes::

    frame     step 3     step 4, a copy on its way (4 pictures)     step 4     step 5 ...
    shown for 1.4 s      0.1 s each                                 1.4 s      1.4 s

Everything is drawn at twice its size and scaled down, which smooths slanted lines. 128 colours and a few
dozen frames stay below 500 KB.

vLLM V1 has no counterpart; its blog explains PagedAttention with an animation of this kind.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Any

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from minivllm.viz.style import GRID, INK, PEAK

Frame = dict[str, Any]
"""What `player.frame` returns."""
Point = tuple[float, float]

SCALE = 2
# All in pixels of the finished picture.
CELL_WIDTH, ROW_HEIGHT, MARGIN, GAP = 58, 26, 12, 120
CAPTION_HEIGHT = 62
CELLS_IN_A_ROW = 4
MILLISECONDS, MILLISECONDS_MOVING = 1400, 110
NUM_MOVING = 5
"""Pictures of a block on its way."""


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font which comes with matplotlib, so that the picture is the same everywhere."""
    name = findfont("DejaVu Sans:bold" if bold else "DejaVu Sans")
    return ImageFont.truetype(name, size * SCALE, layout_engine=ImageFont.Layout.BASIC)


class Canvas:
    """A picture to draw on, in pixels of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
        self._draw = ImageDraw.Draw(self.image)

    def box(self, corner: Point, size: Point, fill: str, edge: str, thick: bool = False) -> None:
        """A rectangle from its upper left corner."""
        (x, y), (width, height) = corner, size
        box = (x * SCALE, y * SCALE, (x + width) * SCALE, (y + height) * SCALE)
        self._draw.rectangle(box, fill=fill, outline=edge, width=SCALE * (2 if thick else 1))

    def outline(self, corner: Point, size: Point, colour: str) -> None:
        """A thick frame without a filling."""
        (x, y), (width, height) = corner, size
        box = (x * SCALE, y * SCALE, (x + width) * SCALE, (y + height) * SCALE)
        self._draw.rectangle(box, outline=colour, width=SCALE * 3)

    def text(self, at: Point, text: str, size: int = 12, anchor: str = "lm", bold: bool = False) -> None:
        """Text at a point; `anchor` as in Pillow: "lm" is its left end, in the middle of its height."""
        self._draw.text((at[0] * SCALE, at[1] * SCALE), text, INK, font(size, bold), anchor)

    def fitting(self, text: str, width: float, size: int) -> str:
        """As much of the text as fits."""
        while text and font(size).getlength(text) > width * SCALE:
            text = text[:-2] + "\u2026" if len(text) > 2 else ""
        return text

    def arrow(self, start: Point, end: Point, colour: str) -> None:
        """A line with a dot at its end."""
        points = [(x * SCALE, y * SCALE) for x, y in (start, end)]
        self._draw.line(points, fill=colour, width=SCALE * 2)
        x, y = points[1]
        self._draw.ellipse((x - 3 * SCALE, y - 3 * SCALE, x + 3 * SCALE, y + 3 * SCALE), fill=colour)

    def finished(self) -> Image.Image:
        """The picture in its final size."""
        size = self.image.width // SCALE, self.image.height // SCALE
        return self.image.resize(size, Image.Resampling.LANCZOS)


class Layout:
    """Where things are, the same in all frames, so that nothing jumps."""

    def __init__(self, frames: list[Frame]) -> None:
        pool = frames[0]["pool"]
        cells = len(pool[0]["cells"])
        self.lines = -(-cells // CELLS_IN_A_ROW)  # lines of cells per block
        self.block_height = self.lines * (ROW_HEIGHT - 4) + 6
        self.block_width = min(cells, CELLS_IN_A_ROW) * CELL_WIDTH
        lefts = [sum(len(seq["blocks"]) for seq in frame["sequences"]) for frame in frames]
        gaps = [len(frame["sequences"]) for frame in frames]
        height = max(rows * self.block_height + 8 * gap for rows, gap in zip(lefts, gaps, strict=True))
        self.columns = 1 if len(pool) * self.block_height <= max(height, 330) else 2
        self.rows = -(-len(pool) // self.columns)
        self.left = MARGIN + 104
        self.pool_left = self.left + self.block_width + 40 + GAP
        self.width = self.pool_left + self.columns * (self.block_width + 66) + MARGIN
        self.height = CAPTION_HEIGHT + max(height, self.rows * self.block_height) + 44
        self.place = {
            block["block"]: (
                self.pool_left + index // self.rows * (self.block_width + 66),
                CAPTION_HEIGHT + index % self.rows * self.block_height,
            )
            for index, block in enumerate(pool)
        }


def animate(frames: list[Frame]) -> bytes:
    """The frames as an animated GIF that repeats.

    Args:
        frames: at least one, all of one trace, in the order of the steps.
    """
    layout = Layout(frames)
    pictures, durations = [], []
    for number, frame in enumerate(frames):
        if frame["copies"] and number:
            for moment in range(1, NUM_MOVING + 1):
                pictures.append(draw(frames[number - 1], layout, frame["copies"], moment / NUM_MOVING))
                durations.append(MILLISECONDS_MOVING)
        pictures.append(draw(frame, layout))
        durations.append(MILLISECONDS)
    durations[-1] *= 2
    # One palette for all, from all side by side: with a palette per frame the colours would flicker.
    sheet = Image.new("RGB", (layout.width, layout.height * len(pictures)))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (0, number * layout.height))
    palette = sheet.quantize(128, method=Image.Quantize.MAXCOVERAGE)
    first, *rest = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    buffer = io.BytesIO()
    timing = {"duration": durations, "loop": 0}  # 0: for ever
    first.save(buffer, "GIF", save_all=True, append_images=rest, optimize=True, disposal=1, **timing)
    return buffer.getvalue()


def draw(
    frame: Frame, layout: Layout, moving: list[list[int]] | tuple[()] = (), moment: float = 0.0
) -> Image.Image:
    """One picture: a frame, and the blocks which are being copied at `moment`, from 0 to 1, of their way."""
    canvas = Canvas(layout.width, layout.height)
    _draw_caption(canvas, frame, layout)
    for block in frame["pool"]:
        _draw_block(canvas, block, layout, layout.place[block["block"]])
        x, y = layout.place[block["block"]]
        if block["block"] in frame["found"]:
            canvas.outline((x - 4, y - 3), (layout.block_width + 8, layout.block_height), PEAK)
        middle = y + (layout.block_height - 6) / 2
        canvas.text((x - 6, middle), str(block["block"]), 11, "rm", bold=block["block"] in frame["found"])
        if block["holders"]:
            bold = block["holders"] > 1
            canvas.text((x + layout.block_width + 6, middle), f"\u00d7{block['holders']}", 12, bold=bold)
    y = CAPTION_HEIGHT
    for sequence in frame["sequences"]:
        y = _draw_sequence(canvas, sequence, layout, y) + 8
    blocks = {block["block"]: block for block in frame["pool"]}
    for source, destination in moving:
        (x0, y0), (x1, y1) = layout.place[source], layout.place[destination]
        # On a bow to the side: source and destination often stand in one column.
        bow = 70 * (1 - (2 * moment - 1) ** 2)
        _draw_block(canvas, blocks[source], layout, (x0 + (x1 - x0) * moment + bow, y0 + (y1 - y0) * moment))
    return canvas.finished()


def _draw_caption(canvas: Canvas, frame: Frame, layout: Layout) -> None:
    """The step, what happens in it, and below all, who waits."""
    canvas.text((MARGIN, 13), f"step {frame['step']}", 12, bold=True)
    width = layout.width - 2 * MARGIN
    line, lines = "", []
    for word in frame["caption"].split():
        if font(11).getlength(f"{line} {word}") > (width - 70) * SCALE:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    lines.append(line)
    for number, text in enumerate(lines[:3]):
        if number == 2 and len(lines) > 3:
            text += " \u2026"
        canvas.text((MARGIN + 70, 13 + 16 * number), text, 11)
    bottom = layout.height - 14
    canvas.text((MARGIN, bottom), "waiting: " + (", ".join(frame["waiting"]) or "none"), 11)
    legend = "\u00d7n: holders.  Grey: free, content still there.  Red frame: found in the cache."
    canvas.text((layout.width - MARGIN, bottom), legend, 10, "rm")


def _draw_block(canvas: Canvas, block: Frame, layout: Layout, corner: Point) -> None:
    """The cells of one block. A free one keeps its words, on grey."""
    held = "holders" not in block or block["holders"]
    for index, cell in enumerate(block["cells"]):
        x = corner[0] + index % CELLS_IN_A_ROW * CELL_WIDTH
        y = corner[1] + index // CELLS_IN_A_ROW * (ROW_HEIGHT - 4)
        fill = "#ffffff" if not cell["word"] else block["fill"] if held else "#e4e4e4"
        size = (CELL_WIDTH, ROW_HEIGHT - 4)
        canvas.box((x, y), size, fill, block["edge"] if held else GRID)
        if held and cell["new"] and cell["word"]:
            canvas.box((x + 1, y + 1), (CELL_WIDTH - 2, ROW_HEIGHT - 6), fill, INK, thick=True)
        word = canvas.fitting(cell["word"], CELL_WIDTH - 6, 10)
        canvas.text((x + CELL_WIDTH / 2, y + (ROW_HEIGHT - 4) / 2), word, 10, "mm")


def _draw_sequence(canvas: Canvas, sequence: Frame, layout: Layout, y: float) -> float:
    """The logical blocks of one sequence, its table and the arrows into the pool; returns the next free y."""
    canvas.text((MARGIN, y + 11), canvas.fitting(sequence["label"], 88, 11), 11, bold=True)
    table = layout.left + layout.block_width + 8
    for index, block in enumerate(sequence["blocks"]):
        middle = y + (layout.block_height - 6) / 2
        canvas.text((layout.left - 5, middle), str(index), 10, "rm")
        colours = {"fill": sequence["fill"], "edge": sequence["edge"]}
        _draw_block(canvas, {"cells": block["cells"], **colours}, layout, (layout.left, y))
        canvas.box((table, middle - 11), (28, 22), "#ffffff", INK)
        canvas.text((table + 14, middle), str(block["block"]), 11, "mm")
        target_x, target_y = layout.place[block["block"]]
        end = (target_x - 24, target_y + (layout.block_height - 6) / 2)
        canvas.arrow((table + 29, middle), end, sequence["edge"])
        y += layout.block_height
    return y
