"""The sampler: logits -> token ids and log-probabilities.

For every sequence that has caught up, the model gives one row of logits, a score for each token of the
vocabulary. What happens to a row, in vLLM V1's order::

    raw logits --> logprobs are taken here, before anything else changes them
      process_logits            allowed tokens, bad words, min_tokens, bias, penalties
      greedy?  --> the largest
      / temperature, softmax
      min_p                     drop tokens less likely than min_p times the likeliest
      top_k, then top_p         keep the k likeliest; of those, the fewest that have mass top_p together
      draw

Drawing needs one uniform number u a token: the chosen token is the first whose cumulative probability
reaches u::

    token          a     b     c     d
    probability   0.5   0.25  0.15  0.1
    cumulative    0.5   0.75  0.9   1.0        u = 0.8 -> c

u comes from the sequence's seed and the position alone (`uniform`). No generator has a state that has to be
carried along, so the same seed gives the same tokens whatever runs beside it, and after a preemption too.
(vLLM draws one exponential number for each token of the vocabulary from a generator a request.)

top_k and top_p need the probabilities in order: sorted rising, what they drop is a beginning of the row
(`first_kept`), and u picks from the rest. But sorting 49,152 numbers a row costs as much as a layer of the
model. Most rows have all they need among their 64 likeliest tokens, which are cheap to find (`top`); the
others, those whose model is undecided, are sorted whole.

Paper: section 5.1. vLLM V1: `vllm/v1/sample/sampler.py`, `vllm/v1/sample/ops/topk_topp_sampler.py`.
"""

from __future__ import annotations

import random

import numpy as np
import torch

from minivllm.beam_search import num_candidates
from minivllm.logits_processors import process_logits
from minivllm.outputs import SequenceOutput, TokenLogprobs
from minivllm.sampling_params import BeamSearchParams
from minivllm.scheduler_output import ScheduledSequence

_HEAD = 64  # tokens of a row looked at first for top_k and top_p
_TOP_BLOCK = 32  # see `top`


def uniform(seed: int, position: int) -> float:
    """A number in (0, 1], always the same for the same seed and position."""
    return 1.0 - random.Random(f"{seed}/{position}").random()


class Sampler:
    """Chooses the next tokens of a batch. It has no state."""

    def __call__(self, logits: torch.Tensor, rows: list[ScheduledSequence]) -> list[SequenceOutput]:
        """Sample for each row as its request asks.

        Args:
            logits: (N, V) float32; row i belongs to `rows[i]`. Left unchanged.

        Returns:
            One output a row: `num_samples` token ids, or candidates if it is a beam.
        """
        assert logits.shape[0] == len(rows)
        beams = [i for i, row in enumerate(rows) if isinstance(row.group.params, BeamSearchParams)]
        others = [i for i, row in enumerate(rows) if not isinstance(row.group.params, BeamSearchParams)]
        outputs: dict[int, SequenceOutput] = {}
        if beams:
            outputs.update(zip(beams, beam_candidates(logits[beams], [rows[i] for i in beams]), strict=True))
        if others:
            own_logits = logits if not beams else logits[others]
            sampled = self._sample(own_logits, [rows[i] for i in others])
            outputs.update(zip(others, sampled, strict=True))
        return [outputs[i] for i in range(len(rows))]

    def _sample(self, logits: torch.Tensor, rows: list[ScheduledSequence]) -> list[SequenceOutput]:
        processed = process_logits(logits, rows)
        token_ids = choose_tokens(processed, rows)
        wanted = [i for i, row in enumerate(rows) if row.group.params.logprobs is not None]
        logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        if wanted:
            # A row sampled n times appears n times.
            flat = [(i, token) for i in wanted for token in token_ids[i]]
            counts = [rows[i].group.params.logprobs for i, _ in flat]
            own_logits = logits if len(flat) == len(rows) == len(wanted) else logits[[i for i, _ in flat]]
            entries = iter(token_logprobs(own_logits, [token for _, token in flat], counts))
            logprobs = {i: tuple(next(entries) for _ in token_ids[i]) for i in wanted}
        return [SequenceOutput(tuple(tokens), logprobs.get(i)) for i, tokens in enumerate(token_ids)]


