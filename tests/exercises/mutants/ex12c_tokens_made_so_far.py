# caught by: test_tokens_count_and_not_requests
"""Counts the tokens that were made, not those promised: a long answer that has just begun counts as a short one."""

from collections import Counter, deque

from minivllm.scheduler import Scheduler


def user_of(group):
    return group.request_id.split("/")[0]


class FairQueue(Scheduler):
    def schedule(self):
        self.admitted = getattr(self, "admitted", {})
        given, order = Counter(), []
        for group in self.admitted.values():
            given[user_of(group)] += len(group.seqs[0]) - group.num_prompt_tokens
        back = [group for group in self.waiting if group.request_id in self.admitted]
        new = [group for group in self.waiting if group.request_id not in self.admitted]
        new.sort(key=lambda group: group.seqs[0].seq_id)
        while new:
            group = min(new, key=lambda group: given[user_of(group)])
            new.remove(group)
            order.append(group)
            given[user_of(group)] += group.max_num_tokens - group.num_prompt_tokens
        self.waiting = deque(back + order)
        plan = super().schedule()
        self.admitted |= {group.request_id: group for group in self.running}
        return plan
