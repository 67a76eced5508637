"""The scheduler: which tokens run in this step.

THE INVARIANT. At the start of `schedule()`, for every running sequence, the K and V of positions
[0, num_computed_tokens) are in the cache, and len(seq) - num_computed_tokens >= 1.

There is no prefill phase and no decode phase. Each step lets `num_computed_tokens` catch up with
`len(seq)`, under a budget of tokens a step. Everything is this one rule:

    situation               len(seq)   computed   this step
    new prompt of 6              6         0      6 tokens (or the first part: chunked prefill)
    generating                   7         6      1 token
    prompt found in cache        6         4      2 tokens
    after preemption             9         0      9 tokens: its own output is computed again

One step with max_num_batched_tokens = 8, running = [A, B], waiting = [C]::

    A   len 7   computed 6    -> 1 token      budget 8 -> 7
    B   len 12  computed 4    -> 7 tokens     budget 7 -> 0     (one short: it goes on next step)
    C   waits: no budget left

Three queues of sequence groups: `waiting` (no blocks), `running`, `swapped` (blocks in CPU memory). Running
groups come first, in the order they were admitted. When one does not fit, the group admitted last gives up
its blocks, either to be computed again later or to be swapped out. So the oldest always makes progress, and
since `add` refuses what could not fit an empty pool, every request finishes.

A preemption, block_size 4, a pool of 4 blocks, both groups just about to need a third block::

    before    running [A 2 blocks, B 2 blocks]     waiting [C]      0 free
    A asks for 1: nothing is free, so B, the newest, goes      ->   2 free
    after     running [A 3 blocks]                 waiting [B, C]   1 free     B is first in line again

A group is admitted, scheduled and preempted as a whole (paper, section 4.5). How it divides its tokens among
its sequences, and how it comes back: `parallel_sampling.py`.

Paper: sections 4.3 and 4.5; iteration-level scheduling is Orca's. vLLM V1: `vllm/v1/core/sched/scheduler.py`;
its `NOTE` on "no decoding phase nor prefill phase" is the source of the rule above.
"""

from __future__ import annotations

import logging
from collections import deque

from minivllm import beam_search, parallel_sampling
from minivllm.kv_cache_manager import BlockCopies, KVCacheManager
from minivllm.outputs import SequenceOutput
from minivllm.parallel_sampling import Chunks, catch_up_target
from minivllm.sampling_params import BeamSearchParams
from minivllm.scheduler_output import ScheduledSequence, SchedulerOutput, SchedulerStats, StepDraft
from minivllm.sequence import Sequence, SequenceGroup, SequenceStatus

logger = logging.getLogger(__name__)