def most_likely(logits: torch.Tensor) -> list[int]:
    """The token id of the largest of each row's logits (N, V), the lowest id on a tie."""
    if logits.device.type == "cpu":
        # NumPy's argmax uses the processor's vector instructions, a tenth of PyTorch's time.
        return logits.numpy().argmax(axis=-1).tolist()
    return logits.argmax(dim=-1).tolist()


def choose_tokens(logits: torch.Tensor, rows: list[ScheduledSequence]) -> list[list[int]]:
    """Pick `num_samples` tokens for each row of processed logits, (N, V)."""
    random_rows = [i for i, row in enumerate(rows) if not row.group.params.is_greedy]
    if not random_rows:
        return [[token] for token in most_likely(logits)]
    tokens: list[list[int]] = [[] for _ in rows]
    if len(random_rows) < len(rows):
        for i, token in enumerate(most_likely(logits)):
            tokens[i] = [token]
        logits = logits[random_rows]
    drawn = draw(logits, [rows[i] for i in random_rows])
    for i, row_tokens in zip(random_rows, drawn, strict=True):
        tokens[i] = row_tokens
    return tokens


def draw(logits: torch.Tensor, rows: list[ScheduledSequence]) -> list[list[int]]:
    """Draw from the distribution that temperature, min_p, top_k and top_p leave of each row, (N, V).

    What happens to a row depends on its own parameters and logits only, never on its batch mates: the same u
    has to give the same token in every batch.
    """
    params = [row.group.params for row in rows]
    device, vocab_size = logits.device, logits.shape[-1]
    temperature = torch.tensor([[p.effective_temperature] for p in params], device=device)
    probs = (logits / temperature).softmax(dim=-1)
    if any(p.min_p > 0 for p in params):
        probs = apply_min_p(probs, torch.tensor([[p.min_p] for p in params], device=device))

    # (N, most samples); a row that needs fewer draws the rest in vain.
    most = max(row.num_samples for row in rows)
    u = [[uniform(row.seq.seed + k, len(row.seq)) for k in range(most)] for row in rows]
    u = torch.tensor(u, device=device)
    chosen = torch.empty(u.shape, dtype=torch.int64, device=device)
    top_k = [p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in params]
    cut = [i for i, p in enumerate(params) if top_k[i] < vocab_size or p.top_p < 1.0]
    whole = [i for i, p in enumerate(params) if top_k[i] == vocab_size and p.top_p == 1.0]
    if whole:
        chosen[whole] = invert_cdf(_take(probs, whole), u[whole])
    if cut:
        k = torch.tensor([[top_k[i]] for i in cut], device=device)
        p = torch.tensor([[params[i].top_p] for i in cut], device=device, dtype=torch.float64)
        chosen[cut] = draw_cut(_take(probs, cut), u[cut], k, p)
    return [tokens[: row.num_samples] for tokens, row in zip(chosen.tolist(), rows, strict=True)]


def _take(values: torch.Tensor, which: list[int]) -> torch.Tensor:
    """Some rows of (N, V); not a copy if it is all of them."""
    return values if len(which) == len(values) else values[which]


