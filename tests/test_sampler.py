"""The sampler against Hugging Face's warpers: what is kept, how it is distributed, and real draws.

How a distribution is read out of a sampler that draws: `uniform` is replaced, so that one row samples with
every u that matters. A token that owns the interval (a, b] of u must be drawn just above a, in the middle and
just below b. That shows which tokens are kept, and with which probability, to 1e-6.

top_p draws, looks, and perhaps draws again. The first draw must be that of the uncut distribution, and exactly
the tokens that top_p drops must be refused. After the likeliest of those has been refused just the kept ones
are left, so then the second draw shows their distribution, edges and all.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minivllm import sampler
from minivllm.sampler import Sampler, beam_candidates, choose_tokens, draw, token_logprobs, top, uniform
from minivllm.sampling_params import SamplingParams
from tests.helpers_sampling import CountCalls, make_beam_row, make_row

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
EDGE = 1e-6  # a boundary between two tokens must be this close to where Hugging Face has it


def random_logits(rows, vocab_size, scale=1.0, seed=0):
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def draws(monkeypatch, logits, params, u, device="cpu", first=None):
    """The tokens that `draw` picks for one row of logits (V,) with each u; `first`: of the first attempt."""

    def pretend_uniform(seed, position, attempt):
        return float(u[seed] if first is None or attempt > 0 else first)

    monkeypatch.setattr(sampler, "uniform", pretend_uniform)
    row = make_row(params, num_samples=len(u))
    (tokens,) = draw(logits[None].to(device), [row.sampling])
    return tokens


def hugging_face(logits, params):
    """Probabilities (V,) that the warpers leave, composed in V1's order: min_p, top_k, top_p."""
    scores = TemperatureLogitsWarper(float(params.temperature))(None, logits[None])
    if params.min_p > 0:
        scores = MinPLogitsWarper(params.min_p)(None, scores)
    if params.top_k > 0:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    return scores[0].double().softmax(dim=-1)


def assert_distributed(monkeypatch, logits, params, expected, device="cpu"):
    """What `draw` keeps is exactly what has probability in `expected` (V,), with these probabilities."""
    uncut = hugging_face(logits, replace(params, top_p=1.0))
    kept = expected > 0
    order = uncut.nonzero()[:, 0]  # tokens are drawn in the vocabulary's order
    upper = uncut[order].cumsum(0)
    middle = upper - uncut[order] / 2
    visible = uncut[order] > 3 * EDGE
    drawn = torch.tensor(draws(monkeypatch, logits, params, middle[visible], device, first=None))
    first = order[visible]
    # Each u is used for all attempts of its sample here, so a refused token gives some kept one.
    assert ((drawn == first) == kept[first]).all(), "other tokens are kept"
    assert kept[drawn].all(), "a token came back that had to be refused"

    refused = first[~kept[first]]
    if len(refused) == 0:
        assert_edges(monkeypatch, logits, params, expected, device, first=None)
    else:
        likeliest = refused[uncut[refused].argmax()]
        first_u = middle[order == likeliest]
        assert_edges(monkeypatch, logits, params, expected, device, first=first_u)


def assert_edges(monkeypatch, logits, params, expected, device, first):
    """The inverse cumulative distribution of `expected` (V,), in the order of the vocabulary."""
    order = expected.nonzero()[:, 0]
    upper = expected[order].cumsum(0)
    lower = upper - expected[order]
    wide = upper - lower > 3 * EDGE
    assert wide.any()
    for u in (lower[wide] + EDGE, (lower + upper)[wide] / 2, upper[wide] - EDGE):
        drawn = draws(monkeypatch, logits, params, u, device, first)
        assert drawn == order[wide].tolist(), "an edge is elsewhere"
    ends = draws(monkeypatch, logits, params, [2.0**-53, 1.0], device, first)
    assert ends == [order[0], order[-1]]


