"""Chapter 5: the paged KV cache.

Chapter 4 gave each sequence a block table. Here the K and V of its tokens follow the table: into their slots, and
back out in the order of the text. Shapes:

    B blocks, S block_size, Hkv KV heads, D head_dim, R sequences in the batch
    key_cache      (B, S, Hkv, D)   one layer's keys; slot s is key_cache[s // S, s % S]
    block_tables   (R, max_blocks)  int32; row r names the blocks of sequence r, padded with 0 at its end
    seq_lens       (R,)             int32; tokens of each sequence that are in the cache

Replace each `raise NotImplementedError(...)`. Check with   python -m minivllm.course check ex05a
or, in the notebook, with   %check ex05a.
"""

from torch import Tensor


def slot_mapping(block_table: list[int], start: int, end: int, block_size: int) -> list[int]:
    """ex05a. The slots of positions start, start + 1, ..., end - 1 of one sequence.

    Positions count from 0. Position p lies in logical block p // block_size at offset p % block_size; the slot
    is the physical block's number times block_size, plus the offset.

    Example: slot_mapping([7, 2], 0, 6, block_size=4) == [28, 29, 30, 31, 8, 9], a prompt of 6 tokens;
    slot_mapping([7, 2], 6, 7, block_size=4) == [10], the first token generated after it.

    Args:
        block_table: physical block numbers in logical order. It covers position end - 1, and may go on behind
            that position. Not changed.
        start: first position.
        end: one past the last position.
        block_size: tokens per block.
    """
    # BEGIN SOLUTION ex05a
    from minivllm.block_pool import KVCacheBlock
    from minivllm.block_table import BlockTable

    return BlockTable(block_size, [KVCacheBlock(block_id) for block_id in block_table]).slots(start, end)
    # END SOLUTION


def gather_kv(key_cache: Tensor, block_tables: Tensor, seq_lens: Tensor) -> Tensor:
    """ex05b. Read the keys of all sequences out of the blocks, in the order of the text.

    The result is packed: the tokens of sequence 0, then those of sequence 1, and so on, without padding. Slots
    behind the end of a sequence hold old data, even NaN, of which nothing may appear.

    Example: block_size 4, block_tables [[7, 2], [5, 0]], seq_lens [6, 3]: the result has 9 rows, from slots
    28, 29, 30, 31, 8, 9, then 20, 21, 22. (The 0 in the second table is padding. But block 0 is a block like
    any other: only seq_lens says which entries count.)

    The engine calls this function for the values, too. A loop over the sequences is fine; one over tokens is slow.

    Args:
        key_cache: (B, S, Hkv, D), of any dtype. Not changed.
        block_tables: (R, max_blocks) int32. Not changed.
        seq_lens: (R,) int32, 0 or more. Not changed.

    Returns:
        (sum of seq_lens, Hkv, D), in the dtype of key_cache.
    """
    # BEGIN SOLUTION ex05b
    from minivllm.block_pool import KVCacheBlock
    from minivllm.block_table import BlockTable

    slots = []
    for table, seq_len in zip(block_tables.tolist(), seq_lens.tolist(), strict=True):
        blocks = [KVCacheBlock(block_id) for block_id in table]
        slots += BlockTable(key_cache.shape[1], blocks).slots(0, seq_len)
    return key_cache.flatten(0, 1)[slots]
    # END SOLUTION


def block_size_sweep(num_tokens: list[int], block_sizes: list[int]) -> dict[int, tuple[int, int]]:
    """ex05c. What a block size costs: empty slots on one side, long tables on the other.

    For each block size: (empty slots in the blocks held, entries in all block tables), for sequences that hold
    `num_tokens[i]` tokens each and share nothing. An empty slot is one in a block that a sequence holds.

    Example: block_size_sweep([6, 3], [1, 4, 16]) == {1: (0, 9), 4: (3, 3), 16: (23, 2)}.

    Args:
        num_tokens: 0 or more tokens for each sequence. Without tokens a sequence holds no block.
        block_sizes: the sizes to compare.
    """
    # BEGIN SOLUTION ex05c
    from minivllm.kv_cache_manager import KVCacheManager
    from minivllm.sequence import Sequence

    result = {}
    for block_size in block_sizes:
        kv = KVCacheManager(sum(num_tokens) + 1, block_size, enable_prefix_caching=False)
        for seq_id, count in enumerate(num_tokens):
            kv.allocate_slots([(Sequence(seq_id, [0] * count, seed=0), count)])
        result[block_size] = (kv.pool.num_used * block_size - sum(num_tokens), kv.pool.num_used)
    return result
    # END SOLUTION
