"""The sampler: logits -> token ids and log-probabilities.

For every sequence that has caught up, the model gives one row of logits, a score for each token of the
vocabulary. What happens to a row, in vLLM V1's order::

    raw logits --> logprobs are taken here, before anything else changes them
      process_logits            allowed tokens, bad words, min_tokens, bias, penalties
      greedy?  --> the largest
      / temperature
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

top_p needs the tokens in order, but sorting 49,152 numbers a row costs more than an entire layer of the
model. Nearly all mass is in the first few hundred, so `_head` sorts only those, and more only if a row
needs them.

Paper: section 5.1. vLLM V1: `vllm/v1/sample/sampler.py`, `vllm/v1/sample/ops/topk_topp_sampler.py`.
"""

from __future__ import annotations

import random

import torch

from minivllm.beam_search import num_candidates
from minivllm.logits_processors import process_logits
from minivllm.outputs import SequenceOutput, TokenLogprobs
from minivllm.sampling_params import BeamSearchParams
from minivllm.scheduler_output import ScheduledSequence

_FIRST_HEAD = 256  # tokens sorted at first for top_p and top_k


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
            index = torch.tensor([i for i, _ in flat], device=logits.device)
            counts = [rows[i].group.params.logprobs for i, _ in flat]
            entries = iter(token_logprobs(logits[index], [token for _, token in flat], counts))
            logprobs = {i: tuple(next(entries) for _ in token_ids[i]) for i in wanted}
        return [SequenceOutput(tuple(tokens), logprobs.get(i)) for i, tokens in enumerate(token_ids)]


def choose_tokens(logits: torch.Tensor, rows: list[ScheduledSequence]) -> list[list[int]]:
    """Pick `num_samples` tokens for each row of processed logits, (N, V)."""
    random_rows = [i for i, row in enumerate(rows) if not row.group.params.is_greedy]
    if not random_rows:
        return [[token] for token in logits.argmax(dim=-1).tolist()]
    tokens: list[list[int]] = [[] for _ in rows]
    if len(random_rows) < len(rows):
        for i, token in enumerate(logits.argmax(dim=-1).tolist()):
            tokens[i] = [token]
        logits = logits[random_rows]
    drawn = draw(logits, [rows[i] for i in random_rows])
    for i, row_tokens in zip(random_rows, drawn, strict=True):
        tokens[i] = row_tokens
    return tokens


def draw(logits: torch.Tensor, rows: list[ScheduledSequence]) -> list[list[int]]:
    """Draw from the distribution that temperature, min_p, top_k and top_p leave of each row, (N, V)."""
    params = [row.group.params for row in rows]
    device = logits.device
    temperature = torch.tensor([p.effective_temperature for p in params], device=device)
    logits = logits / temperature[:, None]
    if any(p.min_p > 0 for p in params):
        logits = apply_min_p(logits, torch.tensor([p.min_p for p in params], device=device))

    # (N, max samples); a row that needs fewer draws the rest in vain.
    most = max(row.num_samples for row in rows)
    u = torch.tensor([[uniform(row.seq.seed + k, len(row.seq)) for k in range(most)] for row in rows])
    u = u.to(device=device, dtype=logits.dtype)

    vocab_size = logits.shape[-1]
    if any(0 < p.top_k < vocab_size or p.top_p < 1.0 for p in params):
        top_k = [p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in params]
        values, token_ids = truncate(logits, torch.tensor(top_k), torch.tensor([p.top_p for p in params]))
        chosen = token_ids.gather(1, invert_cdf(values.softmax(dim=-1), u))
    else:
        chosen = invert_cdf(logits.softmax(dim=-1), u)
    return [tokens[: row.num_samples] for tokens, row in zip(chosen.tolist(), rows, strict=True)]


def invert_cdf(probs: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The index where the cumulative sum of `probs` (N, V) first reaches u (N, K) of its total.

    Because u > 0, an index with probability zero is never the first to reach anything.
    """
    cumulative = probs.cumsum(dim=-1)
    return torch.searchsorted(cumulative, u * cumulative[:, -1:]).clamp_(max=probs.shape[-1] - 1)


def apply_min_p(logits: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Drop (-inf) the tokens whose probability is below min_p (N,) times the largest of their row.

    In logits: below the largest logit plus log(min_p). log(0) = -inf drops nothing.
    """
    threshold = logits.amax(dim=-1, keepdim=True) + min_p.log()[:, None]
    return logits.masked_fill(logits < threshold, float("-inf"))


def truncate(
    logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply top_k (N,) then top_p (N,) to logits (N, V).

    Returns:
        The logits of the likeliest tokens in falling order (N, H), those dropped set to -inf, and their
        token ids (N, H). H is as large as the most generous row needs.

    top_k keeps ties with the k-th. top_p keeps the token that crosses p, and always the first:
    with probabilities 0.5, 0.3, 0.2 and p = 0.7 the first two stay.
    """
    device, vocab_size = logits.device, logits.shape[-1]
    top_k, top_p = top_k.to(device), top_p.to(device)
    limited = top_k < vocab_size
    size = min(vocab_size, max(_FIRST_HEAD, 2 * int(torch.where(limited, top_k, 0).max())))
    normalizer = logits.logsumexp(dim=-1, keepdim=True)
    while True:
        values, token_ids = logits.topk(size, dim=-1)  # (N, H), falling
        mass = (values - normalizer).exp().sum(dim=-1)
        if size == vocab_size or bool((limited | (mass >= top_p)).all()):
            break
        size = min(vocab_size, 8 * size)

    kth = values.gather(1, (top_k.clamp(max=size) - 1)[:, None])
    values = values.masked_fill((values < kth) & limited[:, None], float("-inf"))
    # A row limited by top_k has its whole distribution in the head; the others are measured against V.
    total = torch.where(limited[:, None], values.logsumexp(dim=-1, keepdim=True), normalizer)
    probs = (values - total).exp()
    before = probs.cumsum(dim=-1) - probs  # mass of the likelier tokens
    dropped = (before >= top_p[:, None]) & (top_p < 1.0)[:, None]
    dropped[:, 0] = False
    return values.masked_fill(dropped, float("-inf")), token_ids


def token_logprobs(logits: torch.Tensor, token_ids: list[int], counts: list[int]) -> list[TokenLogprobs]:
    """Log-probability and rank of one token a row, and the `counts[i]` likeliest (-1: all), from (N, V)."""
    vocab_size = logits.shape[-1]
    counts = [vocab_size if count == -1 else min(count, vocab_size) for count in counts]
    logprobs = logits.float().log_softmax(dim=-1)
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])  # (N, 1)
    ranks = (logprobs > chosen).sum(dim=-1) + 1
    top_values, top_ids = logprobs.topk(max(counts), dim=-1)
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
    values, token_ids = logits.float().log_softmax(dim=-1).topk(max(counts), dim=-1)
    return [
        SequenceOutput(candidates=tuple(zip(ids[:count], logprobs[:count], strict=True)))
        for ids, logprobs, count in zip(token_ids.tolist(), values.tolist(), counts, strict=True)
    ]
