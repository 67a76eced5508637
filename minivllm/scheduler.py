"""The scheduler: which tokens run in this step.

THE INVARIANT. At the start of `schedule()`, for every running sequence, the K and V of positions
[0, num_computed_tokens) are in the cache, and len(seq) - num_computed_tokens >= 1.

There is no prefill phase and no decode phase. Each step lets `num_computed_tokens` catch up with
`len(seq)`, under a budget of tokens per step. Everything follows from this one rule (`step_rules.py`):

    situation               len(seq)   computed   this step
    new prompt of 6              6         0      6 tokens (or the first part: chunked prefill)
    generating                   7         6      1 token
    prompt found in cache        6         4      2 tokens
    after preemption             9         0      9 tokens: its own output is computed again

One step with max_num_batched_tokens = 8, running = [A, B], waiting = [C]::

    A   len 7   computed 6    -> 1 token      budget 8 -> 7
    B   len 12  computed 4    -> 7 tokens     budget 7 -> 0     (one short: it goes on next step)
    C   waits: no budget left

Three queues of sequence groups: `waiting` (no blocks), `running`, `swapped` (blocks in CPU memory). Their
order is the policy's business (`scheduling_policy.py`). Running groups come first, in the order of their
queue. When a group does not fit, the last of the queue gives up its blocks, either to be computed again later
or to be swapped out. So the head of the queue makes progress in each step, and since `add` refuses what could
not fit into an empty pool, every request finishes.

A preemption, block_size 4, a pool of 4 blocks, both groups just about to need a third block::

    before    running [A 2 blocks, B 2 blocks]     waiting [C]      0 free
    A asks for 1: nothing is free, so B, the newest, goes      ->   2 free
    after     running [A 3 blocks]                 waiting [B, C]   1 free     B is first in line again

A group is admitted, scheduled and preempted as a whole (paper, section 4.5). How it forks, and how its
sequences share their blocks again after a preemption: `parallel_sampling.py`.

The methods without an underscore are the places to put a policy of your own: a subclass that overrides
`schedule_waiting`, for instance, admits in another way (`baselines/static_batch.py` does).

Paper: sections 4.3 and 4.5; iteration-level scheduling is Orca's. vLLM V1: `vllm/v1/core/sched/scheduler.py`;
its `NOTE` on "no decoding phase nor prefill phase" is the source of the rule above.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from minivllm import beam_search, parallel_sampling, step_rules
from minivllm.kv_cache_manager import KVCacheManager
from minivllm.metrics.counters import SchedulerStats
from minivllm.outputs import SequenceOutput
from minivllm.parallel_sampling import TokenRun
from minivllm.scheduler_output import BlockPair, SchedulerOutput, StepDraft
from minivllm.scheduling_policy import FirstComeFirstServed
from minivllm.sequence import Sequence, SequenceGroup, SequenceStatus
from minivllm.speculative.speculator import Speculator
from minivllm.step_rules import Chunks, Stop

logger = logging.getLogger(__name__)

Updated = list[tuple[SequenceGroup, list[Sequence]]]
"""What came of a step: the groups that got tokens, each with those of its sequences that got one."""


@dataclass(eq=False)
class Scheduler:
    """Decides what runs, and applies what came of it.

    Args:
        kv: owner of the blocks.
        max_num_seqs: sequences running at once.
        max_num_batched_tokens: the budget: tokens computed in one step.
        enable_chunked_prefill: whether a prompt may be computed in several steps.
        preemption_mode: "recompute" or "swap".
        policy: the order of the queues, see `scheduling_policy.py`.
        speculator: adds drafts to the plans (`minivllm/speculative/`); None: there are none.
    """

    kv: KVCacheManager  # the scheduler asks for blocks; only the manager touches the pool
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    enable_chunked_prefill: bool = True
    preemption_mode: str = "recompute"
    policy: FirstComeFirstServed = field(default_factory=FirstComeFirstServed)
    speculator: Speculator | None = None

    def __post_init__(self) -> None:
        # The head of each queue is the next to go; the last of `running` is the next to be preempted.
        self.waiting: deque[SequenceGroup] = deque()
        self.running: list[SequenceGroup] = []
        self.swapped: deque[SequenceGroup] = deque()
        self.groups: dict[str, SequenceGroup] = {}  # the groups of all three queues, by request id
        self.stats = SchedulerStats()
        self._seq_ids = itertools.count()

    # -- requests come and go -----------------------------------------------------------------------

    def new_seq_id(self) -> int:
        """An unused sequence id."""
        return next(self._seq_ids)

    def add(self, group: SequenceGroup) -> None:
        """Queue a request.

        Raises:
            ValueError: the request could never run here, however long it waited. The message says why.
        """
        self.check(group)
        self.groups[group.request_id] = group
        self.policy.add(self.waiting, group)

    def check(self, group: SequenceGroup) -> None:
        """Raise what `add` would raise; changes nothing.

        Preemption ends in deadlock if some group cannot run even with the whole pool to itself. So the
        largest extent of a group is compared here, once, with the whole pool, all seats and a step's budget.
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
        """End one sequence and free its blocks."""
        seq.status = status
        seq.stop_reason = stop_reason
        self.kv.free(seq)

    def finish_stopped(self, stops: Iterable[Stop]) -> None:
        """End the sequences in whose text a stop string was found, after `update_from_output`."""
        for stop in stops:
            stop.seq.cut_output(stop.num_output_tokens)
            self.finish(stop.seq, SequenceStatus.FINISHED_STOPPED, stop.string)
        self._remove_finished()

    def _remove_finished(self) -> None:
        """Drop the groups that are done. Only running ones can be: the others sample nothing."""
        for group in [group for group in self.running if group.is_finished]:
            del self.groups[group.request_id]
            self.running.remove(group)

    def reset(self) -> None:
        """Drop every request and every block, whatever state an interrupted step has left."""
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
        """Plan the next step: which sequences compute how many tokens, and in which blocks.

        After a preemption no group is admitted in the same step: the blocks just freed are needed by those
        already running.
        """
        step = StepDraft(self.max_num_batched_tokens)
        self.schedule_running(step)
        if not step.preempted:
            step.seats = self.max_num_seqs - sum(group.num_reserved_seqs for group in self.running)
            self.schedule_swapped(step)
            self.schedule_waiting(step)
        if self.speculator is not None:  # last: drafts get what is left
            self.speculator.add_drafts(step, self.groups, self.kv)
        plan = step.finish(self.stats.num_steps)
        self.stats.count(plan)
        return plan

    def schedule_running(self, step: StepDraft) -> None:
        """Give every running group its tokens, in order; preempt the last when one does not fit."""
        index = 0
        while index < len(self.running) and step.budget > 0:
            group = self.running[index]
            # May be empty, when the group cannot sample as a whole: then it holds its blocks and waits.
            chunks = step_rules.chunks_of(group, step.budget)
            copies = self.kv.allocate_slots(chunks)
            while copies is None:
                # Not a group that is planned already: those stand before `index`, victims come from the end.
                victim = self.running[-1]
                self.preempt(victim, step)
                if victim is group:
                    return  # the group was the last one, and gave way itself
                copies = self.kv.allocate_slots(chunks)
            self.plan(group, chunks, copies, step)
            index += 1

    def schedule_swapped(self, step: StepDraft) -> None:
        """Bring swapped groups back, in order, while they fit.

        Swapped groups come before all groups that wait: they hold CPU memory that the next victim may need,
        and their tokens have been computed already.
        """
        while self.swapped and step.budget > 0 and self.swapped[0].num_reserved_seqs <= step.seats:
            group = self.swapped[0]
            moves = self.kv.swap_in(group.unfinished)
            if moves is None:
                return
            step.swap_in += moves
            self.start_running(self.swapped, step)
            chunks = step_rules.chunks_of(group, step.budget)
            copies = self.kv.allocate_slots(chunks)
            if copies is None:
                return  # it holds its old blocks again; its next tokens wait for the next step
            self.plan(group, chunks, copies, step)

    def schedule_waiting(self, step: StepDraft) -> None:
        """Admit waiting groups, in order, while seats, budget and blocks last.

        The first group that does not fit ends the round: letting short ones pass would starve a long one.

        A group enters with one sequence, however many it has: the others fork from it, the first time when
        the tokens after the prompt are sampled, after a preemption when the prompt has been computed again.
        """
        while self.waiting and not self.swapped and step.budget > 0:
            group = self.waiting[0]
            if group.num_reserved_seqs > step.seats:
                return
            seq = group.unfinished[0]
            computed_blocks = self.kv.get_computed_blocks(seq, step_rules.max_cached_tokens(group, seq))
            num_cached = len(computed_blocks) * self.kv.block_size
            chunks = step_rules.chunks_of(group, step.budget, num_cached)
            num_missing = step_rules.catch_up_target(group, seq) - num_cached
            if not self.enable_chunked_prefill and step.budget < num_missing:
                return
            copies = self.kv.allocate_slots(chunks, computed_blocks)
            if copies is None:
                return  # no group is preempted for a newcomer
            self.start_running(self.waiting, step)
            seq.num_computed_tokens = num_cached
            if group.num_cached_tokens is None:  # first admission, not a return from preemption
                group.num_cached_tokens = num_cached
                if self.kv.enable_prefix_caching and group.params.prompt_logprobs is None:
                    self.stats.prefix_cache_queries += group.num_prompt_tokens
                self.stats.prefix_cache_hits += num_cached
            self.plan(group, chunks, copies, step)

    def start_running(self, queue: deque[SequenceGroup], step: StepDraft) -> None:
        """Move the head of `queue`, whose blocks are in place, to the running groups."""
        group = queue.popleft()
        self.policy.start(self.running, group)
        step.seats -= group.num_reserved_seqs
        group.set_status(SequenceStatus.RUNNING)

    def plan(self, group: SequenceGroup, chunks: Chunks, copies: list[BlockPair], step: StepDraft) -> None:
        """Enter the chunks of a group, whose slots are allocated, into the plan."""
        step.copies += copies
        for seq, num_tokens in chunks:
            block_ids = self.kv.block_tables[seq.seq_id].block_ids
            num_samples = step_rules.num_samples(group, seq, seq.num_computed_tokens + num_tokens)
            step.scheduled.append(group.scheduled(seq, num_tokens, num_samples, block_ids))
            step.budget -= num_tokens

    def preempt(self, group: SequenceGroup, step: StepDraft) -> None:
        """Take all blocks from a running group and put it back into its queue.

        Recompute costs the arithmetic of all its tokens, but in one large step, and blocks still in the
        prefix cache are found again. Swap costs two transfers. The paper measures both (section 7.3) and
        finds recompute no worse at ordinary block sizes; it is the default.
        """
        self.running.remove(group)
        step.preempted.append(group.request_id)
        if self.preemption_mode == "swap":
            moves = self.kv.swap_out(group.unfinished)
            if moves is not None:
                step.swap_out += moves
                group.set_status(SequenceStatus.SWAPPED)
                self.policy.put_back(self.swapped, group)
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
        self.policy.put_back(self.waiting, group)

    # -- the result ---------------------------------------------------------------------------------

    def update_from_output(self, plan: SchedulerOutput, outputs: list[SequenceOutput]) -> Updated:
        """Apply what the step computed: advance, append, fork, finish.

        This is the only place where `num_computed_tokens` grows. For the known tokens it happens before any
        is appended, so that a fork copies a consistent pair: K and V up to there, tokens up to there. For
        drafts it happens as they are accepted; a rejected one leaves K and V behind that count for nothing.

        Args:
            outputs: one for each of `plan.scheduled`, in its order.
        """
        by_group: dict[str, list[tuple[Sequence, SequenceOutput]]] = {}
        for row, output in zip(plan.scheduled, outputs, strict=True):
            group = self.groups[row.request_id]
            seq = group.find(row.seq_id)
            end, num_prompt = row.start + len(row.token_ids), seq.num_prompt_tokens
            seq.num_computed_tokens = end
            self.kv.cache_blocks(seq, row.start)
            self.stats.num_computed_prompt_tokens += min(end, num_prompt) - min(row.start, num_prompt)
            group.add_prompt_logprobs(row.start, output.prompt_logprobs)
            rows = by_group.setdefault(row.request_id, [])
            if row.num_samples > 0:
                rows.append((seq, output))
            if self.speculator is not None and row.num_drafts > 0:
                num_accepted = len(output.token_ids[0]) - 1
                self.speculator.note(seq, num_accepted)
                self.stats.count_drafts(row.num_drafts, num_accepted)

        updated = []
        for request_id, sampled in by_group.items():
            group = self.groups[request_id]
            if not sampled:  # a part of a prompt: no token yet, but siblings may wait for its end
                parallel_sampling.refork(group, self.kv)
                continue
            if group.is_beam_search:
                self.stats.num_generated_tokens += len(sampled)
                beam_search.advance(group, sampled, self.kv, self.new_seq_id)
                seqs = group.seqs
            else:
                runs = parallel_sampling.runs_of(group, sampled, self.kv, self.new_seq_id)
                for seq, run in runs:
                    self._append_run(group, seq, run)
                seqs = [seq for seq, _ in runs]
            updated.append((group, seqs))
        self._remove_finished()
        return updated

    def _append_run(self, group: SequenceGroup, seq: Sequence, run: TokenRun) -> None:
        """Append accepted tokens, up to one that ends the sequence; what follows it is dropped.

        All tokens but the newest have been computed: those of the run were drafts.
        """
        start, stop = seq.num_computed_tokens, None
        for token_id, logprobs in run:
            seq.append(token_id, logprobs)
            self.stats.num_generated_tokens += 1
            stop = step_rules.stop_status(group, seq)
            if stop is not None:
                break
        seq.num_computed_tokens = len(seq) - 1
        self.kv.cache_blocks(seq, start)
        if stop is not None:
            self.finish(seq, *stop)
