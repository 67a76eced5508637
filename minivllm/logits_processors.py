"""What a request changes about the logits before a token is chosen.

Each function takes the logits of a batch, (N, V) float32, and edits the rows that asked for it, in place.
`process_logits` calls them in vLLM V1's order, which matters: a bias given to a forbidden token must not
bring it back, and penalties must see the biased logits.

    allowed_token_ids   every other token -> -inf
    bad_words           the token that would complete a bad word -> -inf
    min_tokens          the tokens that would end the text -> -inf, until there are enough
    logit_bias          added
    repetition_penalty  tokens of prompt and output: positive logits divided, negative multiplied
    frequency_penalty   tokens of the output: subtracted once for each time they occurred
    presence_penalty    tokens of the output: subtracted once

Penalties touch a few hundred tokens of each row, so they gather and scatter just those instead of building
an (N, V) table of counts: with a vocabulary of 49,152 that table would cost more than the sampling.

vLLM V1: `vllm/v1/sample/logits_processor/`, `vllm/v1/sample/ops/penalties.py`, `ops/bad_words.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from minivllm.sampling_params import SamplingParams
from minivllm.scheduler_output import ScheduledSequence

_NEVER = float("-inf")


def process_logits(logits: torch.Tensor, rows: list[ScheduledSequence]) -> torch.Tensor:
    """Return the logits as the requests want them; the argument itself is left as it was.

    Args:
        logits: (N, V) float32, row i for `rows[i]`. Beam search rows must not be among them.
    """
    edited = [i for i, row in enumerate(rows) if _asks_for_something(row)]
    if not edited:
        return logits
    logits = logits.clone()
    for i in edited:
        _restrict_tokens(logits[i], rows[i])
    apply_penalties(logits, rows, [i for i in edited if _params(rows[i]).has_penalties])
    return logits


def _params(row: ScheduledSequence) -> SamplingParams:
    assert isinstance(row.group.params, SamplingParams)
    return row.group.params


def _asks_for_something(row: ScheduledSequence) -> bool:
    params = _params(row)
    return bool(
        params.allowed_token_ids is not None
        or row.group.bad_words_token_ids
        or row.seq.num_output_tokens < params.min_tokens
        or params.logit_bias
        or params.has_penalties
    )


def _restrict_tokens(logits: torch.Tensor, row: ScheduledSequence) -> None:
    """Apply allowed tokens, bad words, min_tokens and the bias to one row, (V,)."""
    params, group = _params(row), row.group
    if params.allowed_token_ids is not None:
        allowed = torch.tensor(params.allowed_token_ids, device=logits.device)
        kept = logits[allowed]
        logits.fill_(_NEVER)
        logits[allowed] = kept
    forbidden = completing_tokens(group.bad_words_token_ids, row.seq.output_token_ids)
    if row.seq.num_output_tokens < params.min_tokens:
        forbidden |= group.stop_token_ids
    if forbidden:
        logits[list(forbidden)] = _NEVER
    if params.logit_bias:
        token_ids = torch.tensor(list(params.logit_bias), device=logits.device)
        logits[token_ids] += torch.tensor(list(params.logit_bias.values()), device=logits.device)


def completing_tokens(bad_words: Iterable[tuple[int, ...]], output: list[int]) -> set[int]:
    """The tokens that would complete one of the bad words, given the output so far.

    Example: completing_tokens([(5,), (1, 2, 3)], [9, 1, 2]) == {5, 3}.
    """
    return {
        word[-1] for word in bad_words if len(word) == 1 or tuple(output[-(len(word) - 1) :]) == word[:-1]
    }


def apply_penalties(logits: torch.Tensor, rows: list[ScheduledSequence], which: list[int]) -> None:
    """Apply repetition, frequency and presence penalties to the rows `which`, in place."""
    if not which:
        return
    params = [_params(rows[i]) for i in which]
    everything = [rows[i].seq.token_ids for i in which]
    output = [rows[i].seq.output_token_ids for i in which]

    repetition = _column([p.repetition_penalty for p in params], logits)
    with_penalty = [k for k, p in enumerate(params) if p.repetition_penalty != 1.0]
    for where, ids, _ in _padded(which, everything, with_penalty, logits.device):
        seen = logits[where, ids]
        penalty = repetition[with_penalty]
        logits[where, ids] = torch.where(seen > 0, seen / penalty, seen * penalty)

    with_output = [k for k, tokens in enumerate(output) if tokens]
    for where, ids, valid in _padded(which, output, with_output, logits.device):
        frequency = _column([params[k].frequency_penalty for k in with_output], logits)
        presence = _column([params[k].presence_penalty for k in with_output], logits)
        logits.index_put_((where.expand_as(ids), ids), -frequency * valid, accumulate=True)
        logits[where, ids] = logits[where, ids] - presence


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    """(N, 1), to multiply rows with."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _padded(
    which: list[int], tokens: list[list[int]], chosen: list[int], device: torch.device
) -> Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield row numbers (K, 1), token ids (K, L) and their validity (K, L) of the chosen rows, if any.

    Short rows are padded with their own first token. A scatter that writes the same value twice is
    harmless; one that adds must be multiplied with `valid`.
    """
    if not chosen:
        return
    longest = max(len(tokens[k]) for k in chosen)
    ids = [tokens[k] + tokens[k][:1] * (longest - len(tokens[k])) for k in chosen]
    lengths = torch.tensor([[len(tokens[k])] for k in chosen], device=device)
    where = torch.tensor([[which[k]] for k in chosen], device=device)
    yield where, torch.tensor(ids, device=device), torch.arange(longest, device=device) < lengths