CASES = {
    "plain": ({}, 200, 1.0),
    "cold": ({"temperature": 0.7}, 200, 1.0),
    "hot": ({"temperature": 2.0}, 200, 3.0),
    "k = 1": ({"top_k": 1}, 200, 1.0),
    "k = 5": ({"top_k": 5}, 200, 3.0),
    "k = 100": ({"top_k": 100}, 500, 1.0),
    "k = V - 1": ({"top_k": 199}, 200, 1.0),
    "k = V": ({"top_k": 200}, 200, 1.0),
    "k > V": ({"top_k": 10**6}, 200, 1.0),
    "k = -1": ({"top_k": -1}, 200, 1.0),
    "p = 0.9": ({"top_p": 0.9}, 200, 2.0),
    "p = 0.1": ({"top_p": 0.1}, 200, 2.0),
    "p tiny": ({"top_p": 1e-6}, 200, 1.0),
    "p = 1": ({"top_p": 1.0}, 200, 1.0),
    "p just below 1": ({"top_p": 0.999}, 200, 1.0),
    "p, flat": ({"top_p": 0.9}, 1000, 0.3),
    "p = 0.01, flat": ({"top_p": 0.01}, 5000, 0.3),
    "p, peaked": ({"top_p": 0.95}, 5000, 5.0),
    "min_p": ({"min_p": 0.1}, 200, 1.0),
    "min_p = 1": ({"min_p": 1.0}, 200, 1.0),
    "k, then p": ({"top_k": 20, "top_p": 0.8}, 200, 1.0),
    "k, then p, flat": ({"top_k": 300, "top_p": 0.6}, 1000, 0.3),
    "k = 100, then p": ({"top_k": 100, "top_p": 0.3}, 500, 1.5),
    "min_p, then p": ({"min_p": 0.2, "top_p": 0.7}, 200, 1.0),
    "min_p keeps fewer than k": ({"min_p": 0.3, "top_k": 50}, 200, 1.0),
    "everything": ({"temperature": 0.6, "min_p": 0.05, "top_k": 30, "top_p": 0.9}, 300, 1.0),
    "V < block": ({"top_k": 3, "top_p": 0.8}, 7, 1.0),
    "V = 1": ({"top_k": 3, "top_p": 0.8}, 1, 1.0),
    "V odd": ({"top_k": 10}, 5003, 4.0),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_what_is_drawn_is_what_hugging_faces_warpers_leave(monkeypatch, case, device):
    """Would catch a boundary token dropped or one too many kept, a wrong order, a missing renormalization."""
    options, vocab_size, scale = CASES[case]
    params = SamplingParams(**options)
    for seed in range(3):
        logits = random_logits(1, vocab_size, scale, seed)[0]
        assert_distributed(monkeypatch, logits, params, hugging_face(logits, params), device)


@pytest.mark.parametrize(
    ("asked", "bug"),
    [
        ({"temperature": 0.7}, {"temperature": 0.70001}),
        ({"temperature": 0.7}, {"temperature": 1.0}),
        ({"top_k": 5}, {"top_k": 6}),
        ({"top_k": 5}, {"top_k": 4}),
        ({"top_p": 0.9}, {"top_p": 0.88}),
        ({"min_p": 0.1}, {"min_p": 0.12}),
        ({"top_k": 20, "top_p": 0.8}, {"top_k": 20}),
        ({"top_k": 20, "top_p": 0.8}, {"top_p": 0.8}),
    ],
    ids=str,
)
def test_the_comparison_with_hugging_face_rejects_known_bugs(monkeypatch, asked, bug):
    """Would catch an assertion that cannot fail: each bug is what a wrong sampler would have drawn."""
    logits = random_logits(1, 200)[0]
    right, wrong = SamplingParams(**asked), SamplingParams(**bug)
    assert_distributed(monkeypatch, logits, right, hugging_face(logits, right))
    with pytest.raises(AssertionError):
        assert_distributed(monkeypatch, logits, right, hugging_face(logits, wrong))
    # tiny-llm's order: top_p on the untempered probabilities, then the temperature.
    both = SamplingParams(temperature=2.0, top_p=0.5)
    scores = TopPLogitsWarper(0.5)(None, logits[None])
    backwards = TemperatureLogitsWarper(2.0)(None, scores)[0].double().softmax(dim=-1)
    with pytest.raises(AssertionError):
        assert_distributed(monkeypatch, logits, both, backwards)


SIXTEENTHS = [8 / 16, 4 / 16, 3 / 16, 1 / 16]


@pytest.mark.parametrize("probs", [SIXTEENTHS, SIXTEENTHS[::-1], [3 / 16, 8 / 16, 1 / 16, 4 / 16]], ids=str)
@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.4999, 1), (0.5, 1), (0.5001, 2), (0.75, 2), (0.7501, 3), (0.9375, 3), (0.9376, 4), (1.0, 4)],
)
def test_top_p_keeps_the_token_that_crosses_p_and_no_more(monkeypatch, probs, top_p, kept):
    """Would catch a lost crossing token (nano-vllm #196), and `<` for `<=` where the mass is p exactly."""
    logits = torch.tensor(probs).log()
    params = SamplingParams(top_p=top_p)
    tokens = set(draws(monkeypatch, logits, params, np.linspace(0.001, 1, 1000)))
    assert sorted((probs[token] for token in tokens), reverse=True) == SIXTEENTHS[:kept]
    left = hugging_face(logits, params)
    assert set(left.nonzero()[:, 0].tolist()) == tokens


