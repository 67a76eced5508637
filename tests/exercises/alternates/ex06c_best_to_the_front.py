"""Sorts where requests join the queue, and where they come back after a preemption."""

from collections import deque

from minivllm.scheduler import Scheduler


class ShortestJobFirst(Scheduler):
    def add(self, group):
        super().add(group)
        self.put_in_order()

    def put_in_order(self):
        queue = []
        while self.waiting:
            best = min(self.waiting, key=lambda group: group.max_num_tokens - len(group.seqs[0]))
            self.waiting.remove(best)
            queue.append(best)
        self.waiting = deque(queue)

    def schedule(self):
        plan = super().schedule()
        if plan.preempted:
            self.put_in_order()
        return plan
