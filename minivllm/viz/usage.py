"""Numbers read off a trace: where every slot stands, which request sat where, which word lies in which slot.

Every figure is drawn from these numbers, and they come from the trace alone. A record shows the state *after*
its step, when finished sequences have given their blocks back. A step needs its memory while it runs, so the
functions here rebuild that moment: the tables of the rows it computed, and of the sequences that sat out.

The kinds of slots, for one paged sequence with 5 tokens computed and 6 at its longest, and one contiguous
reservation of 6 slots with 3 tokens, 4 at its longest; block size 4, pool of 5 blocks::

    [ u u u u ][ u r i i ]   [ u u u r ][ i i o o ]   [ f f f f ]

    u used       holds a token
    r reserved   empty now, its owner will fill it before the trace ends
    i internal   held, and its owner will never fill it
    o rounding   the allocator handed it out on top of what was asked for, no sequence can use it
    f free       no sequence holds it

How long a sequence gets is read from the end of the trace: a figure may look ahead, a scheduler could not.

Paper: section 3.1 and Figure 2 (rounding is its external fragmentation). vLLM V1 has no counterpart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from minivllm.scheduler_output import BlockPair
from minivllm.viz.trace import StepRecord, Trace

MEMORY_KINDS = ("used", "reserved", "internal", "rounding", "free")


@dataclass(frozen=True)
class MemoryUse:
    """Slots by kind while one step runs (see above); `num_waiting` requests had no memory."""

    used: int
    reserved: int
    internal: int
    rounding: int
    free: int
    num_waiting: int

    @property
    def capacity(self) -> int:
        """All slots of the pool."""
        return self.held + self.free

    @property
    def held(self) -> int:
        """Slots that belong to a sequence."""
        return self.used + self.reserved + self.internal + self.rounding

    @property
    def wasted_share(self) -> float:
        """Share of the held slots that hold no token; 0 if nothing is held."""
        return 1 - self.used / self.held if self.held else 0.0


def needed_slots(trace: Trace) -> dict[int, int]:
    """seq_id -> slots it fills at its longest, anywhere in the trace."""
    needed: dict[int, int] = {}
    for record in trace.steps:
        for row in record.scheduled:
            needed[row.seq_id] = max(needed.get(row.seq_id, 0), row.start + row.num_tokens)
    return needed


def tables_during(record: StepRecord) -> dict[int, tuple[int, ...]]:
    """Block tables while the step runs, those of sequences that finish in it included.

    A sequence forked at the end of this step holds its blocks already, so it counts too.
    """
    return dict(record.block_tables) | {row.seq_id: row.block_ids for row in record.scheduled}


def filled_during(record: StepRecord) -> dict[int, int]:
    """seq_id -> slots that hold K and V once the step has written its tokens."""
    filled = {seq_id: record.filled.get(seq_id, 0) for seq_id in record.block_tables}
    return filled | {row.seq_id: row.start + row.num_tokens for row in record.scheduled}


def memory_use(trace: Trace) -> list[MemoryUse]:
    """Where every slot stands, step by step."""
    needed, asked = needed_slots(trace), _asked_slots(trace)
    return [_memory_of(record, trace, needed, asked) for record in trace.steps]


def _asked_slots(trace: Trace) -> dict[int, int]:
    """seq_id -> slots its memory manager set aside, for managers that reserve more than they hand out.

    Only what differs from whole blocks is listed; a paged sequence asks for exactly what it holds.
    """
    asked: dict[int, int] = {}
    for record in trace.steps:
        for seq_id, slots in record.reserved.items():
            if slots < len(record.block_tables[seq_id]) * trace.block_size:
                asked[seq_id] = slots
    return asked


def _memory_of(record: StepRecord, trace: Trace, needed: dict[int, int], asked: dict[int, int]) -> MemoryUse:
    """The kinds of one step. A block that several sequences share counts once, with its fullest holder.

    The picture at the top of this file, block by block, as (used, used at the longest, asked for)::

        paged        (4, 4, 4) (1, 2, 4)    used 5   reserved 6 - 5   internal 8 - 6   rounding 8 - 8
        contiguous   (3, 4, 4) (0, 0, 2)    used 3   reserved 4 - 3   internal 6 - 4   rounding 8 - 6
    """
    size, tables, filled = trace.block_size, tables_during(record), filled_during(record)
    # block id -> slots of it that are used / will be / were asked for, the most over its holders
    blocks: dict[int, tuple[int, int, int]] = {}
    for seq_id, block_ids in tables.items():
        asked_here = asked.get(seq_id, len(block_ids) * size)
        for index, block_id in enumerate(block_ids):
            counts = tuple(
                max(0, min(size, total - index * size))
                for total in (filled[seq_id], needed.get(seq_id, filled[seq_id]), asked_here)
            )
            blocks[block_id] = tuple(map(max, counts, blocks.get(block_id, (0, 0, 0))))
    used, later, asked_for = (sum(counts[kind] for counts in blocks.values()) for kind in range(3))
    later = max(used, later)
    held = len(blocks) * size
    return MemoryUse(
        used=used,
        reserved=later - used,
        internal=asked_for - later,
        rounding=held - asked_for,
        free=trace.num_blocks * size - held,
        num_waiting=len(record.waiting) + len(record.swapped),
    )


def wasted_share(trace: Trace) -> float:
    """Share of the held slots that hold no token, over the whole run (each step weighs what it held).

    Example: 5 of 10 held slots used in one step, 25 of 30 in the next: 1 - 30 / 40 = 25 %.
    """
    uses = memory_use(trace)
    return 1 - sum(use.used for use in uses) / sum(use.held for use in uses)


def slot_words(trace: Trace, step: int) -> dict[int, str]:
    """Physical slot -> the word last written there, once record number `step` has run.

    It does with words what the engine does with K and V: writes by slot, copies blocks, swaps them. So a
    sequence finds the words of a prefix that it did not compute, and a freed block still holds its old words.

    Raises:
        ValueError: the trace keeps no words.
    """
    device: dict[int, str] = {}
    swap_space: dict[int, str] = {}
    for record in trace.steps[: step + 1]:
        _move_words(device, swap_space, record.blocks_to_swap_out, trace.block_size)
        _move_words(swap_space, device, record.blocks_to_swap_in, trace.block_size)
        _move_words(device, device, record.blocks_to_copy, trace.block_size)
        for row in record.scheduled:
            if row.words is None:
                raise ValueError("this trace keeps no words: make it with Trace(word_of=...).")
            for position, word in enumerate(row.words, row.start):
                device[slot_of(row.block_ids, position, trace.block_size)] = word
    return device


def visible(word: str) -> str:
    """A word as it stands in its cell: no spaces around it; a sign for a space or a line break."""
    return word.strip(" ").replace("\n", "\u21b5") or ("\u2423" if word else "")


def _move_words(
    source: dict[int, str], target: dict[int, str], pairs: tuple[BlockPair, ...], size: int
) -> None:
    """Copy the words of whole blocks; all sources are read before any destination is written."""
    moved = {
        destination * size + offset: source[origin * size + offset]
        for origin, destination in pairs
        for offset in range(size)
        if origin * size + offset in source
    }
    target.update(moved)


def slot_of(block_ids: tuple[int, ...], position: int, block_size: int) -> int:
    """Physical slot of a position. Example: table (7, 2), block size 4, position 5 -> 9."""
    return block_ids[position // block_size] * block_size + position % block_size


def sequences_of(record: StepRecord) -> dict[int, str]:
    """seq_id -> request id, for all sequences that hold blocks while the step runs."""
    names = dict(record.requests) | {row.seq_id: row.request_id for row in record.scheduled}
    return {seq_id: names[seq_id] for seq_id in sorted(tables_during(record))}


def slot_owners(trace: Trace, step: int) -> dict[int, tuple[str, ...]]:
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


def check_steps(trace: Trace, steps: Iterable[int]) -> None:
    """ValueError unless all are indices of records, and there is one at least."""
    steps = list(steps)
    wrong = [step for step in steps if not 0 <= step < len(trace.steps)]
    if wrong or not steps:
        raise ValueError(f"steps must be in [0, {len(trace.steps)}), got {steps}.")


@dataclass(frozen=True)
class Work:
    """What one request does in one step: `num_tokens` computed, sitting in seat number `seat`.

    `longest` is the most that one of its sequences computed: four completions that decode are 4 tokens, and
    `longest` is 1.
    """

    step: int
    request_id: str
    seat: int
    num_tokens: int
    longest: int


def seating(trace: Trace) -> list[Work]:
    """Give each request the lowest seat that is empty when it starts, until it finishes or is preempted.

    The scheduler counts seats and does not number them; the numbers are a way to draw a batch. All sequences
    of a request sit in one seat.
    """
    seats: dict[str, int] = {}
    work: list[Work] = []
    for number, record in enumerate(trace.steps):
        for request_id in record.preempted:
            seats.pop(request_id, None)
        tokens: dict[str, list[int]] = {}
        for row in record.scheduled:
            tokens.setdefault(row.request_id, []).append(row.num_tokens)
        for request_id, counts in tokens.items():
            taken = set(seats.values())
            seats.setdefault(request_id, next(seat for seat in range(len(taken) + 1) if seat not in taken))
            work.append(Work(number, request_id, seats[request_id], sum(counts), max(counts)))
        for request_id in record.finished:
            seats.pop(request_id, None)
    return work


def num_output_tokens(trace: Trace) -> int:
    """Tokens sampled in the whole trace."""
    return sum(row.num_samples for record in trace.steps for row in record.scheduled)
