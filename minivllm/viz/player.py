"""The trace player: step through a real run in the page, forwards and backwards.

One self-contained piece of HTML: the frames as JSON, a little CSS and JavaScript (`player.css`, `player.js`),
no network. What a frame shows is decided here, in Python, where it can be tested; the script only puts it on
the page. It works in JupyterLab, in the built documentation and in a file of its own. JupyterLab runs scripts
only in notebooks it trusts, so a static figure always stands beside it::

    step 4 of 9   [ back ] [ next ] ---o-------
    request 0 computes position 8, block 4 is new
    request 0   block 7 [Four score and seven]  block 2 [years ago our fathers]  block 4 [brought . . .]
    free queue  1 0 3 6 5            reference counts  2:1 4:1 7:1

Keyboard: buttons and slider work as usual; with the focus on the player, so do arrow keys, Home and End.
Several players on one page do not disturb each other: each script looks for its own data, by their hash.
"""

from __future__ import annotations

import hashlib
import html
import json
from importlib.resources import files
from typing import Any

from minivllm.viz.style import request_order, request_style
from minivllm.viz.trace import ScheduledRecord, StepRecord, Trace
from minivllm.viz.usage import filled_during, sequences_of, slot_of, slot_words, tables_during


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
    frames = json.dumps([frame(trace, number) for number in range(len(trace.steps))], separators=(",", ":"))
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
        f'<p class="mv-static">{summary} (To step through it, run this cell or trust the notebook.)</p>'
        f'<script type="application/json">{data}</script></div><script>{script}</script>'
    )


def summarize(trace: Trace) -> str:
    """One sentence about the whole trace."""
    return (
        f"A run of {len(trace.steps)} steps with {len(request_order(trace))} requests in "
        f"{trace.num_blocks} blocks of {trace.block_size} slots."
    )


def frame(trace: Trace, number: int) -> dict[str, Any]:
    """All that the player shows of one step, as plain data. The first step of the worked example::

        {"step": 0, "caption": "Request 0 computes positions 0 to 5; new blocks: 7, 2.",
         "sequences": [{"request": "0", "sequence": 0, "fill": ..., "edge": ...,
                        "blocks": [{"block": 7, "cells": [{"word": "Four", "new": True}, ...]}, ...]}],
         "waiting": [], "free": [4, 1, 0, 3, 6, 5], "ref_counts": [(2, 1), (7, 1)]}

    Cells are those of the step while it runs, free queue and reference counts those after it. Counts are
    pairs and no dict, because keys of JSON objects are strings.
    """
    record, size, order = trace.steps[number], trace.block_size, request_order(trace)
    tables, filled, words = tables_during(record), filled_during(record), slot_words(trace, number)
    new = {
        slot_of(row.block_ids, row.start + i, size) for row in record.scheduled for i in range(row.num_tokens)
    }
    sequences = []
    for seq_id, name in sequences_of(record).items():
        style = request_style(order[name])
        blocks = []
        for index, block_id in enumerate(tables[seq_id]):
            cells = []
            for offset in range(size):
                # A slot beyond the filled ones may hold the word of an earlier owner, which is left out.
                slot, stored = block_id * size + offset, index * size + offset < filled[seq_id]
                cells.append({"word": words[slot] if stored else "", "new": stored and slot in new})
            blocks.append({"block": block_id, "cells": cells})
        sequences.append(
            {"request": name, "sequence": seq_id, "fill": style.fill, "edge": style.edge, "blocks": blocks}
        )
    return {
        "step": record.step,
        "caption": caption(record, trace),
        "sequences": sequences,
        "waiting": [*record.swapped, *record.waiting],
        "free": list(record.free),
        "ref_counts": sorted(record.ref_counts.items()),
    }


def caption(record: StepRecord, trace: Trace) -> str:
    """What happens in one step, in a few short sentences, in the order in which it happens."""
    before = _tables_before(record, trace)
    parts = [f"Request {name} is preempted: its blocks are free again." for name in record.preempted]
    parts += [f"Block {source} is copied to block {target}." for source, target in record.blocks_to_copy]
    parts += [_work(row, before.get(row.seq_id, ())) for row in record.scheduled]
    parts += [f"Request {name} is finished and gives its blocks back." for name in record.finished]
    return " ".join(parts)


def _tables_before(record: StepRecord, trace: Trace) -> dict[int, tuple[int, ...]]:
    """Block tables after the previous step, without those of requests that lost them at the start of this."""
    number = next(i for i, each in enumerate(trace.steps) if each is record)
    if number == 0:
        return {}
    previous = trace.steps[number - 1]
    return {
        seq_id: block_ids
        for seq_id, block_ids in previous.block_tables.items()
        if previous.requests[seq_id] not in record.preempted
    }


def _work(row: ScheduledRecord, before: tuple[int, ...]) -> str:
    """One row of the batch in words: which positions, which new blocks.

    A block that came by copy-on-write is new as well, and so is one found in the prefix cache: it was not in
    the table before (`before`: the table after the previous step).
    """
    last = row.start + row.num_tokens - 1
    what = f"position {row.start}" if row.num_tokens == 1 else f"positions {row.start} to {last}"
    new = [block_id for block_id in row.block_ids if block_id not in before]
    if not new:
        return f"Request {row.request_id} computes {what}; no new block is needed."
    numbers = ", ".join(map(str, new))
    return f"Request {row.request_id} computes {what}; new block{'s' if len(new) > 1 else ''}: {numbers}."
