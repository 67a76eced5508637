# caught by: test_a_client_that_waited_too_long_costs_nothing_more
"""Changes nothing."""

from minivllm.scheduler import Scheduler


class Impatient(Scheduler):
    patience = 10

    def schedule(self):
        return super().schedule()
