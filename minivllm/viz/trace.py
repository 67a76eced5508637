"""The trace: what happened in each step, one record per step, in plain numbers.

Every figure is drawn from a trace and from nothing else, so a scheduler that a reader has changed is drawn by
the same code as ours. Off unless asked for::

    trace = Trace()
    engine = LLMEngine(config, trace=trace)         # the engine calls trace.record(...) once per step
    ...
    trace.save(Path("run.json")); trace = Trace.load(Path("run.json"))

The design's example request (block_size 4, prompt of 6 tokens, table [7, 2]) after its first step::

    StepRecord(step=0, time=0.031, scheduled=(ScheduledRecord(seq_id=0, request_id="0", start=0, num_tokens=6,
               num_samples=1, block_ids=(7, 2)),), running=("0",), waiting=(), ..., requests={0: "0"},
               block_tables={0: (7, 2)}, filled={0: 6}, reserved={0: 8}, free=(4, 1, 0, 3, 6, 5),
               ref_counts={7: 1, 2: 1})

A record shows the moment *after* a step: sequences that finished in the step have given their blocks back.
The tables as they were *during* the step are in `scheduled`. Requests are named by request id, memory by
sequence id; `requests` leads from the one to the other. Block tables are taken from the memory manager and
not from the running requests, so a sequence that was never freed stays visible.

The classes below are the schema: `Trace.from_json` checks every field of the file against their annotations.

vLLM V1 has no counterpart; nearest are `vllm/v1/metrics/stats.py` (counters) and the KV events.
"""

from __future__ import annotations

import functools
import json
import time
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from minivllm.scheduler import Scheduler
from minivllm.scheduler_output import BlockPair, ScheduledSequence, SchedulerOutput
from minivllm.sequence import Sequence, SequenceGroup

# Part of every file. Raise the number when a field changes: old files are then refused instead of misdrawn.
FORMAT = "minivllm-trace-1"


@dataclass(frozen=True)
class ScheduledRecord:
    """One row of the batch: `num_tokens` tokens of a sequence, from position `start` on.

    `block_ids` is its table during the step. `words` are the texts of those tokens, if the trace was asked to
    keep them.
    """

    seq_id: int
    request_id: str
    start: int
    num_tokens: int
    num_samples: int
    block_ids: tuple[int, ...]
    words: tuple[str, ...] | None = None


@dataclass(frozen=True)
class StepRecord:
    """One step, and the state it left behind."""

    step: int
    time: float  # end of the step, in seconds since the trace began
    scheduled: tuple[ScheduledRecord, ...]
    blocks_to_copy: tuple[BlockPair, ...]
    blocks_to_swap_out: tuple[BlockPair, ...]
    blocks_to_swap_in: tuple[BlockPair, ...]
    # Request ids. `waiting` and `swapped` in the order of the queue; finished and preempted in this step.
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    swapped: tuple[str, ...]
    preempted: tuple[str, ...]
    finished: tuple[str, ...]
    # By sequence id: its request, its blocks, slots that hold K and V, slots set aside for it.
    requests: dict[int, str]
    block_tables: dict[int, tuple[int, ...]]
    swapped_tables: dict[int, tuple[int, ...]]  # block ids of the swap space
    filled: dict[int, int]
    reserved: dict[int, int]
    # Physical blocks: the free queue, next to be taken first, and the number of holders of all others.
    free: tuple[int, ...]
    ref_counts: dict[int, int]


