# caught by: test_a_short_job_that_comes_later_passes_too
"""Sorts once for each length of the queue that it has not seen yet."""

from collections import deque

from minivllm.scheduler import Scheduler


class ShortestJobFirst(Scheduler):
    def schedule(self):
        self.seen = getattr(self, "seen", set())
        if len(self.waiting) not in self.seen:
            self.seen.add(len(self.waiting))
            self.waiting = deque(
                sorted(self.waiting, key=lambda each: each.max_num_tokens - len(each.seqs[0]))
            )
        return super().schedule()
