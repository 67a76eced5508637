"""Fills the deque anew and leaves it the same object; the shortest job is found with a heap."""

import heapq

from minivllm.scheduler import Scheduler


class ShortestJobFirst(Scheduler):
    def schedule(self):
        heap = [(group.max_num_tokens - len(group.seqs[0]), i, group) for i, group in enumerate(self.waiting)]
        heapq.heapify(heap)
        self.waiting.clear()
        while heap:
            self.waiting.append(heapq.heappop(heap)[-1])
        return super().schedule()
