# caught by: test_the_order_holds_after_a_preemption
"""Puts each job in its place when it is added: one that comes back after a preemption stands at the head."""

from collections import deque

from minivllm.scheduler import Scheduler


class ShortestJobFirst(Scheduler):
    def add(self, group):
        super().add(group)
        self.waiting = deque(sorted(self.waiting, key=lambda each: each.max_num_tokens - len(each.seqs[0])))

    def schedule(self):
        return super().schedule()
