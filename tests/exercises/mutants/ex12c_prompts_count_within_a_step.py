# caught by: test_within_one_step_too
"""Within a step the prompts count, too: a user with one long document waits behind all others."""

from collections import Counter, deque

from minivllm.scheduler import Scheduler


def user_of(group):
    return group.request_id.partition("/")[0]


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
            given[user_of(group)] += group.max_num_tokens
        self.waiting = deque(back + order)
        plan = super().schedule()
        for group in self.running:
            if group.request_id not in self.admitted:
                self.admitted.add(group.request_id)
                self.given[user_of(group)] += group.max_num_tokens - group.num_prompt_tokens
        return plan