class Trace:
    """Records of consecutive steps of one engine, with the sizes needed to draw them.

    A record copies what it needs, as plain tuples and dicts: the scheduler goes on changing its objects, and
    a record that pointed at them would show the present. That costs a pass over all block tables per step,
    which is why tracing is off unless asked for.

    Args:
        word_of: text of a token id, to keep the words of what is computed; None: keep no words.
        start_time: the moment that counts as 0 in the records, by the clock that `record` is given; None:
            now, by `time.perf_counter`.
    """

    def __init__(self, word_of: Callable[[int], str] | None = None, start_time: float | None = None) -> None:
        self.word_of = word_of
        self.start_time = time.perf_counter() if start_time is None else start_time
        # In blocks and in tokens per block; known when the first step is recorded.
        self.num_blocks = 0
        self.block_size = 0
        self.steps: list[StepRecord] = []

    def record(
        self,
        plan: SchedulerOutput,
        updated: list[tuple[SequenceGroup, list[Sequence]]],
        scheduler: Scheduler,
        now: float,
    ) -> None:
        """Add one step. Call it when the step is over: after outputs are processed, stop strings included.

        Args:
            plan: what `scheduler.schedule()` returned.
            updated: what `scheduler.update_from_output()` returned.
            scheduler: its queues, and its memory manager's tables, are read and not changed.
            now: the time, by the clock of `start_time`.
        """
        kv = scheduler.kv
        self.num_blocks, self.block_size = kv.pool.num_blocks, kv.block_size
        # The groups that may hold blocks, on the device or swapped out. Groups that wait hold none.
        seqs = {
            seq.seq_id: (seq, group)
            for queue in (scheduler.running, scheduler.swapped)
            for group in queue
            for seq in group.unfinished
        }
        # Paged memory sets aside all that it holds, contiguous memory less: its allocator rounds up.
        reserved = getattr(kv, "reserved_slots", {})
        self.steps.append(
            StepRecord(
                step=plan.step,
                time=now - self.start_time,
                scheduled=tuple(self._row(row) for row in plan.scheduled),
                blocks_to_copy=plan.blocks_to_copy,
                blocks_to_swap_out=plan.blocks_to_swap_out,
                blocks_to_swap_in=plan.blocks_to_swap_in,
                running=tuple(group.request_id for group in scheduler.running),
                waiting=tuple(group.request_id for group in scheduler.waiting),
                swapped=tuple(group.request_id for group in scheduler.swapped),
                preempted=plan.preempted,
                finished=tuple(group.request_id for group, _ in updated if group.is_finished),
                requests={seq_id: group.request_id for seq_id, (_, group) in seqs.items()},
                block_tables={seq_id: table.block_ids for seq_id, table in kv.block_tables.items()},
                swapped_tables={seq_id: table.block_ids for seq_id, table in kv.swapped_tables.items()},
                filled={seq_id: seq.num_computed_tokens for seq_id, (seq, _) in seqs.items()},
                reserved={
                    seq_id: reserved.get(seq_id, len(table) * kv.block_size)
                    for seq_id, table in kv.block_tables.items()
                },
                free=kv.pool.free_block_ids,
                ref_counts={
                    block.block_id: block.ref_count
                    for table in kv.block_tables.values()
                    for block in table.blocks
                },
            )
        )

    def _row(self, row: ScheduledSequence) -> ScheduledRecord:
        """One row of the plan, with words if they are to be kept."""
        tokens = row.token_ids + row.draft_token_ids  # those of a draft model are not in the plan
        words = None
        if self.word_of is not None:
            words = tuple(self.word_of(token_id) for token_id in tokens)
        return ScheduledRecord(
            row.seq_id, row.request_id, row.start, len(tokens), row.num_samples, row.block_ids, words
        )

    # -- to a file and back -------------------------------------------------------------------------

    def to_json(self) -> str:
        """The trace as one JSON object. Sequence and block ids that are keys become strings there.

        `default=vars` turns each dataclass, at any depth, into an object with its fields.
        """
        header = {"format": FORMAT, "num_blocks": self.num_blocks, "block_size": self.block_size}
        return json.dumps(header | {"steps": self.steps}, default=vars)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Read what `to_json` wrote.

        Raises:
            ValueError: `text` is something else. The message names the field.
        """
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f'not a trace: expected a JSON object with "format": "{FORMAT}".')
        trace = cls(start_time=0.0)
        trace.num_blocks = decode(data.get("num_blocks"), int, "num_blocks")
        trace.block_size = decode(data.get("block_size"), int, "block_size")
        trace.steps = list(decode(data.get("steps"), tuple[StepRecord, ...], "steps"))
        return trace

    def save(self, path: Path) -> None:
        """Write `to_json` to a file."""
        path.write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read a file written by `save`; ValueError if it is something else."""
        return cls.from_json(path.read_text(encoding="utf-8"))


annotations_of = functools.cache(typing.get_type_hints)  # it parses the annotations anew at each call


def decode(value: Any, kind: Any, name: str) -> Any:
    """Turn parsed JSON into `kind`, a type annotation; ValueError if it does not fit.

    Handles what the records are made of: numbers, strings, dataclasses, `tuple[X, ...]`, `tuple[X, Y]`,
    `dict[int, X]` (keys are strings in JSON) and `X | None`.

    Example: decode({"0": [7, 2]}, dict[int, tuple[int, ...]], "block_tables") == {0: (7, 2)}, while [7, "2"]
    in it is refused as "block_tables[0][1]: expected <class 'int'>, got '2'."

    A branch that does not fit falls through to the error at the end.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else decode(value, arguments[0], name)
    if is_dataclass(kind) and isinstance(value, dict):
        hints, names = annotations_of(kind), {field.name for field in fields(kind)}
        if set(value) != names:
            raise ValueError(
                f"{name}: missing {sorted(names - set(value)) or 'nothing'}, "
                f"unknown {sorted(set(value) - names) or 'nothing'}."
            )
        return kind(**{key: decode(value[key], hints[key], f"{name}.{key}") for key in value})
    if origin is dict and isinstance(value, dict):
        if not all(key.isdecimal() for key in value):
            raise ValueError(f"{name}: expected ids as keys, got {sorted(value)}.")
        return {int(key): decode(item, arguments[1], f"{name}[{key}]") for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis and all(type(item) is arguments[0] for item in value):
            return tuple(value)  # plain numbers or strings, which is most of a file
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            return tuple(
                decode(item, each, f"{name}[{index}]")
                for index, (item, each) in enumerate(zip(value, kinds, strict=True))
            )
    # JSON has one kind of number: a time of 0.0 that another program writes as 0 is still a float.
    if kind is float and type(value) is int:
        return float(value)
    # `type(...) is` and not isinstance: True is an int to Python, but not a block id.
    if isinstance(kind, type) and not is_dataclass(kind) and type(value) is kind:
        return value
    raise ValueError(f"{name}: expected {kind}, got {value!r}.")
