"""Prefill attention against float64: packed batches of fresh prompts, chunks with context, decode rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.kernels.heuristics import Tiles
from minivllm.kernels.paged_attention import paged_attention
from minivllm.kernels.prefill_attention import prefill_attention, prefill_attention_reference
from tests.kernels.attention_case import DTYPES, Bug, Case, assert_matches

# A kernel that computes inf - inf or 0 / 0 in a row it then masks is a warning in the interpreter.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

TILE = Tiles(block_m=64, block_n=64, num_warps=4, num_stages=2)
SMALL_TILE = Tiles(block_m=16, block_n=16, num_warps=4, num_stages=2)  # fits into every chip at any head_dim
# Decode rows, fresh prompts, chunks with context, an empty sequence; boundaries of S = 16 and BLOCK_N = 64.
MIXED_LENS = [1, 16, 17, 37, 33, 0, 65, 150]
MIXED_QUERY_LENS = [1, 16, 17, 5, 1, 0, 64, 23]


def mixed_case(**options) -> Case:
    """The mixed batch that most tests use."""
    return Case(MIXED_LENS, MIXED_QUERY_LENS, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)], ids=str)
def test_a_mixed_batch_matches_float64(dtype, heads, device):
    """Catches an error in the causal bound, the context, or which tile belongs to which sequence."""
    case = mixed_case(dtype=dtype, heads=heads, device=device)
    assert_matches(prefill_attention(*case.prefill_args(), tiles=TILE), case.expected_prefill(), dtype)


@pytest.mark.parametrize("bug", list(Bug), ids=lambda bug: bug.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_tolerance_rejects(bug, dtype):
    """Negative control: the mixed batch shows each known mistake to the assertion used on the kernel."""
    case = mixed_case(dtype=dtype)
    with pytest.raises(AssertionError, match="largest error"):
        assert_matches(case.expected_prefill(bug=bug).to(dtype), case.expected_prefill(), dtype)


def test_the_heuristics_own_choice_is_right(device):
    """Catches a launch configuration that only the tests' tiles hide: nothing is passed but the contract."""
    case = mixed_case(heads=(9, 3), device=device)
    assert_matches(prefill_attention(*case.prefill_args()), case.expected_prefill(), torch.float32)


def test_the_torch_twin_agrees_with_float64(device):
    """Catches a twin that shares a mistake with its kernel: this one is checked on its own."""
    case = mixed_case(device=device)
    assert_matches(prefill_attention_reference(*case.prefill_args()), case.expected_prefill(), torch.float32)


def test_small_tiles_cut_queries_anywhere(device):
    """Catches a tile that starts in the wrong query: 16 rows hold 5 tokens of 3 heads, one row nothing."""
    case = Case([40, 23, 7], [17, 23, 6], heads=(3, 1), device=device)
    assert_matches(
        prefill_attention(*case.prefill_args(), tiles=SMALL_TILE), case.expected_prefill(), torch.float32
    )


def test_chunks_equal_one_shot_equal_token_by_token(device):
    """Catches a context that is off by one, which a test of each case alone can share with its oracle."""
    n = 40
    whole = Case([n], [n], heads=(3, 1), device=device)
    query, key_cache, value_cache, table, _, _, scale = whole.prefill_args()

    def run(start: int, end: int) -> torch.Tensor:
        lens = torch.tensor([end], dtype=torch.int32, device=device)
        starts = torch.tensor([0, end - start], dtype=torch.int32, device=device)
        args = (query[start:end], key_cache, value_cache, table, lens, starts, scale)
        return prefill_attention(*args, tiles=SMALL_TILE)

    one_shot = run(0, n)
    chunked = torch.cat([run(0, 17), run(17, 33), run(33, n)])
    lens = torch.arange(1, n + 1, dtype=torch.int32, device=device)
    decoded = paged_attention(
        query, key_cache, value_cache, table.expand(n, -1), lens, scale, tiles=TILE, num_splits=1
    )
    assert_matches(one_shot, whole.expected_prefill(), torch.float32)
    assert (chunked - one_shot).abs().max() < 5e-6
    assert (decoded - one_shot).abs().max() < 5e-6


@pytest.mark.parametrize("heads", [(1, 1), (5, 1), (8, 2), (16, 1), (71, 1)], ids=str)
def test_any_number_of_query_heads_per_kv_head(heads, device):
    """Catches a group that is padded, cut or mapped wrongly: 71 heads are more than a tile has rows."""
    case = Case([20, 33], [20, 3], heads=heads, device=device)
    out = prefill_attention(*case.prefill_args(), tiles=TILE)
    assert_matches(out, case.expected_prefill(), torch.float32)


