# caught by: test_stage_1_half_of_the_badly_served
"""Longest job first."""

from collections import deque

from minivllm.scheduler import Scheduler


class MyScheduler(Scheduler):
    def schedule(self):
        self.waiting = deque(
            sorted(self.waiting, key=lambda group: len(group.seqs[0]) - group.max_num_tokens)
        )
        return super().schedule()
