# caught by: test_only_the_queue_is_left
"""Spares each request that was ever in `running`, also one that was preempted before its first token."""

from minivllm.scheduler import Scheduler


class Impatient(Scheduler):
    patience = 10

    def schedule(self):
        self.arrivals, self.seen = getattr(self, "arrivals", {}), getattr(self, "seen", set())
        for group in list(self.waiting):
            arrived = self.arrivals.setdefault(group.request_id, self.stats.num_steps)
            if group.request_id not in self.seen and self.stats.num_steps - arrived >= self.patience:
                self.abort(group.request_id)
        plan = super().schedule()
        self.seen |= {group.request_id for group in self.running}
        return plan