def test_top_p_keeps_all_that_tie_with_the_last_one_kept(monkeypatch):
    """Would catch equal tokens of which the vocabulary's order decides which may be drawn (in transformers)."""
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()
    for top_p, kept in [(0.75, {1, 3}), (0.76, {0, 1, 2, 3})]:
        tokens = draws(monkeypatch, logits, SamplingParams(top_p=top_p), np.linspace(0.001, 1, 1000))
        assert set(tokens) == kept


@pytest.mark.parametrize("vocab_size", [6, 300, 5000])
@pytest.mark.parametrize(("top_k", "kept"), [(1, 1), (2, 5), (4, 5), (5, 5)])
def test_top_k_keeps_ties_with_the_kth(monkeypatch, vocab_size, top_k, kept):
    """Would catch an arbitrary one of several equal tokens being kept, as torch.topk alone would do."""
    logits = random_logits(1, vocab_size)[0] - 20
    logits[[0, 1, 3, 4]] = 1.0
    logits[5] = 2.0
    params = SamplingParams(top_k=top_k)
    expected = hugging_face(logits, params)
    assert (expected > 0).sum() == kept
    assert_distributed(monkeypatch, logits, params, expected)


@pytest.mark.parametrize("top_k", [1, 64, 299])
def test_top_k_keeps_all_ties(monkeypatch, top_k):
    """Would catch k tokens being picked where more are as likely: here all 300 tokens are."""
    params = SamplingParams(top_k=top_k)
    tokens = draws(monkeypatch, torch.zeros(300), params, (np.arange(300) + 0.5) / 300)
    assert tokens == list(range(300))


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 2, "top_p": 0.5}]
)
def test_all_mass_in_one_token(monkeypatch, options):
    """Would catch a division by zero, or a token of probability 0 that is drawn because something must be."""
    for vocab_size in (5, 5000):
        logits = torch.zeros(vocab_size)
        logits[3] = 200.0
        params = SamplingParams(**options)
        assert set(draws(monkeypatch, logits, params, [2.0**-53, 1e-6, 0.5, 1.0])) == {3}


