# caught by: test_what_was_promised_counts_once_and_comes_back_first
"""A victim of a preemption stands in line like a new request."""

from collections import Counter, deque

from minivllm.scheduler import Scheduler


class FairQueue(Scheduler):
    def schedule(self):
        self.given, before = getattr(self, "given", Counter()), set(self.running)
        new = sorted(self.waiting, key=lambda group: group.seqs[0].seq_id)
        given, order = Counter(self.given), []
        while new:
            group = min(new, key=lambda group: given[group.request_id.split("/")[0]])
            new.remove(group)
            order.append(group)
            given[group.request_id.split("/")[0]] += group.max_num_tokens - group.num_prompt_tokens
        self.waiting = deque(order)
        plan = super().schedule()
        for group in self.running:
            if group not in before:
                self.given[group.request_id.split("/")[0]] += group.max_num_tokens - group.num_prompt_tokens
        return plan
