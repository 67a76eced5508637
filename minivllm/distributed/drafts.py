"""One draft model for all ranks: rank 0 has it, and the others are told its drafts.

Every rank has to verify the same drafts, since the sums of a layer are over all ranks. Two copies of the
draft model need not agree: a choice between two tokens that nearly tie hangs on the last bit of a logit, and
so on the product which was the fastest on a rank's machine::

    rank 0    draft model: t -> a b c        broadcast  ((a, b, c), ...)        model verifies a b c
    rank 1    (none)                         receives   ((a, b, c), ...)        model verifies a b c

A draft model is small, so dividing it among the ranks would cost more in messages than it saves.

vLLM V1: `draft_tensor_parallel_size` in `vllm/config/speculative.py`, which is 1 or the model's.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace

from minivllm.distributed.communication import TensorParallel
from minivllm.model_runner import Drafter
from minivllm.scheduler_output import SchedulerOutput


@dataclass(frozen=True)
class DraftsOfRankZero:
    """Fills in the drafts of plans, the same on every rank.

    Args:
        drafter: makes them, at rank 0; None elsewhere.
        tp: the other ranks.
    """

    drafter: Drafter | None
    tp: TensorParallel

    def fill_in(self, plan: SchedulerOutput) -> SchedulerOutput:
        """See `Drafter.fill_in`. Every rank has to call it with the same plan."""
        if self.drafter is not None:
            plan = self.drafter.fill_in(plan)
        if not any(row.num_drafts for row in plan.scheduled):
            return plan
        drafts = [row.draft_token_ids for row in plan.scheduled]
        drafts = pickle.loads(self.tp.broadcast(pickle.dumps(drafts) if self.tp.shard.rank == 0 else None))
        pairs = zip(plan.scheduled, drafts, strict=True)
        rows = tuple(replace(row, draft_token_ids=tokens) for row, tokens in pairs)
        return replace(plan, scheduled=rows)
