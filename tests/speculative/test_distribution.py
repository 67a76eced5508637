"""Sampled tokens have the distribution of the model: chi-squared over 20,000 draws, and wrong rules are noticed."""

import math
import random

import pytest
import torch
from scipy.stats import chisquare

from minivllm.outputs import SequenceOutput
from minivllm.sampler import Sampler
from minivllm.sampling_params import SamplingParams
from minivllm.scheduler_output import SamplingMetadata, ScheduledSequence
from minivllm.speculative.rejection import accept_or_redraw
from minivllm.speculative.verification import accept, sampled_rows

DRAWS = 20_000
P = [0.35, 0.05, 0.25, 0.2, 0.1, 0.05]  # what the model says
Q = [0.1, 0.3, 0.25, 0.05, 0.2, 0.1]  # what the guesser says
AFTER = [0.1, 0.1, 0.1, 0.1, 0.2, 0.4]  # what the model says after the draft


def fits(counts, probabilities):
    """Whether counts are those of the distribution: refused by mistake once in 10,000 times (the seeds are fixed)."""
    total = sum(counts)
    return chisquare(counts, [p * total for p in probabilities]).pvalue > 1e-4


# -- the paper's rule -------------------------------------------------------------------------------


def accept_always(p, q, draft, u_accept, u_redraw):
    return draft, True


def without_residual(p, q, draft, u_accept, u_redraw):
    """Redraws from p itself."""
    if u_accept * q[draft] < p[draft]:
        return draft, True
    return random.Random(u_redraw).choices(range(len(p)), p)[0], False


def without_normalising(p, q, draft, u_accept, u_redraw):
    """What is left does not sum up to 1; the last token gets the rest."""
    if u_accept * q[draft] < p[draft]:
        return draft, True
    total = 0.0
    for token, (a, b) in enumerate(zip(p, q, strict=True)):
        total += max(0.0, a - b)
        if total > u_redraw:
            return token, False
    return len(p) - 1, False


def count(rule, q):
    """How often each token comes out, and how often a draft was accepted."""
    r, counts, accepted = random.Random(0), [0] * len(P), 0
    for draft in r.choices(range(len(q)), q, k=DRAWS):
        token, was_accepted = rule(P, q, draft, r.random(), r.random())
        counts[token] += 1
        accepted += was_accepted
    return counts, accepted


@pytest.mark.parametrize(
    ("rule", "right"),
    [
        (accept_or_redraw, True),
        (accept_always, False),
        (without_residual, False),
        (without_normalising, False),
    ],
)
def test_the_rule_of_the_paper_gives_the_models_distribution(rule, right):
    """Would catch a wrong rule; three of them are the negative controls."""
    counts, accepted = count(rule, Q)
    assert fits(counts, P) == right
    if right:
        share = sum(map(min, P, Q))
        assert abs(accepted / DRAWS - share) < 4 * (share * (1 - share) / DRAWS) ** 0.5


def test_a_certain_draft_needs_no_second_draw():
    """Would catch the claim of `rejection.py` being wrong: for q = 1 at x both rules accept with p(x)."""
    for draft in range(len(P)):
        q = [float(token == draft) for token in range(len(P))]
        counts, accepted = count(accept_or_redraw, q)
        assert fits(counts, P)
        assert counts[draft] == accepted


def test_both_ends_of_the_interval_draw_a_token_that_has_a_share():
    """Would catch a sum that rounding leaves below the goal: a ValueError, or a forbidden token, once in 2**53 draws."""
    r = random.Random(0)
    for _ in range(50):
        p, q = ([0.0, *(r.random() for _ in range(38)), 0.0] for _ in "pq")
        q[0] = q[-1] = 1.0
        p, q = ([mass / math.fsum(row) for mass in row] for row in (p, q))
        for draft, u_redraw in ((0, 0.0), (0, 1 - 2**-53), (39, 0.0), (39, 1 - 2**-53)):
            token, was_accepted = accept_or_redraw(p, q, draft, 0.0, u_redraw)
            assert p[token] > q[token] and not was_accepted


# -- the engine's rule, with the engine's sampler ---------------------------------------------------


def sampled_pairs(drafts):
    """What the real sampler says, with a seed for each draft: after the known token, and after the draft."""
    params = SamplingParams(temperature=1.0)
    logits = torch.tensor([P, AFTER]).log().repeat(len(drafts), 1)
    rows = [
        ScheduledSequence(
            "a",
            0,
            3,
            (4,),
            (0,),
            SamplingMetadata(params, 1, seed, 4, 4),
            draft_token_ids=(draft,),
            num_drafts=1,
        )
        for seed, draft in enumerate(drafts)
    ]
    outputs = Sampler()(logits, [each for row in rows for each in sampled_rows(row)])
    return list(zip(outputs[::2], outputs[1::2], strict=True))


def runs(drafts, pairs, rule=accept):
    """The run that comes of each draft."""
    return [rule((draft,), pair).token_ids[0] for draft, pair in zip(drafts, pairs, strict=True)]


def histogram(tokens):
    tokens = list(tokens)
    return [tokens.count(token) for token in range(len(P))]


def accept_any(drafts, outputs):
    return SequenceOutput(((drafts[0], list(outputs)[1].token_ids[0][0]),))


def test_sampled_runs_have_the_models_distribution():
    """Would catch a draft that is favoured: first tokens are distributed as P, those behind a draft as AFTER."""
    drafts = random.Random(1).choices(range(len(P)), Q, k=DRAWS)
    pairs = sampled_pairs(drafts)
    found = runs(drafts, pairs)
    assert fits(histogram(run[0] for run in found), P)
    behind = [run[1] for run in found if len(run) == 2]
    assert len(behind) > DRAWS / 10
    assert fits(histogram(behind), AFTER)
    assert not fits(histogram(run[0] for run in runs(drafts, pairs, accept_any)), P)  # negative control
    assert not fits(histogram(run[0] for run in found), Q)
    assert not fits(histogram(behind), P)


def test_seeded_tokens_are_the_same_tokens_with_drafts_and_without():
    """Would catch a draw that depends on the drafts: seed and position alone decide it, so even the tokens agree."""
    first, second = (runs(drafts, sampled_pairs(drafts)) for drafts in ([0] * 500, [2] * 500))
    assert [run[0] for run in first] == [run[0] for run in second]
    assert len({run[0] for run in first}) == len(P)
