# caught by: test_tokens_count_and_not_requests
"""Takes turns: one request each, however long it is."""

from collections import Counter, deque

from minivllm.scheduler import Scheduler


class FairQueue(Scheduler):
    def schedule(self):
        self.given, self.admitted = getattr(self, "given", Counter()), getattr(self, "admitted", set())
        back = [group for group in self.waiting if group.request_id in self.admitted]
        new = [group for group in self.waiting if group.request_id not in self.admitted]
        new.sort(key=lambda group: group.seqs[0].seq_id)
        given, order = Counter(self.given), []
        while new:
            group = min(new, key=lambda group: given[group.request_id.split("/")[0]])
            new.remove(group)
            order.append(group)
            given[group.request_id.split("/")[0]] += 1
        self.waiting = deque(back + order)
        plan = super().schedule()
        for group in self.running:
            if group.request_id not in self.admitted:
                self.admitted.add(group.request_id)
                self.given[group.request_id.split("/")[0]] += 1
        return plan
