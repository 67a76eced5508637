# caught by: test_a_client_that_waited_too_long_costs_nothing_more
"""`>` for `>=`: one step more than the client waits."""

from minivllm.scheduler import Scheduler


class Impatient(Scheduler):
    patience = 10

    def schedule(self):
        self.arrivals = getattr(self, "arrivals", {})
        for group in list(self.waiting):
            arrived = self.arrivals.setdefault(group.request_id, self.stats.num_steps)
            new = len(group.seqs[0]) == group.num_prompt_tokens
            if new and self.stats.num_steps - arrived > self.patience:
                self.abort(group.request_id)
        return super().schedule()
