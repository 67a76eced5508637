"""How many drafts each row of a plan gets: what is left over, and none for those whose drafts fail.

Drafts come last. When the plan of a step is made, what is left of the budget and of the free blocks goes to
drafts. So in the step which has them, they preempt no group and keep none waiting::

    budget 12      A decodes      1 token     + 4 drafts
                   B decodes      1 token     + 4 drafts
                   C's prompt     2 tokens                      12 - 4 = 8 left, 4 and 4: nothing more
                   (a row that samples nothing gets no drafts)

A draft that is rejected is not free: the step was longer for it. So a sequence whose drafts were all
rejected rests for one step, and for twice as many each time that happens again in a row, up to
`LONGEST_REST`. On text that cannot be guessed that leaves one attempt in 33 steps; one accepted draft ends
it::

    misses so far      1   2   3   4   5   6   7 ...
    tokens of rest     1   2   4   8  16  32  32

Blocks that were allocated for rejected drafts are kept: the sequence grows into them, by the next
`num_speculative_tokens` tokens at the latest, unless it ends before. Until then others lack them: when memory
is full, a group may be preempted, or wait, some steps earlier than without drafts. A sequence never holds
more than it holds at its longest without drafts, since drafts do not reach beyond `max_num_tokens`.

vLLM V1: in `vllm/v1/core/sched/scheduler.py` (`num_lookahead_tokens`, `spec_token_ids`); it has no rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from minivllm.kv_cache_manager import KVCacheManager
from minivllm.scheduler_output import ScheduledSequence, StepDraft
from minivllm.sequence import Sequence, SequenceGroup
from minivllm.speculative.config import SpeculativeConfig
from minivllm.speculative.ngram import propose_ngram

LONGEST_REST = 32


@dataclass(frozen=True)
class Speculator:
    """Adds drafts to plans, and remembers in each sequence how they fared. It has no state of its own."""

    config: SpeculativeConfig

    def add_drafts(self, step: StepDraft, groups: Mapping[str, SequenceGroup], kv: KVCacheManager) -> None:
        """Give drafts to the rows of a plan that are sampled from, in their order, while there is room."""
        num_tokens = sum(row.num_tokens for row in step.scheduled)
        budget = min(step.budget, self.config.max_tokens_per_step - num_tokens)
        for index, row in enumerate(step.scheduled):
            seq = groups[row.request_id].find(row.seq_id)
            drafted = self._with_drafts(row, seq, budget)
            if drafted.num_drafts == 0 or not kv.extend(seq, drafted.num_tokens):
                continue
            block_ids = kv.block_tables[seq.seq_id].block_ids
            step.scheduled[index] = replace(drafted, block_ids=block_ids)
            budget -= drafted.num_drafts

    def _with_drafts(self, row: ScheduledSequence, seq: Sequence, budget: int) -> ScheduledSequence:
        """The row with as many drafts as it may have, and can have; perhaps none."""
        # With k drafts a step ends k + 1 tokens on: not beyond the longest the sequence may become.
        count = min(self.config.num_speculative_tokens, budget, seq.max_num_tokens - len(seq) - 1)
        is_prompt_of_many = row.num_samples > 1  # n first tokens are drawn from it: n different texts follow
        if row.sampling is None or is_prompt_of_many or count < 1 or len(seq) < seq.draft_from:
            return row
        if self.config.method == "draft_model":
            return replace(row, num_drafts=count)
        drafts = propose_ngram(seq.token_ids, count, self.config.longest, self.config.shortest)
        return replace(row, draft_token_ids=drafts, num_drafts=len(drafts))

    def note(self, seq: Sequence, num_accepted: int) -> None:
        """Drafts of `seq` have been verified, in a step whose tokens are not appended yet."""
        seq.num_draft_misses = 0 if num_accepted else seq.num_draft_misses + 1
        rest = min(2 ** (seq.num_draft_misses - 1), LONGEST_REST) if seq.num_draft_misses else 0
        seq.draft_from = len(seq) + num_accepted + 1 + rest
