"""The block table: where the tokens of one sequence live.

A sequence sees its KV cache as one unbroken line of positions 0, 1, 2, ... Memory holds it in blocks of
`block_size` tokens, anywhere. The table has one entry for each logical block and names the physical block
behind it, exactly as a page table maps virtual pages to frames::

    block_size = 4, a prompt of 6 tokens            physical memory, one row per block

    position         0  1  2  3 | 4  5              block 2  [ 4  5  .  . ]   slots  8 ..11
    logical block    0          | 1                 ...
    block table    [ 7          , 2 ]               block 7  [ 0  1  2  3 ]   slots 28 ..31

    slot(position) = table[position // 4] * 4 + position % 4:   28 29 30 31 | 8 9

A *slot* is the place of one token's K and V in a layer: block number times block size plus offset. The
token at position 6 will go to slot 10 with no allocation at all; position 8 is the first to need a new
block. Waste is therefore at most the unfilled rest of the last block, less than `block_size` slots.

Paper: section 4.2 and Figure 6. vLLM V1: `vllm/v1/worker/block_table.py`, and the lists in
`vllm/v1/core/single_type_kv_cache_manager.py` (`req_to_blocks`).
"""

from __future__ import annotations

from minivllm.block_pool import KVCacheBlock


def cdiv(numerator: int, denominator: int) -> int:
    """Division rounded up: how many blocks of `denominator` tokens hold `numerator` tokens.

    Example: cdiv(6, 4) == 2, cdiv(8, 4) == 2, cdiv(9, 4) == 3, cdiv(0, 4) == 0.
    """
    return -(-numerator // denominator)


class BlockTable:
    """The physical blocks of one sequence, in logical order.

    It does arithmetic only: to take and to return blocks is `KVCacheManager`'s business.
    """

    def __init__(self, block_size: int, blocks: list[KVCacheBlock] | None = None) -> None:
        self.block_size = block_size
        self.blocks: list[KVCacheBlock] = [] if blocks is None else blocks

    def __len__(self) -> int:
        """Number of blocks (not tokens)."""
        return len(self.blocks)

    @property
    def block_ids(self) -> tuple[int, ...]:
        """Physical block numbers in logical order: what the attention kernel walks."""
        return tuple(block.block_id for block in self.blocks)

    def slot(self, position: int) -> int:
        """Physical slot of the token at `position` (0-based).

        Raises:
            IndexError: no block has been allocated for that position.
        """
        if not 0 <= position < len(self.blocks) * self.block_size:
            raise IndexError(
                f"position {position} has no block: the table covers positions "
                f"[0, {len(self.blocks) * self.block_size})."
            )
        block = self.blocks[position // self.block_size]
        return block.block_id * self.block_size + position % self.block_size

    def slots(self, start: int, end: int) -> list[int]:
        """Slots of positions [start, end). Example above: slots(0, 6) == [28, 29, 30, 31, 8, 9]."""
        return [self.slot(position) for position in range(start, end)]

    def num_missing_blocks(self, num_tokens: int) -> int:
        """Blocks to add before `num_tokens` tokens fit. Never negative.

        This subtraction is the whole allocation rule. It needs no case for "the last block is just full".
        """
        return max(0, cdiv(num_tokens, self.block_size) - len(self.blocks))