EXTREMES = [2.0**-53, 2.0**-25, 1e-7, 0.5, 1 - 2.0**-24, 1 - 2.0**-53, 1.0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocab_size", [9, 1000, 5000])
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 50}, {"top_p": 0.999}, {"min_p": 1e-9}, {"top_k": 4, "top_p": 0.5}], ids=str
)
def test_a_token_of_probability_zero_is_never_drawn(monkeypatch, options, vocab_size, device):
    """Would catch u = 1 running off the end, u = 0 hitting the first token, and forbidden tokens among ties."""
    for allowed in ([0], [vocab_size - 1], [vocab_size // 2], [1, 4, 7], [0, vocab_size - 1]):
        logits = torch.full((vocab_size,), -math.inf)
        logits[allowed] = torch.tensor([0.1, 0.2, 0.3])[: len(allowed)]
        tokens = draws(monkeypatch, logits, SamplingParams(**options), EXTREMES, device)
        assert set(tokens) <= set(allowed)
        assert len(tokens) == len(EXTREMES)


def test_nan_logits_give_a_token_of_the_vocabulary(monkeypatch):
    """Would catch token id V, which stops a GPU for good: float16 overflows in some models."""
    assert draws(monkeypatch, torch.full((9,), math.nan), SamplingParams(), [0.5, 1.0]) == [8, 8]


@pytest.mark.parametrize("vocab_size", [40, 700])
def test_the_fast_cut_keeps_what_its_slow_twin_keeps(monkeypatch, vocab_size):
    """Would catch the twin, which readers trust, telling another story than the code that runs."""
    for top_k, top_p in [(vocab_size, 0.9), (7, 1.0), (100, 0.5), (20, 0.99)]:
        logits = random_logits(1, vocab_size)[0]
        probs = logits.softmax(dim=-1).tolist()
        slow = sampler.kept_tokens_reference(probs, top_k, top_p)
        expected = torch.zeros(vocab_size, dtype=torch.float64)
        expected[slow] = logits.double().softmax(dim=-1)[slow]
        expected /= expected.sum()
        params = SamplingParams(top_k=top_k, top_p=top_p)
        assert_distributed(monkeypatch, logits, params, expected)
        expected[slow[0]] = 0.0
        with pytest.raises(AssertionError):
            assert_distributed(monkeypatch, logits, params, expected / expected.sum())


# -- real draws -------------------------------------------------------------------------------------


def chi_squared(tokens, probs):
    """p-value of the draws under `probs` (V,); cells with less than 5 expected are put together."""
    observed = np.bincount(tokens, minlength=len(probs)).astype(float)
    expected = probs.numpy() * len(tokens)
    rare = expected < 5
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 1e-9:
        if observed[-1] > 0:
            return 0.0  # drawn, but impossible
        observed, expected = observed[:-1], expected[:-1]
    return scipy.stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7}, {"top_k": 8}, {"top_p": 0.8}, {"min_p": 0.2}, {"top_k": 10, "top_p": 0.9}],
    ids=str,
)
def test_real_draws_follow_the_distribution(options):
    """Would catch a biased u, or one used twice: 6,000 draws, rejected once in a thousand if all is well."""
    params = SamplingParams(**options)
    logits = random_logits(1, 30)[0]
    rows = [make_row(params, prompt=[1] * length, seed=1000, num_samples=2000) for length in (1, 2, 3)]
    tokens = np.concatenate(draw(logits.expand(3, -1), [row.sampling for row in rows]))
    assert chi_squared(tokens, hugging_face(logits, params)) > 1e-3
    for wrong in ({"temperature": 1.3}, {"top_k": 3}, {"top_p": 0.6}):
        assert chi_squared(tokens, hugging_face(logits, SamplingParams(**(options | wrong)))) < 1e-6


def test_the_same_seed_and_position_give_the_same_number_forever():
    """Would catch a generator that changes between versions: texts made with a seed would change, too."""
    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (-3, 7, 2)]
    expected = [
        0.4986002851832385,
        0.09605084192238711,
        0.7078716247163783,
        0.9648994740885142,
        0.7200401705379073,
    ]
    assert [uniform(*place) for place in places] == expected


def test_u_is_uniform_and_independent_across_seeds_and_positions():
    """Would catch neighbouring seeds (n completions have them) or positions that draw alike."""
    u = np.array([[uniform(seed, position, 0) for position in range(100)] for seed in range(100)])
    again = np.array([[uniform(seed, position, 1) for position in range(100)] for seed in range(100)])
    assert (u > 0).all()
    assert (u <= 1).all()
    assert len(np.unique(u)) == u.size
    assert scipy.stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(u.ravel() ** 1.1, "uniform").pvalue < 1e-3
    limit = 4 / math.sqrt(u.size)  # four standard deviations of a correlation of independent numbers
    for a, b in (
        (u[1:], u[:-1]),
        (u[:, 1:], u[:, :-1]),
        (u[1:, 1:], u[:-1, :-1]),
        (u[1:, :-1], u[:-1, 1:]),
        (u, u.T),
        (u, again),
        (u[1:], again[:-1]),
    ):
        off_diagonal = a.ravel() != b.ravel()
        assert abs(np.corrcoef(a.ravel()[off_diagonal], b.ravel()[off_diagonal])[0, 1]) < limit
    assert np.corrcoef(u.ravel(), u.ravel() + u[::-1].ravel())[0, 1] > limit  # the measure does see something


# -- batches ----------------------------------------------------------------------------------------

