# caught by: test_every_job_gets_all_its_tokens
"""Keeps the shortest four jobs and forgets the others."""

from collections import deque

from minivllm.scheduler import Scheduler


class ShortestJobFirst(Scheduler):
    def schedule(self):
        shortest = sorted(self.waiting, key=lambda group: group.max_num_tokens - len(group.seqs[0]))
        self.waiting = deque(shortest[:4])
        return super().schedule()