class Scheduler:
    """Decides what runs, and applies what came of it.

    Args:
        kv: owner of the blocks.
        max_num_seqs: sequences running at once.
        max_num_batched_tokens: the budget: tokens computed in one step.
        enable_chunked_prefill: whether a prompt may be computed in several steps.
        preemption_mode: "recompute" or "swap".
    """

    def __init__(
        self,
        kv: KVCacheManager,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 2048,
        enable_chunked_prefill: bool = True,
        preemption_mode: str = "recompute",
    ) -> None:
        self.kv = kv  # the scheduler asks for blocks; only the manager touches the pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.enable_chunked_prefill = enable_chunked_prefill
        self.preemption_mode = preemption_mode
        # Deques give and take at the head: the first to come is the next to go, and a victim returns to the
        # head of its queue. `running` is in order of admission, so its last element is the victim.
        self.waiting: deque[SequenceGroup] = deque()
        self.running: list[SequenceGroup] = []
        self.swapped: deque[SequenceGroup] = deque()
        self.groups: dict[str, SequenceGroup] = {}  # all of the three, by request id
        self.stats = SchedulerStats()
        self._next_seq_id = 0

    # -- requests come and go -----------------------------------------------------------------------

    def new_seq_id(self) -> int:
        """An unused sequence id."""
        self._next_seq_id += 1
        return self._next_seq_id - 1

    def add(self, group: SequenceGroup) -> None:
        """Queue a request.

        Raises:
            ValueError: it could never run here, however long it waited. The message has the numbers.
        """
        self.check(group)
        self.groups[group.request_id] = group
        self.waiting.append(group)

    def check(self, group: SequenceGroup) -> None:
        """Raise what `add` would raise; changes nothing.

        Preemption ends in deadlock if some group can never run even with the whole pool to itself. So its
        largest extent is compared with the whole pool, all seats and a whole step's budget, here, once.
        """
        name = f"request {group.request_id!r}"
        if group.request_id in self.groups:
            raise ValueError(f"request_id {group.request_id!r} is in use by an unfinished request.")
        needed, total = self.kv.max_blocks(group), self.kv.pool.num_blocks
        if needed > total:
            raise ValueError(
                f"{name} may need {needed} KV blocks of {self.kv.block_size} tokens ({group.width} x up to "
                f"{group.max_num_tokens} tokens, prompt {group.num_prompt_tokens}), but the pool has {total} "
                f"blocks. Lower max_tokens or n, or raise num_blocks."
            )
        if group.width > min(self.max_num_seqs, self.max_num_batched_tokens):
            raise ValueError(
                f"{name} asks for {group.width} sequences at once, but max_num_seqs={self.max_num_seqs} and "
                f"max_num_batched_tokens={self.max_num_batched_tokens}."
            )
        # The last token is never computed, and after a preemption the output is part of the prompt.
        if not self.enable_chunked_prefill and group.max_num_tokens - 1 > self.max_num_batched_tokens:
            raise ValueError(
                f"{name} may grow to {group.max_num_tokens} tokens, but a step computes at most "
                f"max_num_batched_tokens={self.max_num_batched_tokens}. With chunked prefill off, it could "
                f"not be computed again after a preemption."
            )

    def abort(self, request_id: str) -> SequenceGroup | None:
        """End a request now and free its blocks. Unknown or finished: nothing happens, returns None.

        Call it between steps: blocks freed here may be handed out again by the next `schedule`.
        """
        group = self.groups.pop(request_id, None)
        if group is None:
            return None
        for seq in group.unfinished:
            self.finish(seq, SequenceStatus.FINISHED_ABORTED)
        for queue in (self.waiting, self.running, self.swapped):
            if group in queue:
                queue.remove(group)
        return group

    def finish(self, seq: Sequence, status: SequenceStatus, stop_reason: int | str | None = None) -> None:
        """End one sequence and free its blocks. Follow with `remove_finished`."""
        seq.status = status
        seq.stop_reason = stop_reason
        self.kv.free(seq)

    def remove_finished(self) -> None:
        """Drop the groups that are done. Only running ones can be: the others sample nothing."""
        for group in self.running:
            if group.is_finished:
                del self.groups[group.request_id]
        self.running = [group for group in self.running if not group.is_finished]

    def reset(self) -> None:
        """Drop every request and every block, from whatever state an interrupted step left behind."""
        for group in self.groups.values():
            group.set_status(SequenceStatus.FINISHED_ABORTED)
        for queue in (self.groups, self.waiting, self.running, self.swapped):
            queue.clear()
        self.kv.reset()

    @property
    def has_unfinished(self) -> bool:
        """Whether any request is waiting, running or swapped."""
        return bool(self.groups)

    # -- the plan -----------------------------------------------------------------------------------

    def schedule(self) -> SchedulerOutput:
        """Plan the next step: who computes how many tokens in which blocks.

        After a preemption nobody new is admitted in the same step: the blocks just freed are needed by
        those already running.
        """
        step = StepDraft(self.max_num_batched_tokens)
        self._schedule_running(step)
        if not step.preempted:
            step.seats = self.max_num_seqs - sum(group.num_reserved_seqs for group in self.running)
            self._schedule_swapped(step)
            self._schedule_waiting(step)
        plan = step.finish(self.stats.num_steps)
        self.stats.count(plan)
        return plan

    def _schedule_running(self, step: StepDraft) -> None:
        """Give every running group its tokens, oldest first; preempt the newest when one does not fit."""
        index = 0
        while index < len(self.running) and step.budget > 0:
            group = self.running[index]
            # May be empty, when the group cannot sample as a whole: then it holds its blocks and waits.
            chunks = parallel_sampling.chunks_of(group, step.budget)
            copies = self.kv.allocate_slots(chunks)
            while copies is None:
                # Never one that has been planned: those stand before `index`, victims come from the end.
                victim = self.running.pop()
                self._preempt(victim, step)
                if victim is group:
                    return  # it was the last one, and gave way itself
                copies = self.kv.allocate_slots(chunks)
            self._plan(group, chunks, copies, step)
            index += 1

    def _schedule_swapped(self, step: StepDraft) -> None:
        """Bring swapped groups back, first come first served, while they fit.

        They come before anybody who waits: they hold CPU memory that the next victim may need, and all they
        have computed is paid for.
        """
        while self.swapped and step.budget > 0 and self.swapped[0].num_reserved_seqs <= step.seats:
            group = self.swapped[0]
            moves = self.kv.swap_in(group.unfinished)
            if moves is None:
                return
            step.swap_in += moves
            self._start_running(self.swapped, step)
            chunks = parallel_sampling.chunks_of(group, step.budget)
            copies = self.kv.allocate_slots(chunks)
            if copies is None:
                return  # it holds its old blocks again; its next tokens wait for the next step
            self._plan(group, chunks, copies, step)

    def _schedule_waiting(self, step: StepDraft) -> None:
        """Admit waiting groups, first come first served, while seats, budget and blocks last.

        The first that does not fit ends it: letting a short one pass would starve the long one.

        A group enters with one sequence, whatever it has become: its others fork from it, the first time
        when the prompt's tokens are sampled, after a preemption when the prompt is computed again.
        """
        while self.waiting and not self.swapped and step.budget > 0:
            group = self.waiting[0]
            if group.num_reserved_seqs > step.seats:
                return
            seq = group.unfinished[0]
            most = parallel_sampling.max_cached_tokens(group, seq)
            computed_blocks = self.kv.get_computed_blocks(seq, most)
            num_cached = len(computed_blocks) * self.kv.block_size
            num_tokens = min(catch_up_target(group, seq) - num_cached, step.budget)
            whole = num_cached + num_tokens == catch_up_target(group, seq)
            if not self.enable_chunked_prefill and not whole:
                return
            copies = self.kv.allocate_slots([(seq, num_tokens)], computed_blocks)
            if copies is None:
                return  # nobody is preempted for a newcomer
            self._start_running(self.waiting, step)
            seq.num_computed_tokens = num_cached
            if group.num_cached_tokens is None:  # first admission, not a return from preemption
                group.num_cached_tokens = num_cached
                self.stats.prefix_cache_queries += group.num_prompt_tokens
                self.stats.prefix_cache_hits += num_cached
            self._plan(group, [(seq, num_tokens)], copies, step)

    def _start_running(self, queue: deque[SequenceGroup], step: StepDraft) -> None:
        """Move the head of `queue`, whose blocks are in place, to the end of the running groups."""
        group = queue.popleft()
        self.running.append(group)
        step.seats -= group.num_reserved_seqs
        group.set_status(SequenceStatus.RUNNING)

    def _plan(self, group: SequenceGroup, chunks: Chunks, copies: BlockCopies, step: StepDraft) -> None:
        """Enter the chunks of a group, whose slots are allocated, into the plan."""
        step.copies += copies
        for seq, num_tokens in chunks:
            start, block_ids = seq.num_computed_tokens, self.kv.block_tables[seq.seq_id].block_ids
            samples = parallel_sampling.num_samples(group, seq, start + num_tokens)
            step.scheduled.append(ScheduledSequence(seq, group, start, num_tokens, block_ids, samples))
            step.budget -= num_tokens

    def _preempt(self, group: SequenceGroup, step: StepDraft) -> None:
        """Take all blocks from a running group and put it at the head of its queue.

        Recompute costs the arithmetic of all its tokens, but in one large step, and blocks still in the
        prefix cache are found again. Swap costs two transfers. The paper measures both (section 7.3) and
        finds recompute no worse at ordinary block sizes; it is the default.
        """
        step.preempted.append(group.request_id)
        if self.preemption_mode == "swap":
            moves = self.kv.swap_out(group.unfinished)
            if moves is not None:
                step.swap_out += moves
                group.set_status(SequenceStatus.SWAPPED)
                self.swapped.appendleft(group)
                return
            logger.warning(
                "Sequence group %s is preempted by recompute: the swap space (%d blocks, %d free) is too "
                "small for it. Raise swap_space_bytes to avoid this.",
                group.request_id, self.kv.cpu_pool.num_blocks, self.kv.cpu_pool.num_free,
            )  # fmt: skip
        for seq in group.unfinished:
            self.kv.free(seq)
            seq.num_computed_tokens = 0
        group.set_status(SequenceStatus.WAITING)
        self.waiting.appendleft(group)

    # -- the result ---------------------------------------------------------------------------------

    def update_from_output(
        self, plan: SchedulerOutput, outputs: list[SequenceOutput]
    ) -> list[tuple[SequenceGroup, list[Sequence]]]:
        """Apply what the step computed: advance, append, fork, finish.

        This is the only place where `num_computed_tokens` grows. It happens before tokens are appended, so
        that a fork copies a consistent pair: K and V up to there, tokens up to there.

        Args:
            outputs: one for each of `plan.scheduled`, in its order.

        Returns:
            The groups that got tokens, each with the sequences that did.
        """
        by_group: dict[str, list[tuple[ScheduledSequence, SequenceOutput]]] = {}
        for row, output in zip(plan.scheduled, outputs, strict=True):
            row.seq.num_computed_tokens = row.start + row.num_tokens
            row.group.add_prompt_logprobs(row.start, output.prompt_logprobs)
            by_group.setdefault(row.group.request_id, []).append((row, output))

        updated = []
        for rows in by_group.values():
            group = rows[0][0].group
            sampled = [(row.seq, output) for row, output in rows if row.num_samples > 0]
            if not sampled:  # a part of a prompt: nobody else sees it, but siblings may wait for its end
                parallel_sampling.refork(group, self.kv)
            elif isinstance(group.params, BeamSearchParams):
                beam_search.advance(group, sampled, self.kv, self.new_seq_id)
                updated.append((group, group.seqs))
            else:
                seqs = parallel_sampling.append_samples(group, sampled, self.kv, self.new_seq_id)
                for seq in seqs:
                    if (stop := parallel_sampling.stop_status(group, seq)) is not None:
                        self.finish(seq, *stop)
                updated.append((group, seqs))
        self.remove_finished()
        return updated
