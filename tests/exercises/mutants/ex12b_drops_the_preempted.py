# caught by: test_a_client_that_reads_already_is_not_left
"""Whatever waits too long is dropped, though its client has begun to read."""

from minivllm.scheduler import Scheduler


class Impatient(Scheduler):
    patience = 10

    def schedule(self):
        self.arrivals = getattr(self, "arrivals", {})
        for group in list(self.waiting):
            arrived = self.arrivals.setdefault(group.request_id, self.stats.num_steps)
            if self.stats.num_steps - arrived >= self.patience:
                self.abort(group.request_id)
        return super().schedule()
