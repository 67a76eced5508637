"""Kernels broken on purpose: each must fail the assertion that the whole one passes.

The float64 oracle's bugs show that a tolerance can tell right from wrong *answers*. This goes one step
further and breaks the *kernels*: one edit in a copy of the package, then the same assertion. An edit that
survives is a line no test looks at. (No edit here leaves its arrays: that would end the test run.)
"""

from types import SimpleNamespace

import pytest
import torch

from minivllm.kernels.silu_and_mul import silu_and_mul_reference
from tests.kernels.attention_case import Case, assert_matches
from tests.kernels.broken_copy import load_copy
from tests.kernels.test_kernel_rows import assert_rounds_alike

# file, line as it is, line as it should not be
DECODE_MUTANTS = [
    ("online_softmax.py", "acc = acc * alpha[:, None] + tl.dot", "acc = acc + tl.dot"),
    ("online_softmax.py", "l = l * alpha + tl.sum(p, axis=1)", "l = l + tl.sum(p, axis=1)"),
    ("online_softmax.py", "offset = n % S", "offset = n % S // 2"),
    ("online_softmax.py", "tl.load(table + n // S,", "tl.load(table + tl.maximum(n // S - 1, 0),"),
    ("online_softmax.py", 'input_precision="ieee") * scale', 'input_precision="ieee")'),
    ("online_softmax.py", "scores = scores * LOG2_E", "scores = scores"),
    (
        "online_softmax.py",
        "seen = (start + tl.arange(0, BLOCK_N))",
        "seen = (start + 1 + tl.arange(0, BLOCK_N))",
    ),
    ("online_softmax.py", "tl.where(seen, scores,", "tl.where(seen | (scores < 9), scores,"),
    (
        "paged_attention.py",
        "head = kv_head * G + head_in_group",
        "head = (kv_head + 1) % 2 * G + head_in_group",
    ),
    ("paged_attention.py", "low = split * tokens_per_split", "low = 0"),
    ("paged_attention.py", "tokens_per_split = (tiles + NUM_SPLITS - 1)", "tokens_per_split = (tiles)"),
    ("combine.py", "weight[:, None] * acc", "acc"),
    ("combine.py", "total = tl.sum(weight * l, axis=0)", "total = tl.sum(l, axis=0)"),
]
PREFILL_MUTANTS = [
    ("online_softmax.py", "[None, :] <= position[:, None]", "[None, :] < position[:, None]"),
    ("online_softmax.py", "[None, :] <= position[:, None]", "[None, :] <= position[:, None] + 1"),
    ("prefill_attention.py", "context = seq_len - query_len\n", "context = seq_len - query_len + 1\n"),
    (
        "prefill_attention.py",
        "(tile - (query_start // BLOCK_Q + seq)) * BLOCK_Q",
        "(tile - query_start // BLOCK_Q) * BLOCK_Q",
    ),
    ("prefill_attention.py", "token = first_token + row // HEADS", "token = first_token + row // BLOCK_Q"),
    (
        "prefill_attention.py",
        "high = tl.minimum(context + first_token + BLOCK_Q, seq_len)",
        "high = context + first_token",
    ),
    ("prefill_attention.py", "(token < query_len)", "(token <= query_len)"),
    ("prefill_attention.py", "LANES_R=max(64, triton.next_power_of_2(num_seqs))", "LANES_R=64"),
]

ACTIVATION_MUTANTS = [
    ("silu_and_mul.py", "silu = silu.to(out_ptr.dtype.element_ty).to(tl.float32)", "silu = silu"),
]


def check_decode(modules: SimpleNamespace, device: torch.device) -> None:
    """The assertion of `test_kernel_paged_attention.py` on one small batch."""
    case = Case([70, 33], heads=(4, 2), device=device)
    tiles = modules.heuristics.Tiles(16, 16, 4, 2)
    out = modules.paged_attention.paged_attention(*case.decode_args(), num_splits=3, tiles=tiles)
    assert_matches(out, case.expected_decode(), torch.float32)


def check_prefill(modules: SimpleNamespace, device: torch.device) -> None:
    """The assertion of `test_kernel_prefill_attention.py` on one small batch.

    Two tokens that belong to no sequence show a row written beyond the last query, and 70 sequences are more
    than the 64 which the search for a tile's sequence has lanes for at least.
    """
    case = Case([40, 33, *[1] * 68], [30, 3, *[1] * 68], heads=(3, 1), device=device)
    query, *rest = case.prefill_args()
    query = torch.cat([query, query[:2]])
    tiles = modules.heuristics.Tiles(64, 16, 4, 2)
    out = modules.prefill_attention.prefill_attention(query, *rest, tiles=tiles)
    expected = case.expected_prefill()
    assert_matches(out, torch.cat([expected, torch.zeros_like(expected[:2])]), torch.float32)


def check_activation(modules: SimpleNamespace, device: torch.device) -> None:
    """The assertion of `test_kernel_rows.py` on rounding, on a few rows."""
    x = torch.randn(3, 400).to(device, torch.float16)
    assert_rounds_alike(modules.silu_and_mul.silu_and_mul(x), silu_and_mul_reference(x))


CHECKS = [
    *((check_decode, edit) for edit in DECODE_MUTANTS),
    *((check_prefill, edit) for edit in PREFILL_MUTANTS),
    *((check_activation, edit) for edit in ACTIVATION_MUTANTS),
]


@pytest.mark.parametrize(
    "number", range(len(CHECKS)), ids=lambda i: f"{CHECKS[i][1][0]}:{CHECKS[i][1][2][:30]}"
)
def test_a_broken_kernel_fails_the_assertion(number, device, tmp_path):
    """Catches a test batch that does not exercise the line that was broken."""
    check, edit = CHECKS[number]
    modules = load_copy(tmp_path, f"mutant_{number}", [edit])
    with pytest.raises(AssertionError, match=r"largest error|of the elements differ"):
        check(modules, device)


@pytest.mark.parametrize("check", [check_decode, check_prefill, check_activation])
def test_the_unbroken_copy_passes(check, device, tmp_path):
    """Negative control of the above: copying alone breaks nothing."""
    check(load_copy(tmp_path, f"intact_{check.__name__}", []), device)
