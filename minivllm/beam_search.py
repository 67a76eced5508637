"""Beam search: keep the `w` most likely continuations, on top of fork and free.

After each step every live beam offers its most likely next tokens. All offers are ranked together by the
log-probability of the whole continuation. Those that end go to the finished hypotheses; the best `w` of
the others are the next beams. A beam chosen twice forks, a beam not chosen is freed::

    w = 2          offers, best first            next beams
    A  -1.0        A+x  -1.2                     A+x      A itself goes on
    B  -1.5        A+y  -1.6                     A+y      a fork of A: shares all blocks of A
                   B+x  -2.0                     B        freed: its blocks go back to the pool
                   B+z  -2.4

Only `w` beams are ever live, so at most `w` block tables exist, and what two beams have in common is stored
once. This is where copy-on-write earns its keep: the paper measures 37.6% to 55.2% fewer blocks (Alpaca,
widths 2 to 6), where parallel sampling saves 6% to 10%.

A finished hypothesis is a finished `Sequence` in the group without blocks. Its score is
`cumulative_logprob / num_output_tokens ** length_penalty`. Details follow Hugging Face, our oracle: the
number of offers considered, that only a continuation ranked among the first `w` may finish, and when to
stop (`_can_improve`).

Paper: sections 4.4 (Figure 9), 5.2. vLLM V1: no longer in the engine; `LLM.beam_search` in
`vllm/entrypoints/llm.py` sends one-token requests. v0.1: `vllm/core/scheduler.py` and `llm_engine.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minivllm.kv_cache_manager import KVCacheManager
from minivllm.outputs import SequenceOutput
from minivllm.sampling_params import BeamSearchParams
from minivllm.sequence import Sequence, SequenceGroup, SequenceStatus


@dataclass(frozen=True)
class _Offer:
    """`parent` continued by `token_id`; `total` is the log-probability of everything generated then."""

    parent: Sequence
    token_id: int
    total: float


def score(seq: Sequence, length_penalty: float) -> float:
    """What hypotheses are ranked by."""
    return seq.cumulative_logprob / seq.num_output_tokens**length_penalty


def advance(
    group: SequenceGroup,
    sampled: list[tuple[Sequence, SequenceOutput]],
    kv: KVCacheManager,
    new_seq_id: Callable[[], int],
) -> None:
    """Replace the live beams of `group` by the next generation, forking and freeing as needed.

    Args:
        sampled: the live beams, which have one length and all their tokens computed, each with its most
            likely next tokens, at least `group.num_candidates` of them.
        new_seq_id: gives an unused sequence id at each call.
    """
    params = group.params
    assert group.is_beam_search
    beams = [beam for beam, _ in sampled]
    offers = [
        _Offer(beam, token_id, beam.cumulative_logprob + logprob)
        for beam, output in sampled
        for token_id, logprob in output.candidates
    ]
    offers.sort(key=lambda offer: offer.total, reverse=True)
    offers = offers[: group.num_candidates]

    # Like Hugging Face: only what ranks among the first `w` may finish. A worse continuation that happens to
    # end would otherwise fill the list of hypotheses and stop the search before better ones are done.
    last = len(beams[0]) + 1 >= group.max_num_tokens
    finished = [seq for seq in group.seqs if seq.status.is_finished]
    for offer in offers[: params.beam_width]:
        if offer.token_id in group.stop_token_ids:
            finished.append(_finish(offer, SequenceStatus.FINISHED_STOPPED, new_seq_id()))
        elif last:
            finished.append(_finish(offer, SequenceStatus.FINISHED_LENGTH_CAPPED, new_seq_id()))
    finished.sort(key=lambda seq: score(seq, params.length_penalty), reverse=True)
    finished = finished[: params.beam_width]

    survivors = [offer for offer in offers if offer.token_id not in group.stop_token_ids][: params.beam_width]
    if last or not _can_improve(group, params, finished, survivors):
        # The group is finished: the hypotheses stay, best first, and no beam holds a block any more.
        for beam in beams:
            kv.free(beam)
        for index, seq in enumerate(finished):
            seq.index = index
        group.seqs = finished
        return
    group.seqs = _next_generation(beams, survivors, kv, new_seq_id) + finished


def _finish(offer: _Offer, status: SequenceStatus, seq_id: int) -> Sequence:
    """A finished hypothesis; it holds no blocks.

    It is a sequence of its own and not the parent, because the parent's other offers may still be beams.
    """
    seq = offer.parent.fork(seq_id, index=0, seed=offer.parent.seed)
    seq.append(offer.token_id)
    seq.cumulative_logprob = offer.total
    seq.status = status
    return seq


def _can_improve(
    group: SequenceGroup, params: BeamSearchParams, finished: list[Sequence], survivors: list[_Offer]
) -> bool:
    """Whether a live beam may still end up among the best `beam_width` hypotheses (Hugging Face's rule)."""
    if len(finished) < params.beam_width:
        return True
    # `finished` is sorted, so its last is the one to beat. Log-probabilities only fall, so the score of the
    # best live beam is an upper bound for all that grows from it (but for the length penalty).
    if params.early_stopping is True:
        return False
    length = survivors[0].parent.num_output_tokens + 1
    if params.early_stopping == "never" and params.length_penalty > 0.0:
        length = group.max_num_tokens - group.num_prompt_tokens  # a longer one is divided by more
    best_possible = survivors[0].total / length**params.length_penalty
    return best_possible > score(finished[-1], params.length_penalty)


def _next_generation(
    beams: list[Sequence], survivors: list[_Offer], kv: KVCacheManager, new_seq_id: Callable[[], int]
) -> list[Sequence]:
    """Turn survivors into sequences. The first to choose a beam takes it over, the others fork it.

    Order matters: all forks come before any token is appended, or a fork would inherit its sibling's token.
    """
    next_beams: list[Sequence] = []
    taken: set[int] = set()
    for offer in survivors:
        if offer.parent.seq_id in taken:
            seq = offer.parent.fork(new_seq_id(), index=0, seed=offer.parent.seed)
            kv.fork(offer.parent, seq)
        else:
            seq = offer.parent
            taken.add(seq.seq_id)
        next_beams.append(seq)
    for beam in beams:
        if beam.seq_id not in taken:
            kv.free(beam)
    for seq, offer in zip(next_beams, survivors, strict=True):
        seq.append(offer.token_id)
        seq.cumulative_logprob = offer.total
    return next_beams
