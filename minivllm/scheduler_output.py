"""The plan of one step: what the scheduler decided, for the runner to carry out.

It goes one way, from `Scheduler.schedule()` to `ModelRunner.execute_model()`, and nobody changes it. For the
step in `scheduler.py`'s example (A generates, B catches up with a long prompt)::

    SchedulerOutput(step=12, scheduled=(
        ScheduledSequence(A, start=6, num_tokens=1, block_ids=(7, 2),    num_samples=1),
        ScheduledSequence(B, start=4, num_tokens=7, block_ids=(5, 0, 3), num_samples=0)))

vLLM V1: `vllm/v1/core/sched/output.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minivllm.sequence import Sequence, SequenceGroup


@dataclass(frozen=True)
class ScheduledSequence:
    """One row of the batch: compute `num_tokens` tokens of `seq` from position `start` on.

    `block_ids` is the block table at this moment. `num_samples` says how many tokens to sample from the
    logits of the last one: 0 while the sequence is catching up, n when a prompt for n completions is done.
    The runner reads `seq` and `group`; it changes neither.
    """

    seq: Sequence
    group: SequenceGroup
    start: int
    num_tokens: int
    block_ids: tuple[int, ...]
    num_samples: int


@dataclass(frozen=True)
class SchedulerOutput:
    """The plan of one step. The three lists of block moves apply in the order they stand here."""

    step: int
    scheduled: tuple[ScheduledSequence, ...]
    blocks_to_swap_out: tuple[tuple[int, int], ...] = ()  # (device block, CPU block)
    blocks_to_swap_in: tuple[tuple[int, int], ...] = ()  # (CPU block, device block)
    blocks_to_copy: tuple[tuple[int, int], ...] = ()  # (shared block, new block): copy-on-write
    preempted: tuple[str, ...] = ()  # request ids

    @property
    def num_scheduled_tokens(self) -> int:
        """Tokens this step computes."""
        return sum(row.num_tokens for row in self.scheduled)


@dataclass
class StepDraft:
    """The plan while the scheduler makes it, and what it has left to give out. See `SchedulerOutput`."""

    budget: int  # tokens
    seats: int = 0  # sequences that may still join those running
    scheduled: list[ScheduledSequence] = field(default_factory=list)
    swap_out: list[tuple[int, int]] = field(default_factory=list)
    swap_in: list[tuple[int, int]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)

    def finish(self, step: int) -> SchedulerOutput:
        """The finished plan: from here on it is only read."""
        return SchedulerOutput(
            step=step,
            scheduled=tuple(self.scheduled),
            blocks_to_swap_out=tuple(self.swap_out),
            blocks_to_swap_in=tuple(self.swap_in),
            blocks_to_copy=tuple(self.copies),
            preempted=tuple(self.preempted),
        )


@dataclass
class SchedulerStats:
    """What has happened since the scheduler was made."""

    num_steps: int = 0
    num_preemptions: int = 0
    num_swapped_out_blocks: int = 0
    num_swapped_in_blocks: int = 0
    num_copied_blocks: int = 0
    prefix_cache_queries: int = 0  # prompt tokens looked up
    prefix_cache_hits: int = 0  # prompt tokens found

    def count(self, plan: SchedulerOutput) -> None:
        """Add one step."""
        self.num_steps += 1
        self.num_preemptions += len(plan.preempted)
        self.num_copied_blocks += len(plan.blocks_to_copy)
        self.num_swapped_out_blocks += len(plan.blocks_to_swap_out)
        self.num_swapped_in_blocks += len(plan.blocks_to_swap_in)
