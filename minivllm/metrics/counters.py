"""What the scheduler counts: steps, preemptions, tokens, hits of the prefix cache, accepted drafts.

Counters only grow, so what happened between two moments is the difference of two readings, however many
readers there are::

    before = engine.stats()          num_preemptions = 3
    ...
    after = engine.stats()           num_preemptions = 5          2 in between

`stats.py` adds the gauges, which say how things stand now.

vLLM V1: `vllm/v1/metrics/stats.py` (`SchedulerStats`), `vllm/v1/spec_decode/metrics.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minivllm.scheduler_output import SchedulerOutput


@dataclass
class SchedulerStats:
    """What has happened since the scheduler was made."""

    num_steps: int = 0
    num_preemptions: int = 0
    num_swapped_out_blocks: int = 0
    num_swapped_in_blocks: int = 0
    num_copied_blocks: int = 0
    num_computed_prompt_tokens: int = 0  # a prompt computed again after a preemption counts again
    num_generated_tokens: int = 0
    prefix_cache_queries: int = 0  # prompt tokens looked up
    prefix_cache_hits: int = 0  # prompt tokens found
    num_drafts: int = 0  # rows with draft tokens
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_tokens_per_pos: list[int] = field(default_factory=list)  # of the 1st draft, the 2nd, ...

    def count(self, plan: SchedulerOutput) -> None:
        """Add what one step did."""
        self.num_steps += 1
        self.num_preemptions += len(plan.preempted)
        self.num_copied_blocks += len(plan.blocks_to_copy)
        self.num_swapped_out_blocks += len(plan.blocks_to_swap_out)
        self.num_swapped_in_blocks += len(plan.blocks_to_swap_in)

    def count_drafts(self, num_drafts: int, num_accepted: int) -> None:
        """Add one row whose drafts have been verified."""
        self.num_drafts += 1
        self.num_draft_tokens += num_drafts
        self.num_accepted_tokens += num_accepted
        per_pos = self.num_accepted_tokens_per_pos
        per_pos += [0] * (num_drafts - len(per_pos))
        for position in range(num_accepted):
            per_pos[position] += 1
