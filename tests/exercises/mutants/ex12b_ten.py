# caught by: test_each_engine_has_its_own_patience
"""Writes the 10 of the example into the code."""

from minivllm.scheduler import Scheduler


class Impatient(Scheduler):
    patience = 10

    def schedule(self):
        self.arrivals = getattr(self, "arrivals", {})
        for group in list(self.waiting):
            arrived = self.arrivals.setdefault(group.request_id, self.stats.num_steps)
            if len(group.seqs[0]) == group.num_prompt_tokens and self.stats.num_steps - arrived >= 10:
                self.abort(group.request_id)
        return super().schedule()
