"""Launch choices, which are plain functions: no GPU is needed to check them."""

import itertools

import pytest
import torch

from minivllm.kernels.heuristics import (
    MAX_SPLITS,
    MIN_TOKENS_PER_SPLIT,
    Chip,
    choose_num_splits,
    decode_tiles,
    prefill_tiles,
)

H100 = Chip(capability=90, num_sms=132)
CHIPS = [Chip(0, 1), Chip(75, 40), Chip(80, 108), Chip(86, 84), Chip(89, 128), H100, Chip(120, 170)]


def test_the_examples_in_the_docstring():
    """Catches a docstring whose numbers are not what the function returns."""
    assert choose_num_splits(H100, num_programs=64 * 8, max_tokens=4096) == 1
    assert choose_num_splits(H100, num_programs=16 * 8, max_tokens=4096) == 4
    assert choose_num_splits(H100, num_programs=1 * 8, max_tokens=16384) == 32


def test_splits_fill_the_chip_and_not_more():
    """Catches a comparison the wrong way round: too many programs, parts too short, or an idle chip."""
    for chip, programs, tokens in itertools.product(CHIPS, [1, 3, 8, 100, 128, 600], [1, 256, 4096, 131072]):
        splits = choose_num_splits(chip, programs, tokens)
        assert splits & (splits - 1) == 0 and 1 <= splits <= MAX_SPLITS
        assert splits == 1 or programs * splits <= 4 * chip.num_sms
        assert splits == 1 or tokens / splits >= MIN_TOKENS_PER_SPLIT
        enough = programs * splits * 2 > 4 * chip.num_sms
        assert enough or splits == MAX_SPLITS or tokens < 2 * splits * MIN_TOKENS_PER_SPLIT


def test_short_sequences_are_not_split():
    """Catches a merge that costs a second launch for 100 tokens."""
    assert choose_num_splits(H100, num_programs=3, max_tokens=511) == 1
    assert choose_num_splits(H100, num_programs=3, max_tokens=512) == 2


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: f"sm_{chip.capability}")
def test_tiles_are_what_triton_can_compile(chip):
    """Catches a tile that tl.arange or tl.dot refuses: no power of two, or fewer than 16."""
    for head_dim, size, mean in itertools.product([16, 64, 80, 128, 256], [2, 4], [1, 100, 5000]):
        for tiles in (decode_tiles(chip, head_dim, size), prefill_tiles(chip, head_dim, size, mean)):
            for block in (tiles.block_m, tiles.block_n):
                assert block >= 16 and block & (block - 1) == 0
            assert tiles.num_warps in (1, 2, 4, 8) and tiles.num_stages >= 1


def test_the_buffered_tiles_fit_into_shared_memory_by_arithmetic():
    """Catches a choice that is too large before anything is compiled: K and V tile, and the queries."""
    limits = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 120: 99}  # KiB a program
    for chip, head_dim, size in itertools.product(CHIPS[1:], [64, 80, 128, 256], [2, 4]):
        row = 128 if head_dim == 80 else head_dim
        for mean in (1, 100, 5000):
            tiles = prefill_tiles(chip, head_dim, size, mean)
            needed = (2 * tiles.block_n + tiles.block_m) * row * size
            assert needed <= limits[chip.capability] * 1024


def test_longer_queries_get_more_rows():
    """Catches prefill tiles that ignore how many queries share a key tile."""
    rows = [prefill_tiles(H100, 128, 2, mean).block_m for mean in (1, 4, 5, 255, 256, 4096)]
    assert rows == [16, 16, 64, 64, 128, 128]


def test_choosing_does_not_touch_a_device():
    """Catches a heuristic that asks the GPU (and waits for it) although the chip is an argument."""
    initialized = torch.cuda.is_initialized()
    choose_num_splits(H100, 8, 4096)
    decode_tiles(H100, 128, 2)
    assert torch.cuda.is_initialized() == initialized
