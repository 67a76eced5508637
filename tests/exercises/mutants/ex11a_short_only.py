# caught by: test_no_request_is_left_out
"""Keeps a list of its own for long requests and never comes back to it."""

from minivllm.scheduler import Scheduler


class MyScheduler(Scheduler):
    def add(self, group):
        super().add(group)
        if group.max_num_tokens - group.num_prompt_tokens > 20:
            self.waiting.remove(group)
            self.put_off = [*getattr(self, "put_off", []), group]
