"""The trace player: PagedAttention as a moving picture, drawn from a real run.

Left, what each sequence sees: its words, cut into logical blocks, and the table entry of each block. Right,
the pool: every physical block with what lies in it and how many holders it has. An arrow goes from each
table entry to its block. One step to the next, new words appear, a copied block is seen moving, a block
found in the prefix cache lights up, and the row of a preempted request fades::

    step 4 of 9   [ play ] [ back ] [ next ] ---o-------
    request 0 computes position 8; new block: 4
    request 0   0 [Four score and seven]    7 --.        2 [years ago our fathers]  x1
                1 [years ago our fathers]   2 --+-->     4 [brought . . .]          x1
                2 [brought . . .]           4 --'        7 [Four score and seven]   x1

It plays by itself when it comes into view, once, unless the reader's system asks for less motion. It is one
self-contained piece of HTML: the frames as JSON, a little CSS and JavaScript (`player.css`, `player.js`), no
network. What a frame shows is decided here, in Python, where it can be tested; the script only puts it on the
page. It works in JupyterLab, in the built documentation and in a file of its own. Where no script runs (a
notebook that is not trusted, GitHub), the same frames are shown as an animated image, drawn by
`animation.py`.

Keyboard: the buttons and the slider as any others; with the focus on the player, arrow keys, Home, End and
the space bar. Several players on one page do not disturb each other: each script looks for its own data, by
their hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections import Counter
from importlib.resources import files
from typing import Any

from minivllm.viz.animation import animate
from minivllm.viz.style import mix_with_white, request_order, request_style
from minivllm.viz.trace import ScheduledRecord, StepRecord, Trace
from minivllm.viz.usage import filled_during, sequences_of, slot_of, slot_words, tables_during, visible

Tables = dict[int, tuple[int, ...]]
"""Block tables by sequence id."""
MOST_BLOCKS = 24
"""Of a larger pool only the blocks that some step used are shown."""
FREE = {"fill": "#ffffff", "edge": "#999999"}


class TracePlayer:
    """What `trace_player` returns: displays itself in a notebook; `html` is the text."""

    def __init__(self, html: str) -> None:
        self.html = html

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:  # no address: notebooks store it
        return f"TracePlayer({len(self.html)} characters of HTML)"


def trace_player(trace: Trace, max_steps: int = 60) -> TracePlayer:
    """The player of a trace that keeps words.

    Args:
        trace: made with `Trace(word_of=...)`.
        max_steps: a limit, because the page holds every step as data, even steps that no reader looks at.

    Raises:
        ValueError: the trace has no steps, more than `max_steps` (a page should stay small), or no words.
    """
    if not 0 < len(trace.steps) <= max_steps:
        raise ValueError(f"the player shows 1 to {max_steps} steps, this trace has {len(trace.steps)}.")
    shown = frames_of(trace)
    frames = json.dumps(shown, separators=(",", ":"))
    image = base64.b64encode(animate(shown)).decode("ascii")
    # Two players of one trace have one key; the script starts each element with that key once.
    key = hashlib.sha256(frames.encode()).hexdigest()[:12]
    # "</" would end the script element; in JSON the slash may be escaped.
    data = frames.replace("</", "<\\/")
    # Into the page itself, and not linked: a notebook that is sent by mail has no files beside it.
    source = files("minivllm.viz")
    style = (source / "player.css").read_text(encoding="utf-8")
    script = (source / "player.js").read_text(encoding="utf-8").replace("PLAYER_KEY", key)
    summary = html.escape(summarize(trace))
    return TracePlayer(
        f'<div class="minivllm-player" data-key="{key}" tabindex="0" role="group" aria-label="{summary}">'
        f"<style>{style}</style>"
        f'<p class="mv-static"><img alt="{summary}" style="max-width:100%" '
        f'src="data:image/gif;base64,{image}"></p>'
        f'<script type="application/json">{data}</script></div><script>{script}</script>'
    )


def summarize(trace: Trace) -> str:
    """One sentence about the whole trace."""
    return (
        f"A run of {len(trace.steps)} steps with {len(request_order(trace))} requests in "
        f"{trace.num_blocks} blocks of {trace.block_size} slots."
    )


def frames_of(trace: Trace) -> list[dict[str, Any]]:
    """What the player and the animated image show, step by step."""
    block_ids = touched_blocks(trace)
    return [frame(trace, number, block_ids) for number in range(len(trace.steps))]


def frame(trace: Trace, number: int, block_ids: list[int]) -> dict[str, Any]:
    """All that the player shows of one step, as plain data. The first step of the worked example::

        {"step": 0, "caption": "Request 0 computes positions 0 to 5; new blocks: 7, 2.",
         "sequences": [{"label": "request 0", "sequence": 0, "fill": ..., "edge": ...,
                        "blocks": [{"block": 7, "cells": [{"word": "Four", "new": True}, ...]}, ...]}],
         "pool": [{"block": 7, "holders": 1, "fill": ..., "edge": ..., "cells": [...]}, ...],
         "copies": [], "found": [], "preempted": [], "waiting": [], "free": [4, 1, 0, 3, 6, 5]}

    All of it is the state while the step runs, but for the free queue, which is that after it. A block
    without holders may still show words: freeing a block erases nothing. `found` are blocks taken from the
    prefix cache.
    """
    record, size, order = trace.steps[number], trace.block_size, request_order(trace)
    tables, filled, words = tables_during(record), filled_during(record), slot_words(trace, number)
    before = _tables_before(trace, number)
    found = found_blocks(record, before, size)
    new = {
        slot_of(row.block_ids, row.start + i, size) for row in record.scheduled for i in range(row.num_tokens)
    }

    def cells(block_id: int, num_filled: int) -> list[dict[str, Any]]:
        return cells_of(range(block_id * size, (block_id + 1) * size), num_filled, words, new)

    sequences, holders, depth = [], {}, {}
    names, labels = sequences_of(record), labels_of(record)
    for seq_id in sorted(names, key=lambda seq_id: (order[names[seq_id]], seq_id)):
        style = request_style(order[names[seq_id]])
        # Sequences of one request share a colour; each is lighter than the one before it.
        siblings = [each for each in names if names[each] == names[seq_id]]
        share = 0.6 * siblings.index(seq_id) / len(siblings)
        colours = {"fill": mix_with_white(style.fill, share), "edge": style.edge}
        blocks = []
        for index, block_id in enumerate(tables[seq_id]):
            num_filled = max(0, min(size, filled[seq_id] - index * size))
            blocks.append({"block": block_id, "cells": cells(block_id, num_filled)})
            holders.setdefault(block_id, []).append(colours)
            depth[block_id] = max(num_filled, depth.get(block_id, 0))
        sequences.append({"label": labels[seq_id], "sequence": seq_id, **colours, "blocks": blocks})
    pool = [
        {
            "block": block_id,
            "holders": len(holders.get(block_id, ())),
            **holders.get(block_id, [FREE])[0],
            "cells": cells(block_id, depth.get(block_id, size)),
        }
        for block_id in block_ids
    ]
    return {
        "step": record.step,
        "caption": caption(record, before, found),
        "sequences": sequences,
        "pool": pool,
        "copies": [list(pair) for pair in record.blocks_to_copy],
        "found": sorted(found),
        "preempted": list(record.preempted),
        "waiting": [*record.swapped, *record.waiting],
        "free": list(record.free),
    }


def cells_of(slots: range, num_filled: int, words: dict[int, str], new: set[int]) -> list[dict[str, Any]]:
    """A block's cells: words of the first slots; those behind may be an earlier owner's, and stay hidden."""
    return [
        {"word": visible(words.get(slot, "")) if offset < num_filled else "", "new": slot in new}
        for offset, slot in enumerate(slots)
    ]


def touched_blocks(trace: Trace) -> list[int]:
    """The blocks which the player shows: all of a small pool; of a large one those that some step used."""
    if trace.num_blocks <= MOST_BLOCKS:
        return list(range(trace.num_blocks))
    used = {each for record in trace.steps for table in tables_during(record).values() for each in table}
    return sorted(used)


def found_blocks(record: StepRecord, before: Tables, size: int) -> set[int]:
    """Blocks that a sequence got with their content: new in its table, before the first token it computes."""
    swapped_in = {destination for _, destination in record.blocks_to_swap_in}
    found = {
        block_id
        for row in record.scheduled
        if row.seq_id not in before
        for block_id in row.block_ids[: row.start // size]
    }
    return found - swapped_in


def labels_of(record: StepRecord) -> dict[int, str]:
    """Sequence id -> "request 0", or "request 0 (2)" for the second of several sequences of one request."""
    names = sequences_of(record)
    counts, numbers, labels = Counter(names.values()), Counter(), {}
    for seq_id, name in names.items():
        numbers[name] += 1
        labels[seq_id] = f"request {name}" + (f" ({numbers[name]})" if counts[name] > 1 else "")
    return labels


def caption(record: StepRecord, before: Tables, found: set[int]) -> str:
    """What happens in one step, in a few short sentences, in the order in which it happens."""
    labels = labels_of(record)
    parts = [f"Request {name} is preempted: its blocks are free again." for name in record.preempted]
    parts += [f"Block {source} is copied to block {target}." for source, target in record.blocks_to_copy]
    for row in record.scheduled:
        label = labels[row.seq_id].capitalize()
        parts.append(f"{label} {_work(row, before.get(row.seq_id, ()), found)}")
    parts += [f"Request {name} is finished and gives its blocks back." for name in record.finished]
    return " ".join(parts)


def _tables_before(trace: Trace, number: int) -> Tables:
    """Block tables after the previous step, without those of requests that lost them at the start of this."""
    if number == 0:
        return {}
    record, previous = trace.steps[number], trace.steps[number - 1]
    return {
        seq_id: block_ids
        for seq_id, block_ids in previous.block_tables.items()
        if previous.requests[seq_id] not in record.preempted
    }


def _work(row: ScheduledRecord, before: tuple[int, ...], found: set[int]) -> str:
    """One row of the batch in words: which positions, which new blocks.

    A block that came by copy-on-write is new as well: it was not in the table before (`before`: the table
    after the previous step). One found in the prefix cache is named as such.
    """
    last = row.start + row.num_tokens - 1
    what = f"position {row.start}" if row.num_tokens == 1 else f"positions {row.start} to {last}"
    entered = [block_id for block_id in row.block_ids if block_id not in before]
    hits = [block_id for block_id in entered if block_id in found]
    new = [block_id for block_id in entered if block_id not in found]
    parts = [f"computes {what}"]
    parts += [f"found in the prefix cache: {', '.join(map(str, hits))}"] * bool(hits)
    parts += [f"new block{'s' if len(new) > 1 else ''}: {', '.join(map(str, new))}"] * bool(new)
    return "; ".join(parts if entered else [*parts, "no new block is needed"]) + "."
