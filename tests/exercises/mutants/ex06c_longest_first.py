# caught by: test_short_jobs_come_first
"""The order is upside down."""

from collections import deque

from minivllm.scheduler import Scheduler


class ShortestJobFirst(Scheduler):
    def schedule(self):
        self.waiting = deque(
            sorted(self.waiting, key=lambda group: len(group.seqs[0]) - group.max_num_tokens)
        )
        return super().schedule()
