# caught by: test_a_job_that_comes_back_is_as_long_as_its_rest
"""The queue becomes something else than a deque; here a kind of list."""

from minivllm.scheduler import Scheduler


class Queue(list):
    def popleft(self):
        return self.pop(0)

    def appendleft(self, item):
        self.insert(0, item)


class ShortestJobFirst(Scheduler):
    def schedule(self):
        self.waiting = Queue(sorted(self.waiting, key=lambda each: each.max_num_tokens - len(each.seqs[0])))
        return super().schedule()
