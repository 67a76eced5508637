"""Chapter 9: sharing blocks.

Two sequences may hold one block as long as neither writes into it. Write the three pieces that make this safe:
names by which equal blocks are found, a copy before the first write into a shared block, and the order in which
blocks that no sequence holds are overwritten.

Replace each `raise NotImplementedError(...)`. Check with   python -m minivllm.course check ex09a
or, in the notebook, with   %check ex09a.
"""

from collections.abc import Hashable
from dataclasses import dataclass


def block_names(token_ids: list[int], block_size: int) -> list[Hashable]:
    """ex09a. A name for the content of each full block of a sequence, in order.

    K and V of a token depend on all tokens before it. So the name of block i stands for the tokens of block i
    *and all before them*, the first (i + 1) * block_size of the sequence. Two names for one block_size, of two
    sequences or of one, are equal exactly if they stand for the same tokens in the same order. A block that is not
    full has no name: it is still written to.

    Example, block_size 4: `a = block_names([0, 1, 2, 3, 4, 5], 4)` has one name, and
    `b = block_names([0, 1, 2, 3, 9, 9, 9, 9], 4)` has two; a[0] == b[0].
    `c = block_names([7, 7, 7, 7, 9, 9, 9, 9], 4)`: c[0] != b[0], and c[1] != b[1] as well, because
    the same four tokens follow another beginning.

    Any names will do that can be compared and be keys of a dictionary. "Equal exactly if" is meant: there are more
    blocks than 16 or 32 bits have numbers, and if two blocks share a name, one prompt gets the text of another. Nor
    is Python's `hash` of the tokens a name: it has 64 bits, but two prompts with the same one can be worked out.
    The engine uses `hashlib.sha256` of the parent's name and the tokens: 32 bytes per block, also for a long
    sequence. Equal sequences must get equal names in every call.

    Args:
        token_ids: 0 or more token ids, each in [0, 2**31). Not changed.
        block_size: tokens per block, 1 or more.
    """
    raise NotImplementedError("ex09a")


@dataclass
class SharedBlocks:
    """ex09b. The block tables of sequences that may share blocks. Write both methods, `fork` and `append`.

    tables         sequence id -> its physical blocks, in logical order
    ref_counts     ref_counts[b]: in how many tables block b stands
    free_blocks    blocks that stand in no table; take from whichever end you like
    block_size     tokens per block

    The example of the notebook, block_size 4, a prompt of 6 tokens:

                                   tables                   ref_counts[7], [2], [4]   free_blocks
    at first                       {0: [7, 2]}              1  1  0                   [4, 1]
    fork(0, 1)                     {0: [7, 2], 1: [7, 2]}   2  2  0                   [4, 1]
    append(0, 6) == (18, (2, 4))   {0: [7, 4], 1: [7, 2]}   2  1  1                   [1]
    append(1, 6) == (10, None)     the same: block 2 has one holder now, which may write there
    """

    tables: dict[int, list[int]]
    ref_counts: list[int]
    free_blocks: list[int]
    block_size: int

    def fork(self, parent: int, child: int) -> list[int]:
        """Let `child`, a new sequence id, share every block of `parent`, the partly filled last one included.

        Nothing is copied and no block is taken. Afterwards each of the two has a table of its own: a block that
        one of them adds later must not appear in the other table.

        The last line, which returns the child's table, is given: keep it and put your code above it.
        """
        raise NotImplementedError("ex09b")
        return self.tables[child]

    def append(self, seq_id: int, position: int) -> tuple[int, tuple[int, int] | None]:
        """Make it safe to write the token at `position` of a sequence; say where it goes, and what to copy first.

        All positions before it have been written, none after it. There are three cases:
          - `position` opens a new block: take a free one and add it to the table. Nothing to copy.
          - its block is held by this sequence alone: write there. Nothing to copy.
          - its block is shared: take a free block, put it into this table in place of the shared one, and ask
            for a copy. The other holders keep the shared block.
        `ref_counts` and `free_blocks` follow in each case. The copy itself is made elsewhere.

        Returns:
            (slot, copy): the slot of `position` in the table as it is now, block * block_size + offset; and
            (source block, destination block), or None if nothing has to be copied.

        Raises:
            ValueError: a block is needed and none is free. Nothing has changed then.
        """
        raise NotImplementedError("ex09b")


def eviction_order(history: list[tuple[str, list[int]]], num_blocks: int) -> list[int]:
    """ex09c. The free blocks, in the order in which they will be overwritten.

    A block that no sequence holds keeps its content until it is taken for something else, so a later prompt with
    the same beginning may find it. Which should go first? The block that was last used longest ago. And of the
    blocks of one sequence the last goes first: a prefix is useless without its beginning, and fewer prompts share
    its end.

    In the beginning all blocks are free, in the order 0, 1, 2, ... Then, event by event:
      ("take", block_ids)  a sequence begins to hold these blocks. Each has one more holder. Some may be held by
                           others already; some may have been free: newly taken, or found again by content (a hit).
      ("free", block_ids)  a sequence gives back these blocks, listed in logical order (its beginning first).
                           Each has one holder less. The blocks without a holder are free again, and go behind
                           all blocks that were free before, the last logical block first.

    Example, 5 blocks:
      []                                                  [0, 1, 2, 3, 4]
      [("take", [0, 1, 2])]                               [3, 4]
      ... ("free", [0, 1, 2])                             [3, 4, 2, 1, 0]
      ... ("take", [0, 3])   a hit on block 0             [4, 2, 1]
      ... ("free", [0, 3])                                [4, 2, 1, 3, 0]

    Args:
        history: the events, oldest first. Not changed.
        num_blocks: blocks are numbered from 0 to num_blocks - 1.

    Returns:
        The blocks that no sequence holds after the last event, next to be overwritten first.
    """
    raise NotImplementedError("ex09c")
