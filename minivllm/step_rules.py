"""The rules for one group in one step: how many tokens it computes, how many it samples, and when it is done.

One rule says how far a group may go, for its first chunk and for all later ones (`chunks_of`): all that is
known and not yet computed, within the budget. Two examples, a budget of 8 tokens::

    one sequence, 12 known, 4 computed        8 tokens             no sample: it has not caught up
    three sequences that lack 1 token each    1 + 1 + 1 tokens     3 samples

The functions read sequences and change nothing; `scheduler.py` acts on what they say.

Paper: section 4.5. vLLM V1: `Scheduler.schedule` in `vllm/v1/core/sched/scheduler.py`, and `check_stop` in
`vllm/v1/core/sched/utils.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from minivllm.sequence import Sequence, SequenceGroup, SequenceStatus

Chunks = list[tuple[Sequence, int]]  # (sequence, tokens to compute this step)


@dataclass(frozen=True)
class Stop:
    """A stop string, found in the text of `seq`, which its first `num_output_tokens` tokens complete."""

    seq: Sequence
    string: str
    num_output_tokens: int


def catch_up_target(group: SequenceGroup, seq: Sequence) -> int:
    """How far the first unfinished sequence of `group` may go alone.

    To the end of the prompt while it leads others that wait for the prompt's blocks; else to its own end.
    """
    leads = len(group.unfinished) > 1 and seq.num_computed_tokens < seq.num_prompt_tokens
    return seq.num_prompt_tokens if leads else len(seq)


def max_cached_tokens(group: SequenceGroup, seq: Sequence) -> int:
    """Tokens of `seq` that may come from the prefix cache.

    Not the last one before the target: the step has to compute at least one token, for its logits. And none
    at all if the logits of every prompt position are wanted.
    """
    return 0 if group.params.prompt_logprobs is not None else catch_up_target(group, seq) - 1


def chunks_of(group: SequenceGroup, budget: int, num_cached: int = 0) -> Chunks:
    """What a group computes in this step, within `budget` tokens.

    If everything it lacks fits, each sequence gets all it lacks, and all of them sample. Otherwise each
    sequence holds back its last token: none may sample before all can. Beams are compared with each other, so
    they have to stay in step; for a single sequence the rule changes nothing.

    Example: three sequences that lack 1 token each, and a budget of 2: no sequence gets any.

    Args:
        group: running, or about to be admitted; it enters with one sequence, the others fork from it.
        budget: tokens.
        num_cached: for a group about to be admitted, the tokens found in the prefix cache.
    """
    seqs = group.unfinished
    leader, target = seqs[0], catch_up_target(group, seqs[0])
    lacking = [seq.num_uncomputed_tokens for seq in seqs]
    lacking[0] = target - leader.num_computed_tokens - num_cached
    if target < len(leader):
        return [(leader, min(lacking[0], budget))]
    if sum(lacking) <= budget:
        return list(zip(seqs, lacking, strict=True))
    chunks: Chunks = []
    for seq, num_lacking in zip(seqs, lacking, strict=True):
        num_tokens = min(num_lacking - 1, budget)
        if num_tokens > 0:
            chunks.append((seq, num_tokens))
            budget -= num_tokens
    return chunks


def num_samples(group: SequenceGroup, seq: Sequence, end: int) -> int:
    """Tokens to sample for `seq` in a step that computes its positions up to `end`.

    0 until `seq` has caught up. Then 1, except for the prompt of n completions, whose last logits are drawn
    from n times. A beam counts as 1: it draws nothing, and offers its candidates once.
    """
    if end < len(seq):
        return 0
    return 1 if group.has_forked or group.is_beam_search else group.width


def stop_status(group: SequenceGroup, seq: Sequence) -> tuple[SequenceStatus, int | None] | None:
    """Whether the newest token ends `seq`: its status and stop reason, or None to go on.

    The stop reason is the stop token's id, and None for end of sequence. Stop strings are found where
    there is text, in `output_processor.py`.
    """
    token_id = seq.token_ids[-1]
    if token_id in group.stop_token_ids and seq.num_output_tokens >= group.params.min_tokens:
        return SequenceStatus.FINISHED_STOPPED, None if token_id in group.eos_token_ids else token_id
    if len(seq) >= group.max_num_tokens:
        return SequenceStatus.FINISHED_LENGTH_CAPPED, None
    return None
