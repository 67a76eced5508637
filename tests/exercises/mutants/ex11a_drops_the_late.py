# caught by: test_no_request_is_left_out
"""Aborts requests that can no longer be served well: the goodput is fine, the users are gone."""

from minivllm.scheduler import Scheduler


class MyScheduler(Scheduler):
    def add(self, group):
        super().add(group)
        self.arrivals = getattr(self, "arrivals", {}) | {group.request_id: self.stats.num_steps}

    def schedule(self):
        for group in list(self.waiting):
            length = group.max_num_tokens - group.num_prompt_tokens
            if self.stats.num_steps + length > self.arrivals[group.request_id] + 10 + 3 * length:
                self.abort(group.request_id)
        return super().schedule()
