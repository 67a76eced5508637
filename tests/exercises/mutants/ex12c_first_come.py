# caught by: test_one_request_of_another_user_does_not_wait_for_forty
"""Changes nothing."""

from minivllm.scheduler import Scheduler


class FairQueue(Scheduler):
    def schedule(self):
        return super().schedule()
