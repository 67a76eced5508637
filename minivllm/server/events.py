"""What the page shows: a picture of the pool between two steps, and in words what the last step did and why.

`StepLog` is told about every step, in the engine's thread, as a trace is (`StepObserver`); while no page is
open it writes nothing down. `frame` makes one picture, as plain data for JSON. Here block_size is 4, a
request of 6 tokens has blocks 7 and 2, and another one waits::

    {"step": 3, "num_blocks": 8, "block_size": 4, "paused": True,
     "blocks": [[7, 4, 1, [1], ""], [2, 2, 1, [1], "new"]],      id, filled slots, holders, requests, news
     "cached": [5],                                              free, but the prefix cache still knows it
     "requests": [{"number": 1, "state": "running", ...}, {"number": 2, "state": "waiting", ...}],
     "did": ["Request 1 computes position 5; no new block."],
     "why": ["Request 2 waits: it needs 7 blocks for its 25 tokens, and fewer were free."],
     "news": [[1, "Request 1 is admitted: 5 tokens, blocks 7, 2."]]}

Requests are numbered as they are first seen. The ids of the API are too long to be read out in a lecture.

vLLM V1 has no counterpart; nearest are the KV events (`vllm/distributed/kv_events.py`).
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

from minivllm.block_table import cdiv
from minivllm.engine import LLMEngine
from minivllm.scheduler import Scheduler, Updated
from minivllm.scheduler_output import ScheduledSequence, SchedulerOutput
from minivllm.sequence import SequenceGroup

MAX_NEWS = 60


class StepLog:
    """Remembers the last step in words, and the news of those before it."""

    def __init__(self) -> None:
        self.is_watched = False
        self._numbers: dict[str, int] = {}  # request id -> number on the page
        self._next_number = itertools.count(1)
        # The blocks of each sequence: as the last step left them, and as the one before did.
        self._tables: dict[int, tuple[int, ...]] = {}
        self._before: dict[int, tuple[int, ...]] = {}
        self._last: SchedulerOutput | None = None
        self._last_news: list[str] = []
        self._why: list[str] = []
        self._news: deque[tuple[int, str]] = deque(maxlen=MAX_NEWS)

    # -- told by the engine -------------------------------------------------------------------------

    def record(self, plan: SchedulerOutput, updated: Updated, scheduler: Scheduler, now: float) -> None:
        """Take in one step."""
        if not self.is_watched:
            return
        finished = [self.number(group.request_id) for group, _ in updated if group.is_finished]
        news = [self._preemption(name, scheduler) for name in plan.preempted]
        copied = "is shared and about to be written: copied to"
        news += [f"Block {source} {copied} {target}." for source, target in plan.blocks_to_copy]
        news += [self._admission(row) for row in plan.scheduled if self._is_new(row, plan)]
        news += [f"Request {number} is finished; its blocks are free." for number in finished]
        self._news.extend((plan.step, text) for text in news)
        self._why = self._reasons(plan, updated, scheduler)
        self._last, self._last_news = plan, news
        self._before = self._tables
        self._tables = {seq_id: table.block_ids for seq_id, table in scheduler.kv.block_tables.items()}

    def number(self, request_id: str) -> int:
        """The number that the page shows for a request."""
        if request_id not in self._numbers:
            self._numbers[request_id] = next(self._next_number)
        return self._numbers[request_id]

    def _is_new(self, row: ScheduledSequence, plan: SchedulerOutput) -> bool:
        return row.seq_id not in self._tables or row.request_id in plan.preempted

    def _preemption(self, request_id: str, scheduler: Scheduler) -> str:
        swap = scheduler.preemption_mode == "swap"
        where = "moved to CPU memory" if swap else "freed, to be computed again"
        name = f"Request {self.number(request_id)}"
        return f"{name} is preempted: no block was free, and it was admitted last. Its blocks are {where}."

    def _admission(self, row: ScheduledSequence) -> str:
        found = f", {row.start} of them found in the prefix cache" if row.start else ""
        blocks = ", ".join(map(str, row.block_ids))
        number, total = self.number(row.request_id), row.start + row.num_tokens
        return f"Request {number} is admitted: {total} tokens{found}, blocks {blocks}."

    def _work(self, row: ScheduledSequence) -> str:
        new = [block for block in row.block_ids if block not in self._before.get(row.seq_id, ())]
        last = row.start + row.num_tokens - 1
        what = f"position {last}" if row.num_tokens == 1 else f"positions {row.start} to {last}"
        blocks = f"new blocks: {', '.join(map(str, new))}" if new else "no new block"
        return f"Request {self.number(row.request_id)} computes {what}; {blocks}."

    def _reasons(self, plan: SchedulerOutput, updated: Updated, scheduler: Scheduler) -> list[str]:
        """Why the first in line was not admitted, in the order in which `Scheduler.schedule` asks."""
        if not scheduler.waiting:
            return []
        first = scheduler.waiting[0]
        # Those that finished in this step still had their seats when it was planned: one for each sample.
        gone = {group.request_id for group, _ in updated if group.is_finished}
        seats = sum(row.num_samples for row in plan.scheduled if row.request_id in gone)
        seats += sum(group.num_reserved_seqs for group in [*scheduler.running, first])
        if plan.preempted:
            reason = "after a preemption no request is admitted in the same step"
        elif scheduler.swapped:
            reason = "requests in CPU memory come first"
        elif plan.num_scheduled_tokens >= scheduler.max_num_batched_tokens:
            reason = f"the budget of {scheduler.max_num_batched_tokens} tokens is spent"
        elif seats > scheduler.max_num_seqs:
            reason = f"all {scheduler.max_num_seqs} seats are taken"
        else:
            length = len(first.unfinished[0])
            needed = cdiv(length, scheduler.kv.block_size)
            reason = f"it needs {needed} blocks for its {length} tokens, and fewer were free"
        behind = len(scheduler.waiting) - 1
        rest = [f"{behind} more wait behind it: first come, first served."] if behind else []
        return [f"Request {self.number(first.request_id)} waits: {reason}.", *rest]

    # -- asked by the page --------------------------------------------------------------------------

    def frame(self, engine: LLMEngine) -> dict[str, Any]:
        """The picture of this moment; call it in the engine's thread. Changes nothing in the engine."""
        scheduler = engine.scheduler
        pool, stats = scheduler.kv.pool, scheduler.stats
        # Put into words here and not at each step: most steps are never shown.
        rows = self._last.scheduled if self._last else ()
        did = [*self._last_news, *(self._work(row) for row in rows)]
        queues = {"running": scheduler.running, "swapped": scheduler.swapped, "waiting": scheduler.waiting}
        requests = [
            self._request(group, state, scheduler) for state, groups in queues.items() for group in groups
        ]
        # The numbers of those that are gone may be forgotten, all but those of the last step.
        kept = scheduler.groups.keys() | {row.request_id for row in rows}
        self._numbers = {name: n for name, n in self._numbers.items() if name in kept}
        return {
            "step": stats.num_steps,
            "num_blocks": pool.num_blocks,
            "block_size": scheduler.kv.block_size,
            "max_model_len": engine.max_model_len,
            "blocks": self._blocks(scheduler),
            "cached": [b.block_id for b in pool.blocks if b.ref_count == 0 and b.block_hash is not None],
            "requests": requests,
            "generated": stats.num_generated_tokens,
            "preemptions": stats.num_preemptions,
            "did": did,
            "why": self._why,
            "news": list(self._news),
        }

    def _blocks(self, scheduler: Scheduler) -> list[list[Any]]:
        """Every held block: id, filled slots, number of holders, requests, and "new" or "copy"."""
        size, last = scheduler.kv.block_size, self._last
        copies = {target for _, target in last.blocks_to_copy} if last else set()
        written = {row.block_ids[-1] for row in last.scheduled} if last else set()
        held: dict[int, list[Any]] = {}
        for group in scheduler.running:
            for seq in group.unfinished:
                table = scheduler.kv.block_tables.get(seq.seq_id)
                for index, block in enumerate(table.blocks if table else ()):
                    mark = "copy" if block.block_id in copies else "new" if block.block_id in written else ""
                    cell = held.setdefault(block.block_id, [block.block_id, 0, block.ref_count, [], mark])
                    cell[1] = max(cell[1], min(size, seq.num_computed_tokens - index * size))
                    if (number := self.number(group.request_id)) not in cell[3]:
                        cell[3].append(number)
        return list(held.values())

    def _request(self, group: SequenceGroup, state: str, scheduler: Scheduler) -> dict[str, Any]:
        seqs = group.unfinished
        return {
            "number": self.number(group.request_id),
            "id": group.request_id,
            "state": state,
            "prompt": group.num_prompt_tokens,
            "tokens": max(map(len, seqs)),
            "computed": max(seq.num_computed_tokens for seq in seqs),
            "sequences": len(seqs),
            "blocks": sum(len(scheduler.kv.block_tables.get(seq.seq_id) or ()) for seq in seqs),
        }


class Observers:
    """Several that want to be told about each step, as one."""

    def __init__(self, *observers: Any) -> None:
        self.observers = observers

    def record(self, plan: SchedulerOutput, updated: Updated, scheduler: Scheduler, now: float) -> None:
        """Tell all of them."""
        for observer in self.observers:
            observer.record(plan, updated, scheduler, now)
