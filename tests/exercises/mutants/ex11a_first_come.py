# caught by: test_stage_1_half_of_the_badly_served
"""Changes nothing."""

from minivllm.scheduler import Scheduler


class MyScheduler(Scheduler):
    def schedule(self):
        return super().schedule()
