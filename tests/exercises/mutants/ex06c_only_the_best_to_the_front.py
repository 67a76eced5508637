# caught by: test_the_mean_wait_reaches_the_target
"""Puts the shortest job at the head and leaves the rest as they came: of four free seats one gets a short job."""

from minivllm.scheduler import Scheduler


class ShortestJobFirst(Scheduler):
    def schedule(self):
        if self.waiting:
            best = min(self.waiting, key=lambda each: each.max_num_tokens - len(each.seqs[0]))
            self.waiting.remove(best)
            self.waiting.appendleft(best)
        return super().schedule()
