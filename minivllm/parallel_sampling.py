"""n completions of one prompt: when a group's sequences compute, sample and fork, and when one is done.

The prompt is computed once, by one sequence. From the logits of its last token n tokens are sampled, and only
then do n sequences exist. They share all blocks of the prompt until each writes its own tokens::

    prompt computed      seq 0  [7, 2]
    n = 3 tokens         seq 0  [7, 2]  "a"        fork twice: reference counts 3, no block is copied
                         seq 1  [7, 2]  "b"
                         seq 2  [7, 2]  "c"
    next step            seq 0  [7, 5]             copy-on-write of the partly filled block, for all
                         seq 1  [7, 6]             but the last writer
                         seq 2  [7, 2]

Preemption by recompute takes all blocks away, and the sharing with them. So that n completions do not come
back n times as large (perhaps too large for the pool), they come back the way they began: one of them, the
leader, computes the prompt again, and then the others share it (`catch_up_target`, `refork`).

Paper: section 4.4 and Figure 8. vLLM V1: `vllm/v1/engine/parallel_sampling.py` makes n child requests, which
share full blocks through the prefix cache; v0.1: `vllm/core/scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from minivllm.kv_cache_manager import KVCacheManager
from minivllm.outputs import SequenceOutput
from minivllm.sampling_params import BeamSearchParams
from minivllm.sequence import Sequence, SequenceGroup, SequenceStatus

Chunks = list[tuple[Sequence, int]]  # (sequence, tokens to compute this step)


def catch_up_target(group: SequenceGroup, seq: Sequence) -> int:
    """How far the first unfinished sequence of `group` may go alone.

    To the end of the prompt while it leads others that wait for the prompt's blocks; else to its own end.
    """
    leads = len(group.unfinished) > 1 and seq.num_computed_tokens < seq.num_prompt_tokens
    return seq.num_prompt_tokens if leads else len(seq)


def chunks_of(group: SequenceGroup, budget: int) -> Chunks:
    """What a running group computes this step, within `budget` tokens.

    If everything it lacks fits, everybody gets everything, and everybody samples. Otherwise each sequence
    holds back its last token: none may sample before all can. Beams are compared with each other, so they
    have to stay in step; for a single sequence the rule changes nothing.

    Example: three sequences that lack 1 token each, and a budget of 2: nobody gets any.
    """
    seqs = group.unfinished
    leader = seqs[0]
    target = catch_up_target(group, leader)
    if target < len(leader):
        return [(leader, min(target - leader.num_computed_tokens, budget))]
    if sum(seq.num_uncomputed_tokens for seq in seqs) <= budget:
        return [(seq, seq.num_uncomputed_tokens) for seq in seqs]
    chunks: Chunks = []
    for seq in seqs:
        num_tokens = min(seq.num_uncomputed_tokens - 1, budget)
        if num_tokens > 0:
            chunks.append((seq, num_tokens))
            budget -= num_tokens
    return chunks


def num_samples(group: SequenceGroup, seq: Sequence, end: int) -> int:
    """Tokens to sample for `seq` in a step that computes its positions up to `end`.

    None before it has caught up. Then one, but for the prompt of n completions: its logits are drawn from
    n times. A beam draws nothing; it offers candidates once.
    """
    if end < len(seq):
        return 0
    return 1 if group.has_forked or isinstance(group.params, BeamSearchParams) else group.width


def max_cached_tokens(group: SequenceGroup, seq: Sequence) -> int:
    """Tokens of `seq` that may come from the prefix cache.

    Never the last one before the target: the step has to compute at least one token, for its logits.
    Nothing at all if the logits of every prompt position are wanted.
    """
    if getattr(group.params, "prompt_logprobs", None) is not None:
        return 0
    return catch_up_target(group, seq) - 1


def refork(group: SequenceGroup, kv: KVCacheManager) -> None:
    """After a preemption: once the leader has computed the prompt again, let the others share it."""
    leader, *others = group.unfinished
    if leader.num_computed_tokens != leader.num_prompt_tokens:
        return
    for seq in others:
        if seq.num_computed_tokens == 0:
            kv.fork(leader, seq)
            seq.num_computed_tokens = leader.num_computed_tokens


def append_samples(
    group: SequenceGroup,
    sampled: list[tuple[Sequence, SequenceOutput]],
    kv: KVCacheManager,
    new_seq_id: Callable[[], int],
) -> list[Sequence]:
    """Give each sequence its sampled token; the first n tokens of a group make it fork.

    Returns:
        The sequences that got a token, those just forked included. `stop_status` says which of them are done.
    """
    if group.has_forked:
        rows = [(seq, output, 0) for seq, output in sampled]
    else:
        parent, output = sampled[0]
        for index in range(1, len(output.token_ids)):
            child = parent.fork(new_seq_id(), index, parent.seed + index)
            kv.fork(parent, child)
            group.seqs.append(child)
        # All forks come before any token is appended: a child must not inherit its sibling's token.
        rows = [(seq, output, index) for index, seq in enumerate(group.seqs)]
    for seq, output, index in rows:
        seq.append(output.token_ids[index], None if output.logprobs is None else output.logprobs[index])
    return [seq for seq, _, _ in rows]


def stop_status(group: SequenceGroup, seq: Sequence) -> tuple[SequenceStatus, int | None] | None:
    """Whether the newest token ends `seq`: its status and stop reason, or None to go on.

    The stop reason is the stop token's id, and None for end of sequence. Stop strings are found where there
    is text, in `output_processor.py`.
    """
    token_id = seq.token_ids[-1]
    if token_id in group.stop_token_ids and seq.num_output_tokens >= group.params.min_tokens:
        return SequenceStatus.FINISHED_STOPPED, None if token_id in group.eos_token_ids else token_id
    if len(seq) >= group.max_num_tokens:
        return SequenceStatus.FINISHED_LENGTH_CAPPED, None
    return None
