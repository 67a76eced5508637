# caught by: test_stage_2_two_thirds_of_the_badly_served
"""Earliest deadline first, the hopeless too: they take the seats of those that could still be served well."""

from collections import deque

from minivllm.scheduler import Scheduler


class MyScheduler(Scheduler):
    def add(self, group):
        super().add(group)
        length = group.max_num_tokens - group.num_prompt_tokens
        self.deadline = getattr(self, "deadline", {}) | {group.request_id: self.stats.num_steps + 10 + 3 * length}

    def schedule(self):
        self.waiting = deque(sorted(self.waiting, key=lambda group: self.deadline[group.request_id]))
        return super().schedule()
