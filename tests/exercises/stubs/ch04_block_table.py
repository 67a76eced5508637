"""Chapter 4: the block table.

Write the three pieces of bookkeeping that turn a pile of equal blocks into memory for sequences that grow:
how many blocks, which block next, and giving them back. Everything is plain Python on integers:

    block_table   list[int]   physical block numbers of one sequence, in logical order
    free_blocks   list[int]   physical blocks that no sequence holds; take from whichever end you like
    ref_counts    list[int]   ref_counts[b]: how many sequences hold block b

The example of the notebook: block_size 4, block_table [7, 2], 6 tokens. Positions count from 0; position p
lies in logical block p // 4 at offset p % 4, and its slot is block_table[p // 4] * 4 + p % 4.

    position      0   1   2   3 |  4   5
    slot         28  29  30  31 |  8   9

Replace each `raise NotImplementedError(...)`. Check with   python -m minivllm.course check ex04a
or, in the notebook, with   %check ex04a.
"""


def blocks_needed(num_tokens: int, block_size: int) -> int:
    """ex04a. How many blocks hold `num_tokens` tokens.

    Examples with block_size 4: 0 tokens need 0 blocks, 1 needs 1, 4 need 1, 5 need 2, 8 need 2.

    Args:
        num_tokens: 0 or more.
        block_size: tokens per block, 1 or more.
    """
    raise NotImplementedError("ex04a")


def append_tokens(
    block_table: list[int], num_tokens: int, num_new_tokens: int, free_blocks: list[int], block_size: int
) -> list[int]:
    """ex04b. Make room for the next tokens of a sequence and say in which slots they go.

    The table may have room left in its last block; only when that block is full, take one from `free_blocks` (and
    remove it there) and add it to the end of `block_table`. Do not take a block before it is needed.
    A prompt and a single new token are the same case.

    Example: block_size 4, block_table [7, 2], 6 tokens, 3 new ones, free_blocks [5, 0].
    Positions 6 and 7 fit into block 2, position 8 needs a new block, say 5:
    returns [10, 11, 20]; block_table is [7, 2, 5] and free_blocks is [0].

    Args:
        block_table: changed in place.
        num_tokens: tokens the sequence has in its blocks already. They fill the table from the front.
        num_new_tokens: 0 or more.
        free_blocks: changed in place.
        block_size: tokens per block.

    Returns:
        One slot for each new token, in order.

    Raises:
        ValueError: there are not enough free blocks. Neither list has changed then, not even in its order.
    """
    raise NotImplementedError("ex04b")


def free(block_table: list[int], free_blocks: list[int], ref_counts: list[int]) -> None:
    """ex04c. Give back all blocks of a sequence.

    Each block of the table loses one holder. A block without holders joins `free_blocks`; a block that another
    sequence still holds does not. Afterwards `block_table` is empty.

    Example: block_table [7, 2], free_blocks [5], ref_counts[7] == 2, ref_counts[2] == 1. Afterwards
    ref_counts[7] == 1, ref_counts[2] == 0, and free_blocks holds 5 and 2, in any order.

    Raises:
        ValueError: a block of the table has no holder, so it is free already. Nothing has changed then, not
            even the order of the lists.
    """
    raise NotImplementedError("ex04c")
