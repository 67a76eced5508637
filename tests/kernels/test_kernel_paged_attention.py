"""Decode attention against float64, over every kind of batch the engine can hand it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.kernels.heuristics import Tiles, chip_of
from minivllm.kernels.paged_attention import paged_attention, paged_attention_naive, paged_attention_reference
from tests.kernels.attention_case import DTYPES, Bug, Case, assert_matches

# A kernel that computes inf - inf or 0 / 0 in a row it then masks is a warning in the interpreter.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

TILE = Tiles(block_m=16, block_n=64, num_warps=4, num_stages=2)
SMALL_TILE = Tiles(block_m=16, block_n=16, num_warps=4, num_stages=2)  # fits into every chip at any head_dim
# One sequence for each boundary of S = 16 and BLOCK_N = 64, and an empty one as CUDA graphs pad with.
EDGE_LENS = [1, 15, 16, 17, 32, 63, 64, 65, 0, 150]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_splits", [1, 4])
def test_every_boundary_of_blocks_tiles_and_splits(dtype, num_splits, device):
    """Catches a mask or loop bound that is off by one, and 0 / 0 for an empty sequence."""
    case = Case(EDGE_LENS, dtype=dtype, device=device)
    out = paged_attention(*case.decode_args(), num_splits=num_splits, tiles=TILE)
    assert_matches(out, case.expected_decode(), dtype)
    assert torch.all(out[EDGE_LENS.index(0)] == 0)


@pytest.mark.parametrize("bug", list(Bug), ids=lambda bug: bug.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_tolerance_rejects(bug, dtype):
    """Negative control: a tolerance wide enough for one of the known mistakes proves nothing."""
    case = Case(EDGE_LENS, dtype=dtype)
    wrong = case.expected_decode(bug=bug).to(dtype)
    with pytest.raises(AssertionError, match="largest error"):
        assert_matches(wrong, case.expected_decode(), dtype)


def test_the_heuristics_own_choice_is_right(device):
    """Catches a launch configuration that only the tests' tiles hide: nothing is passed but the contract."""
    case = Case([5, 70, 300], heads=(9, 3), device=device)
    assert_matches(paged_attention(*case.decode_args()), case.expected_decode(), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_naive_kernel_agrees_with_float64(dtype, device):
    """Catches a lesson that teaches a wrong kernel."""
    case = Case([1, 16, 17, 0, 40], dtype=dtype, device=device)
    assert_matches(paged_attention_naive(*case.decode_args()), case.expected_decode(), dtype)


def test_the_torch_twin_agrees_with_float64(device):
    """Catches a twin that shares a mistake with its kernel: this one is checked on its own."""
    case = Case(EDGE_LENS, heads=(6, 2), device=device)
    out = paged_attention_reference(*case.decode_args())
    assert_matches(out, case.expected_decode(), torch.float32)


TABLES = {
    "descending": [[5, 4, 3], [2, 1, 0]],
    "shared prefix, different lengths": [[3, 1, 4], [3, 1, 2]],
    "same blocks, one sequence shorter": [[3, 1, 4], [3, 1, 4]],
    "one block for both": [[0, 1, 2], [0, 1, 2]],
    "block 0 unused": [[1, 2, 3], [4, 5, 6]],
}


@pytest.mark.parametrize("name", TABLES)
def test_blocks_may_lie_anywhere_and_be_shared(name, device):
    """Catches a kernel that assumes ascending or private blocks, as a contiguous cache would have."""
    case = Case([45, 38], tables=TABLES[name], num_blocks=8, device=device)
    out = paged_attention(*case.decode_args(), tiles=TILE)
    assert_matches(out, case.expected_decode(), torch.float32)


@pytest.mark.parametrize("heads", [(1, 1), (3, 1), (9, 3), (8, 2), (8, 1), (5, 1), (16, 1), (71, 1)], ids=str)
def test_any_number_of_query_heads_per_kv_head(heads, device):
    """Catches a group that is padded, cut or mapped wrongly: 5 and 71 heads fill no power of two."""
    case = Case([20, 33], heads=heads, device=device)
    out = paged_attention(*case.decode_args(), num_splits=2, tiles=TILE)
    assert_matches(out, case.expected_decode(), torch.float32)


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128, 256])
def test_any_head_dim_with_nan_beside_each_row(head_dim, device):
    """Catches a lane beyond D that is loaded unmasked: the neighbours of each row are NaN."""
    case = Case([20, 33], head_dim=head_dim, device=device)
    wide = [torch.full((*t.shape[:-1], 512), math.nan, device=device) for t in case.decode_args()[:3]]
    for view, tensor in zip(wide, case.decode_args()[:3], strict=True):
        view[..., :head_dim] = tensor
    views = [view[..., :head_dim] for view in wide]
    tiles = TILE if head_dim <= 64 else SMALL_TILE
    out = paged_attention(*views, *case.decode_args()[3:], num_splits=2, tiles=tiles)
    assert_matches(out, case.expected_decode(), torch.float32)