KINDS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.6},
    {"top_p": 0.9},
    {"top_k": 5},
    {"top_k": 200, "top_p": 0.99},
    {"min_p": 0.1},
    {"repetition_penalty": 1.3},
    {"logprobs": 3},
    {"top_k": 50, "min_p": 0.01, "presence_penalty": 0.4, "temperature": 1.5},
]


def sample(logits, rows):
    return [tuple(token for run in output.token_ids for token in run) for output in Sampler()(logits, rows)]


@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_a_row_draws_the_same_whatever_its_batch_mates_want(num_samples, ties, device):
    """Would catch a plain row that takes another way (and another token) because a mate asks for top_p."""
    vocab_size = 3000
    logits = random_logits(8 * len(KINDS), vocab_size).to(device)
    if ties:  # as in bfloat16; equal tokens must come in the same order in every batch
        logits = (logits * 8).round() / 8
    rows = [
        make_row(
            prompt=[1, 2],
            output=[3] * (i % 3),
            seed=i,
            num_samples=1 if kind.get("temperature") == 0.0 else num_samples,
            **kind,
        )
        for i, kind in enumerate(KINDS * 8)
    ]
    alone = [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    assert sample(logits, rows) == alone
    backwards = sample(logits.flip(0), rows[::-1])
    assert backwards[::-1] == alone
    assert sample(logits.roll(1, 0), rows) != alone


def test_n_samples_of_a_row_are_the_draws_of_n_seeds():
    """Would catch n completions that differ from n requests with seeds s, s + 1, ..., or all alike."""
    logits = random_logits(1, 500)
    for kind in ({}, {"top_p": 0.9}, {"top_k": 7}):
        (together,) = sample(logits, [make_row(seed=40, num_samples=6, **kind)])
        apart = [sample(logits, [make_row(seed=40 + k, **kind)])[0][0] for k in range(6)]
        assert list(together) == apart
        assert len(set(together)) > 1


def test_greedy_takes_the_largest_and_the_first_of_equals():
    """Would catch a greedy row that draws, and greedy rows mixed up with random ones."""
    logits = random_logits(6, 300)
    logits[2, [7, 9]] = 50.0
    rows = [make_row(temperature=t, seed=i) for i, t in enumerate((0, 1.0, 0, 0.5, 1e-6, 1.0))]
    tokens = choose_tokens(logits, [row.sampling for row in rows])
    for i in (0, 2, 4):
        assert tokens[i] == [logits[i].argmax().item()]
    assert tokens[2] == [7]
    greedy = [make_row(temperature=0) for _ in range(6)]
    assert choose_tokens(logits, [row.sampling for row in greedy]) == logits.argmax(dim=-1)[:, None].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {},
        {"top_k": 40},
        {"min_p": 0.1},
        {"logprobs": 5},
        {"top_k": 40, "min_p": 0.1, "logprobs": 5, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_the_number_of_torch_calls_does_not_depend_on_the_batch(options):
    """Would catch a softmax or a sort for each request, and a loop over the vocabulary."""

    def calls(num_rows, vocab_size):
        rows = [make_row(seed=i, output=[5], **options) for i in range(num_rows)]
        logits = random_logits(num_rows, vocab_size, 8.0)
        with CountCalls() as counter:
            Sampler()(logits, rows)
        return counter.names

    few = calls(2, 1000)
    assert calls(32, 1000) == few
    assert len(calls(2, 5000)) <= len(few) + 8  # `top` takes some calls more where it pays
    if options == {"temperature": 0.0}:
        assert few == ["__len__", "numpy"]  # whose argmax takes the whole batch
    if options == {}:
        assert few.count("softmax") == 1
        assert not {"sort", "topk", "argmax"} & set(few)


def test_top_p_takes_rounds_of_the_batch_and_sorts_nothing():
    """Would catch a loop over the requests, and a round for each token that is not kept."""
    rows = [make_row(seed=i, top_p=0.8) for i in range(64)]
    with CountCalls() as counter:
        Sampler()(random_logits(64, 3000, 0.3), rows)
    assert not {"sort", "topk"} & set(counter.names)
    # Each round refuses a fifth at most of its draws: 64, 13, 3, 1 rows.
    assert 2 <= counter.names.count("searchsorted") <= 8


# -- log-probabilities ------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [30, 5003])
def test_logprobs_are_the_log_softmax_with_ranks(vocab_size):
    """Would catch ranks that start at 0, the wrong k, and a token missing that is not among the k."""
    logits = random_logits(5, vocab_size, 3.0)
    reference = logits.double().log_softmax(dim=-1)
    token_ids, counts = [0, 5, 7, 29, 11], [0, 1, 5, -1, 3]
    order = reference.argsort(dim=-1, descending=True)
    token_ids[2] = order[2, 1].item()  # the second most likely
    for i, entry in enumerate(token_logprobs(logits, token_ids, counts)):
        count = vocab_size if counts[i] == -1 else counts[i]
        assert entry.token_id == token_ids[i]
        assert entry.logprob == pytest.approx(reference[i, token_ids[i]].item(), abs=1e-5)
        assert entry.rank == order[i].tolist().index(token_ids[i]) + 1
        assert [token for token, _ in entry.top] == order[i, :count].tolist()
        assert [value for _, value in entry.top] == pytest.approx(
            reference[i, order[i, :count]].tolist(), abs=1e-5
        )


@pytest.mark.parametrize("num_rows", [2, 3])
def test_logprobs_are_those_of_the_raw_logits(num_rows):
    """Would catch log-probabilities after temperature, bias or top_k (vLLM's default is raw_logprobs)."""
    logits = random_logits(num_rows, 50)
    rows = [
        make_row(logprobs=2, temperature=0.2, seed=1),
        make_row(logprobs=2, top_k=1, logit_bias={4: 100.0}),
        make_row(),  # the third row wants none
    ][:num_rows]
    outputs = Sampler()(logits, rows)
    reference = logits.log_softmax(dim=-1)
    assert outputs[1].token_ids == ((4,),)
    for i in range(2):
        ((entry,),) = outputs[i].logprobs
        assert (entry.token_id,) == outputs[i].token_ids[0]
        assert entry.logprob == pytest.approx(reference[i, entry.token_id].item(), abs=1e-5)
    assert [output.logprobs for output in outputs[2:]] == [None] * (num_rows - 2)


def test_the_sum_of_a_row_does_not_depend_on_its_batch_mates():
    """Would catch a token at the edge of top_p which is kept alone and dropped in a batch: with two threads,
    PyTorch's `sum` of a single row adds up in another order. That it does is the negative control.
    """
    probs = random_logits(64, 49_152).softmax(dim=-1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for sum_of, is_same in ((sampler._total, True), (lambda rows: rows.sum(dim=-1, keepdim=True), False)):
            alone = torch.cat([sum_of(row[None]) for row in probs])
            assert torch.equal(alone, sum_of(probs)) == is_same
    finally:
        torch.set_num_threads(before)


def test_beams_get_their_best_candidates_beside_other_rows():
    """Would catch beams that are sampled, or that get the candidates of another row."""
    logits = random_logits(4, 300)
    rows = [make_row(temperature=0), make_beam_row(2, 1), make_beam_row(4, 1), make_row(temperature=0)]
    outputs = Sampler()(logits, rows)
    for i, count in ((1, 4), (2, 8)):
        best = logits[i].log_softmax(dim=-1).topk(count)
        assert [token for token, _ in outputs[i].candidates] == best.indices.tolist()
        assert [value for _, value in outputs[i].candidates] == pytest.approx(best.values.tolist(), abs=1e-6)
        assert outputs[i].token_ids == ()
    for i in (0, 3):
        assert outputs[i].token_ids == ((logits[i].argmax().item(),),)
    assert len(beam_candidates(logits[:1, :5], [8])[0].candidates) == 5  # V is smaller


@pytest.mark.parametrize(
    ("vocab_size", "k"), [(1, 1), (31, 5), (5000, 1), (5000, 20), (5003, 39), (5003, 40), (5003, 5003)]
)
def test_top_is_topk(vocab_size, k):
    """Would catch a block whose maximum is overlooked, and the tokens after the last full block."""
    values = random_logits(7, vocab_size)
    values[0] = torch.arange(vocab_size)  # the largest are in the last block, or after it
    values[1] = -torch.arange(vocab_size)
    values[2] = 1.0
    values[3, : vocab_size // 2] = -math.inf
    largest, indices = top(values, k)
    assert torch.equal(largest, values.topk(k, dim=-1).values)
    assert torch.equal(values.gather(1, indices), largest)
    assert all(len(set(row)) == k for row in indices.tolist())
