"""n completions of one prompt: one sequence computes it, n go on from there.

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
back n times as large (perhaps too large for the pool), they come back the way they began: one completion, the
leader, computes the prompt again (`step_rules.catch_up_target`), and then the others share it (`refork`).

Paper: section 4.4 and Figure 8. vLLM V1: `vllm/v1/engine/parallel_sampling.py` makes n child requests, which
share full blocks through the prefix cache; v0.1: `vllm/core/scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from minivllm.kv_cache_manager import KVCacheManager
from minivllm.outputs import SequenceOutput, TokenLogprobs
from minivllm.sequence import Sequence, SequenceGroup

TokenRun = list[tuple[int, TokenLogprobs | None]]  # tokens to append, with what is to be reported about each


def runs_of(
    group: SequenceGroup,
    sampled: list[tuple[Sequence, SequenceOutput]],
    kv: KVCacheManager,
    new_seq_id: Callable[[], int],
) -> list[tuple[Sequence, TokenRun]]:
    """Which tokens each sequence gets; the first n samples of a group make it fork.

    All forks come before any token is appended: a child must not inherit its sibling's token.
    """
    if group.has_forked:
        return [(seq, _run(output, 0)) for seq, output in sampled]
    ((parent, output),) = sampled
    for index in range(1, len(output.token_ids)):
        child = parent.fork(new_seq_id(), index, parent.seed + index)
        kv.fork(parent, child)
        group.seqs.append(child)
    return [(seq, _run(output, index)) for index, seq in enumerate(group.seqs)]


def _run(output: SequenceOutput, index: int) -> TokenRun:
    """The run of one sample."""
    token_ids = output.token_ids[index]
    logprobs = [None] * len(token_ids) if output.logprobs is None else output.logprobs[index]
    return list(zip(token_ids, logprobs, strict=True))


def refork(group: SequenceGroup, kv: KVCacheManager) -> None:
    """After a preemption: once the leader has computed the prompt again, let the others share it."""
    leader, *others = group.unfinished
    if leader.num_computed_tokens != leader.num_prompt_tokens:
        return
    for seq in others:
        if seq.num_computed_tokens == 0:
            kv.fork(leader, seq)
            seq.num_computed_tokens = leader.num_computed_tokens
