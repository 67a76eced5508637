# caught by: test_a_short_job_that_comes_later_passes_too
"""Sorts at the first step and never again."""

from collections import deque

from minivllm.scheduler import Scheduler


class ShortestJobFirst(Scheduler):
    def schedule(self):
        if not self.stats.num_steps:
            self.waiting = deque(
                sorted(self.waiting, key=lambda group: group.max_num_tokens - len(group.seqs[0]))
            )
        return super().schedule()
