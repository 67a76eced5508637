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

Drawing needs a uniform number u: the chosen token is the first whose cumulative probability reaches u::

    token          a     b     c     d
    probability   0.5   0.25  0.15  0.1
    cumulative    0.5   0.75  0.9   1.0        u = 0.8 -> c

u comes from the sequence's seed and the position alone (`uniform`). There is no generator with a state to
carry along, so which requests run beside it does not change what a seed draws, nor does a preemption. (vLLM
draws one exponential number for each token of the vocabulary from a generator per request.)

top_p looks as if it needed all probabilities in order, and sorting 49,152 numbers per row costs more than a
layer of the model. But *one* token can be judged without any order: it is kept if all likelier tokens have
less than top_p together. So draw first and judge then; a token that is not kept is refused, and with it all
tokens that are no likelier. The token drawn at last has the distribution of a row that was sorted and cut::

    top_p = 0.7    u = 0.8  -> c     likelier than c: a, b with 0.75 >= 0.7: refused. a and b are left,
                   u'= 0.9  -> b     likelier than b: a    with 0.5  <  0.7: kept

Paper: section 5.1.
vLLM V1: `vllm/v1/sample/sampler.py`, `vllm/v1/sample/ops/topk_topp_sampler.py`.
Refusing instead of sorting is what FlashInfer's sampling kernels do; vLLM uses them on NVIDIA GPUs for
batches without a seeded request.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch

from minivllm.logits_processors import process_logits
from minivllm.outputs import SequenceOutput, TokenLogprobs
from minivllm.scheduler_output import SamplingMetadata, ScheduledSequence

_TOP_BLOCK = 32  # see `top`


def uniform(seed: int, position: int, attempt: int) -> float:
    """A number in (0, 1], always the same for the same seed, position and attempt (see `draw_top_p`)."""
    return 1.0 - random.Random(f"{seed}/{position}/{attempt}").random()


class Sampler:
    """Chooses the next tokens of a batch. It has no state."""

    def __call__(self, logits: torch.Tensor, rows: list[ScheduledSequence]) -> list[SequenceOutput]:
        """Sample for each row as its request asks.

        Args:
            logits: (N, V) float32; row i belongs to `rows[i]`. Left unchanged.

        Returns:
            One output per row, with `num_samples` runs of one token, or candidates if it is a beam.
        """
        assert logits.shape[0] == len(rows)
        outputs: dict[int, SequenceOutput] = {}
        beams = [i for i, row in enumerate(rows) if row.sampling is None]
        if beams:
            counts = [rows[i].num_candidates for i in beams]
            outputs.update(zip(beams, beam_candidates(_take(logits, beams), counts), strict=True))
        others = {i: row.sampling for i, row in enumerate(rows) if row.sampling is not None}
        if others:
            sampled = self._sample(_take(logits, list(others)), list(others.values()))
            outputs.update(zip(others, sampled, strict=True))
        return [outputs[i] for i in range(len(rows))]

    def _sample(self, logits: torch.Tensor, rows: list[SamplingMetadata]) -> list[SequenceOutput]:
        token_ids = choose_tokens(process_logits(logits, rows), rows)
        wanted = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
        # A row sampled n times appears n times.
        which = [i for i in wanted for _ in token_ids[i]]
        entries: Iterator[TokenLogprobs] = iter(())
        if wanted:
            tokens = [token for i in wanted for token in token_ids[i]]
            counts = [rows[i].params.logprobs for i in which]
            entries = iter(token_logprobs(_take(logits, which), tokens, counts))
        logprobs = {i: tuple((next(entries),) for _ in token_ids[i]) for i in wanted}
        runs = (tuple((token,) for token in row_tokens) for row_tokens in token_ids)
        return [SequenceOutput(run, logprobs.get(i)) for i, run in enumerate(runs)]


