"""Block tables as text, drawn from one record of a trace.

    >>> print(draw_block_tables(record, block_size=4))       # the example of block_table.py
    request  tokens  block table
    0             6  [7 2]          |####|##..|

Each `#` is a slot that holds a token's K and V, each `.` one that is allocated and empty. `*` marks a block
that several sequences share.
"""

from __future__ import annotations

from minivllm.viz.trace import StepRecord, Trace


def fullest_step(trace: Trace) -> StepRecord:
    """The step after which the most slots were filled, the first of equals. ValueError if the trace has none.

    It is the step worth drawing: after the last step no sequence holds a block any more. Slots that sequences
    share count once for each of them.
    """
    if not trace.steps:
        raise ValueError("the trace has no steps: nothing has run yet.")
    return max(trace.steps, key=lambda record: sum(record.filled.values()))


def draw_block_tables(record: StepRecord, block_size: int, max_columns: int = 8) -> str:
    """One line per sequence; block tables longer than `max_columns` blocks are cut in the middle.

    They are cut in the middle because the ends tell the most: shared blocks stand at the beginning, and the
    partly filled one is the last.

    Args:
        record: one step of a trace.
        block_size: `Trace.block_size`, tokens per block.
        max_columns: blocks drawn per line; of more, the first and the last `max_columns // 2` stay.
    """
    lines = []
    for seq_id, block_ids in record.block_tables.items():
        # A sequence that was never freed belongs to no request any more. It is drawn all the same: to find a
        # leak is to see this line.
        name, filled = record.requests.get(seq_id, "(leaked)"), record.filled.get(seq_id, 0)
        numbers, cells = [], []
        for index, block_id in enumerate(block_ids):
            shared = "*" if record.ref_counts[block_id] > 1 else ""
            tokens = max(0, min(block_size, filled - index * block_size))
            numbers.append(f"{block_id}{shared}")
            cells.append("#" * tokens + "." * (block_size - tokens))
        if len(block_ids) > max_columns:
            keep = max_columns // 2
            numbers = [*numbers[:keep], "..", *numbers[-keep:]]
            cells = [*cells[:keep], "..", *cells[-keep:]]
        table = f"[{' '.join(numbers)}]"
        lines.append((name, str(filled), table, f"|{'|'.join(cells)}|"))
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(3)]
    header = f"{'request':<{max(7, widths[0])}}  {'tokens':>{max(6, widths[1])}}  block table"
    rows = [
        f"{name:<{max(7, widths[0])}}  {filled:>{max(6, widths[1])}}  {table:<{widths[2]}}  {cells}"
        for name, filled, table, cells in lines
    ]
    return "\n".join([header, *rows])
