"""Least slack first, the hopeless at the end, as requests join."""

from collections import deque

from minivllm.scheduler import Scheduler


class MyScheduler(Scheduler):
    def add(self, group):
        super().add(group)
        length = group.max_num_tokens - group.num_prompt_tokens
        self.latest_start = getattr(self, "latest_start", {})
        self.latest_start[group.request_id] = self.stats.num_steps + 10 + 2 * length

    def schedule(self):
        now = self.stats.num_steps

        def urgency(group):
            latest = self.latest_start[group.request_id]
            return (latest < now, group.max_num_tokens if latest < now else latest)

        self.waiting = deque(sorted(self.waiting, key=urgency))
        return super().schedule()
