# caught by: test_only_the_queue_is_left
"""Looks at all requests: one whose long prompt is being computed is aborted in the middle of it."""

from minivllm.scheduler import Scheduler


class Impatient(Scheduler):
    patience = 10

    def schedule(self):
        self.arrivals = getattr(self, "arrivals", {})
        for group in list(self.groups.values()):
            arrived = self.arrivals.setdefault(group.request_id, self.stats.num_steps)
            is_new = len(group.seqs[0]) == group.num_prompt_tokens
            if is_new and self.stats.num_steps - arrived >= self.patience:
                self.abort(group.request_id)
        return super().schedule()
