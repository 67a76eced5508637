"""`course.loads`: what a kernel has read, told from the addresses of its loads."""

import torch

from minivllm.course.loads import record
from minivllm.kernels.heuristics import Tiles
from minivllm.kernels.paged_attention import paged_attention, paged_attention_naive


def test_every_key_is_seen_where_it_lies_and_as_often_as_it_is_loaded():
    """Would catch a row counted once for each of its numbers, one of the wrong cache, or a masked one."""
    key, value = torch.randn(2, 5, 4, 2, 16)  # 5 blocks of 4 slots, 2 KV heads
    arguments = torch.randn(1, 4, 16), key, value, torch.tensor([[3, 1]]), torch.tensor([6]), 0.25
    # Positions 0..3 in block 3, 4 and 5 in block 1; each slot holds a row for each KV head.
    rows = {(block * 4 + slot) * 2 + head for block, slot in
            ((3, 0), (3, 1), (3, 2), (3, 3), (1, 0), (1, 1)) for head in range(2)}  # fmt: skip
    output, naive = record(paged_attention_naive, *arguments)
    for name in "KV":
        assert {row for _, _, row in naive[name]} == rows
        assert len(naive[name]) == 2 * len(rows)  # two query heads share a KV head, and each loads for itself
        assert {turn for _, turn, _ in naive[name]} == {0, 1}  # a block a turn
    assert {program for program, _, _ in naive["K"]} == {(0, head, 0) for head in range(4)}
    again, grouped = record(paged_attention, *arguments, num_splits=1, tiles=Tiles(16, 16, 4, 1))
    assert len(grouped["K"]) == len(grouped["V"]) == len(rows)
    assert {turn for _, turn, _ in grouped["K"]} == {0}  # both blocks in one turn
    torch.testing.assert_close(output, again)
    assert torch.equal(output, paged_attention_naive(*arguments))  # watching changes nothing