def apply_min_p(probs: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Set to 0 what is below min_p (N, 1) times the largest probability of its row, (N, V)."""
    return torch.where(probs < min_p * probs.amax(dim=-1, keepdim=True), 0.0, probs)


def invert_cdf(probs: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The index where the cumulative sum of `probs` (N, V) first reaches u (N, K) of its total.

    Because u > 0, an index with probability zero is never the first to reach anything. NaN reaches nothing:
    the last index.
    """
    cumulative = probs.cumsum(dim=-1)
    return torch.searchsorted(cumulative, u * cumulative[:, -1:]).clamp_(max=probs.shape[-1] - 1)


def draw_cut(probs: torch.Tensor, u: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Tokens (N, K) drawn with u (N, K) from what top_k (N, 1), then top_p (N, 1) leave of probs (N, V).

    top_k keeps those that tie with the k-th. top_p keeps the token that crosses p, and always the likeliest:
    with probabilities 0.5, 0.3, 0.2 and p = 0.7 the first two stay. The slow twin: `kept_tokens_reference`.
    """
    vocab_size = probs.shape[-1]
    head, token_ids = top(probs, min(_HEAD, vocab_size))  # (N, H)
    # Rising; equal ones in the order of the vocabulary, as `_tokens_at` counts them.
    token_ids, order = token_ids.sort(dim=-1)
    ascending, order = head.gather(1, order).double().sort(dim=-1, stable=True)
    token_ids = token_ids.gather(1, order)
    rest = (probs.sum(dim=-1, keepdim=True) - ascending.sum(dim=-1, keepdim=True)).clamp_(min=0.0)
    cumulative = rest + ascending.cumsum(dim=-1)
    first_of_k, first = _first_kept(ascending, cumulative, top_k, top_p)
    chosen = token_ids.gather(1, _pick(ascending, cumulative, first, u))

    # The head tells everything if what it drops is smaller than what it keeps.
    enough = (ascending.gather(1, first) > ascending[:, :1]) & ((first_of_k > 0) | (top_k == vocab_size))
    if not enough.all():
        flat = ~enough[:, 0]
        probs, top_k, top_p = probs[flat], top_k[flat], top_p[flat]
        ascending = sort_rows(probs)
        cumulative = ascending.cumsum(dim=-1)
        _, first = _first_kept(ascending, cumulative, top_k, top_p)
        chosen[flat] = _tokens_at(probs, ascending, _pick(ascending, cumulative, first, u[flat]))
    return chosen


def _first_kept(
    ascending: torch.Tensor, cumulative: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first position (N, 1) that top_k keeps, and the first that both keep, of the H largest (N, H).

    Example, top_p = 0.7 and no top_k: positions 0 and 1 have mass 0.3 together and are not needed::

        position        0     1     2     3
        ascending      0.1   0.2   0.3   0.4
        cumulative     0.1   0.3   0.6   1.0       -> first kept: 2

    Args:
        cumulative: (N, H), what is not among the H included.
    """
    size = ascending.shape[-1]
    kth = ascending.gather(1, (size - top_k).clamp_(min=0))
    first_of_k = torch.searchsorted(ascending, kth)  # the first of those that tie with it
    dropped = torch.where(top_k < size, _mass_before(first_of_k, ascending, cumulative), 0.0)
    limit = dropped + (1.0 - top_p).to(ascending.dtype) * (cumulative[:, -1:] - dropped)
    first_of_p = torch.searchsorted(cumulative, limit, right=True).clamp_(max=size - 1)
    return first_of_k, first_of_p.maximum(first_of_k)


def _pick(
    ascending: torch.Tensor, cumulative: torch.Tensor, first: torch.Tensor, u: torch.Tensor
) -> torch.Tensor:
    """Positions (N, K) drawn with u (N, K) from those at `first` (N, 1) and after it."""
    dropped = _mass_before(first, ascending, cumulative)
    target = dropped + u.to(ascending.dtype) * (cumulative[:, -1:] - dropped)
    return torch.searchsorted(cumulative, target).clamp_(max=ascending.shape[-1] - 1).maximum(first)


def _mass_before(position: torch.Tensor, ascending: torch.Tensor, cumulative: torch.Tensor) -> torch.Tensor:
    """What the probabilities before `position` (N, 1) have together."""
    return cumulative.gather(1, position) - ascending.gather(1, position)


def sort_rows(values: torch.Tensor) -> torch.Tensor:
    """Each row in rising order. On a CPU by numpy, which is 15 times as fast at it as torch."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values


def _tokens_at(probs: torch.Tensor, ascending: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Which tokens of probs (N, V) stand at `position` (N, K) of its sorted rows.

    The sort moved values without their token ids. So look for the value; of several that are equal, the
    first in the vocabulary is the first in the sorted row.
    """
    values = ascending.gather(1, position)
    nth = position - torch.searchsorted(ascending, values)
    every_row = torch.arange(len(probs), device=probs.device)
    tokens = torch.empty_like(position)
    for k in range(position.shape[1]):
        row, token = (probs == values[:, k : k + 1]).nonzero(as_tuple=True)  # row by row
        tokens[:, k] = token[torch.searchsorted(row, every_row) + nth[:, k]]
    return tokens


def kept_tokens_reference(probs: list[float], top_k: int, top_p: float) -> list[int]:
    """The token ids that top_k, then top_p keep, least likely first: one token after the other."""
    order = sorted(range(len(probs)), key=lambda token: probs[token])
    if top_k < len(probs):
        order = [token for token in order if probs[token] >= probs[order[-top_k]]]
    limit = (1.0 - top_p) * sum(probs[token] for token in order)
    kept, cumulative = [], 0.0
    for token in order:
        cumulative += probs[token]
        if cumulative > limit or token == order[-1]:
            kept.append(token)
    return kept


def top(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row of (N, V), falling, and their indices: `torch.topk`, but faster on a CPU.

    The k largest lie in the k blocks with the largest maxima, since each block without one of them has a
    maximum below all of them. Finding maxima is one quick pass; what is left to sort is small::

        blocks of 2     [9 1] [3 8] [2 2] [7 4]      k = 2
        maxima            9     8     2     7        -> blocks 0 and 1 -> 9, 8
    """
    vocab_size = values.shape[-1]
    num_blocks = vocab_size // _TOP_BLOCK
    if 4 * k >= num_blocks:
        return values.topk(k, dim=-1)
    in_blocks = values[:, : num_blocks * _TOP_BLOCK].unflatten(1, (num_blocks, _TOP_BLOCK))
    best = in_blocks.amax(dim=-1).topk(k, dim=-1).indices  # (N, k)
    offsets = torch.arange(_TOP_BLOCK, device=values.device)
    candidates = (best[:, :, None] * _TOP_BLOCK + offsets).flatten(1)  # (N, k * block)
    # What does not fill a block competes directly.
    leftover = torch.arange(num_blocks * _TOP_BLOCK, vocab_size, device=values.device)
    candidates = torch.cat([candidates, leftover.expand(len(values), -1)], dim=1)
    largest = values.gather(1, candidates).topk(k, dim=-1)
    return largest.values, candidates.gather(1, largest.indices)


def token_logprobs(logits: torch.Tensor, token_ids: list[int], counts: list[int]) -> list[TokenLogprobs]:
    """Log-probability and rank of one token a row, and the `counts[i]` likeliest (-1: all), from (N, V)."""
    vocab_size = logits.shape[-1]
    counts = [vocab_size if count == -1 else min(count, vocab_size) for count in counts]
    logprobs = logits.float().log_softmax(dim=-1)
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])  # (N, 1)
    ranks = (logprobs > chosen).sum(dim=-1, dtype=torch.int32) + 1
    top_values, top_ids = top(logprobs, max(counts))
    rows = zip(
        token_ids, chosen[:, 0].tolist(), ranks.tolist(), top_ids.tolist(), top_values.tolist(), counts,
        strict=True,
    )  # fmt: skip
    return [
        TokenLogprobs(token, logprob, rank, tuple(zip(ids[:count], values[:count], strict=True)))
        for token, logprob, rank, ids, values, count in rows
    ]


def beam_candidates(logits: torch.Tensor, rows: list[ScheduledSequence]) -> list[SequenceOutput]:
    """The most likely next tokens of each beam with their log-probabilities, from logits (N, V)."""
    counts = [
        min(num_candidates(row.group.width, len(row.group.stop_token_ids)), logits.shape[-1]) for row in rows
    ]
    values, token_ids = top(logits.float().log_softmax(dim=-1), max(counts))
    return [
        SequenceOutput(candidates=tuple(zip(ids[:count], logprobs[:count], strict=True)))
        for ids, logprobs, count in zip(token_ids.tolist(), values.tolist(), counts, strict=True)
    ]