def test_query_and_cache_may_be_views_with_different_strides(device):
    """Catches a stride of one tensor used for another: a slice of fused qkv, one layer of (L, 2, ...)."""
    case = Case([20, 33], heads=(4, 2), device=device)
    qkv = torch.randn(2, 4 + 2 + 2, 64, device=device)
    qkv[:, :4] = case.decode_query
    layers = torch.full((3, 2, *case.key_cache.shape), math.nan, device=device)
    layers[1, 0] = case.key_cache
    args = (qkv[:, :4], layers[1, 0], case.value_cache, *case.decode_args()[3:])
    assert_matches(paged_attention(*args, tiles=TILE), case.expected_decode(), torch.float32)
    assert_matches(paged_attention_naive(*args), case.expected_decode(), torch.float32)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_index_tensors_may_be_32_or_64_bits(dtype, device):
    """Catches a kernel that reads an int64 table as int32 pairs."""
    case = Case([20, 33], device=device)
    query, key_cache, value_cache, tables, lens, scale = case.decode_args()
    out = paged_attention(query, key_cache, value_cache, tables.to(dtype), lens.to(dtype), scale, tiles=TILE)
    assert_matches(out, case.expected_decode(), torch.float32)


def test_all_numbers_of_splits_agree(device):
    """Catches a merge that weighs parts wrongly, and splits without tokens: 16 splits of at most 10 tiles."""
    case = Case([1, 17, 150], heads=(4, 1), device=device)
    outs = [
        paged_attention(*case.decode_args(), num_splits=splits, tiles=SMALL_TILE)
        for splits in (1, 2, 3, 8, 16)
    ]
    for out in outs[1:]:
        assert (out - outs[0]).abs().max() < 2e-6
    assert (outs[0][:, :1] - outs[0][:, 1:]).abs().max() > 0.1  # and they are not all the same by accident


@pytest.mark.parametrize("block_n", [16, 32, 64, 128])
@pytest.mark.parametrize("block_size", [8, 16, 64])
def test_tile_size_and_block_size_are_independent(block_n, block_size, device):
    """Catches a kernel that needs whole blocks in a tile or whole tiles in a block."""
    if block_n == 128 and 0 < chip_of(device).capability < 80:
        pytest.skip("128 keys in float32 do not fit into the shared memory of this chip")
    case = Case([70, 130], heads=(2, 1), block_size=block_size, device=device)
    out = paged_attention(*case.decode_args(), tiles=Tiles(16, block_n, 4, 2))
    assert_matches(out, case.expected_decode(), torch.float32)


def test_a_block_size_that_is_no_power_of_two_works(device):
    """Catches arithmetic by shifts, which would be right for 16 and wrong for 12."""
    case = Case([11, 12, 13, 70], heads=(2, 1), block_size=12, device=device)
    out = paged_attention(*case.decode_args(), tiles=SMALL_TILE)
    assert_matches(out, case.expected_decode(), torch.float32)
    assert_matches(paged_attention_naive(*case.decode_args()), case.expected_decode(), torch.float32)


