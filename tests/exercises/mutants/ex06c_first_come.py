# caught by: test_the_mean_wait_reaches_the_target
"""Does nothing: first come, first served."""

from minivllm.scheduler import Scheduler


class ShortestJobFirst(Scheduler):
    def schedule(self):
        return super().schedule()
