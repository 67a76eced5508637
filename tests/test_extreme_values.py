"""Parameters that are another kind of number in float32 than in float64, run through the sampler.

5e-324 and 1e-320 become 0, 1e-45 and 1e-40 stay but lose most of their digits (subnormal), 1e39 and 1e308
become infinite, 1 - 1e-9 becomes 1. Each such value has a neighbour that is the same kind of number in both,
and has to give its tokens.
"""

import math

import pytest
import torch

from minivllm import BeamSearchParams, SamplingParams, sampler
from minivllm.beam_search import score
from minivllm.sampler import Sampler, draw_top_p
from minivllm.sequence import Sequence
from tests.helpers_sampling import make_row

V = 50
ZEROS = (5e-324, 1e-320)
SUBNORMAL = (1e-45, 1e-40)
HUGE = (1e39, 1e308, 10**300)
NEARLY_ONE = (1 - 2.0**-53, 1 - 1e-9)

# parameter, extreme values, what they must amount to, what they must not amount to
CASES = [
    ("temperature", (*ZEROS, *SUBNORMAL), {"temperature": 0.0}, {"temperature": 1.0}),
    ("temperature", HUGE, {"temperature": 1e6}, {"temperature": 1.0}),
    ("top_p", (*ZEROS, *SUBNORMAL), {"top_k": 1}, {}),
    ("top_p", NEARLY_ONE, {}, {"top_p": 0.9}),
    ("min_p", (*ZEROS, *SUBNORMAL), {}, {"min_p": 0.1}),
    ("min_p", NEARLY_ONE, {"top_k": 1}, {}),
    ("presence_penalty", (*ZEROS, *SUBNORMAL, -5e-324), {}, {"presence_penalty": 2.0}),
    ("frequency_penalty", (*ZEROS, *SUBNORMAL, -5e-324), {}, {"frequency_penalty": 2.0}),
    ("repetition_penalty", (*ZEROS, *SUBNORMAL), {"repetition_penalty": 1e-15}, {}),
    ("repetition_penalty", HUGE, {"repetition_penalty": 1e15}, {}),
    ("repetition_penalty", (*NEARLY_ONE, 1 + 2.0**-52), {}, {"repetition_penalty": 2.0}),
    ("logit_bias", [{3: value, 4: -value} for value in (*ZEROS, *SUBNORMAL)], {}, {"logit_bias": {3: 3.0}}),
    ("logit_bias", [{3: value, 4: -value} for value in HUGE], {"allowed_token_ids": [3]}, {}),
]


def sample(options):
    """100 tokens after the prompt (0, 1, 2) and the output (0, 0, 3)."""
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(0))
    logits[0, 2] = 0.0  # 0 times infinity would be NaN
    num_samples = 1 if options.get("temperature", 1.0) < 1e-5 else 100
    row = make_row(prompt=(0, 1, 2), output=(0, 0, 3), num_samples=num_samples, logprobs=1, **options)
    (output,) = Sampler()(logits, [row])
    assert all(math.isfinite(entry.logprob) for run in output.logprobs for entry in run)
    return [token for run in output.token_ids for token in run]


@pytest.mark.parametrize(
    ("name", "value", "same", "other"),
    [(name, value, same, other) for name, values, same, other in CASES for value in values],
    ids=lambda x: f"{x:.4g}" if isinstance(x, int | float) else str(x)[:30],
)
def test_an_extreme_value_gives_the_tokens_of_its_neighbour(name, value, same, other):
    """Would catch top_p=1e-320 drawing for ever: 0 in float32, it refuses even the likeliest token."""
    tokens = sample({name: value})
    assert tokens == sample(same)
    assert tokens != sample(other)[: len(tokens)]


def test_every_number_of_the_parameters_has_its_extremes():
    """Would catch a new float parameter that was not tried in float32."""
    numbers = [name for name, kind in SamplingParams.__annotations__.items() if "float" in kind]
    assert set(numbers) == {name for name, *_ in CASES}


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_the_largest_seeds_draw(seed):
    """Would catch a seed that is accepted and fails in the middle of a step."""
    (output,) = Sampler()(torch.zeros(1, V), [make_row(seed=seed, num_samples=100)])
    assert len(set(output.token_ids)) > V / 2


@pytest.mark.parametrize("length_penalty", [-16.0, -5e-324, 0.0, 5e-324, 1e-40, 16, 16.0])
def test_an_extreme_length_penalty_still_ranks(length_penalty):
    """Would catch a score that is infinite, or the same for a good and a bad hypothesis (Python's float64)."""
    BeamSearchParams(beam_width=2, max_tokens=1, length_penalty=length_penalty)

    def score_of(total, length):
        seq = Sequence(0, [1], seed=0)
        for _ in range(length):
            seq.append(1)
        seq.cumulative_logprob = total
        return score(seq, length_penalty)

    for length in (1, 2000):
        good, bad = score_of(-1.0, length), score_of(-2000.0, length)
        assert -math.inf < bad < good < 0.0
    assert (score_of(-2.0, 2000) == score_of(-2.0, 1)) == (abs(length_penalty) < 1e-30)


@pytest.mark.parametrize("top_p", [5e-324, 0.5, 1 - 2.0**-53, 1.0])
def test_a_row_of_nan_ends(top_p):
    """Would catch a row without any likeliest token being drawn again for ever."""
    probs = torch.full((2, V), math.nan)
    probs[1] = 1 / V
    first, second = draw_top_p(probs, [(0, 0), (1, 0)], [top_p, top_p])
    assert first == V - 1
    assert 0 <= second < V


def test_the_loop_of_draw_top_p_has_a_bound(monkeypatch):
    """Would catch a draw that never gets likelier (a mistake in `invert_cdf`) hanging the server."""
    calls = []

    def least_likely(probs, u):
        calls.append(u)
        return torch.full_like(u, V - 1, dtype=torch.int64)

    monkeypatch.setattr(sampler, "invert_cdf", least_likely)
    probs = torch.linspace(1.0, 0.01, V)[None]
    with pytest.raises(AssertionError, match="the likeliest is never refused"):
        draw_top_p(probs, [(0, 0)], [0.5])
    assert len(calls) == V
