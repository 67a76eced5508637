# caught by: test_each_engine_has_its_own_patience
"""Keeps the arrivals in the class: the next engine of the process takes its requests for those of the last."""

from minivllm.scheduler import Scheduler


class Impatient(Scheduler):
    patience = 10
    arrivals = {}  # noqa: RUF012

    def schedule(self):
        for group in list(self.waiting):
            arrived = self.arrivals.setdefault(group.request_id, self.stats.num_steps)
            is_new = len(group.seqs[0]) == group.num_prompt_tokens
            if is_new and self.stats.num_steps - arrived >= self.patience:
                self.abort(group.request_id)
        return super().schedule()
