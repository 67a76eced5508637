# caught by: test_patience_begins_when_a_request_comes
"""Counts from the first step of the server."""

from minivllm.scheduler import Scheduler


class Impatient(Scheduler):
    patience = 10

    def schedule(self):
        for group in list(self.waiting):
            if len(group.seqs[0]) == group.num_prompt_tokens and self.stats.num_steps >= self.patience:
                self.abort(group.request_id)
        return super().schedule()
