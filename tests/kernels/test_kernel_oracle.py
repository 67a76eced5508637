"""The float64 oracle itself, against torch's scaled_dot_product_attention."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.kernels.attention_case import Bug, Case


def sdpa64(case: Case, r: int, query: torch.Tensor) -> torch.Tensor:
    """Attention of the last tokens of sequence r by torch, float64; (t, Hq, D)."""
    k, v = case.contiguous_kv(r)
    position = torch.arange(case.lens[r] - len(query), case.lens[r])[:, None]
    j = torch.arange(case.lens[r])
    seen = j <= position
    q, k, v = (t.double().transpose(0, 1)[None] for t in (query, k, v))  # (1, heads, tokens, D)
    out = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=case.scale, enable_gqa=True)
    return out[0].transpose(0, 1)


def test_the_oracle_is_torchs_attention():
    """Catches an oracle that makes the mistake it is there to find."""
    case = Case([1, 16, 50], query_lens=[1, 16, 9], heads=(6, 2))
    expected = torch.cat([sdpa64(case, r, q) for r, q in enumerate(case.query.split([1, 16, 9]))])
    assert torch.allclose(case.expected_prefill(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bug", list(Bug), ids=lambda bug: bug.name)
def test_each_bug_changes_the_answer(bug):
    """Catches a negative control that controls nothing, because its bug is not in the code path."""
    case = Case([50, 40], query_lens=[9, 1], heads=(6, 2))
    assert (case.expected_prefill(bug=bug) - case.expected_prefill()).abs().max() > 0.05
    assert (case.expected_decode(bug=bug) - case.expected_decode()).abs().max() > 0.05


def test_unused_slots_are_nan_and_used_ones_are_not():
    """Catches a poison that is not there: without it the poison tests would pass for any kernel."""
    case = Case([5, 17])
    assert case.key_cache.isnan().any(dim=(2, 3)).sum() == case.num_blocks * 16 - 22
    assert not case.contiguous_kv(1)[0].isnan().any()