def test_scores_of_ten_thousand_do_not_overflow(device):
    """Catches a softmax without the maximum subtracted: exp(10000) is infinite, and inf / inf NaN."""
    case = Case([40, 70], heads=(2, 1), device=device)
    case.query *= 1e4
    largest = torch.einsum("thd,nhd->htn", case.decode_query[1:].double().cpu(), case.contiguous_kv(1)[0])
    assert largest.abs().max() * case.scale > 1e4
    for num_splits in (1, 2):
        out = paged_attention(*case.decode_args(), num_splits=num_splits, tiles=SMALL_TILE)
        assert_matches(out, case.expected_decode(), torch.float32)


def test_a_query_of_zeros_averages_the_values(device):
    """Catches a wrong normaliser: equal scores must give the plain mean, for any keys."""
    case = Case([37, 64], heads=(2, 1), device=device)
    case.query.zero_()
    out = paged_attention(*case.decode_args(), num_splits=2, tiles=SMALL_TILE)
    mean = torch.stack([case.contiguous_kv(r)[1].mean(0).expand(2, -1) for r in range(2)])
    assert_matches(out, mean, torch.float32)


def test_one_dominant_key_returns_its_value(device):
    """Catches acc rescaled by the wrong factor: the maximum comes late, in the last tile."""
    case = Case([60], heads=(1, 1), device=device)
    block, offset = case.tables[0][3], 10  # position 58
    case.key_cache[block, offset] = 100 * case.decode_query[0]
    out = paged_attention(*case.decode_args(), tiles=SMALL_TILE)
    assert_matches(out, case.value_cache[block, offset].double().cpu()[None], torch.float32)


def test_a_sequence_alone_and_in_a_batch_is_the_same_to_the_last_bit(device):
    """Catches a result that depends on the neighbours, which makes greedy decoding irreproducible."""
    case = Case([150, 17, 40], device=device)
    query, key_cache, value_cache, tables, lens, scale = case.decode_args()
    together = paged_attention(
        query, key_cache, value_cache, tables, lens, scale, num_splits=2, tiles=SMALL_TILE
    )
    again = paged_attention(
        query, key_cache, value_cache, tables, lens, scale, num_splits=2, tiles=SMALL_TILE
    )
    assert torch.equal(together, again)
    for r in range(3):
        row = slice(r, r + 1)
        alone = paged_attention(
            query[row],
            key_cache,
            value_cache,
            tables[row],
            lens[row],
            scale,
            num_splits=2,
            tiles=SMALL_TILE,
        )
        assert torch.equal(alone, together[row])


def test_an_empty_batch_returns_before_the_launch(device):
    """Catches a launch with an empty grid, which CUDA refuses."""
    case = Case([20], device=device)
    query, key_cache, value_cache, tables, lens, scale = case.decode_args()
    for kernel in (paged_attention, paged_attention_naive):
        out = kernel(query[:0], key_cache, value_cache, tables[:0], lens[:0], scale)
        assert out.shape == (0, 4, 64)


def test_a_batch_of_empty_sequences_gives_zeros(device):
    """Catches 0 / 0 in the merge of splits that are all empty, and a table of width 0."""
    case = Case([20], device=device)
    query = torch.randn(2, 4, 64, device=device)
    tables = torch.zeros(2, 0, dtype=torch.int32, device=device)
    lens = torch.zeros(2, dtype=torch.int32, device=device)
    for num_splits in (1, 4):
        out = paged_attention(
            query, case.key_cache, case.value_cache, tables, lens, case.scale, num_splits=num_splits
        )
        assert torch.all(out == 0)


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    lens=st.lists(st.integers(0, 100), min_size=1, max_size=3),
    group=st.integers(1, 6),
    num_kv_heads=st.integers(1, 2),
    head_dim=st.sampled_from([16, 24, 40, 64]),
    block_size=st.sampled_from([1, 4, 16, 32]),
    num_splits=st.integers(1, 4),
)
def test_random_shapes_match_float64(lens, group, num_kv_heads, head_dim, block_size, num_splits):
    """Catches what was not thought of: any combination the contract allows."""
    torch.manual_seed(sum(lens))
    case = Case(
        lens,
        heads=(group * num_kv_heads, num_kv_heads),
        head_dim=head_dim,
        block_size=block_size,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    out = paged_attention(*case.decode_args(), num_splits=num_splits, tiles=TILE)
    assert_matches(out, case.expected_decode(), torch.float32)
