# caught by: test_a_job_that_comes_back_is_as_long_as_its_rest
"""All tokens that the job asked for, including those that it has already."""

from collections import deque

from minivllm.scheduler import Scheduler


class ShortestJobFirst(Scheduler):
    def schedule(self):
        self.waiting = deque(
            sorted(self.waiting, key=lambda each: each.max_num_tokens - each.num_prompt_tokens)
        )
        return super().schedule()