@pytest.mark.parametrize("head_dim", [16, 80, 96, 256])
def test_any_head_dim_with_nan_beside_each_row(head_dim, device):
    """Catches a lane beyond D that is loaded unmasked: the neighbours of each row are NaN."""
    case = Case([20, 33], [20, 3], head_dim=head_dim, device=device)
    wide = [torch.full((*t.shape[:-1], 512), math.nan, device=device) for t in case.prefill_args()[:3]]
    for view, tensor in zip(wide, case.prefill_args()[:3], strict=True):
        view[..., :head_dim] = tensor
    views = [view[..., :head_dim] for view in wide]
    tiles = TILE if head_dim <= 64 else SMALL_TILE
    out = prefill_attention(*views, *case.prefill_args()[3:], tiles=tiles)
    assert_matches(out, case.expected_prefill(), torch.float32)


def test_query_and_cache_may_be_views_with_different_strides(device):
    """Catches a stride of one tensor used for another: a slice of fused qkv, one layer of (L, 2, ...)."""
    case = Case([20, 33], [20, 3], heads=(4, 2), device=device)
    qkv = torch.randn(23, 4 + 2 + 2, 64, device=device)
    qkv[:, :4] = case.query
    layers = torch.full((3, 2, *case.key_cache.shape), math.nan, device=device)
    layers[1, 0] = case.key_cache
    args = (qkv[:, :4], layers[1, 0], case.value_cache, *case.prefill_args()[3:])
    assert_matches(prefill_attention(*args, tiles=TILE), case.expected_prefill(), torch.float32)


def test_two_prompts_may_share_their_prefix_blocks(device):
    """Catches a kernel that assumes private blocks: both sequences read blocks 3 and 1."""
    case = Case([45, 38], [13, 6], tables=[[3, 1, 4], [3, 1, 2]], num_blocks=8, device=device)
    out = prefill_attention(*case.prefill_args(), tiles=TILE)
    assert_matches(out, case.expected_prefill(), torch.float32)


def test_scores_of_ten_thousand_do_not_overflow(device):
    """Catches a softmax without the maximum subtracted."""
    case = Case([40, 33], [20, 3], heads=(2, 1), device=device)
    case.query *= 1e4
    out = prefill_attention(*case.prefill_args(), tiles=SMALL_TILE)
    assert_matches(out, case.expected_prefill(), torch.float32)


def test_tokens_of_no_sequence_get_zeros(device):
    """Catches rows left uninitialised: a batch padded to more tokens than query_start_loc covers."""
    case = Case([20, 33], [20, 3], heads=(2, 1), device=device)
    query, *rest = case.prefill_args()
    padded = torch.cat([query, torch.full_like(query[:9], math.nan)])
    out = prefill_attention(padded, *rest, tiles=TILE)
    assert_matches(out[:23], case.expected_prefill(), torch.float32)
    assert torch.all(out[23:] == 0)


def test_many_sequences_find_their_tiles(device):
    """Catches the search for a tile's sequence: 70 sequences, some empty, are more than the 64 lanes of most."""
    query_lens = [(7 * r) % 4 for r in range(70)]
    case = Case(
        [n + r % 3 for r, n in enumerate(query_lens)], query_lens, heads=(1, 1), head_dim=16, device=device
    )
    out = prefill_attention(*case.prefill_args(), tiles=SMALL_TILE)
    assert_matches(out, case.expected_prefill(), torch.float32)


def test_an_empty_batch_returns_before_the_launch(device):
    """Catches a launch with an empty grid, which CUDA refuses."""
    case = Case([20], [20], device=device)
    query, key_cache, value_cache, tables, lens, starts, scale = case.prefill_args()
    out = prefill_attention(query[:0], key_cache, value_cache, tables[:0], lens[:0], starts[:1], scale)
    assert out.shape == (0, 4, 64)


def test_a_sequence_alone_and_in_a_batch_is_the_same_to_the_last_bit(device):
    """Catches a result that depends on the neighbours, which makes greedy decoding irreproducible."""
    case = Case([40, 50], [16, 32], heads=(2, 1), device=device)
    together = prefill_attention(*case.prefill_args(), tiles=TILE)
    query, key_cache, value_cache, tables, lens, _, scale = case.prefill_args()
    starts = torch.tensor([0, 32], dtype=torch.int32, device=device)
    alone = prefill_attention(
        query[16:], key_cache, value_cache, tables[1:], lens[1:], starts, scale, tiles=TILE
    )
    assert torch.equal(alone, together[16:])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    sequences=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60)), min_size=1, max_size=3),
    group=st.integers(1, 6),
    num_kv_heads=st.integers(1, 2),
    head_dim=st.sampled_from([16, 24, 40, 64]),
    block_size=st.sampled_from([1, 4, 16, 32]),
)
def test_random_shapes_match_float64(sequences, group, num_kv_heads, head_dim, block_size):
    """Catches what was not thought of: any combination of (queries, context) the contract allows."""
    torch.manual_seed(len(sequences))
    case = Case(
        [queries + context for queries, context in sequences],
        [queries for queries, _ in sequences],
        heads=(group * num_kv_heads, num_kv_heads),
        head_dim=head_dim,
        block_size=block_size,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    out = prefill_attention(*case.prefill_args(), tiles=TILE)
    assert_matches(out, case.expected_prefill(), torch.float32)
