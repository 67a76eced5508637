"""Which drafts are accepted: those the model would have chosen itself.

A row with k drafts has k + 1 rows of logits: after the last known token and after each draft. At every one
of these positions the sampler chooses as always, with the parameters, the seed and the history of that
position. A draft is accepted if it is what was chosen there; the first that is not ends the run, and what
was chosen in its place is the run's last token::

    drafts           mat  and  the  dog
    chosen           mat  and  so   we   sat        position by position, by the sampler
                      =    =    #                   "we" was chosen after a text that is not so: dropped
    run              mat  and  so

So every token is the sampler's, at its position, given tokens that are the sampler's as well: the text is
the one without drafts, greedy or not. With temperature the draw of a position is a function of seed and
position (`sampler.uniform`), so that even the *same* tokens are drawn. Penalties, bad words, biases,
`min_tokens` and log-probabilities need no rule of their own. Equality ends where arithmetic does: with five
rows instead of one, a product may be rounded otherwise, and two logits nearer than that may change places.
(float32 on a CPU: about 1e-6. In bfloat16 ties are common, and vLLM's issue 41758 is of this kind.)

Why this is the rule of the paper, in which a draft is accepted with probability min(1, p/q):
`rejection.py`.

vLLM V1: `vllm/v1/sample/rejection_sampler.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from minivllm.outputs import SequenceOutput
from minivllm.scheduler_output import SamplingMetadata, ScheduledSequence


def sampling_after(sampling: SamplingMetadata, drafts: tuple[int, ...]) -> SamplingMetadata:
    """How to choose the token that follows `drafts`, if they follow what the row knows."""
    history = sampling.token_ids and sampling.token_ids + drafts  # empty: nothing looks back
    return replace(sampling, position=sampling.position + len(drafts), token_ids=history)


def sampled_rows(row: ScheduledSequence) -> list[ScheduledSequence]:
    """The row once for each position it is sampled at: the last known token, then each draft.

    Each says how to choose what follows its position. A row without drafts is the only one of its list.
    """
    if row.sampling is None or not row.draft_token_ids:
        return [row]
    lengths = range(len(row.draft_token_ids) + 1)
    return [
        replace(row, sampling=sampling_after(row.sampling, row.draft_token_ids[:length]))
        for length in lengths
    ]


def accept(drafts: Sequence[int], outputs: Iterable[SequenceOutput]) -> SequenceOutput:
    """One run of the tokens chosen at consecutive positions, up to the first that is not the draft.

    Args:
        drafts: k of them.
        outputs: of `sampled_rows`, k + 1, each with one run of one token.

    Returns:
        A run of 1 to k + 1 tokens, with their log-probabilities if `outputs` have them; for k = 0 the
        output as it is.
    """
    outputs = list(outputs)
    if not drafts:
        return outputs[0]
    chosen = [output.token_ids[0][0] for output in outputs]
    length = 1
    while length < len(chosen) and chosen[length - 1] == drafts[length - 1]:
        length += 1
    logprobs = None
    if outputs[0].logprobs is not None:
        logprobs = (tuple(output.logprobs[0][0] for output in outputs[:length]),)
    return SequenceOutput((tuple(chosen[:length]),), logprobs)
