# caught by: test_names_do_not_decide
"""Tells users apart by their first three letters: anna pays for ann."""

from collections import Counter, deque

from minivllm.scheduler import Scheduler


def user_of(group):
    return group.request_id[:3]


class FairQueue(Scheduler):
    def schedule(self):
        self.given, self.admitted = getattr(self, "given", Counter()), getattr(self, "admitted", set())
        back = [group for group in self.waiting if group.request_id in self.admitted]
        new = [group for group in self.waiting if group.request_id not in self.admitted]
        new.sort(key=lambda group: group.seqs[0].seq_id)
        given, order = Counter(self.given), []
        while new:
            group = min(new, key=lambda group: given[user_of(group)])
            new.remove(group)
            order.append(group)
            given[user_of(group)] += group.max_num_tokens - group.num_prompt_tokens
        self.waiting = deque(back + order)
        plan = super().schedule()
        for group in self.running:
            if group.request_id not in self.admitted:
                self.admitted.add(group.request_id)
                self.given[user_of(group)] += group.max_num_tokens - group.num_prompt_tokens
        return plan