def most_likely(logits: torch.Tensor) -> list[int]:
    """The token id of the largest of each row's logits (N, V), the lowest id on a tie."""
    if logits.device.type == "cpu":
        # NumPy's argmax uses the processor's vector instructions, a tenth of PyTorch's time.
        return logits.numpy().argmax(axis=-1).tolist()
    return logits.argmax(dim=-1).tolist()


def choose_tokens(logits: torch.Tensor, rows: list[SamplingMetadata]) -> list[list[int]]:
    """Pick `num_samples` tokens for each row of processed logits, (N, V)."""
    random_rows = [i for i, row in enumerate(rows) if not row.params.is_greedy]
    tokens: dict[int, list[int]] = {}
    if len(random_rows) < len(rows):
        tokens.update(enumerate([token] for token in most_likely(logits)))
    if random_rows:
        drawn = draw(_take(logits, random_rows), [rows[i] for i in random_rows])
        tokens.update(zip(random_rows, drawn, strict=True))
    return [tokens[i] for i in range(len(rows))]


def draw(logits: torch.Tensor, rows: list[SamplingMetadata]) -> list[list[int]]:
    """Draw from the distribution that temperature, min_p, top_k and top_p leave of each row, (N, V).

    What happens to a row depends on its own parameters and logits only, never on its batch mates: the same u
    has to give the same token in every batch.
    """
    params = [row.params for row in rows]
    device, vocab_size = logits.device, logits.shape[-1]
    temperature = torch.tensor([[p.effective_temperature] for p in params], device=device)
    probs = (logits / temperature).softmax(dim=-1)
    if any(p.min_p > 0 for p in params):
        probs = apply_min_p(probs, torch.tensor([[p.min_p] for p in params], device=device))

    if any(0 < p.top_k < vocab_size for p in params):
        probs = apply_top_k(probs, [p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in params])

    # From here on one row per sample: the k-th sample of a sequence draws as a request with seed + k would.
    which = [i for i, row in enumerate(rows) for _ in range(row.num_samples)]
    places = [(row.seed + k, row.position) for row in rows for k in range(row.num_samples)]
    drawn = iter(draw_top_p(_take(probs, which), places, [params[i].top_p for i in which]))
    return [[next(drawn) for _ in range(row.num_samples)] for row in rows]


def _take(values: torch.Tensor, which: list[int]) -> torch.Tensor:
    """The rows `which` of (N, V); not a copy if these are all the rows, in order."""
    return values if which == list(range(len(values))) else values[which]


