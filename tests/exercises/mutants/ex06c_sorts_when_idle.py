# caught by: test_a_short_job_that_comes_later_passes_too
"""Sorts only while nothing runs."""

from collections import deque

from minivllm.scheduler import Scheduler


class ShortestJobFirst(Scheduler):
    def schedule(self):
        if not self.running:
            self.waiting = deque(
                sorted(self.waiting, key=lambda each: each.max_num_tokens - len(each.seqs[0]))
            )
        return super().schedule()
