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

    tokens of two rows     padded with their own first     valid
    [8, 3, 8]              [[8, 3, 8],                     [[1, 1, 1],
    [5]                     [5, 5, 5]]                      [1, 0, 0]]

However wild the numbers a request asks for, no logit becomes NaN or +inf: one such row would make the step
fail, and all other requests with it.

vLLM V1: `vllm/v1/sample/logits_processor/`, `vllm/v1/sample/ops/penalties.py`, `ops/bad_words.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from minivllm.sampling_params import SamplingParams
from minivllm.scheduler_output import SamplingMetadata

_NEVER = float("-inf")
_LARGE = 1e15  # a bias or penalty beyond it has no further effect, but its products overflow float32


def process_logits(logits: torch.Tensor, rows: list[SamplingMetadata]) -> torch.Tensor:
    """Return the logits as the requests want them; the argument itself is left as it was.

    Args:
        logits: (N, V) float32, row i for `rows[i]`. Beam search rows must not be among them.
    """
    restricted = [i for i, row in enumerate(rows) if _restricts(row)]
    penalized = [i for i, row in enumerate(rows) if row.params.has_penalties]
    if not restricted and not penalized:
        return logits
    logits = logits.clone()
    for i in restricted:
        _restrict_tokens(logits[i], rows[i])
    apply_penalties(logits, rows, penalized)
    return logits


def _restricts(row: SamplingMetadata) -> bool:
    """Whether the request forbids or favours certain tokens at this position."""
    params = row.params
    return bool(
        params.allowed_token_ids is not None
        or row.bad_words_token_ids
        or row.num_output_tokens < params.min_tokens
        or params.logit_bias
    )


def _restrict_tokens(logits: torch.Tensor, row: SamplingMetadata) -> None:
    """Apply allowed tokens, bad words, min_tokens and the bias to one row, (V,)."""
    params = row.params
    if params.allowed_token_ids is not None:
        allowed = torch.tensor(list(params.allowed_token_ids), device=logits.device)
        kept = logits[allowed]
        logits.fill_(_NEVER)
        logits[allowed] = kept
    forbidden = _forbidden_tokens(row)
    if forbidden:
        logits[list(forbidden)] = _NEVER
    if params.logit_bias:
        token_ids = torch.tensor(list(params.logit_bias), device=logits.device)
        bias = torch.tensor(list(params.logit_bias.values()), dtype=logits.dtype, device=logits.device)
        logits[token_ids] += bias.clamp(-_LARGE, _LARGE)


def _forbidden_tokens(row: SamplingMetadata) -> set[int]:
    """What bad words and min_tokens rule out now; nothing, if `allowed_token_ids` leaves no other choice."""
    params = row.params
    forbidden: set[int] = set()
    if row.bad_words_token_ids:
        forbidden |= completing_tokens(row.bad_words_token_ids, row.output_token_ids)
    if row.num_output_tokens < params.min_tokens:
        forbidden |= row.stop_token_ids
    if params.allowed_token_ids is not None and forbidden.issuperset(params.allowed_token_ids):
        return set()
    return forbidden


def completing_tokens(bad_words: Iterable[tuple[int, ...]], output: tuple[int, ...]) -> set[int]:
    """The tokens that would complete one of the bad words, given the output so far.

    Example: completing_tokens([(5,), (1, 2, 3)], (9, 1, 2)) == {5, 3}.
    """
    return {word[-1] for word in bad_words if len(word) == 1 or output[-(len(word) - 1) :] == word[:-1]}


def apply_penalties(logits: torch.Tensor, rows: list[SamplingMetadata], which: list[int]) -> None:
    """Apply repetition, frequency and presence penalties to the rows `which`, in place."""
    repeating = [i for i in which if rows[i].params.repetition_penalty != 1.0]
    if repeating:
        # A token that occurs twice is read twice, then written twice with the same value.
        seen = _pad_tokens(repeating, [rows[i].token_ids for i in repeating], logits.device)
        penalty = _column([rows[i].params.repetition_penalty for i in repeating], logits)
        penalty = penalty.clamp(1 / _LARGE, _LARGE)
        values = logits[seen.rows, seen.token_ids]  # (K, L)
        logits[seen.rows, seen.token_ids] = torch.where(values > 0, values / penalty, values * penalty)

    writing = [i for i in which if rows[i].num_output_tokens > 0 and _counts_output(rows[i].params)]
    if writing:
        used = _pad_tokens(writing, [rows[i].output_token_ids for i in writing], logits.device)
        frequency = _column([rows[i].params.frequency_penalty for i in writing], logits)
        presence = _column([rows[i].params.presence_penalty for i in writing], logits)
        # Adding, unlike writing, must happen once for each occurrence: the padding adds 0.
        where = used.rows.expand_as(used.token_ids), used.token_ids
        logits.index_put_(where, -frequency * used.valid, accumulate=True)
        logits[where] = logits[where] - presence


def _counts_output(params: SamplingParams) -> bool:
    return params.frequency_penalty != 0.0 or params.presence_penalty != 0.0


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    """(N, 1), to multiply rows with."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


@dataclass(frozen=True)
class _PaddedTokens:
    """Tokens of some rows of the batch, each padded with its own first token to the longest, L."""

    # (K, 1): which rows of the batch
    rows: torch.Tensor
    # (K, L)
    token_ids: torch.Tensor
    # (K, L) bool: False for padding
    valid: torch.Tensor


def _pad_tokens(which: list[int], tokens: list[tuple[int, ...]], device: torch.device) -> _PaddedTokens:
    """Make tensors of ragged lists, none empty (by way of numpy: it reads lists four times as fast)."""
    longest = max(len(row) for row in tokens)
    padded = np.array([row + row[:1] * (longest - len(row)) for row in tokens])
    lengths = np.array([len(row) for row in tokens])
    return _PaddedTokens(
        rows=torch.tensor(which, device=device)[:, None],
        token_ids=torch.from_numpy(padded).to(device),
        valid=torch.from_numpy(np.arange(longest) < lengths[:, None]).to(device),
    )
