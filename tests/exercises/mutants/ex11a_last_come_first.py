# caught by: test_stage_2_two_thirds_of_the_badly_served
"""Last come, first served: good for many requests, terrible for those at the bottom."""

from collections import deque

from minivllm.scheduler import Scheduler


class MyScheduler(Scheduler):
    def schedule(self):
        newest_first = sorted(self.waiting, key=lambda group: -group.seqs[0].seq_id)
        self.waiting = deque(newest_first)
        return super().schedule()
