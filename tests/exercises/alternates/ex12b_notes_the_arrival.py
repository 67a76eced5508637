"""Writes the latest step down when a request comes."""

from minivllm.scheduler import Scheduler


class Impatient(Scheduler):
    patience = 10

    def add(self, group):
        super().add(group)
        self.latest = getattr(self, "latest", {}) | {group.request_id: self.stats.num_steps + self.patience}

    def schedule(self):
        gone = [
            group.request_id
            for group in self.waiting
            if group.seqs[0].num_output_tokens == 0 and self.stats.num_steps >= self.latest[group.request_id]
        ]
        for request_id in gone:
            self.abort(request_id)
        return super().schedule()