def apply_min_p(probs: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Set to 0 what is below min_p (N, 1) times the largest probability of its row, (N, V)."""
    return torch.where(probs < min_p * probs.amax(dim=-1, keepdim=True), 0.0, probs)


def apply_top_k(probs: torch.Tensor, top_k: list[int]) -> torch.Tensor:
    """Set to 0 what is less likely than the k-th likeliest token of its row, (N, V); k = V changes nothing.

    Tokens that tie with the k-th stay, as in Hugging Face and vLLM.
    """
    vocab_size = probs.shape[-1]
    limited = [k for k in top_k if k < vocab_size]
    rank = torch.tensor([[min(k, max(limited)) - 1] for k in top_k], device=probs.device)
    kth = top(probs, max(limited))[0].gather(1, rank)  # (N, 1)
    kth[[i for i, k in enumerate(top_k) if k == vocab_size]] = 0.0
    return torch.where(probs < kth, 0.0, probs)


def draw_top_p(probs: torch.Tensor, places: list[tuple[int, int]], top_p: list[float]) -> list[int]:
    """Draw one token per row from what top_p leaves of `probs`; the slow twin is `kept_tokens_reference`.

    Each refusal leaves the likelier tokens only, and the likeliest of all is not refused, however small top_p
    is: a row takes V attempts at most. A draw is accepted with probability top_p at least: with top_p = 0.9
    nine rows of ten are done at once.

    Args:
        probs: (M, V); a row need not add up to 1, top_p is a share of its sum.
        places: seed and position of each row, for `uniform`.
        top_p: of each row, rounded to float32. Tokens that tie with the last one kept are kept, too.
    """
    tokens = [0] * len(places)
    left = list(range(len(places)))  # rows without a token yet, those of `probs`
    top_p = torch.tensor(top_p, dtype=torch.float32).tolist()  # 1 - 1e-9 is 1 there
    # With top_p = 1 no token may be refused, not even by the rounding of a sum.
    limit = torch.tensor([[p if p < 1.0 else float("inf")] for p in top_p], device=probs.device)
    if min(top_p) < 1.0:
        limit = limit * _total(probs)  # (M, 1)
    for attempt in range(probs.shape[-1]):
        u = torch.tensor([[uniform(*places[i], attempt)] for i in left], device=probs.device)
        drawn = invert_cdf(probs, u)  # (M, 1)
        for i, token in zip(left, drawn[:, 0].tolist(), strict=True):
            tokens[i] = token
        if all(top_p[i] == 1.0 for i in left):
            return tokens
        likelier = probs > probs.gather(1, drawn)  # (M, V)
        mass = _total(torch.where(likelier, probs, 0.0))  # (M, 1)
        # A mass of 0: no token is likelier. With top_p = 1e-320, which is 0 in float32, the limit is 0 too.
        refused = ((mass >= limit) & (mass > 0.0))[:, 0]
        left = [i for i, again in zip(left, refused.tolist(), strict=True) if again]
        if not left:
            return tokens
        probs, limit = torch.where(likelier[refused], probs[refused], 0.0), limit[refused]
    raise AssertionError("each attempt refuses one token at least, and the likeliest is never refused")


def _total(values: torch.Tensor) -> torch.Tensor:
    """The sum of each row of (N, V), (N, 1), which is the same in any batch.

    `sum` divides a single row among the threads, and several rows otherwise, so it adds up in another order.
    """
    return values.cumsum(dim=-1)[:, -1:]


def invert_cdf(probs: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The index where the cumulative sum of `probs` (N, V) first reaches u (N, K) of its total.

    Because u > 0, an index with probability zero is not the first to reach it. With NaN no index reaches u:
    the last one is taken.
    """
    cumulative = probs.cumsum(dim=-1)
    return torch.searchsorted(cumulative, u * cumulative[:, -1:]).clamp_(max=probs.shape[-1] - 1)


def kept_tokens_reference(probs: list[float], top_k: int, top_p: float) -> list[int]:
    """The token ids that top_k, then top_p keep: each token is compared with all others."""
    kth = sorted(probs, reverse=True)[min(top_k, len(probs)) - 1]
    left = [token for token in range(len(probs)) if probs[token] >= kth]
    total = sum(probs[token] for token in left)
    kept = []
    for token in left:
        likelier = sum(probs[other] for other in left if probs[other] > probs[token])
        if top_p == 1.0 or likelier < top_p * total:
            kept.append(token)
    return kept


def top(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row of (N, V), falling, and their indices: `torch.topk`, but faster on a CPU.

    The k largest values lie in the k blocks with the largest maxima, since a block without any of them has a
    maximum below all of them. Finding the maxima is one quick pass; what is left to sort is small::

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
    """Log-probability and rank of one token per row, and the `counts[i]` likeliest (-1: all), from (N, V)."""
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


def beam_candidates(logits: torch.Tensor, counts: list[int]) -> list[SequenceOutput]:
    """The `counts[i]` most likely next tokens of each beam, with log-probabilities, from logits (N, V)."""
    counts = [min(count, logits.shape[-1]) for count in counts]
    values, token_ids = top(logits.float().log_softmax(dim=-1), max(counts))
    return [
        SequenceOutput(candidates=tuple(zip(ids[:count], logprobs[:count], strict=True)))
        for ids, logprobs, count in zip(token_ids.tolist(), values.tolist(), counts, strict=True)
    ]
