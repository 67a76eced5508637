"""Chooses the next request at each admission, and counts it there."""

from collections import Counter

from minivllm.scheduler import Scheduler


class FairQueue(Scheduler):
    def pick(self):
        given, seen = self.given, self.seen
        for index, group in enumerate(self.waiting):
            if group.request_id in seen:
                return index
        return min(
            range(len(self.waiting)),
            key=lambda i: (given[self.waiting[i].request_id.split("/")[0]], self.waiting[i].seqs[0].seq_id),
        )

    def schedule_waiting(self, step):
        self.given, self.seen = getattr(self, "given", Counter()), getattr(self, "seen", set())
        if self.waiting:
            self.to_the_front(self.pick())
        super().schedule_waiting(step)

    def to_the_front(self, index):
        group = self.waiting[index]
        del self.waiting[index]
        self.waiting.appendleft(group)

    def start_running(self, queue, step):
        group = queue[0]
        super().start_running(queue, step)
        if group.request_id not in self.seen:
            self.seen.add(group.request_id)
            user = group.request_id.split("/")[0]
            self.given[user] += group.max_num_tokens - group.num_prompt_tokens
        if self.waiting:
            self.to_the_front(self.pick())

    def schedule(self):
        return super().schedule()
