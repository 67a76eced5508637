# caught by: test_short_jobs_come_first
"""Takes a short prompt for a short job."""

from collections import deque

from minivllm.scheduler import Scheduler


class ShortestJobFirst(Scheduler):
    def schedule(self):
        self.waiting = deque(sorted(self.waiting, key=lambda group: len(group.seqs[0])))
        return super().schedule()
