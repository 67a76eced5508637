# caught by: test_within_one_step_too
"""Sorts by the sums of the step before: all seats of a step go to one user."""

from collections import Counter, deque

from minivllm.scheduler import Scheduler


class FairQueue(Scheduler):
    def schedule(self):
        self.given, self.admitted = getattr(self, "given", Counter()), getattr(self, "admitted", set())

        def key(group):
            is_new = group.request_id not in self.admitted
            return is_new, self.given[group.request_id.split("/")[0]] if is_new else 0, group.seqs[0].seq_id

        self.waiting = deque(sorted(self.waiting, key=key))
        plan = super().schedule()
        for group in self.running:
            if group.request_id not in self.admitted:
                self.admitted.add(group.request_id)
                tokens = group.max_num_tokens - group.num_prompt_tokens
                self.given[group.request_id.split("/")[0]] += tokens
        return plan
