"""The variants of the attention kernels behind `Switches`: each computes what the kernel computes without it."""

import math

import pytest
import torch

from minivllm.kernels import paged_attention as decode_module
from minivllm.kernels.heuristics import VARIANTS, Switches, Tiles, whole_blocks
from minivllm.kernels.paged_attention import paged_attention
from minivllm.kernels.prefill_attention import prefill_attention
from tests.kernels.attention_case import Case, assert_matches
from tests.kernels.broken_copy import load_copy

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

TILE = Tiles(block_m=16, block_n=32, num_warps=4, num_stages=2)
ALL = VARIANTS["all three"]
# Around the boundaries of blocks of 16 and tiles of 32, and an empty sequence.
LENS = [1, 16, 31, 32, 33, 0, 64, 97]
QUERY_LENS = [1, 16, 3, 32, 1, 0, 40, 5]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("head_dim", [64, 80])
def test_each_switch_keeps_the_result(name, head_dim, device):
    """Would catch a tile taken for whole that is not, and a padded head dimension read without its mask."""
    case = Case(LENS, QUERY_LENS, heads=(3, 1), head_dim=head_dim, device=device)
    switches = VARIANTS[name]
    out = paged_attention(*case.decode_args(), num_splits=3, tiles=TILE, switches=switches)
    assert_matches(out, case.expected_decode(), torch.float32)
    out = prefill_attention(*case.prefill_args(), tiles=TILE, switches=switches)
    assert_matches(out, case.expected_prefill(), torch.float32)


@pytest.mark.parametrize("block_size", [4, 12, 64])
def test_blocks_of_any_size_with_all_switches(block_size, device):
    """Would catch block numbers of a tile counted wrongly: many blocks a tile, one, or (12) neither."""
    case = Case([70, 33, 130], [70, 2, 9], heads=(2, 1), block_size=block_size, device=device)
    out = paged_attention(*case.decode_args(), tiles=TILE, switches=ALL)
    assert_matches(out, case.expected_decode(), torch.float32)
    out = prefill_attention(*case.prefill_args(), tiles=TILE, switches=ALL)
    assert_matches(out, case.expected_prefill(), torch.float32)


def test_one_number_per_block_needs_blocks_and_rows_that_fit():
    """Would catch an address promised to be a multiple of 16 that is none: wrong numbers, on a GPU only."""
    fits = torch.zeros(2, 16, 2, 64)
    assert whole_blocks(fits, fits)
    assert not whole_blocks(torch.zeros(2, 12, 2, 64), fits)  # 12 keys do not divide a tile
    assert not whole_blocks(fits, torch.zeros(2, 16, 1, 24))  # rows 24 elements apart
    odd_blocks = torch.zeros(2 * 1032 + 8).as_strided((2, 16, 1, 64), (1032, 64, 64, 1))
    assert not whole_blocks(fits, odd_blocks)


def test_a_short_sequence_in_a_wide_table_gets_few_splits(device, monkeypatch):
    """Would catch the lower bound left out: in a CUDA graph a short sequence is cut into single tiles."""
    filled = []

    def combine(part_acc, part_m, part_l, out):
        filled.append((part_l > 0).sum(-1)[:, 0].tolist())  # splits with tokens, of each sequence
        return merge(part_acc, part_m, part_l, out)

    merge = decode_module.combine
    monkeypatch.setattr(decode_module, "combine", combine)
    case = Case([100, 20, 0], heads=(2, 1), device=device)
    tiles = Tiles(16, 16, 4, 2)
    for least in (0, 50):
        switches = Switches(min_tokens_per_split=least)
        out = paged_attention(*case.decode_args(), num_splits=8, tiles=tiles, switches=switches)
        assert_matches(out, case.expected_decode(), torch.float32)
    # Tiles of 16: 7 and 2 of them; at least 50 tokens are 4 tiles.
    assert filled == [[7, 2, 0], [2, 1, 0]]


# No edit here leaves its arrays: that would end the test run.
MUTANTS = [
    ("paged_attention.py", "m, l, acc, q, rest, high,", "m, l, acc, q, low, high,"),
    ("paged_attention.py", "m, l, acc, q, rest, high,", "m, l, acc, q, high, high,"),
    ("paged_attention.py", "tl.maximum(tokens_per_split, MIN_PER_SPLIT)", "MIN_PER_SPLIT"),
    ("prefill_attention.py", "rest = (context + first_token + 1) //", "rest = (context + first_token + BLOCK_Q) //"),
    ("prefill_attention.py", "m, l, acc, q, rest, high, position", "m, l, acc, q, 0, high, position"),
    ("online_softmax.py", "number = start // S +", "number = start // BLOCK_N +"),
    ("online_softmax.py", "slot = tl.arange(0, S)[None, :]", "slot = tl.arange(0, S)[None, :] // 2"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=lambda i: MUTANTS[i][2][:30])
def test_a_broken_variant_fails_the_assertion(number, device, tmp_path):
    """Negative control: an edit that survives is a line that the tests above do not look at."""
    modules = load_copy(tmp_path, f"switch_mutant_{number}", [MUTANTS[number]])
    case = Case([90, 33], [30, 3], heads=(2, 1), device=device)
    switches, tiles = modules.heuristics.Switches(**vars(ALL) | {"min_tokens_per_split": 16}), TILE
    for check, module in (("decode", "paged_attention"), ("prefill", "prefill_attention")):
        if MUTANTS[number][0] in (f"{module}.py", "online_softmax.py"):
            kernel = getattr(getattr(modules, module), module)
            out = kernel(*getattr(case, f"{check}_args")(), tiles=tiles, switches=switches)
            with pytest.raises(AssertionError, match="largest error"):
                assert_matches(out, getattr(case, f"expected_{check}")(), torch.float32)


def test_nothing_beside_a_row_is_read_without_a_mask(device):
    """Would catch the missing mask of a padded head dimension: the neighbours of each row are NaN."""
    case = Case([33, 64], [20, 64], head_dim=80, device=device)
    wide = [torch.full((*t.shape[:-1], 128), math.nan, device=device) for t in case.prefill_args()[:3]]
    for view, tensor in zip(wide, case.prefill_args()[:3], strict=True):
        view[..., :80] = tensor
    views = [view[..., :80] for view in wide]
    out = prefill_attention(*views, *case.prefill_args()[3:], tiles=TILE, switches=ALL)
    assert_matches(out, case.expected_prefill(), torch.float32)
